"""Search for settings: many runs of one plan on Ray Tune, and what the search itself costs in privacy."""
