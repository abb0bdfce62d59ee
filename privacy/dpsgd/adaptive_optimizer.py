"""A private step whose clipping norm follows the gradients' lengths, itself private."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

from privacy.adaptive_clipping import AdaptiveClipping
from privacy.dpsgd.clipping import Gradient, join_rows, lengths, split_rows, sums_of, towards
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.noise import NoiseSource


class AdaptiveOptimizer(PrivateOptimizer):
    """As `PrivateOptimizer`, with the clipping norm of Andrew et al. 2021 (arXiv 1905.03871, algorithm 1) for examples.

    Each example gives one vector no longer than 1: its clipped gradient over C, times a, and a bit, +w if the gradient
    is no longer than C and -w if it is, with a^2 + w^2 = 1 (`privacy.adaptive_clipping`). So a step is one Gaussian
    release of noise multiplier sigma, bit included: nothing is added for it, and gradients get 1 / a times the noise.
    Shares are of the public expected batch; an example that isn't there counts as half, so an empty batch reads as a
    share of 1/2 plus noise.

    Args:
        optimizer: as there.
        clipping: the public constants of the norm.
        noise_multiplier: sigma, of gradient and bit together.
        expected_batch_size: as there.
        noise: as there.
        values_left_as_factors: as there.

    Raises:
        ValueError: as there, or the bit would need less noise than it is given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        clipping: AdaptiveClipping,
        noise_multiplier: float,
        expected_batch_size: float,
        noise: NoiseSource,
        values_left_as_factors: int = 0,
    ) -> None:
        if not 1e-9 <= clipping.least_norm <= clipping.most_norm <= 1e9:
            raise ValueError(
                f"the clipping norm must stay between 1e-9 and 1e9, got {clipping.least_norm} to {clipping.most_norm}"
            )
        self._bits = 0
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            clipping_norm=1.0,
            expected_batch_size=expected_batch_size,
            noise=noise,
            values_left_as_factors=values_left_as_factors,
            values_beside=1,
        )
        self._clipping, self._state = clipping, clipping.start()
        self._split = clipping.split(noise_multiplier)
        self._bit = math.floor(self._split.bit * self._grid.steps)
        # Rounding adds sqrt(d) / 2 steps to what gradients give: with it they keep to a of the whole.
        self._longest = self._split.update * self._grid.steps - math.sqrt(sum(self._sizes)) / 2
        if not self._longest >= 0.5 * self._split.update * self._grid.steps:
            raise ValueError(
                f"count_noise {clipping.count_noise} leaves too little of the noise's price to gradients of "
                f"{sum(self._sizes)} values; give more"
            )

    @property
    def clipping_norm(self) -> float:
        """C of the next step."""
        return self._state.norm

    def _clipped_sums(self, gradients: list[Gradient]) -> list[Tensor]:
        joined = join_rows(gradients)
        factors = towards(joined, self._longest, most=self._longest / self._state.norm)
        found = lengths(joined)
        short, known = found <= self._state.norm, found < math.inf
        self._bits += self._bit * int(short.sum() - (known & ~short).sum())
        return split_rows(sums_of(joined, factors, self._grid), gradients)

    def _drawn_noise(self) -> Tensor:
        noise = self.noise.grid_normal((sum(self._sizes) + 1,), self._noise_scale)
        self._released = self._bits + int(noise[-1])
        return noise[:-1]

    def _worth_of_step(self) -> float:
        return self._state.norm / self._longest

    def zero_grad(self, set_to_none: bool = False) -> None:
        """As in `PrivateOptimizer`; bits go with the sum that they belong to."""
        super().zero_grad(set_to_none)
        if not self._is_last_step_skipped:
            self._bits = 0

    def add_noise(self) -> None:
        """As in `PrivateOptimizer`; and the noisy share of short gradients moves the norm of the next step."""
        super().add_noise()
        share = 0.5 + self._released / (2 * self._bit * self.expected_batch_size)
        self._state = self._clipping.next_norm(self._state, share)
