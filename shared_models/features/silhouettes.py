"""Silhouettes of made-up things: drawn by formulas, of no kind in particular, as a picture frames them.

Blobs, stars of straight or smooth sides, bodies with limbs, boxes with handles; many mirrored, some cut out or with a
hole; standing, lying or upside down.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn

from shared_models.features.draws import Draws

_FINER: Final = 2  # a side is drawn so many times finer, for grey edges
_KINDS: Final = (0.15, 0.3, 0.45, 0.1)  # shares of blobs, stars, bodies and boxes
_CORNERS: Final = 24  # directions of a star's outline


def silhouettes(count: int, shape: tuple[int, int], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Masks (n, 1, H, W) in [0, 1]: of things as wholes, and of what is a part apart (limbs, handles).

    Args:
        count: n.
        shape: height and width.
        generator: the drawings follow from it.
    """
    draws = Draws(count, generator, axes=2)
    side = _FINER * max(shape)
    line = (torch.arange(side, dtype=torch.float32) + 0.5) / side * 2 - 1
    y = line[None, :, None].expand(count, side, side)
    x = line[None, None, :].expand(count, side, side)
    mirrored = draws.coin(0.6)
    half = torch.where(mirrored, x.abs(), x)

    kind = torch.from_numpy(generator.choice(len(_KINDS), count, p=_KINDS)).view(count, 1, 1)
    box, handle = _box(draws, half, y)
    body, limbs = _body(draws, half, y)
    aside = draws.uniform(-0.5, 0.5) * ~draws.coin(0.4)
    cut = _ellipse(draws, half, y, aside, draws.uniform(-1, 1), wide=(0.1, 0.5), high=(0.1, 0.6))
    body &= ~(cut & draws.coin(0.5))
    star = _star(draws, x, y, mirrored) & ~(cut & draws.coin(0.25))
    main = torch.where(kind == 0, _blob(draws, side, mirrored, x, y), star)
    main = torch.where(kind == 2, body, torch.where(kind == 3, box, main))
    apart = (limbs & (kind == 2)) | (handle & (kind == 3))

    main, apart = _turned(draws, main, apart)
    main = main | ~(main | apart).flatten(1).any(1).view(count, 1, 1)  # nothing drawn: all of the frame
    framed = _framed(torch.stack([main | apart, apart & ~main], dim=1).float(), shape, Draws(count, generator, axes=0))
    return framed[:, :1], framed[:, 1:]


def _turned(draws: Draws, main: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
    """Some mirrored, upside down or lying."""
    mirrored, upside_down, lying = draws.coin(0.5), draws.coin(0.3), draws.coin(0.35)

    def turned(mask: Tensor) -> Tensor:
        mask = torch.where(mirrored, mask.flip(2), mask)
        mask = torch.where(upside_down, mask.flip(1), mask)
        return torch.where(lying, mask.transpose(1, 2), mask)

    return turned(main), turned(apart)


def _blob(draws: Draws, side: int, mirrored: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Where a smooth random field is high, towards the middle."""
    field = draws.smooth_field((6, 6), (side, side))[:, 0]
    field = torch.where(mirrored, (field + field.flip(2)) / 1.4, field)
    return field + 0.8 - 1.6 * (x * x + y * y) > 0


def _star(draws: Draws, x: Tensor, y: Tensor, mirrored: Tensor) -> Tensor:
    """Within a radius that changes with the direction, between five to twelve corners."""
    n = draws.count
    corners = torch.from_numpy(draws.generator.integers(5, 13, (n, 1)))
    radii = torch.from_numpy(draws.generator.uniform(0.35, 1, (n, 12)).astype(np.float32))
    place = torch.arange(_CORNERS)[None] * corners / _CORNERS
    before, part = place.floor().long(), place.frac()
    part = torch.where(draws.coin(0.5).view(n, 1), part * part * (3 - 2 * part), part)
    outline = (
        torch.gather(radii, 1, before % corners) * (1 - part) + torch.gather(radii, 1, (before + 1) % corners) * part
    )
    outline = torch.cat([outline, outline[:, :1]], dim=1)
    folded = torch.atan2(y, x.abs()) / (2 * np.pi) + 0.5
    turned = (torch.atan2(y, x) / (2 * np.pi) + draws.uniform(0, 1)) % 1
    angle = torch.where(mirrored, folded, turned) * _CORNERS
    at = angle.floor().long().clamp(0, _CORNERS - 1)
    near, far = (torch.gather(outline, 1, (at + step).flatten(1)).view_as(x) for step in (0, 1))
    radius = near + (far - near) * (angle - at)
    return x * x + y * y < radius * radius


def _body(draws: Draws, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A box, trapezium or ellipse, and up to three limbs."""
    width, height, taper = draws.uniform(0.2, 0.8), draws.uniform(0.3, 0.9), draws.uniform(-0.4, 0.4)
    box = (x.abs() < width * (1 + taper * y)) & (y.abs() < height)
    body = torch.where(draws.coin(0.6), box, (x / width) ** 2 + (y / height) ** 2 < 1)
    limbs = torch.zeros_like(body)
    for chance in (0.8, 0.6, 0.4):
        limbs |= _limb(draws, x, y) & draws.coin(chance)
    return body, limbs


def _limb(draws: Draws, x: Tensor, y: Tensor) -> Tensor:
    """Near a line from one point to another, ever nearer or ever farther."""
    from_x, from_y = draws.uniform(-0.3, 0.5), draws.uniform(-0.7, 0.7)
    along_x, along_y = draws.uniform(-0.2, 1) - from_x, draws.uniform(-1, 1) - from_y
    thick = draws.uniform(0.06, 0.3)
    thin = thick * draws.uniform(0.4, 1.2)
    length = (along_x * along_x + along_y * along_y).clamp(min=1e-4)
    part = (((x - from_x) * along_x + (y - from_y) * along_y) / length).clamp(0, 1)
    distance = torch.hypot(x - from_x - part * along_x, y - from_y - part * along_y)
    return distance < thick + part * (thin - thick)


def _box(draws: Draws, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A box, and a ring over it."""
    top, taper = draws.uniform(-0.5, 0.4), draws.uniform(-0.4, 0.4)
    box = (x.abs() < draws.uniform(0.4, 1) * (1 + taper * y)) & (y > top)
    wide, high, thick = draws.uniform(0.15, 0.8), draws.uniform(0.3, 1), draws.uniform(0.05, 0.2)
    outer = (x / wide) ** 2 + ((y - top) / high) ** 2 < 1
    inner = (x / (wide - thick).clamp(min=0.03)) ** 2 + ((y - top) / (high - thick)) ** 2 < 1
    return box, outer & ~inner


def _ellipse(
    draws: Draws,
    x: Tensor,
    y: Tensor,
    at_x: Tensor,
    at_y: Tensor,
    *,
    wide: tuple[float, float],
    high: tuple[float, float],
) -> Tensor:
    return ((x - at_x) / draws.uniform(*wide)) ** 2 + ((y - at_y) / draws.uniform(*high)) ** 2 < 1


def _framed(masks: Tensor, shape: tuple[int, int], draws: Draws) -> Tensor:
    """The things as large as the picture: seven of ten in proportion, the others drawn out both ways."""
    there = masks.amax(1) > 0
    left, right = _ends(there.any(1))
    top, bottom = _ends(there.any(2))
    wide, high = (right - left) / 2, (bottom - top) / 2
    whole = torch.maximum(wide, high) * draws.uniform(1.0, 1.08)
    kept = draws.coin(0.7)
    across, along = (torch.where(kept, whole, size * 1.05).clamp(min=0.2) for size in (wide, high))
    zero = torch.zeros_like(across)
    rows = [torch.stack([across, zero, (left + right) / 2], 1), torch.stack([zero, along, (top + bottom) / 2], 1)]
    finer = [_FINER * size for size in shape]
    grid = nn.affine_grid(torch.stack(rows, 1), [len(masks), 1, *finer], align_corners=False)
    drawn = nn.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return nn.avg_pool2d(drawn, _FINER)


def _ends(there: Tensor) -> tuple[Tensor, Tensor]:
    """Where something begins and ends along a line from -1 to 1."""
    size = there.shape[1]
    first, last = there.float().argmax(1), size - 1 - there.flip(1).float().argmax(1)
    return first / size * 2 - 1, (last + 1) / size * 2 - 1
