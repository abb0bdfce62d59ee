"""Audits of a plan: simulations with canaries, and what comes of looking for them."""
