"""DP-SGD as a release: what a step is, and what a person of several records costs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event
from scipy.stats import norm

from privacy.accountant import delta_for, epsilon
from privacy.calibration import noise_multiplier_for
from privacy.mechanisms import DpSgd, release_from_json

ROUND = DpSgd(noise_multiplier=1.5, sample_rate=0.25, steps=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("noise_multiplier", bad) for bad in (0, -1.0, math.nan, math.inf, "1", None, True)],
        *[("sample_rate", bad) for bad in (0, -0.1, 1.0001, math.nan, math.inf, "0.1", True)],
        *[("steps", bad) for bad in (0, -3, 1.0, math.nan, "10", True, None)],
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    values: dict[str, object] = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10, field: value}
    with pytest.raises(ValueError, match=field):
        DpSgd(**values)  # type: ignore[arg-type]


def test_a_step_with_sampling_is_a_poisson_sampled_gaussian() -> None:
    step = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(1.5))
    assert ROUND.event() == dp_event.SelfComposedDpEvent(step, 10)


def test_the_full_batch_is_the_plain_gaussian_mechanism() -> None:
    full = DpSgd(noise_multiplier=1.5, sample_rate=1, steps=10)
    assert full.event() == dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(1.5), 10)


def test_steps_are_its_smallest_parts() -> None:
    assert ROUND.parts() == (DpSgd(noise_multiplier=1.5, sample_rate=0.25, steps=1), 10)


def test_json_and_back() -> None:
    text = json.dumps(ROUND.to_json())
    assert json.loads(text) == {
        "mechanism": "dp-sgd",
        "noise_multiplier": 1.5,
        "sample_rate": 0.25,
        "steps": 10,
        "records_per_unit": 1,
    }
    assert release_from_json(json.loads(text)) == ROUND


def test_equal_facts_have_one_json_text() -> None:
    plain = DpSgd(noise_multiplier=2, sample_rate=1, steps=3)
    from_numpy = DpSgd(noise_multiplier=np.float32(2), sample_rate=np.float64(1), steps=np.int64(3))
    assert plain == from_numpy
    assert hash(plain) == hash(from_numpy)
    assert json.dumps(plain.to_json()) == json.dumps(from_numpy.to_json())
    assert json.dumps(plain.to_json()) == json.dumps(release_from_json(plain.to_json()).to_json())


def test_described_for_a_person() -> None:
    assert ROUND.describe() == "DP-SGD: 10 steps on Poisson batches of rate 0.25, noise multiplier 1.5"
    full = DpSgd(noise_multiplier=5, sample_rate=1, steps=1)
    assert full.describe() == "DP-SGD: 1 step on full batches, noise multiplier 5"


class TestUnitsOfSeveralRecords:
    """Rule 6: a person may have several records, each of them sampled and clipped by itself."""

    def test_it_costs_more_than_one_record_and_no_more_than_all_of_them_drawn_together(self) -> None:
        one = DpSgd(noise_multiplier=2.0, sample_rate=0.1, steps=20)
        three = replace(one, records_per_unit=3)
        together = DpSgd(noise_multiplier=2.0 / 3, sample_rate=1 - 0.9**3, steps=20)
        low, middle, high = (epsilon([release], 1e-5).epsilon for release in (one, three, together))
        assert low < middle < high

    def test_the_full_batch_is_the_gaussian_mechanism_with_a_larger_shift(self) -> None:
        several = DpSgd(noise_multiplier=6.0, sample_rate=1.0, steps=4, records_per_unit=3)
        assert several.event() == DpSgd(noise_multiplier=2.0, sample_rate=1.0, steps=4).event()

    def test_the_mixtures_divergence_is_that_of_its_densities(self) -> None:
        """Hockey-stick divergence of one step by numerical integration, both directions of add/remove."""
        k, q, sigma, eps = 2, 0.3, 1.5, 0.7
        x = np.linspace(-20, 24, 400_001)
        without = norm.pdf(x, 0, sigma)
        drawn = sum(math.comb(k, j) * q**j * (1 - q) ** (k - j) * norm.pdf(x, j, sigma) for j in range(k + 1))
        width = x[1] - x[0]
        worst = max(
            float(np.maximum(drawn - math.exp(eps) * without, 0).sum() * width),
            float(np.maximum(without - math.exp(eps) * drawn, 0).sum() * width),
        )
        found = delta_for([DpSgd(noise_multiplier=sigma, sample_rate=q, steps=1, records_per_unit=k)], eps)
        assert worst - 1e-8 <= found <= worst * 1.01 + 1e-6  # 1e-8: the integration's own error

    def test_calibration_gives_noise_for_the_whole_person(self) -> None:
        sigma = noise_multiplier_for(epsilon=2.0, delta=1e-5, sample_rate=0.1, steps=50, records_per_unit=3)
        assert sigma > noise_multiplier_for(epsilon=2.0, delta=1e-5, sample_rate=0.1, steps=50)
        run = DpSgd(noise_multiplier=sigma, sample_rate=0.1, steps=50, records_per_unit=3)
        assert 1.99 < epsilon([run], 1e-5).epsilon <= 2.0

    def test_a_person_of_hundreds_of_records_has_a_price(self) -> None:
        """Against fewer records and against all of them drawn together; weights of 1e-300 and below are no obstacle."""
        before = 0.0
        for records in (1, 100, 400, 1200):
            release = DpSgd(noise_multiplier=60.0, sample_rate=0.02, steps=10, records_per_unit=records)
            cost = epsilon([release], 1e-5).epsilon
            assert before < cost <= epsilon([replace(release, sample_rate=1.0)], 1e-5).epsilon
            before = cost

    def test_the_number_of_records_is_a_whole_number_of_at_least_one(self) -> None:
        for bad in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match="records_per_unit"):
                DpSgd(noise_multiplier=1.0, sample_rate=0.1, steps=1, records_per_unit=bad)  # type: ignore[arg-type]
