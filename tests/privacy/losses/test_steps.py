"""The losses of one step are those of its densities, rounded so that no divergence comes out too small."""

import math
import warnings

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution as reference
from numpy.typing import NDArray
from scipy.stats import norm

from privacy.losses import INTERVAL, Losses, Pmf, gaussian_shift, mixture_of, of_part, unrolled
from privacy.mechanisms import DpSgd, Gaussian

EPSILONS = np.array([0.0, 0.05, 0.5, 1.0, 2.0, 3.0, 5.0005])


def step(noise: float, rate: float, records: int = 1) -> DpSgd:
    return DpSgd(noise_multiplier=noise, sample_rate=rate, steps=1, records_per_unit=records)


def divergences(noise: float, rate: float, records: int) -> NDArray[np.float64]:
    """Hockey-stick divergences by numerical integration, the larger direction at each epsilon."""
    x, width = np.linspace(-40 * noise, records + 40 * noise, 400_001, retstep=True)
    without = norm.pdf(x, 0, noise)
    weights = [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)]
    drawn = sum(weight * norm.pdf(x, k, noise) for k, weight in enumerate(weights))
    return np.array(
        [
            max(np.maximum(p - math.exp(eps) * q, 0).sum() * width for p, q in ((drawn, without), (without, drawn)))
            for eps in EPSILONS
        ]
    )


@pytest.mark.parametrize("records", [1, 2, 7])
@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.01), (1.0, 0.5), (0.5, 0.05), (3.0, 0.9), (2.0, 0.001)])
def test_divergences_are_those_of_the_densities(noise: float, rate: float, records: int) -> None:
    exact = divergences(noise, rate, records)
    found = of_part(step(noise, rate, records)).deltas(EPSILONS.tolist())
    assert (exact - 2e-9 <= found).all()  # the integration's own error
    assert (found <= exact * (1 + 1e-3) + 2e-6).all()  # between points of the grid, the chord above the curve


@pytest.mark.parametrize(
    ("noise", "rate", "records"),
    [(1.0, 0.01, 1), (0.5, 0.05, 1), (3.0, 0.9, 1), (8.0, 0.001, 1), (0.3, 1e-4, 1), (2.0, 0.1, 3), (5.0, 0.03, 16)],
)
def test_agrees_with_google_s_library(noise: float, rate: float, records: int) -> None:
    weights = [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)]
    other = reference.from_mixture_gaussian_mechanism(
        noise, list(range(records + 1)), weights, value_discretization_interval=INTERVAL
    )
    ours = of_part(step(noise, rate, records)).deltas(EPSILONS.tolist())
    theirs = np.array([float(other.get_delta_for_epsilon(float(eps))) for eps in EPSILONS])
    assert ours == pytest.approx(theirs, rel=1e-9, abs=5e-15)


@pytest.mark.parametrize("records", [1, 4])
@pytest.mark.parametrize("noise", [0.4, 1.0, 20.0])
def test_all_probability_is_somewhere(noise: float, records: int) -> None:
    losses = of_part(step(noise, 0.2, records))
    for pmf in (losses.remove, losses.add):
        assert (pmf.masses >= 0).all()
        assert pmf.masses.sum() + pmf.infinite == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("noise", [1e-300, 1e-8, 1e-4, 1e-3, 2.0**20, 1e150])
@pytest.mark.parametrize("rate", [1e-300, 1e-6, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("records", [1, 3, 40])
def test_absurd_noise_and_rates_give_a_bound(noise: float, rate: float, records: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deltas = of_part(step(noise, rate, records)).deltas([0.0, 1.0])
    seen = -math.expm1(records * math.log1p(-rate))  # the chance that the unit is drawn at all
    if noise < 1e-2:
        assert deltas[0] >= seen * (1 - 1e-9)
    assert (deltas <= seen + 1e-6).all()


def test_no_noise_to_speak_of_gives_away_whether_a_unit_was_drawn() -> None:
    losses = of_part(step(1e-6, 0.25))
    assert losses.deltas([0.0, 5.0]) == pytest.approx([0.25, 0.25], abs=1e-9)
    assert losses.epsilon(0.2) == math.inf


def test_what_other_events_cost_is_asked_of_google_s_library() -> None:
    class Laplace(Gaussian, name="test-laplace"):
        def event(self) -> dp_event.DpEvent:
            return dp_event.LaplaceDpEvent(self.noise_multiplier)

    assert of_part(Laplace(noise_multiplier=2.0)).epsilon(1e-9) == pytest.approx(0.5, abs=2e-3)


def test_events_are_read() -> None:
    assert unrolled(DpSgd(noise_multiplier=1.0, sample_rate=0.5, steps=3).event())[1] == 3
    assert gaussian_shift(Gaussian(noise_multiplier=2.0, releases=4)) == 1.0
    assert gaussian_shift(step(2.0, 0.5)) is None
    assert mixture_of(step(2.0, 0.5)) == ((0.0, 0.5), (0.5, 0.5))
    assert mixture_of(step(2.0, 0.5, 2)) == ((0.0, 0.5, 1.0), (0.25, 0.5, 0.25))
    assert mixture_of(Gaussian(noise_multiplier=2.0)) is None


class TestReadingAGrid:
    """Two outcomes: loss 1 with probability 0.3, loss -1 with 0.6, an infinite one with 0.1."""

    steps = round(1 / INTERVAL)
    masses = np.zeros(2 * steps + 1)
    masses[0], masses[-1] = 0.6, 0.3
    pmf = Pmf(-steps, masses, 0.1)

    @pytest.mark.parametrize("eps", [0.0, 0.3, 0.9995, 1.0, 7.0])
    def test_delta_is_the_hockey_stick_divergence(self, eps: float) -> None:
        expected = 0.1 + 0.3 * max(0.0, 1 - math.exp(eps - 1))
        assert self.pmf.deltas(np.array([eps]))[0] == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("delta", [0.11, 0.15, 0.2])
    def test_epsilon_is_its_inverse(self, delta: float) -> None:
        eps = self.pmf.epsilon(delta)
        assert self.pmf.deltas(np.array([eps]))[0] == pytest.approx(delta, abs=1e-12)

    def test_no_epsilon_makes_up_for_an_infinite_loss(self) -> None:
        assert self.pmf.epsilon(0.099) == math.inf

    def test_a_delta_that_is_met_at_once_asks_for_no_epsilon(self) -> None:
        assert self.pmf.epsilon(0.5) == 0.0

    def test_the_worse_direction_counts_and_the_allowance_for_rounding(self) -> None:
        harmless = Pmf(0, np.ones(1), 0.0)
        for losses in (Losses(remove=self.pmf, add=harmless), Losses(remove=harmless, add=self.pmf)):
            assert losses.epsilon(0.2) >= self.pmf.epsilon(0.2)
            assert losses.deltas([0.5])[0] >= self.pmf.deltas(np.array([0.5]))[0]
        rough = Losses(remove=self.pmf, add=self.pmf, rounding=0.05)
        assert rough.epsilon(0.2) == pytest.approx(self.pmf.epsilon(0.15), abs=1e-9)
        assert rough.epsilon(0.04) == math.inf
