"""What the samplers of noise can draw: limits that a plan is checked against, without loading a sampler."""

LARGEST_SCALE = 2.0**34
"""Largest deviation of rounded Gaussian noise, in steps (`privacy.noise.grid`): beyond it, one draw in a thousand would
need the slow way."""
