"""Vector sums with distributed discrete noise, claimed by its published bound on the Renyi divergence (rule 4).

A sum of discrete noise has no loss distribution that is licensed for vectors: nothing else may price it. (For a sum
that may be priced by one see `privacy.mechanisms.rounded_gaussian`.) The shares are drawn from tables that are cut off
and rounded, which is their `distance`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from privacy.mechanisms.noisy_sum import NoisySum
from privacy.table_distance import discrete_gaussian_distance, skellam_distance

if TYPE_CHECKING:
    from dp_accounting import dp_event


@dataclass(frozen=True, kw_only=True)
class _RenyiSum(NoisySum):
    """What the two discrete noises share: a bound on the Renyi divergence alone."""

    _whole_orders: ClassVar[bool]  # whether the bound is one for whole orders alone

    def event(self) -> dp_event.DpEvent:
        """None that `dp_accounting` could price: the bound is in `renyi`."""
        from dp_accounting import dp_event

        return dp_event.UnsupportedDpEvent()

    def renyi(self, orders: Sequence[float]) -> list[float]:
        """Upper bounds of the Renyi divergence of one unit more or less, one for each order above 1.

        With sampling: Zhu & Wang 2019 (Poisson subsampled Renyi differential privacy), theorem 5, which holds for any
        mechanism; it needs whole orders, and so do some bounds without. Between whole orders (alpha - 1) D(alpha) is
        convex (Wang, Balle & Kasiviswanathan 2019, corollary 10).
        """
        if self.sample_rate == 1 and not self._whole_orders:
            return [self.releases * self._divergence(order) for order in orders]
        whole = {n: self.releases * self._at(n) for order in orders for n in (math.floor(order), math.ceil(order))}
        found = []
        for order in orders:
            low, high = math.floor(order), math.ceil(order)
            part = order - low
            found.append(((1 - part) * (low - 1) * whole[low] + part * (high - 1) * whole[high]) / (order - 1))
        return found

    def _at(self, order: int) -> float:
        if order == 1:
            return 0.0  # it is multiplied by zero
        alone = self._divergence(order)
        if self.sample_rate == 1:
            return alone
        q, alpha = self.sample_rate, order
        terms = [(alpha - 1) * math.log1p(-q) + math.log1p((alpha - 1) * q)]
        for drawn in range(2, alpha + 1):
            ways = math.lgamma(alpha + 1) - math.lgamma(drawn + 1) - math.lgamma(alpha - drawn + 1)
            weight = ways + drawn * math.log(q) + (alpha - drawn) * math.log1p(-q)
            terms.append((0 if drawn == 2 else math.log(3)) + weight + (drawn - 1) * self._divergence(drawn))
        top = max(terms)
        return min(alone, (top + math.log(math.fsum(math.exp(term - top) for term in terms))) / (alpha - 1))

    def _divergence(self, order: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussianSum(_RenyiSum, name="discrete-gaussian-sum"):
    """Shares of discrete Gaussian noise (Kairouz, Liu & Steinke 2021, arXiv 2102.06387, proposition 14).

    The sum of discrete Gaussians is close to one, but none: `tau` says how close. The deviation of a share, before
    discretisation, must be 0.5 at least. The bound holds for every order.
    """

    _whole_orders: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_share < 0.5:
            raise ValueError(f"noise_share must be at least 0.5 for discrete Gaussians, got {self.noise_share}")

    @property
    def tau(self) -> float:
        """What the sum lacks of a discrete Gaussian, in each coordinate: 10 sum_k exp(-2 pi^2 share^2 k / (k + 1))."""
        rate = 2 * (math.pi * self.noise_share) ** 2
        return 10 * math.fsum(math.exp(-rate * k / (k + 1)) for k in range(1, self.honest))

    def _divergence(self, order: float) -> float:
        # Theirs is a bound for noise of deviation `noise_share` before it is made discrete, n of them added up.
        deviation = self.noise_share * math.sqrt(self.honest)
        l1, l2 = self.l1_sensitivity / deviation, self.l2_sensitivity / deviation
        tau, d = self.tau, self.dimension
        return min(
            order * l2**2 / 2 + tau * d,
            order / 2 * (l2**2 + 2 * l1 * tau + tau**2 * d),
            order / 2 * (l2 + math.sqrt(d) * tau) ** 2,
        )

    def _draw_distance(self) -> float:
        return discrete_gaussian_distance(self.noise_share)


@dataclass(frozen=True, kw_only=True)
class SkellamSum(_RenyiSum, name="skellam-sum"):
    """Shares of Skellam noise, differences of two Poisson variables (Agarwal, Kairouz & Liu 2021, arXiv 2110.04995).

    Their sum is Skellam noise again, whose variance is the sum of theirs: the bound is that of theorem 3.5 (corollary
    4.1), for whole orders.
    """

    _whole_orders: ClassVar[bool] = True

    def _divergence(self, order: float) -> float:
        variance = self.honest * self.noise_share**2
        l1, l2 = self.l1_sensitivity, self.l2_sensitivity
        near = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
        return order * l2**2 / (2 * variance) + min(near, 3 * l1 / (2 * variance))

    def _draw_distance(self) -> float:
        return skellam_distance(self.noise_share)
