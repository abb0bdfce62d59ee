"""What a client releases: one file a mechanism, and the registry that reads them from JSON."""

from privacy.mechanisms.client_level import ClientLevel
from privacy.mechanisms.counts import NoisyCounts
from privacy.mechanisms.distributed import DiscreteGaussianSum, SkellamSum, rounded_sensitivity
from privacy.mechanisms.dp_sgd import DpSgd
from privacy.mechanisms.gaussian import Gaussian
from privacy.mechanisms.release import FromTables, Mechanism, Release, RenyiPriced, canonical, release_from_json

__all__ = [
    "ClientLevel",
    "DiscreteGaussianSum",
    "DpSgd",
    "FromTables",
    "Gaussian",
    "Mechanism",
    "NoisyCounts",
    "Release",
    "RenyiPriced",
    "SkellamSum",
    "canonical",
    "release_from_json",
    "rounded_sensitivity",
]
