"""Adaptive clipping (Andrew et al. 2021): the bit costs what theorem 1 says, and the norm finds its quantile.

Statistical tests of `SecretNoise` draw afresh every time; each is set to fail by chance once in a million runs.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from privacy.accountant import epsilon
from privacy.adaptive_clipping import (
    AdaptiveClipping,
    ClippingState,
    absent,
    joint,
    separate,
    usual_count_noise,
)
from privacy.mechanisms import ClientLevel, Gaussian
from privacy.noise import ReproducibleNoise, SecretNoise
from privacy.release_grid import ReleaseGrid

FALSE_ALARM = 1e-6
WIDE = AdaptiveClipping(count_noise=2.5, initial_norm=0.1, least_norm=1e-6, most_norm=1e6)


# --- what it costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("z", "count_noise"), [(1.0, 2.5), (0.3, 5.0), (4.9, 2.5), (1.0, 0.51)])
def test_theorem_1(z: float, count_noise: float) -> None:
    clipping = replace(WIDE, count_noise=count_noise)
    z_delta = clipping.update_noise(z)
    assert z_delta == pytest.approx((z**-2 - (2 * count_noise) ** -2) ** -0.5, rel=1e-12)
    assert clipping.noise_multiplier(z_delta) == pytest.approx(z, rel=1e-12)


def test_the_figure_of_the_paper() -> None:
    """A cohort of 100 with the usual count noise of 5: the updates get half a percent more noise at z = 1."""
    assert replace(WIDE, count_noise=5.0).update_noise(1.0) == pytest.approx(1.00504, abs=1e-5)


@pytest.mark.parametrize("rounds", [1, 100])
def test_updates_and_bits_charged_apart_cost_together_what_one_release_is_priced_at(rounds: int) -> None:
    """By our accountant: the sum of updates at z_delta, and centred bits, which a client moves by 1/2, at sigma_b."""
    z, clipping = 8.0, replace(WIDE, count_noise=6.0)
    apart = [
        Gaussian(noise_multiplier=clipping.update_noise(z), releases=rounds),
        Gaussian(noise_multiplier=clipping.count_noise / 0.5, releases=rounds),
    ]
    one = epsilon([ClientLevel(noise_multiplier=z, cohort="full", rounds=rounds)], 1e-5)
    assert epsilon(apart, 1e-5).epsilon == pytest.approx(one.epsilon, rel=1e-9)
    assert epsilon(apart, 1e-5).rdp_epsilon == pytest.approx(one.rdp_epsilon, rel=1e-9)


def test_too_little_noise_on_the_bits_cannot_be_paid_for() -> None:
    for count_noise in (0.5, 0.1):
        with pytest.raises(ValueError, match=r"is too little for noise_multiplier 1\.0: it must be above 0\.5"):
            replace(WIDE, count_noise=count_noise).split(1.0)


@pytest.mark.parametrize("z", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("cohort", [1, 10, 50, 1000])
def test_the_usual_count_noise_never_costs_more_than_a_twentieth(z: float, cohort: int) -> None:
    usual = usual_count_noise(cohort=cohort, noise_multiplier=z)
    assert usual >= cohort / 20
    assert z < replace(WIDE, count_noise=usual).update_noise(z) <= 1.05 * z


# --- one vector, one sensitivity ---------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.lists(finite, max_size=20), norm=st.floats(1e-30, 1e30), z=st.floats(1e-3, 4.99))
@example(values=[1.7e308] * 20, norm=1e-30, z=1.0)
@example(values=[5e-324] * 3, norm=1e30, z=1.0)
@example(values=[3.0, 4.0], norm=5.0, z=1.0)
def test_no_update_makes_a_vector_longer_than_1(values: list[float], norm: float, z: float) -> None:
    vector = joint(np.array(values), norm, WIDE.split(z))
    assert vector.shape == (len(values) + 1,)
    assert math.hypot(*vector) <= 1 + 1e-12


def test_a_whole_update_has_length_1_with_its_bit() -> None:
    split = WIDE.split(1.0)
    assert split.update**2 + split.bit**2 == pytest.approx(1, rel=1e-15)
    for update in ([3.0, 4.0], [300.0, 400.0]):
        assert math.hypot(*joint(np.array(update), 5.0, split)) == pytest.approx(1, rel=1e-12)


def test_the_bit_says_whether_the_update_is_no_longer_than_the_norm() -> None:
    split = WIDE.split(1.0)
    for update, sign in (([3.0, 4.0], 1), ([3.0, 4.0001], -1), ([0.0, 0.0], 1), ([], 1)):
        assert joint(np.array(update), 5.0, split)[-1] == sign * split.bit


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_absent(bad: float) -> None:
    """Rule 5."""
    vector = joint(np.array([1.0, bad], dtype=np.float32), 5.0, WIDE.split(1.0))
    assert vector.tolist() == absent(2).tolist() == [0.0, 0.0, 0.0]


def test_what_went_in_comes_out() -> None:
    split, random = WIDE.split(1.0), np.random.default_rng(5)
    updates = random.standard_normal((8, 6)) * np.arange(1, 9)[:, None]
    norms = np.linalg.norm(updates, axis=1)
    total = np.sum([joint(update, 6.0, split) for update in updates], axis=0)
    mean, fraction = separate(total, 6.0, split, cohort=8)
    assert mean == pytest.approx(np.mean(updates * np.minimum(1, 6.0 / norms)[:, None], axis=0))
    assert fraction == pytest.approx(np.mean(norms <= 6.0))


def test_an_empty_cohort_and_an_absent_client_count_as_half() -> None:
    split = WIDE.split(1.0)
    mean, fraction = separate(absent(3), 6.0, split, cohort=8)
    assert (mean.tolist(), fraction) == ([0.0, 0.0, 0.0], 0.5)
    present = joint(np.zeros(3), 6.0, split) * 3
    assert separate(present, 6.0, split, cohort=8)[1] == pytest.approx((3 + 5 / 2) / 8)
    assert WIDE.next_norm(WIDE.start(), 0.5).norm == WIDE.initial_norm  # noise alone moves it, and evenly


@pytest.mark.parametrize("seed", [None, b"seed 7"])
def test_isotropic_noise_on_the_grid_is_that_of_theorem_1_on_either_part(seed: bytes | None) -> None:
    """z on every coordinate of the vector, as a trusted server adds it: z_delta C on updates, sigma_b on counts."""
    z, norm, cohort, n = 1.5, 7.0, 50, 40_000
    split = WIDE.split(z)
    grid = ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=z, dimensions=n + 1)
    noise = SecretNoise() if seed is None else ReproducibleNoise(seed)
    low, high = stats.chi2.interval(1 - FALSE_ALARM / 2, n)
    totals = noise.grid_normal((n + 1,), grid.noise_scale).numpy() * grid.step
    mean, _ = separate(totals, norm, split, cohort=cohort)
    assert low <= np.sum((mean * cohort / (WIDE.update_noise(z) * norm)) ** 2) <= high
    bits = noise.grid_normal((n,), grid.noise_scale).numpy() * grid.step
    fractions = np.array([separate(np.array([bit]), norm, split, cohort=cohort)[1] for bit in bits])
    assert low <= np.sum(((fractions - 0.5) * cohort / WIDE.count_noise) ** 2) <= high


# --- where the norm goes -----------------------------------------------------------------------------------------


def follow(clipping: AdaptiveClipping, rounds: int, *, cohort: int, z: float, noise: SecretNoise | None) -> float:
    """The norm after some rounds of clients whose updates have log-normal lengths with median 3."""
    state, random = clipping.start(), np.random.default_rng(11)
    split = clipping.split(z)
    for _ in range(rounds):
        lengths = 3 * np.exp(random.standard_normal(cohort)) if noise else 3 * np.exp(QUANTILES)
        total = np.sum([joint(np.array([length]), state.norm, split) for length in lengths], axis=0)
        if noise:
            total = total + noise.grid_normal((2,), z * 2.0**20).numpy() * 2.0**-20
        state = clipping.next_norm(state, separate(total, state.norm, split, cohort=len(lengths))[1])
    return state.norm


QUANTILES = stats.norm.ppf((np.arange(200) + 0.5) / 200)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_without_noise_the_norm_finds_its_quantile(quantile: float) -> None:
    clipping = replace(WIDE, quantile=quantile)
    expected = 3 * math.exp(stats.norm.ppf(quantile))
    assert follow(clipping, 150, cohort=200, z=1.0, noise=None) == pytest.approx(expected, rel=0.05)


def test_with_noise_it_stays_near() -> None:
    """In logarithms, near the median: an autoregression with factor 1 - .2 · .4, moved each round by .2 times noise of
    deviation sqrt(.25 / 50 + .05^2) on the share, so it deviates by .045 in the end. Seven times that, and what is left
    of the start, e^-12 of it: once in 10^11."""
    found = follow(WIDE, 150, cohort=50, z=1.0, noise=SecretNoise())
    assert abs(math.log(found / 3)) <= 7 * 0.045


@pytest.mark.parametrize("fraction", [-1e300, -3.0, 0.0, 0.5, 1.0, 1e300])
def test_the_norm_never_leaves_its_bounds(fraction: float) -> None:
    clipping = replace(WIDE, least_norm=0.05, most_norm=0.2)
    state = clipping.start()
    for _ in range(100):
        state = clipping.next_norm(state, fraction)
        assert 0.05 <= state.norm <= 0.2
    assert state.round == 101
    assert state.norm == {True: 0.05, False: 0.2}[fraction > 0.5] or fraction == 0.5


def test_one_round_moves_it_geometrically() -> None:
    assert WIDE.next_norm(WIDE.start(), 1.0).norm == pytest.approx(0.1 * math.exp(-0.2 * 0.5))
    assert WIDE.next_norm(WIDE.start(), 0.0).norm == pytest.approx(0.1 * math.exp(0.2 * 0.5))


@pytest.mark.parametrize("fraction", [math.nan, math.inf, -math.inf])
def test_a_share_that_is_no_number_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match="noisy_fraction"):
        WIDE.next_norm(WIDE.start(), fraction)


# --- its state ---------------------------------------------------------------------------------------------------


@given(norm=st.floats(min_value=5e-324, allow_infinity=False), round=st.integers(1, 10**6))
def test_the_state_goes_through_json_to_the_last_bit(norm: float, round: int) -> None:
    state = ClippingState(norm=norm, round=round)
    assert ClippingState.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"norm": 1.0},
        {"norm": 1.0, "round": 1, "more": 1},
        {"norm": 0.0, "round": 1},
        {"norm": math.nan, "round": 1},
        {"norm": 1.0, "round": 0},
        {"norm": 1.0, "round": 1.0},
        {"norm": 1.0, "round": True},
        {"norm": "1", "round": 1},
    ],
)
def test_what_is_no_state_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"norm|round"):
        ClippingState.from_json(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count_noise": 0.0},
        {"quantile": 0.0},
        {"quantile": 1.0},
        {"rate": 0.0},
        {"least_norm": 0.0},
        {"initial_norm": math.nan},
        {"most_norm": math.inf},
    ],
)
def test_constants_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(WIDE, **wrong)
    with pytest.raises(ValueError, match="between least_norm and most_norm"):
        replace(WIDE, most_norm=0.09)


def test_vectors_of_another_form_are_an_error() -> None:
    split = WIDE.split(1.0)
    with pytest.raises(ValueError, match="flat"):
        joint(np.zeros((2, 2)), 1.0, split)
    with pytest.raises(ValueError, match="flat"):
        separate(np.zeros((2, 2)), 1.0, split, cohort=1)
    with pytest.raises(ValueError, match="cohort"):
        separate(np.zeros(2), 1.0, split, cohort=0)
