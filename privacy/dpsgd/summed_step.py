"""The private step of a linear head: from its clipped sum in closed form, rounded as a sum.

Elsewhere each example's gradient is rounded to the grid, and the sum is exact (`privacy.dpsgd.clipping`). Here there
are no gradients of single examples, so the sum is rounded: one example more or less then moves it by C (1 + SLACK) and
by less than a step in each of d coordinates, and the noise is made for that: sigma (C (1 + SLACK) / step + sqrt(d))
steps. What is released is the Gaussian mechanism of noise multiplier sigma, rounded, as everywhere (rule 9).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from privacy.dpsgd.clipping import ClippingMode
from privacy.dpsgd.example_loss import PLAIN, ExampleLoss
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.planted import PlantedGradients
from privacy.dpsgd.precision import Precision
from privacy.example_sum_grid import SLACK
from privacy.mechanisms import rounded_sensitivity
from privacy.noise import NoiseSource
from privacy.release_grid import ReleaseGrid

_LARGEST = 2.0**62  # of a coordinate of the sum, in steps: what is beyond it could not be told as a whole number


class SummedStep:
    """Steps of DP-SGD (Abadi et al. 2016, algorithm 1) on a network whose linear head alone is trained.

    Args:
        model: on its device, in training mode.
        optimizer: makes the update; it is given private gradients only.
        noise_multiplier: sigma, standard deviation of the noise over what one example moves the sum by, > 0.
        clipping_norm: C.
        expected_batch_size: N, in examples, public (rule 1).
        noise: the client's own.
        mode: how gradients are clipped.
        loss: of single examples.
        precision: what the layers below the head compute in.

    Raises:
        ValueError: the grid would be too coarse for so many parameters and so much noise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        clipping_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
        mode: ClippingMode = "flat",
        loss: ExampleLoss = PLAIN,
        precision: Precision = "float32",
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._clipping_norm, self._mode, self._precision = clipping_norm, mode, precision
        self._loss = loss
        self._batch = expected_batch_size
        self._noise = noise
        size = sum(parameter.numel() for parameter in self._trained)
        # The sensitivity is at most 1.02 C, so half the multiplier again keeps the noise within what can be drawn.
        self._grid = ReleaseGrid.of(
            clipping_norm=clipping_norm, noise_multiplier=1.5 * noise_multiplier, dimensions=size
        )
        self.sensitivity = rounded_sensitivity(clipping_norm=self._grid.steps * (1 + SLACK), grid=1.0, dimension=size)
        self._scale = noise_multiplier * self.sensitivity

    def step(self, microbatches: Iterable[tuple[Tensor, Tensor]], planted: PlantedGradients | None = None) -> None:
        """One step on one Poisson batch, each example once; without examples a step on noise alone."""
        total = self._sum(microbatches, planted)
        whole = np.rint(np.clip(total / self._grid.step, -_LARGEST, _LARGEST)).astype(np.int64)
        # All that the data has to do with is in `released`; from here on it is arithmetic on what is public.
        released = torch.from_numpy(whole) + self._noise.grid_normal(whole.shape, self._scale)
        gradient = released.double() * (self._grid.step / self._batch)
        for parameter, part in zip(
            self._trained, torch.split(gradient, [p.numel() for p in self._trained]), strict=True
        ):
            parameter.grad = part.to(parameter.device, parameter.dtype).view_as(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def rehearse(self, inputs: Tensor, targets: Tensor) -> None:
        """Take the time that a batch takes, and drop what comes of it: without that, time would tell an empty one."""
        self._sum([(inputs, targets)], None)

    def _sum(
        self, microbatches: Iterable[tuple[Tensor, Tensor]], planted: PlantedGradients | None
    ) -> npt.NDArray[np.float64]:
        return clipped_gradient_sum(
            self._model,
            microbatches,
            clipping_norm=self._clipping_norm,
            mode=self._mode,
            loss=self._loss,
            precision=self._precision,
            planted=planted,
        )
