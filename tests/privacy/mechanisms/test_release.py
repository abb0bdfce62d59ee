"""What a release is: a fact with one JSON form, checked when it is made, whatever the mechanism."""

import json
from dataclasses import replace

import pytest

from privacy.mechanisms import (
    BandedFactorisation,
    ClientLevel,
    DiscreteGaussianSum,
    DpSgd,
    Gaussian,
    Mechanism,
    NoisyCounts,
    Release,
    RenyiPriced,
    SkellamSum,
    canonical,
    release_from_json,
)
from privacy.neighbours import Neighbours

ONE_OF_EACH: list[Release] = [
    BandedFactorisation(
        noise_multiplier=2.0, rounds=9, band=2, separation=3, participations=3, factorisation="0f" * 32
    ),
    ClientLevel(noise_multiplier=1.0, cohort="poisson", rate=0.05, rounds=3),
    ClientLevel(noise_multiplier=1.0, cohort="fixed", size=5, of=100, rounds=3),
    ClientLevel(noise_multiplier=1.0, cohort="full", rounds=3),
    DiscreteGaussianSum(noise_share=2.0, honest=3, l2_sensitivity=4.0, dimension=10, releases=2),
    DpSgd(noise_multiplier=1.0, sample_rate=0.1, steps=10, records_per_unit=3),
    Gaussian(noise_multiplier=2.0, releases=5),
    NoisyCounts(noise=10.0, counts=2, records_per_unit=3),
    SkellamSum(noise_share=2.0, honest=3, l2_sensitivity=4.0, dimension=10, sample_rate=0.5, releases=2),
]
names = pytest.mark.parametrize("release", ONE_OF_EACH, ids=lambda release: release.describe().split(":")[0])


@names
def test_json_and_back(release: Release) -> None:
    text = json.dumps(release.to_json())
    again = release_from_json(json.loads(text))
    assert again == release
    assert hash(again) == hash(release)
    assert json.dumps(again.to_json()) == text
    assert all(isinstance(value, (str, int, float, type(None))) for value in json.loads(text).values())


@names
def test_a_missing_an_unknown_and_a_wrong_field_are_refused(release: Release) -> None:
    for name in release.to_json():
        less = {key: value for key, value in release.to_json().items() if key != name}
        with pytest.raises(ValueError, match=r"unknown mechanism None|has the keys"):
            release_from_json(less)
    with pytest.raises(ValueError, match="'clip'"):
        release_from_json({**release.to_json(), "clip": 1.0})
    for name, value in release.to_json().items():
        if isinstance(value, (int, float)):
            for bad in (-1, 0, "1", True, float("nan"), float("inf")):
                with pytest.raises(ValueError, match=name):
                    release_from_json({**release.to_json(), name: bad})


@names
def test_a_round_is_its_parts(release: Release) -> None:
    part, count = release.parts()
    assert part.parts() == (part, 1)
    assert count >= 1
    assert part.relation is release.relation


@names
def test_described_in_one_line(release: Release) -> None:
    assert release.describe()
    assert "\n" not in release.describe()


@pytest.mark.parametrize("name", ["magic", None, ["dp-sgd"], ""])
def test_an_unknown_mechanism_has_no_price(name: object) -> None:
    with pytest.raises(ValueError, match=r"unknown mechanism .*; known: banded-factorisation, client-level, discr"):
        release_from_json({"mechanism": name})


def test_a_mechanism_reads_only_its_own_name() -> None:
    with pytest.raises(ValueError, match="not a gaussian release"):
        Gaussian.from_json({"mechanism": "dp-sgd", "noise_multiplier": 1.0, "releases": 1})


def test_two_mechanisms_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="two mechanisms have the name 'gaussian'"):
        type("Other", (Mechanism,), {}, name="gaussian")


def test_one_text_for_one_fact() -> None:
    text = canonical(Gaussian(noise_multiplier=2))
    assert text == '{"mechanism":"gaussian","noise_multiplier":2.0,"releases":1}'
    assert text == canonical(replace(Gaussian(noise_multiplier=3.0), noise_multiplier=2.0))


def test_only_sums_of_discrete_noise_are_priced_by_their_published_bound_alone() -> None:
    """Rule 4."""
    assert {release.describe().split(":")[0] for release in ONE_OF_EACH if isinstance(release, RenyiPriced)} == {
        "discrete-gaussian-sum",
        "skellam-sum",
    }


def test_neighbours_add_or_remove_a_unit_unless_cohorts_have_a_fixed_size() -> None:
    for release in ONE_OF_EACH:
        fixed = isinstance(release, ClientLevel) and release.cohort == "fixed"
        expected = Neighbours.REPLACE_ONE if fixed else Neighbours.ADD_OR_REMOVE_ONE
        assert release.relation is expected
