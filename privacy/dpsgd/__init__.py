"""Differentially private stochastic gradient descent (Abadi et al. 2016, arXiv 1607.00133)."""
