"""Vector sums with distributed discrete noise: each client adds a share, and only the sum is ever seen.

A sum of discrete noise has no loss distribution that is licensed for vectors; it is claimed by its published bound
on the Renyi divergence and by nothing else (rule 4). What is priced is the worst set of honest clients that an owner
accepts (rule 2): `honest` of them added their share, itself among them, and all others none: what more of them add is
independent of the data and takes nothing away. Wrapping modulo the ring's size is post-processing.

Neighbours differ in whether one unit's contribution is there or all zeros. Who takes part in a sum is public, so a
client without data takes part like any other and adds its share of noise to zeros: the noise is the same for both
neighbours, and what moves is one vector of whole numbers, `l2_sensitivity` long at most *for every outcome* of its
rounding. (That the rounding is random doesn't matter: the divergence of a mixture from a fixed distribution, and the
reverse, is at most the largest of its parts'.)

The shares are drawn from tables that are cut off and rounded: `distance` bounds, in total variation, how far that is
from the noise that is priced, and the accountant takes it out of delta (rule 9).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from dp_accounting import dp_event

from privacy.mechanisms.release import Mechanism, Release, count, positive, rate
from privacy.table_distance import discrete_gaussian_distance, skellam_distance


def rounded_sensitivity(*, clipping_norm: float, grid: float, dimension: int) -> float:
    """The L2 distance, in steps of the grid, by which one unit can move a vector that is clipped, then rounded.

    Clipping leaves the clipping norm; rounding, to either neighbour, moves each coordinate by less than a step.
    """
    return clipping_norm / grid + math.sqrt(dimension)


@dataclass(frozen=True, kw_only=True)
class _NoisySum(Mechanism):
    """What the two noises share.

    Attributes:
        noise_share: standard deviation of each honest client's noise in each coordinate, in steps of the integer grid.
        honest: fewest clients whose share is in the sum and unknown to the adversary, >= 1.
        l2_sensitivity: L2 distance by which one unit can move the vector of integers, in steps, rounding included.
        dimension: of the vector, >= 1.
        sample_rate: probability that one unit enters one sum, independently and in secret, in (0, 1].
        releases: number of such sums, >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise_share: float
    honest: int
    l2_sensitivity: float
    dimension: int
    sample_rate: float = 1.0
    releases: int = 1

    _whole_orders: ClassVar[bool]  # whether the bound is one for whole orders alone

    def __post_init__(self) -> None:
        self._set(
            noise_share=positive("noise_share", self.noise_share),
            honest=count("honest", self.honest),
            l2_sensitivity=positive("l2_sensitivity", self.l2_sensitivity),
            dimension=count("dimension", self.dimension),
            sample_rate=rate("sample_rate", self.sample_rate),
            releases=count("releases", self.releases),
        )

    @property
    def l1_sensitivity(self) -> float:
        """In steps: of integers at most the squared L2 norm, and of any vector sqrt(dimension) times the L2 norm."""
        return self.l2_sensitivity * min(math.sqrt(self.dimension), self.l2_sensitivity)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the honest noise over the L2 sensitivity."""
        return self.noise_share * math.sqrt(self.honest) / self.l2_sensitivity

    @property
    def distance(self) -> float:
        """Of all draws that the price counts on: each coordinate of each honest client's noise, in every release."""
        return self.releases * self.honest * self.dimension * self._draw_distance()

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """The same sums with other noise.

        Raises:
            ValueError: if it is so little that the mechanism has no price.
        """
        share = noise_multiplier * self.l2_sensitivity / math.sqrt(self.honest)
        return replace(self, noise_share=share)

    def event(self) -> dp_event.DpEvent:
        """None that `dp_accounting` could price: the bound is in `renyi`."""
        return dp_event.UnsupportedDpEvent()

    def parts(self) -> tuple[Release, int]:
        """One sum, and the number of sums."""
        return replace(self, releases=1), self.releases

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

    def _draw_distance(self) -> float:
        raise NotImplementedError

    def describe(self) -> str:
        """One line for a person."""
        sums = "1 sum" if self.releases == 1 else f"{self.releases} sums"
        batch = "" if self.sample_rate == 1 else f", Poisson batches of rate {self.sample_rate:g}"
        return (
            f"{self.name}: {sums} of {self.dimension} coordinates, noise share {self.noise_share:g} of each of "
            f"{self.honest} honest clients, sensitivity {self.l2_sensitivity:g}{batch}"
        )


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussianSum(_NoisySum, name="discrete-gaussian-sum"):
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
class SkellamSum(_NoisySum, name="skellam-sum"):
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
