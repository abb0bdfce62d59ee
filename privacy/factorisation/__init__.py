"""Correlated noise: banded matrix factorisation (Choquette-Choo et al. 2023, arXiv 2306.08153)."""

from privacy.factorisation.banded import BandedMatrix, independent_error, rms_error, sensitivity, square_root
from privacy.factorisation.noise_stream import BandedNoise, decode
from privacy.factorisation.optimise import optimised
from privacy.factorisation.participation import Participation
from privacy.factorisation.workload import Workload

__all__ = [
    "BandedMatrix",
    "BandedNoise",
    "Participation",
    "Workload",
    "decode",
    "independent_error",
    "optimised",
    "rms_error",
    "sensitivity",
    "square_root",
]
