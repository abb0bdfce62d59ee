"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) and EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, without
squeeze-and-excitation and with ReLU6): one kind of block, two tables; with their public weights, to make features.

Only for networks that never learn: BatchNorm, in evaluation, is a fixed scale and shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from security.errors import UsageError
from shared_models.downloads.fetch import fetched

SIDE: Final = 112
"""Pixels a side that images are scaled to; the networks were trained on 224."""

# Of each stage: how many times wider inside, channels, blocks, first stride, kernel (tables 2 of the first paper, 1 of
# the second).
_MOBILE: Final = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
_EFFICIENT: Final = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_FIRST, _LAST = 32, 1280  # channels


class _Block(nn.Module):
    """An inverted residual: wider by a kernel of 1, each channel by itself, narrower by a kernel of 1."""

    def __init__(
        self, before: int, after: int, wider: int, stride: int, kernel: int, *, eps: float, same: bool
    ) -> None:
        super().__init__()
        inside = before * wider
        self.layers = nn.Sequential(
            *([] if wider == 1 else [_layer(before, inside, 1, 1, 1, eps=eps, same=same)]),
            _layer(inside, inside, kernel, stride, inside, eps=eps, same=same),
            nn.Conv2d(inside, after, 1, bias=False),
            nn.BatchNorm2d(after, eps=eps),
        )
        self.has_shortcut = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.layers(features)
        return features + made if self.has_shortcut else made


def _layer(before: int, after: int, kernel: int, stride: int, groups: int, *, eps: float, same: bool) -> nn.Sequential:
    convolution = (
        _Same(before, after, kernel, stride=stride, groups=groups, bias=False)
        if same
        else nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(after, eps=eps), nn.ReLU6())


class _Same(nn.Conv2d):
    """Padded as TensorFlow does: with an odd pixel at the far end."""

    def forward(self, features: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(features.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            lacking = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [lacking // 2, lacking - lacking // 2]
        return super().forward(nn.functional.pad(features, padding))


class MobileNetwork(nn.Module):
    """Maps images (n, 3, H, W) as ImageNet's are normalised to features (n, 1280).

    Args:
        stages: rows as in the tables above.
        eps: of BatchNorm.
        same: whether images are padded as TensorFlow does.
    """

    def __init__(self, stages: tuple[tuple[int, int, int, int, int], ...], *, eps: float, same: bool) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_layer(3, _FIRST, 3, 2, 1, eps=eps, same=same)]
        before = _FIRST
        for wider, after, count, stride, kernel in stages:
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(_Block(before, after, wider, first, kernel, eps=eps, same=same))
                before = after
        blocks.append(_layer(before, _LAST, 1, 1, 1, eps=eps, same=same))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.blocks(images)
        return features.mean(dim=(2, 3))


def mobilenet_v2() -> MobileNetwork:
    """With the weights of torchvision.

    Raises:
        UsageError: they aren't fetched.
    """
    return _with_weights(MobileNetwork(_MOBILE, eps=1e-5, same=False), "mobilenet-v2")


def efficientnet_lite0() -> MobileNetwork:
    """With the weights of its authors.

    Raises:
        UsageError: they aren't fetched.
    """
    return _with_weights(MobileNetwork(_EFFICIENT, eps=1e-3, same=True), "efficientnet-lite0")


def _with_weights(network: MobileNetwork, name: str) -> MobileNetwork:
    (path,) = fetched(name).values()
    given = [value for key, value in _read(path).items() if "num_batches_tracked" not in key]
    wanted = [key for key in network.state_dict() if "num_batches_tracked" not in key]
    # The files name layers otherwise, in the same order; a classifier follows.
    state = dict(zip(wanted, given, strict=False))
    try:
        network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UsageError(f"{path}: holds another network than '{name}'") from error
    return network


def _read(path: Path) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found
