"""Rule 10: histograms of several columns, released together, have their joint sensitivity."""

from __future__ import annotations

import math

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import Gaussian, NoisyCounts, NoisyHistograms, release_from_json


def test_a_record_moves_one_count_of_each_column() -> None:
    twelve = NoisyHistograms(noise_multiplier=2.0, columns=12)
    assert twelve.sensitivity == math.sqrt(12)
    assert twelve.noise == 2.0 * math.sqrt(12)
    assert epsilon([twelve], 1e-5) == epsilon([Gaussian(noise_multiplier=2.0)], 1e-5)
    # The same as that many counts, each of which a record moves by one: how many bins there are is no matter.
    assert epsilon([twelve], 1e-5).epsilon == pytest.approx(
        epsilon([NoisyCounts(noise=twelve.noise, counts=12)], 1e-5).epsilon
    )


def test_a_person_moves_each_count_by_all_of_their_records() -> None:
    person = NoisyHistograms(noise_multiplier=8.0, columns=3, records_per_unit=4)
    assert person.sensitivity == 4 * math.sqrt(3)
    assert epsilon([person], 1e-5) == epsilon([Gaussian(noise_multiplier=2.0)], 1e-5)


def test_it_is_written_down_and_described() -> None:
    release = NoisyHistograms(noise_multiplier=2.0, columns=4, records_per_unit=3)
    assert release_from_json(release.to_json()) == release
    assert release.parts() == (release, 1)
    assert NoisyHistograms(noise_multiplier=2.0, columns=4, releases=5).parts() == (
        NoisyHistograms(noise_multiplier=2.0, columns=4),
        5,
    )
    assert release.describe() == (
        "noisy histograms: histograms of 4 columns, noise 4 in each count, at most 3 records a unit"
    )


@pytest.mark.parametrize(
    "wrong", [{"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"columns": 0}, {"records_per_unit": 0}]
)
def test_what_has_no_price_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NoisyHistograms(**{"noise_multiplier": 1.0, "columns": 2, **wrong})  # type: ignore[arg-type]
