"""The losses of a single step.

Mechanisms of this project add Gaussian noise to what a unit moves by a random number of shifts: mixtures of Gaussians,
made here. Losses between two points of the grid are split among both so that the outcomes' probabilities under either
data set stay what they are, the tightest upper bound on a grid ("connect the dots", Doroshenko et al. 2022, arXiv
2207.04380). Any other event's losses come from `dp_accounting`.

Within, outcomes x and shifts s are in standard deviations of the noise. With w the probabilities of the shifts, the
loss of x for removing a unit is loss(x) = log sum_j w_j exp(s_j x - s_j^2 / 2); for adding one it is -loss(x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from privacy.losses.grid import INTERVAL, Floats, Losses, Pmf, same
from privacy.mechanisms import Release
from privacy.neighbours import Neighbours

if TYPE_CHECKING:
    from dp_accounting import dp_event

LARGEST = 600.0
"""A larger loss counts as an infinite one: it costs its whole probability in delta. So grids stay small."""

_TAIL = 2.0**-80  # probability that a single step's grid may leave to an infinite loss
_LARGEST_SHIFT = 1e4  # its losses are larger than `LARGEST` by far
_SMALLEST_SHIFT = 2.0**-20  # more noise is priced as if it were this much


@lru_cache(maxsize=256)
def of_part(part: Release) -> Losses:
    """The losses of a smallest part.

    Raises:
        dp_accounting.UnsupportedEventError: if it can't be priced so.
    """
    mixture, times = mixture_of(part), unrolled(part.event())[1]
    if mixture is not None and times == 1:
        return _of_mixture(*mixture)
    from dp_accounting.pld import PLDAccountant

    neighbours = Neighbours.ADD_OR_REMOVE_ONE.of_dp_accounting()
    found = PLDAccountant(neighbours, INTERVAL).compose(part.event())._pld
    pmfs = [pmf.to_dense_pmf() for pmf in (found._pmf_remove, found._pmf_add)]
    remove, add = (Pmf(pmf._lower_loss, np.asarray(pmf._probs), pmf._infinity_mass) for pmf in pmfs)
    return Losses(remove=remove, add=add)


@lru_cache(maxsize=16)
def of_gaussian(shift: float) -> Losses:
    """Of the Gaussian mechanism, its shift in standard deviations."""
    if shift > _LARGEST_SHIFT:
        return same(Pmf(0, np.zeros(1), 1.0))
    # Adding and removing are mirror images.
    return same(_remove(np.full(1, shift), np.ones(1)))


def gaussian_shift(part: Release) -> float | None:
    """The shift of a release by the plain Gaussian mechanism, in standard deviations; None of another one."""
    from dp_accounting import dp_event

    event, times = unrolled(part.event())
    if not isinstance(event, dp_event.GaussianDpEvent):
        return None
    return min(math.sqrt(times) / float(event.noise_multiplier), 1e100)  # its square must be a number


def mixture_of(part: Release) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Shifts, ascending from 0 and in standard deviations, and their probabilities, of one step of a release.

    None of a mechanism that isn't such a mixture.
    """
    from dp_accounting import dp_event

    event, _ = unrolled(part.event())
    shifts: Sequence[float] = ()
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(event.event, dp_event.GaussianDpEvent):
        rate, noise = event.sampling_probability, event.event.noise_multiplier
        shifts, weights = (0.0, 1.0), (1 - rate, rate)
    if isinstance(event, dp_event.MixtureOfGaussiansDpEvent):
        noise, shifts, weights = event.standard_deviation, event.sensitivities, tuple(event.sampling_probs)
    if len(shifts) < 2 or shifts[0] != 0 or any(one >= other for one, other in pairwise(shifts)):
        return None
    return tuple(min(shift / min(noise, shifts[1] / _SMALLEST_SHIFT), 1e100) for shift in shifts), weights


def unrolled(event: dp_event.DpEvent) -> tuple[dp_event.DpEvent, int]:
    """What an event repeats, and how often."""
    from dp_accounting import dp_event

    times = 1
    while isinstance(event, dp_event.SelfComposedDpEvent):
        event, times = event.event, times * event.count
    return event, times


def _of_mixture(shifts: Sequence[float], weights: Sequence[float]) -> Losses:
    s, w = np.asarray(shifts), np.asarray(weights)
    # What is hardly ever drawn counts as found out: for adding, its absence makes the other outcomes no likelier.
    kept = w > _TAIL / len(w)
    if s[kept].max() == 0 or s[-1] > _LARGEST_SHIFT:
        # As if every shift gave itself away: a pair that dominates any other with this weight at shift 0.
        least = min(-math.log(weights[0]) if weights[0] else math.inf, LARGEST)
        absent = _dots(math.floor(least / INTERVAL), np.ones(1), np.full(1, math.exp(-least)), 0.0, 0.0)
        return Losses(remove=Pmf(0, np.array(weights[:1]), 1 - weights[0]), add=absent)
    remove, add = _remove(s[kept], w[kept]), _add(s[kept], w[kept])
    return Losses(remove=Pmf(remove.lowest, remove.masses, remove.infinite + float(w[~kept].sum())), add=add)


def _remove(shifts: Floats, weights: Floats) -> Pmf:
    """Losses of the mixture's outcomes."""
    from scipy.special import ndtr, ndtri

    tail = _TAIL / len(weights)
    spread = -ndtri(np.clip(tail / weights, tail, 0.5))
    low, high = _grid(*_loss(np.array([shifts[0] - spread.max(), (shifts + spread).max()]), shifts, weights)[0])
    points = _outcomes(INTERVAL * np.arange(low, high + 1.0), shifts, weights)
    upper, lower = _mass(points, shifts, weights), _mass(points, np.zeros(1), np.ones(1))
    below, beyond = float(weights @ ndtr(points[0] - shifts)), float(weights @ ndtr(shifts - points[-1]))
    return _dots(low, upper, lower, below, beyond)


def _add(shifts: Floats, weights: Floats) -> Pmf:
    """Losses of the outcomes of the noise alone: of the opposite sign, so the order of the cells turns round."""
    from scipy.special import ndtr, ndtri

    spread = -ndtri(_TAIL)
    low, high = _grid(*-_loss(np.array([spread, -spread]), shifts, weights)[0])
    points = _outcomes(-INTERVAL * np.arange(low, high + 1.0), shifts, weights)[::-1]
    upper, lower = _mass(points, np.zeros(1), np.ones(1))[::-1], _mass(points, shifts, weights)[::-1]
    below, beyond = float(ndtr(-points[-1])), float(ndtr(points[0]))
    return _dots(low, upper, lower, below, beyond)


def _loss(x: Floats, shifts: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Each outcome's loss, and how fast it grows there."""
    exponents = x[:, None] * shifts - shifts**2 / 2
    top = exponents.max(axis=1, keepdims=True)
    parts = np.exp(exponents - top) * weights
    total = parts.sum(axis=1)
    found = top[:, 0] + np.log(total)
    # Near 0 the logarithm of a number near 1 would lose what matters when a unit is hardly ever drawn.
    small = np.abs(exponents).max(axis=1) < 1
    if len(weights) > 1:
        found[small] = np.log1p(np.expm1(exponents[small]) @ weights)
    return found, parts @ shifts / total


def _grid(low: float, high: float) -> tuple[int, int]:
    most = math.ceil(LARGEST / INTERVAL)
    first = min(max(math.floor(low / INTERVAL), -most), most)
    return first, max(min(math.ceil(high / INTERVAL), most), first + 1)


def _outcomes(losses: Floats, shifts: Floats, weights: Floats) -> Floats:
    """The outcome of each loss; minus infinity for a loss below all of them.

    Newton's method from the right, on a convex increasing function, never leaves the root's right. An error of the
    outcome changes the divergence in second order only, for the true one is its maximum over all thresholds.
    """
    offsets = np.log(weights) - shifts**2 / 2
    moving = shifts > 0
    # As if one component were alone: at least the root, each of them.
    x: Floats = ((losses[:, None] - offsets[moving]) / shifts[moving]).min(axis=1)
    if len(shifts) == 1:
        return x
    above = losses > (offsets[0] if shifts[0] == 0 else -math.inf)
    x[~above] = -math.inf
    if len(shifts) == 2 and shifts[0] == 0:
        # What the component that stays adds, taken off.
        x[above] += np.log(-np.expm1(offsets[0] - losses[above])) / shifts[1]
        return x
    todo = np.flatnonzero(above)
    for _ in range(200):
        found, slope = _loss(x[todo], shifts, weights)
        step = (found - losses[todo]) / slope
        x[todo] -= step
        rounding = 1e-15 * (np.abs(x[todo]) * shifts[-1] + np.abs(offsets).max()) / slope
        todo = todo[step > np.maximum(1e-8, rounding)]
        if not len(todo):
            return x
    raise ArithmeticError(f"{len(todo)} outcomes not found of a mixture of {len(shifts)} Gaussians")


def _mass(points: Floats, shifts: Floats, weights: Floats) -> Floats:
    """Probability between neighbouring points, each from the tail where it doesn't cancel."""
    from scipy.special import ndtr

    total = np.zeros(len(points) - 1)
    for shift, weight in zip(shifts, weights, strict=True):
        at = points - shift
        total += weight * np.where(at[:-1] > 0, ndtr(-at[:-1]) - ndtr(-at[1:]), ndtr(at[1:]) - ndtr(at[:-1]))
    return total


def _dots(low: int, upper: Floats, lower: Floats, below: float, beyond: float) -> Pmf:
    """Splits each cell's mass among its ends so that the mass under either data set stays what it is."""
    losses = INTERVAL * (low + np.arange(len(upper)))
    with np.errstate(divide="ignore", over="ignore"):
        other = np.exp(losses + np.log(lower))
    to_upper_end = np.clip((upper - other) / -math.expm1(-INTERVAL), 0.0, upper)
    masses = np.append(upper - to_upper_end, 0.0)
    masses[1:] += to_upper_end
    masses[0] += below
    return Pmf(low, masses, beyond)
