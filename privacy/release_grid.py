"""The grid on which a vector leaves: whole numbers of steps, so that noise can be whole numbers too (rule 9)."""

import math
from dataclasses import dataclass

from privacy.noise_limits import LARGEST_SCALE

_FINEST = 20  # binary digits of a clipping norm in steps: 16 such vectors add up in float32 without rounding


@dataclass(frozen=True, kw_only=True)
class ReleaseGrid:
    """How vectors clipped to a norm C become whole numbers, and how much noise those get.

    Each contribution is clipped to `norm` steps, a little less than C, and *then* rounded to the nearest step. That
    moves each of d coordinates by half a step at most, and the vector by sqrt(d) / 2 steps: rounded, it is no longer
    than C. So the sensitivity of their sum is C exactly, and the Gaussian that the plan calls for needs no
    allowance. (The alternative, rounding the sum, would make it C + sqrt(d) steps.)

    Attributes:
        clipping_norm: C.
        steps: C in steps, a power of two.
        norm: in steps; what a contribution is clipped to before it is rounded.
        noise_scale: standard deviation of the noise in steps, sigma · steps.
    """

    clipping_norm: float
    steps: int
    norm: float
    noise_scale: float

    @property
    def step(self) -> float:
        """Width of a step."""
        return self.clipping_norm / self.steps

    @classmethod
    def of(cls, *, clipping_norm: float, noise_multiplier: float, dimensions: int) -> "ReleaseGrid":
        """The finest grid that the noise allows: 2^20 steps to C for noise multipliers up to 2^14.

        Args:
            clipping_norm: C, > 0.
            noise_multiplier: sigma, standard deviation of the noise over C, > 0.
            dimensions: d, number of coordinates, >= 1.

        Raises:
            ValueError: if rounding would take more than a hundredth of the clipping norm.
        """
        digits = min(_FINEST, math.floor(math.log2(LARGEST_SCALE / noise_multiplier)))
        moved = math.sqrt(dimensions) / 2
        if not moved <= 0.01 * 2.0**digits:
            raise ValueError(
                f"noise_multiplier {noise_multiplier} with {dimensions} parameters is out of range: the grid would be "
                "too coarse for the clipping norm; give less noise or train fewer parameters"
            )
        steps = 2**digits
        return cls(
            clipping_norm=clipping_norm,
            steps=steps,
            norm=(steps - moved) * (1 - 2.0**-50),
            noise_scale=noise_multiplier * steps,
        )
