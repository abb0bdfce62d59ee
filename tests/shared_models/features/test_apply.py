"""What a plan's network sees of records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from security.errors import UsageError
from shared_models.features.apply import check_source, model_inputs, model_shape
from shared_models.features.store import matrices
from shared_models.plan import Plan

CARD = {"input_shape": [1, 16, 16], "classes": ["a", "b"], "mean": 0.25, "std": 0.5}


def plan(**features: object) -> Plan:
    own = {"data": {"name": "npz", "path": "none.npz", "card": CARD}, "model": {"name": "linear"}}
    return Plan.model_validate({**own, **({"features": features} if features else {})}, strict=False)


def x(n: int = 5) -> torch.Tensor:
    return (torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(n)) - 0.25) / 0.5


def test_a_plan_without_features_leaves_records_as_they_are() -> None:
    images = x()
    assert model_inputs(plan(), images, cached=True) is images
    assert model_shape(plan()) == (1, 16, 16)
    assert check_source(plan()) is None


@pytest.mark.parametrize("cached", [True, False])
def test_features_are_those_of_the_brightness_that_the_card_says(cached: bool) -> None:
    found = model_inputs(plan(name="scattering"), x(), cached=cached)
    expected = matrices("scattering", (1, 16, 16)).features(x() * 0.5 + 0.25)
    assert model_shape(plan(name="scattering")) == (81 * 16,) == found.shape[1:]
    assert torch.allclose(found, expected, atol=1e-3)


def test_what_is_cached_is_read_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_inputs(plan(name="scattering"), x(), cached=True).clone()
    monkeypatch.setattr("shared_models.features.apply._features", None)  # nobody computes any more
    assert torch.equal(model_inputs(plan(name="scattering"), x(), cached=True), first)
    assert len(list(cache.glob("features/data/*.npy"))) == 1


def test_nothing_is_written_where_nothing_may_be(cache: Path) -> None:
    model_inputs(plan(name="scattering"), x(), cached=False)
    assert not (cache / "features" / "data").exists()


def test_other_images_have_other_features(cache: Path) -> None:
    for n in (5, 6):
        assert len(model_inputs(plan(name="scattering"), x(n), cached=True)) == n
    assert len(list(cache.glob("features/data/*.npy"))) == 2


@pytest.mark.parametrize("content", [b"rubbish", b""])
def test_a_damaged_file_is_made_again(cache: Path, content: bytes) -> None:
    first = model_inputs(plan(name="scattering"), x(), cached=True).clone()
    (path,) = cache.glob("features/data/*.npy")
    path.write_bytes(content)
    assert torch.equal(model_inputs(plan(name="scattering"), x(), cached=True), first)
    assert np.load(path).shape == (5, 81 * 16)


def test_writing_to_features_does_not_reach_the_file() -> None:
    found = model_inputs(plan(name="scattering"), x(), cached=True)
    found.zero_()
    assert float(model_inputs(plan(name="scattering"), x(), cached=True).abs().max()) > 0


def test_no_records_have_no_features() -> None:
    assert model_inputs(plan(name="scattering"), x()[:0], cached=True).shape == (0, 81 * 16)


def test_another_source_is_refused() -> None:
    with pytest.raises(UsageError, match=r"features\.source = '0000000000000000\.\.\.'.*same versions of Veil"):
        check_source(plan(name="scattering", source="0" * 64))
