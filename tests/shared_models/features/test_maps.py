"""Which feature maps there are, what they take, and what pins them."""

from __future__ import annotations

import pytest

from security.errors import UsageError
from shared_models.features import maps
from shared_models.features.maps import feature_map, names


def test_there_are_two() -> None:
    assert names() == ("scattering", "scattering-patches")


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("scattering", (1, 28, 28), 3969),
        ("scattering-patches", (1, 28, 28), 10113),
        ("scattering", (3, 32, 32), 5184),
        ("scattering-patches", (1, 16, 20), 81 * 20 + 3 * 2048),
    ],
)
def test_size_follows_from_the_shape(name: str, shape: tuple[int, ...], size: int) -> None:
    assert feature_map(name).size(shape) == size


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 8, 8), "sides of 16 or more that are multiples of 4"),
        ((1, 28, 30), "sides of 16 or more that are multiples of 4"),
        ((1, 64, 64), "takes at most 1024 pixels"),
        ((2, 28, 28), "takes images, grey or in colour"),
        ((13,), "takes images, grey or in colour"),
    ],
)
def test_other_examples_are_refused_in_words(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(UsageError, match=rf"features\.name = 'scattering': .*{text}"):
        feature_map("scattering").size(shape)


def test_an_unknown_map_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="did you mean scattering"):
        feature_map("scatering")


def test_the_source_tells_maps_sizes_and_recipes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        feature_map(name).source(shape)
        for name in names()
        for shape in ((1, 28, 28), (1, 28, 24), (1, 24, 28), (1, 32, 32))
    }
    assert len(found) == 8
    monkeypatch.setattr(maps, "_RECIPE", 99)
    assert feature_map("scattering").source((1, 28, 28)) not in found


def test_a_colour_image_has_the_map_of_its_size() -> None:
    assert feature_map("scattering").source((3, 28, 28)) == feature_map("scattering").source((1, 28, 28))
