"""Composition is convolution; its result depends on the multiset of steps alone, to the last bit."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from privacy import losses
from privacy.losses import INTERVAL
from privacy.losses.history import _kept_bucket
from privacy.mechanisms import DpSgd, Gaussian, NoisyCounts, Release

History = dict[Release, int]


def step(noise: float, rate: float, records: int = 1) -> DpSgd:
    return DpSgd(noise_multiplier=noise, sample_rate=rate, steps=1, records_per_unit=records)


def of(history: History) -> losses.Losses:
    found = losses.of(frozenset(history.items()))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "history",
    [
        {step(1.0, 0.01): 1000},
        {step(1.0, 0.05): 30, step(2.0, 0.3): 5, step(0.7, 0.01, 4): 20},
        {step(1.0, 0.05): 30, Gaussian(noise_multiplier=3.0): 4, NoisyCounts(noise=10.0): 7},
        {step(4.0, 0.5, 3): 100, step(30.0, 0.9): 1000},
    ],
)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_agrees_with_google_s_library(history: History, delta: float) -> None:
    accountant = PLDAccountant(value_discretization_interval=INTERVAL)
    for part, count in history.items():
        accountant.compose(part.event(), count)
    # Theirs has no allowance for rounding.
    assert of(history).epsilon(delta) == pytest.approx(accountant.get_epsilon(delta), abs=2e-5 + 1e-12 / delta)


def test_gaussians_compose_to_one_gaussian() -> None:
    """Shifts 3, 4 and 12 in standard deviations are one of 13: without any rounding of compositions."""
    history: History = {Gaussian(noise_multiplier=1 / shift): 1 for shift in (3, 4, 12)}
    together = of({Gaussian(noise_multiplier=1 / 13): 1})
    assert of(history).epsilon(1e-5) == pytest.approx(together.epsilon(1e-5), abs=1e-9)
    assert of(history).rounding == together.rounding


def test_the_order_of_questions_changes_no_bit() -> None:
    parts = [step(1.0 + 0.1 * i, 0.05 + 0.01 * i) for i in range(5)]
    found = set()
    for order in itertools.permutations(parts, 5):
        losses.of.cache_clear()
        _kept_bucket.cache_clear()
        history: History = {}
        for part in order[:3]:
            history[part] = 3
            of(history)
        for part in order[3:]:
            history[part] = 3
        found.add(of(history).epsilon(1e-5))
        if len(found) > 1 or order[0] is not parts[0]:
            break
    assert len(found) == 1


def test_one_more_step_costs_more_and_none_nothing() -> None:
    history: History = {step(1.0, 0.1): 10}
    before = of(history).deltas([0.0, 1.0, 2.0])
    after = of({**history, step(9.0, 0.02): 1}).deltas([0.0, 1.0, 2.0])
    assert (after > before).all()
    assert losses.of(frozenset()) is not None
    assert of({}).epsilon(1e-12) == 0.0


def test_a_step_without_privacy_leaves_none() -> None:
    history: History = {Gaussian(noise_multiplier=1e-9): 1, step(1.0, 0.1): 10}
    assert of(history).epsilon(0.5) == math.inf
    assert of(history).deltas([3.0])[0] == 1.0


def test_what_is_too_wide_is_not_computed() -> None:
    assert losses.of(frozenset({(step(0.3, 0.999), 10**6)})) is None


def test_a_composition_is_the_convolution_of_its_steps() -> None:
    part = step(1.0, 0.3)
    one, three = losses.of_part(part), of({part: 3})
    for direction in ("remove", "add"):
        single, composed = getattr(one, direction), getattr(three, direction)
        full = np.convolve(np.convolve(single.masses, single.masses), single.masses)
        lowest = 3 * single.lowest
        expected = full[composed.lowest - lowest :][: len(composed.masses)]
        assert composed.masses[: len(expected)] == pytest.approx(expected, abs=1e-15)
        beyond = full[composed.lowest - lowest + len(composed.masses) :].sum()
        assert composed.infinite >= 1 - (1 - single.infinite) ** 3 + beyond
