"""The scattering transform of images, with two scales and eight directions, as plain convolutions.

Source: Bruna & Mallat 2013, "Invariant Scattering Convolution Networks" (arXiv 1203.1513), with the Morlet filters and
their constants as Andreux et al. 2020 give them ("Kymatio: Scattering Transforms in Python", arXiv 1812.11214). Nothing
in it is learnt. Three orders are kept: the image smoothed, the modulus of each of 16 wavelets smoothed, and the modulus
of each coarse wavelet of the modulus of each fine one smoothed: 1 + 16 + 64 = 81 maps at a quarter of the resolution.
Borders are reflected.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nn

MAPS = 81
"""Maps of one image."""

SHRINKS = 4
"""How many times smaller a side becomes."""

_DIRECTIONS = 8
_WIDTH = 0.8  # standard deviation of the finest wavelet's envelope, in pixels
_FREQUENCY = 3 * math.pi / 4  # of the finest wavelet, in radians a pixel
_SLANT = 4 / _DIRECTIONS  # how much narrower the envelope is along the wave than across it
_REACH = 3  # standard deviations after which a filter is cut off


def scattering(images: Tensor) -> Tensor:
    """Scattering coefficients (n, 81, H/4, W/4) of images (n, 1, H, W), none of them negative but those of order 0.

    Args:
        images: float32; sides multiples of 4, at least 16.

    Raises:
        ValueError: images of another shape.
    """
    if images.ndim != 4 or images.shape[1] != 1 or any(side < 16 or side % SHRINKS for side in images.shape[2:]):
        raise ValueError(f"scattering takes (n, 1, H, W) with sides of 16 or more, multiples of 4, not {images.shape}")
    n, _, height, width = images.shape
    fine, coarse = _wavelets(0), _wavelets(1)
    fine_modulus = _modulus(images, fine, stride=1)  # (n, 8, H, W)
    coarse_modulus = _modulus(images, coarse, stride=2)  # (n, 8, H/2, W/2)
    second = _modulus(fine_modulus.reshape(n * _DIRECTIONS, 1, height, width), coarse, stride=2)
    parts = (
        _smoothed(images, stride=4),
        _smoothed(fine_modulus, stride=4),
        _smoothed(coarse_modulus, stride=2),
        _smoothed(second, stride=2).reshape(n, _DIRECTIONS**2, height // SHRINKS, width // SHRINKS),
    )
    return torch.cat(parts, dim=1)


def morlet(scale: int, direction: int) -> npt.NDArray[np.complex128]:
    """A Morlet wavelet: a plane wave under a Gaussian, less so much of the Gaussian that it sums to zero.

    Args:
        scale: 0 is the finest; each further one is twice as wide.
        direction: from 0 to 7, of the half circle.
    """
    width, frequency = _WIDTH * 2**scale, _FREQUENCY / 2**scale
    angle = (_DIRECTIONS - _DIRECTIONS / 2 - 1 - direction) * math.pi / _DIRECTIONS
    reach = int(_REACH * width / _SLANT)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    envelope = np.exp(-(along**2 + (_SLANT * across) ** 2) / (2 * width**2)) * _SLANT / (2 * math.pi * width**2)
    wave = envelope * np.exp(1j * frequency * along)
    return np.asarray(wave - envelope * (wave.sum() / envelope.sum()))


@cache
def _wavelets(scale: int) -> Tensor:
    """Real parts of all directions, then imaginary ones: (16, 1, k, k)."""
    found = np.stack([morlet(scale, direction) for direction in range(_DIRECTIONS)])
    return torch.from_numpy(np.concatenate([found.real, found.imag]).astype(np.float32))[:, None]


def _modulus(images: Tensor, wavelets: Tensor, *, stride: int) -> Tensor:
    reach = wavelets.shape[-1] // 2
    padded = nn.pad(images, (reach,) * 4, mode="reflect")
    found = nn.conv2d(padded, wavelets, stride=stride)
    return torch.hypot(found[:, :_DIRECTIONS], found[:, _DIRECTIONS:])


@cache
def _low_pass(stride: int) -> Tensor:
    """The Gaussian of the coarsest scale, of standard deviation 1.6 pixels, on a grid that is 4 / stride wide."""
    width = 2 * _WIDTH * stride / SHRINKS
    reach = math.ceil(_REACH * width)
    line = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    return torch.from_numpy((np.outer(line, line) / line.sum() ** 2).astype(np.float32))[None, None]


def _smoothed(maps: Tensor, *, stride: int) -> Tensor:
    n, channels, height, width = maps.shape
    kernel = _low_pass(stride)
    reach = kernel.shape[-1] // 2
    padded = nn.pad(maps.reshape(n * channels, 1, height, width), (reach,) * 4, mode="reflect")
    found = nn.conv2d(padded, kernel, stride=stride)
    return found.reshape(n, channels, height // stride, width // stride)
