"""What a release is: a fact with one JSON form, checked when it is made."""

import json
import math

import numpy as np
import pytest
from dp_accounting import dp_event

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
    }
    assert release_from_json(json.loads(text)) == ROUND


def test_equal_facts_have_one_json_text() -> None:
    plain = DpSgd(noise_multiplier=2, sample_rate=1, steps=3)
    from_numpy = DpSgd(noise_multiplier=np.float32(2), sample_rate=np.float64(1), steps=np.int64(3))
    assert plain == from_numpy
    assert hash(plain) == hash(from_numpy)
    assert json.dumps(plain.to_json()) == json.dumps(from_numpy.to_json())
    assert json.dumps(plain.to_json()) == json.dumps(release_from_json(plain.to_json()).to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mechanism": "magic"}, "unknown mechanism 'magic'; known: dp-sgd"),
        ({"mechanism": None}, "unknown mechanism None"),
        ({"mechanism": ["dp-sgd"]}, "unknown mechanism"),
        ({"clip": 1.0}, "got .*'clip'"),
        ({"steps": "10"}, "steps"),
        ({"sample_rate": 2.0}, "sample_rate"),
    ],
)
def test_what_cannot_be_priced_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        release_from_json({**ROUND.to_json(), **change})


def test_a_missing_field_is_refused() -> None:
    data = ROUND.to_json()
    del data["sample_rate"]
    with pytest.raises(ValueError, match="sample_rate"):
        release_from_json(data)


def test_a_mechanism_reads_only_its_own_name() -> None:
    with pytest.raises(ValueError, match="not a dp-sgd release"):
        DpSgd.from_json({**ROUND.to_json(), "mechanism": "other"})


def test_described_for_a_person() -> None:
    assert ROUND.describe() == "DP-SGD: 10 steps on Poisson batches of rate 0.25, noise multiplier 1.5"
    full = DpSgd(noise_multiplier=5, sample_rate=1, steps=1)
    assert full.describe() == "DP-SGD: 1 step on full batches, noise multiplier 5"
