"""Where the randomness of a release comes from: integer noise, coins and uniforms from one secret keystream."""

from privacy.noise.discrete import DiscreteGaussianTable, discrete_gaussian_table
from privacy.noise.skellam import SkellamTable, skellam_table
from privacy.noise.source import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.table_distance import delta_of_distance

__all__ = [
    "DiscreteGaussianTable",
    "NoiseSource",
    "ReproducibleNoise",
    "SecretNoise",
    "SkellamTable",
    "delta_of_distance",
    "discrete_gaussian_table",
    "skellam_table",
]
