"""The table [training.augment] of a plan: records trained on in changed copies, whose gradients are averaged.

Under example-level privacy the mean over a record's copies is made before it is clipped (De et al. 2022, "Unlocking
High-Accuracy Differentially Private Image Classification through Scale", arXiv 2204.13650, section 3.2). So however
many copies there are, a record moves the sum by the clipping norm at most, and nothing is added to the cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from shared_models.example_form import ExampleForm
from shared_models.plan_section import NonNegative, Section

if TYPE_CHECKING:
    from shared_models.plan import Plan


class AugmentPlan(Section):
    """How a record is changed before it is trained on, anew in each step."""

    copies: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Copies of each record in a step, each changed by itself; their gradients are averaged."
    )
    shift: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="Most pixels (or times of a signal) that a copy is moved by; its edge values fill the gap."
    )
    flip: bool = Field(False, description="Whether half of all copies of images are mirrored, left to right.")
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="A copy is multiplied by a number between 1 - scale and 1 + scale."
    )
    turn: Annotated[float, Field(ge=0, le=3.2)] = Field(
        0.0,
        description="Signals whose channels are triples of axes in space, as an accelerometer's: standard deviation of "
        "the angle, in radians, that a copy is turned by about each axis.",
    )
    jitter: NonNegative = Field(0.0, description="Standard deviation of noise in each value of a copy.")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not (self.shift or self.flip or self.scale or self.turn or self.jitter):
            raise ValueError("copies that are all alike teach nothing; give shift, flip, scale, turn or jitter")
        return self

    def check(self, form: ExampleForm) -> None:
        """Refuse what can't be done to such examples: rather before a run than in it (rule 5).

        Raises:
            ValueError: they are tokens, or have no places to move along.
        """
        if form.vocabulary is not None:
            raise ValueError("tokens have no values to change; remove training.augment")
        if self.shift and len(form.shape) < 2:
            raise ValueError(f"shift: records of {form.shape} have no places to move along; remove it")
        if self.shift and self.shift >= min(form.shape[1:]):
            raise ValueError(f"shift = {self.shift} moves examples of {form.shape} out of sight; give less")
        if self.turn and (len(form.shape) != 2 or form.shape[0] % 3):
            raise ValueError(f"turn: records of {form.shape} are no signals of three axes each; remove it")
        if self.flip and len(form.shape) != 3:
            raise ValueError(f"flip: records of {form.shape} are no images; remove it")


def copies_of(plan: Plan) -> int:
    """In how many copies each record is trained on."""
    return 1 if plan.training.augment is None else plan.training.augment.copies
