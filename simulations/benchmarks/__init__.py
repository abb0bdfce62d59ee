"""What things cost: scripts that print one table each. `python -m simulations.benchmarks.NAME`."""
