"""Layers whose per-example gradients are made of an inner tensor, not of their output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from privacy.dpsgd.layers.registry import Found

Gradients = Callable[[Tensor], Found]
"""Maps the slopes of a tensor to trained parameters and their per-example gradients."""

Tap = Callable[[Tensor, Gradients], Tensor]
"""Given a tensor of a layer's forward pass, and what makes gradients of its slopes; returns what to go on with."""


class Tapped(nn.Module):
    """A layer that hands an inner tensor to `tap`, if there is one, in its forward pass.

    Attributes:
        tap: set by an engine while it is at work.
    """

    tap: Tap | None = None
