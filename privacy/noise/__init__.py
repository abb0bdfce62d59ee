"""Where the randomness of a release comes from: integer noise, coins and uniforms from one secret keystream."""

from privacy.noise.discrete import DiscreteGaussianTable, delta_of_distance, discrete_gaussian_table
from privacy.noise.source import NoiseSource, ReproducibleNoise, SecretNoise

__all__ = [
    "DiscreteGaussianTable",
    "NoiseSource",
    "ReproducibleNoise",
    "SecretNoise",
    "delta_of_distance",
    "discrete_gaussian_table",
]
