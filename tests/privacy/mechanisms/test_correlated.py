"""Correlated noise: one Gaussian release for a whole run."""

from dataclasses import replace

import pytest

from privacy.accountant import epsilon
from privacy.calibration import least_noise
from privacy.mechanisms import BandedFactorisation, ClientLevel

RUN = BandedFactorisation(
    noise_multiplier=4.0, rounds=100, band=20, separation=20, participations=5, factorisation="ab" * 32
)


def test_a_run_costs_what_its_noise_says_and_no_more_for_its_rounds() -> None:
    assert epsilon([RUN], 1e-5) == epsilon([replace(RUN, rounds=200, participations=10)], 1e-5)
    assert RUN.parts() == (RUN, 1)


def test_two_runs_cost_more_than_one() -> None:
    assert epsilon([RUN, RUN], 1e-5).epsilon > 1.3 * epsilon([RUN], 1e-5).epsilon


def test_with_one_band_it_costs_what_independent_noise_on_as_many_participations_costs() -> None:
    """A client that takes part in 5 of the rounds moves them by sqrt 5 in all."""
    independent = ClientLevel(noise_multiplier=4.0 * 5**0.5, cohort="full", rounds=5)
    assert epsilon([RUN], 1e-5).epsilon == pytest.approx(epsilon([independent], 1e-5).epsilon, rel=1e-9)


def test_it_can_be_calibrated() -> None:
    noise = least_noise(RUN, epsilon=2.0, delta=1e-5)
    assert epsilon([RUN.with_noise_multiplier(noise)], 1e-5).epsilon <= 2.0
    assert epsilon([RUN.with_noise_multiplier(noise - 1e-4)], 1e-5).epsilon > 2.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"band": 21}, "band must be at most separation"),
        ({"rounds": 19, "participations": 1}, "band must be at most separation and rounds"),
        ({"participations": 6}, "no room for 6 participations in 100 rounds"),
        ({"factorisation": "AB" * 32}, "SHA-256 in hex"),
        ({"factorisation": "ab"}, "SHA-256 in hex"),
        ({"factorisation": 7}, "SHA-256 in hex"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RUN, **wrong)  # type: ignore[arg-type]
    replace(RUN, participations=5, separation=24)
