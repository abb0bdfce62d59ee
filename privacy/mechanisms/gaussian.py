"""The plain Gaussian mechanism."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.mechanisms.release import Mechanism, Release, count, positive

if TYPE_CHECKING:
    from dp_accounting import dp_event


@dataclass(frozen=True, kw_only=True)
class Gaussian(Mechanism, name="gaussian"):
    """Vectors released with Gaussian noise (Dwork & Roth 2014, appendix A; exact: Balle & Wang 2018, 1805.06530).

    Attributes:
        noise_multiplier: standard deviation of the noise in each coordinate, over the L2 distance by which one unit
            can move the vector; > 0.
        releases: number of such vectors, >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise_multiplier: float
    releases: int = 1

    def __post_init__(self) -> None:
        self._set(
            noise_multiplier=positive("noise_multiplier", self.noise_multiplier),
            releases=count("releases", self.releases),
        )

    def event(self) -> dp_event.DpEvent:
        """The releases as `dp_accounting` prices them."""
        from dp_accounting import dp_event

        return dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(self.noise_multiplier), self.releases)

    def parts(self) -> tuple[Release, int]:
        """One release, and their number."""
        return replace(self, releases=1), self.releases

    def describe(self) -> str:
        """One line for a person."""
        vectors = "1 vector" if self.releases == 1 else f"{self.releases} vectors"
        return f"Gaussian: {vectors}, noise multiplier {self.noise_multiplier:g}"
