"""Many clients on one machine or a Ray cluster: grids, scenarios, baselines."""
