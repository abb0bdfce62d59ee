"""The scattering transform: which maps it has, and what they don't depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shared_models.features.scattering import MAPS, morlet, scattering


def image(seed: int, *, sides: tuple[int, int] = (28, 28), n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, *sides, generator=torch.Generator().manual_seed(seed))


def wave(angle: float, frequency: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return torch.cos(frequency * (x * math.cos(angle) + y * math.sin(angle)))[None, None]


@pytest.mark.parametrize(("sides", "small"), [((28, 28), (7, 7)), ((16, 20), (4, 5)), ((32, 32), (8, 8))])
def test_there_are_81_maps_at_a_quarter_of_the_resolution(sides: tuple[int, int], small: tuple[int, int]) -> None:
    assert scattering(image(1, sides=sides)).shape == (2, MAPS, *small)


@pytest.mark.parametrize("shape", [(2, 1, 12, 16), (2, 1, 28, 30), (2, 3, 28, 28), (1, 28, 28)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        scattering(torch.zeros(shape))


@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize("direction", range(8))
def test_wavelets_sum_to_zero(scale: int, direction: int) -> None:
    assert abs(morlet(scale, direction).sum()) < 1e-12


def test_a_flat_image_has_its_brightness_and_nothing_else() -> None:
    found = scattering(torch.full((1, 1, 28, 28), 0.7))
    assert torch.allclose(found[:, 0], torch.tensor(0.7), atol=1e-6)
    assert float(found[:, 1:].abs().max()) < 1e-6


def test_no_coefficient_is_negative() -> None:
    assert float(scattering(image(2)).min()) >= 0


@pytest.mark.parametrize(("scale", "frequency"), [(0, 3 * math.pi / 4), (1, 3 * math.pi / 8)])
@pytest.mark.parametrize("direction", range(8))
def test_a_wave_is_heard_by_the_wavelet_of_its_scale_and_direction(
    scale: int, frequency: float, direction: int
) -> None:
    angle = (3 - direction) * math.pi / 8
    maps = scattering(wave(angle, frequency))[0, 1:17, 2:6, 2:6].mean(dim=(1, 2))
    assert int(maps.argmax()) == 8 * scale + direction


def test_second_order_hears_the_rhythm_of_a_fine_texture() -> None:
    # A fine horizontal wave that swells and fades along y: the envelope is a coarse vertical wave.
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    fine = torch.cos(3 * math.pi / 4 * x)
    rhythmic = (fine * (1 + torch.cos(3 * math.pi / 8 * y)))[None, None]
    horizontal, vertical = 3, 7  # directions of angle 0 and -pi/2
    second = scattering(rhythmic)[0, 17:, 2:6, 2:6].mean(dim=(1, 2)).reshape(8, 8)
    steady = scattering(fine[None, None])[0, 17:, 2:6, 2:6].mean(dim=(1, 2)).reshape(8, 8)
    assert int((second - steady)[horizontal].argmax()) == vertical
    assert float(second[horizontal, vertical]) > 2 * float(steady[horizontal, vertical])


def test_it_equals_the_sums_of_the_definition() -> None:
    x = image(3, n=1)
    reach = 4
    padded = np.pad(x[0, 0].numpy().astype(np.float64), reach, mode="reflect")
    filters = morlet(0, 2)
    # torch's convolution slides without turning the filter round; a modulus of a real image doesn't mind, since the
    # turned wavelet is the conjugate one.
    modulus = np.array([[abs((padded[r : r + 9, c : c + 9] * filters).sum()) for c in range(28)] for r in range(28)])
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.6**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    smooth = np.pad(modulus, 5, mode="reflect")
    expected = np.array(
        [[(smooth[r : r + 11, c : c + 11] * kernel).sum() for c in range(0, 28, 4)] for r in range(0, 28, 4)]
    )
    assert np.allclose(scattering(x)[0, 3].numpy(), expected, atol=1e-6)


def test_every_image_is_seen_by_itself() -> None:
    images = image(4, n=5)
    alone = torch.cat([scattering(one[None]) for one in images])
    assert torch.allclose(scattering(images), alone, atol=1e-6)


def test_a_shift_by_one_pixel_moves_the_coefficients_less_than_the_image() -> None:
    plain = torch.nn.functional.interpolate(image(5, sides=(8, 8), n=20), size=(28, 28), mode="bilinear")
    shifted = torch.roll(plain, 1, dims=3)
    before, after = scattering(plain), scattering(shifted)
    moved = (before - after)[..., 1:-1].norm() / before[..., 1:-1].norm()
    assert float(moved) < float((plain - shifted).norm() / plain.norm())
