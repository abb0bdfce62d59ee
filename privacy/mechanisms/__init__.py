"""What a client releases: one file a mechanism, and the registry that reads them from JSON."""

from privacy.mechanisms.client_level import ClientLevel
from privacy.mechanisms.correlated import BandedFactorisation
from privacy.mechanisms.counts import NoisyCounts, NoisyTable
from privacy.mechanisms.distributed import DiscreteGaussianSum, SkellamSum
from privacy.mechanisms.dp_sgd import DpSgd
from privacy.mechanisms.gaussian import Gaussian
from privacy.mechanisms.histograms import NoisyHistograms
from privacy.mechanisms.noisy_sum import NoisySum, rounded_sensitivity
from privacy.mechanisms.release import FromTables, Mechanism, Release, RenyiPriced, canonical, release_from_json
from privacy.mechanisms.rounded_gaussian import LEAST_SHARE as LEAST_ROUNDED_SHARE
from privacy.mechanisms.rounded_gaussian import RoundedGaussianSum

__all__ = [
    "LEAST_ROUNDED_SHARE",
    "BandedFactorisation",
    "ClientLevel",
    "DiscreteGaussianSum",
    "DpSgd",
    "FromTables",
    "Gaussian",
    "Mechanism",
    "NoisyCounts",
    "NoisyHistograms",
    "NoisySum",
    "NoisyTable",
    "Release",
    "RenyiPriced",
    "RoundedGaussianSum",
    "SkellamSum",
    "canonical",
    "release_from_json",
    "rounded_sensitivity",
]
