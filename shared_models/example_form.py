"""What one example looks like to a network, and what is asked about it."""

from __future__ import annotations

from dataclasses import dataclass

PADDING = 0
"""The token that fills what a text is shorter than others; never one to be predicted."""


MOST_PLACES = 2048
"""Of a text or signal that networks go through place by place: a stranger's plan may ask for more, and they take time.
"""


@dataclass(frozen=True)
class ExampleForm:
    """Public facts that a network is built for.

    Attributes:
        shape: of one example, without the batch: (channels, height, width), (channels, times), (features,) or, of
            tokens, (places,).
        classes: number of classes, at least 2.
        vocabulary: number of tokens, where the values are numbers of tokens from 0 (`PADDING`); None: real values.
        at_each_place: whether every place of an example has a label of its own, the token that follows (a language
            model, whose classes are the tokens).

    Raises:
        ValueError: a size that can't be.
    """

    shape: tuple[int, ...]
    classes: int
    vocabulary: int | None = None
    at_each_place: bool = False

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"the shape of an example {self.shape} must hold positive sizes")
        if self.classes < 2:
            raise ValueError(f"needs at least 2 classes, not {self.classes}")
        if self.vocabulary is not None and (self.vocabulary < 2 or len(self.shape) != 1):
            raise ValueError(f"tokens are one row of at least 2 kinds, not {self.shape} of {self.vocabulary}")
        if self.at_each_place and self.vocabulary != self.classes:
            raise ValueError("a language model's classes are its tokens")
