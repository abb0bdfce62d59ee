"""A clipping norm that follows the clients' updates, itself private (Andrew et al. 2021, arXiv 1905.03871).

Each client of a round says with one bit whether its update is no longer than the current norm C. From the noisy share
of such clients the server moves C geometrically towards a quantile of the updates' lengths (their algorithm 1).

**One release, one price.** A client gives one vector: its clipped update over C, times a, and its bit as +1 or -1,
times w, where a^2 + w^2 = 1. It is no longer than 1, whatever the update, so the sum over a cohort with independent
noise of deviation z in *every* coordinate is one Gaussian release of noise multiplier z: the client adds or removes one
vector of length 1. Price it as a round with a fixed norm and noise multiplier z (`ClientLevel`); nothing is added for
the bit. With w = z / (2 sigma_b), the sum of the centred bits b - 1/2 gets noise of deviation sigma_b, and the sum of
the updates noise of z C / a = z_delta C, where

    z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)

which is their theorem 1: what the bit costs is that the updates get more noise. The same vector fits a trusted
server's grid and a secure sum's grid, for a clipping norm of 1 that never changes: C is public, and it depends on
nothing but earlier releases.

**No private count.** Sums are divided by the public expected cohort. A client that is absent, has no records, or whose
update is not finite gives zeros, bit included: it counts as half. So an empty cohort reads as a share of 1/2 plus
noise, and is as private as any other.

Everything here is a pure function of public constants, a state that a checkpoint can hold, and (in `joint`) one update.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.mechanisms.release import finite, positive

Vector = npt.NDArray[np.float64]

_LONGEST_STEP = 50.0  # of the logarithm of the norm, in one round: e^50 is beyond any bounds worth giving


@dataclass(frozen=True, kw_only=True)
class ClippingState:
    """What one round hands to the next. Public: it is computed from private releases alone.

    Attributes:
        norm: the clipping norm of round `round`, > 0.
        round: from 1.

    Raises:
        ValueError: if a value is out of range.
    """

    norm: float
    round: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", positive("norm", self.norm))
        if type(self.round) is not int or self.round < 1:
            raise ValueError(f"round must be a whole number of at least 1, got {self.round!r}")

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint: a float's JSON text gives back the same float."""
        return {"norm": self.norm, "round": self.round}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ClippingState":
        """The inverse of `to_json`. Raises ValueError for missing, unknown or wrong values."""
        if data.keys() != {"norm", "round"}:
            raise ValueError(f"the state of adaptive clipping has the keys norm and round, got {sorted(data)}")
        return cls(norm=data["norm"], round=data["round"])


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the length of a client's vector is split between its update and its bit.

    Attributes:
        update: a, in (0, 1): length of a whole update.
        bit: w, in (0, 1): size of the coordinate of the bit; a^2 + w^2 = 1.
    """

    update: float
    bit: float


@dataclass(frozen=True, kw_only=True)
class AdaptiveClipping:
    """The public constants of a clipping norm that adapts.

    Attributes:
        count_noise: sigma_b, standard deviation of the noise on the sum of centred bits, in clients, > 0.
        initial_norm: of round 1.
        least_norm: below it the norm never goes, > 0; at most `initial_norm`.
        most_norm: above it the norm never goes; at least `initial_norm`.
        quantile: gamma, the share of clients whose updates should be no longer than the norm, in (0, 1).
        rate: eta, step of the norm's logarithm for a share that is wrong by 1, > 0.

    Raises:
        ValueError: if a value is out of range.
    """

    count_noise: float
    initial_norm: float
    least_norm: float
    most_norm: float
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        for name in ("count_noise", "initial_norm", "least_norm", "most_norm", "quantile", "rate"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if not self.quantile < 1:
            raise ValueError(f"quantile must be above 0 and below 1, got {self.quantile}")
        if not self.least_norm <= self.initial_norm <= self.most_norm:
            raise ValueError(
                "initial_norm must be between least_norm and most_norm, got "
                f"{self.initial_norm} for {self.least_norm} to {self.most_norm}"
            )

    def start(self) -> ClippingState:
        """The state of round 1."""
        return ClippingState(norm=self.initial_norm, round=1)

    def next_norm(self, state: ClippingState, noisy_fraction: float) -> ClippingState:
        """The state of the next round: C exp(-eta (fraction - gamma)), kept within its bounds.

        Args:
            state: of this round.
            noisy_fraction: share of clients whose updates were no longer than the norm, as `separate` gives it; noise
                may take it out of [0, 1].

        Raises:
            ValueError: if the fraction is not finite.
        """
        step = -self.rate * (finite("noisy_fraction", noisy_fraction) - self.quantile)
        norm = state.norm * math.exp(max(-_LONGEST_STEP, min(_LONGEST_STEP, step)))
        return ClippingState(norm=max(self.least_norm, min(self.most_norm, norm)), round=state.round + 1)

    def split(self, noise_multiplier: float) -> Split:
        """How a client's vector is split for noise of multiplier z on the whole.

        Args:
            noise_multiplier: z, what the round is priced at, > 0 and below 2 sigma_b.

        Raises:
            ValueError: if z is out of range: the bit alone would need less noise than sigma_b gives it.
        """
        z = positive("noise_multiplier", noise_multiplier)
        bit = z / (2 * self.count_noise)
        if not bit < 1:
            raise ValueError(
                f"count_noise {self.count_noise} is too little for noise_multiplier {z}: it must be above {z / 2}"
            )
        return Split(update=math.sqrt((1 - bit) * (1 + bit)), bit=bit)

    def update_noise(self, noise_multiplier: float) -> float:
        """z_delta, deviation of the noise on the sum of updates over C, of a round priced at `noise_multiplier`.

        Raises:
            ValueError: as for `split`.
        """
        return noise_multiplier / self.split(noise_multiplier).update

    def noise_multiplier(self, update_noise: float) -> float:
        """z, what a round is priced at whose sum of updates gets noise of z_delta over C: the inverse."""
        return 1 / math.hypot(1 / positive("update_noise", update_noise), 1 / (2 * self.count_noise))


def usual_count_noise(*, cohort: float, noise_multiplier: float) -> float:
    """A twentieth of the cohort, as Andrew et al. advise, or more where that would cost too much.

    With a small cohort and much noise the bit would take most of the vector; here it never takes more than
    3/10 of its length, which makes the noise on the updates 4.9 % larger.

    Args:
        cohort: expected number of clients of a round, > 0.
        noise_multiplier: z, > 0.
    """
    return max(positive("cohort", cohort) / 20, positive("noise_multiplier", noise_multiplier) / 0.6)


def joint(update: npt.NDArray[np.floating[Any]], norm: float, split: Split) -> Vector:
    """What a client gives: its clipped update and its bit, as one vector no longer than 1 (up to rounding).

    A grid clips it again to its own norm, which is what a claim rests on.

    Args:
        update: flat; one that isn't finite counts as absent (rule 5).
        norm: the round's clipping norm C, > 0.
        split: of the round.

    Returns:
        One coordinate more than the update: the bit is the last.

    Raises:
        ValueError: the update is not flat, or the norm out of range.
    """
    if update.ndim != 1:
        raise ValueError(f"an update to be clipped is flat, got {update.ndim} axes")
    limit = positive("norm", norm)
    found = absent(len(update))
    if not np.isfinite(update).all():
        return found
    # Over the largest value first: so no square over- or underflows.
    values = update.astype(np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    if largest:
        values /= largest
    length = math.sqrt(float(values @ values))
    short = length * (largest / limit) <= 1
    found[:-1] = values * (split.update * (largest / limit if short else 1 / length))
    found[-1] = split.bit if short else -split.bit
    return found


def absent(size: int) -> Vector:
    """What a client gives that has nothing to give: zeros.

    Args:
        size: of an update.
    """
    return np.zeros(size + 1)


def separate(total: Vector, norm: float, split: Split, *, cohort: float) -> tuple[Vector, float]:
    """The mean update and the share of short ones, from a cohort's noisy sum of vectors.

    Args:
        total: the sum of `joint` over the cohort, with its noise.
        norm: as for `joint`.
        split: as for `joint`.
        cohort: the public expected number of clients, > 0; never how many there were.

    Raises:
        ValueError: an argument is out of range.
    """
    if total.ndim != 1 or len(total) < 1:
        raise ValueError(f"a sum of updates and bits is flat, got {total.ndim} axes")
    clients = positive("cohort", cohort)
    mean = total[:-1] * (positive("norm", norm) / (split.update * clients))
    return mean, 0.5 + float(total[-1]) / (2 * split.bit * clients)
