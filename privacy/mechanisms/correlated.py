"""Correlated noise over a whole run: a trusted server adds it, and every round is a part of one release."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.mechanisms.release import Mechanism, count, positive

if TYPE_CHECKING:
    from dp_accounting import dp_event

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class BandedFactorisation(Mechanism, name="banded-factorisation"):
    """A run's sums of clipped updates with noise by a banded matrix C (Choquette-Choo et al. 2023, arXiv 2306.08153).

    The whole run is *one* release by the Gaussian mechanism: of C x, x being the sums of all rounds. It is charged
    once, before the first round, and costs the same if the run stops early. Neighbours differ by one client, with all
    its contributions: none in a round counts as zeros. No sampling is assumed; instead no client may take part more
    often, or sooner again, than is said here. That the sums depend on the noisy sums before them changes nothing
    (Denisov et al. 2022, arXiv 2202.08312, theorem 2.1).

    Attributes:
        noise_multiplier: standard deviation of the noise on C x, over the distance that one client's contributions to
            all rounds can move C x, > 0. Unlike that of other mechanisms it is over all rounds, not over one.
        rounds: n, >= 1.
        band: diagonals of C, >= 1.
        separation: fewest rounds between two of a client's participations, from one to the next; at least `band`.
        participations: most of one client in the run, >= 1.
        factorisation: SHA-256, hex, of the matrix (`privacy.factorisation.BandedMatrix.digest`).

    Raises:
        ValueError: if a value is out of range.
    """

    noise_multiplier: float
    rounds: int
    band: int
    separation: int
    participations: int
    factorisation: str

    def __post_init__(self) -> None:
        self._set(
            noise_multiplier=positive("noise_multiplier", self.noise_multiplier),
            rounds=count("rounds", self.rounds),
            band=count("band", self.band),
            separation=count("separation", self.separation),
            participations=count("participations", self.participations),
        )
        if not self.band <= min(self.separation, self.rounds):
            raise ValueError(f"band must be at most separation and rounds, got {self.band}")
        if (self.participations - 1) * self.separation >= self.rounds:
            raise ValueError(f"there is no room for {self.participations} participations in {self.rounds} rounds")
        if not isinstance(self.factorisation, str) or len(self.factorisation) != 64 or set(self.factorisation) - _HEX:
            raise ValueError("factorisation must be a SHA-256 in hex")

    def with_noise_multiplier(self, noise_multiplier: float) -> BandedFactorisation:
        """The same run with other noise."""
        return replace(self, noise_multiplier=noise_multiplier)

    def event(self) -> dp_event.DpEvent:
        """The whole run as `dp_accounting` prices it: one Gaussian release, and itself its only part."""
        from dp_accounting import dp_event

        return dp_event.GaussianDpEvent(self.noise_multiplier)

    def describe(self) -> str:
        """One line for a person."""
        rounds = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        return (
            f"banded factorisation: {rounds}, {self.band} bands, noise multiplier {self.noise_multiplier:g} over all; "
            f"each client at most {self.participations} times, {self.separation} rounds apart"
        )
