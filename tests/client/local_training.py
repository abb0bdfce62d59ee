"""Small networks, records and plans for tests of local training, and a source of noise that is written down."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.datasets.records import Records
from shared_models.example_form import ExampleForm
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.registry import build

Batch = Sequence[int]


class Scripted:
    """A source whose samples are written down beforehand, and whose noise is one constant."""

    is_secret = False

    def __init__(self, *batches: Batch, noise: float = 0.0, uniform: float = 0.5) -> None:
        self._batches = list(batches)
        self._noise = noise
        self._uniform = uniform
        self.asked: list[tuple[int, float]] = []

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        return torch.full(tuple(shape), round(self._noise * scale), dtype=torch.int64, device=device)

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return np.full(n, self._uniform)

    def bernoulli(self, n: int, rate: float) -> Tensor:
        self.asked.append((n, rate))
        return torch.tensor(self._batches.pop(0), dtype=torch.int64)


def records(n: int, shape: tuple[int, ...] = (4,), classes: int = 3, seed: int = 0) -> Records:
    generator = np.random.default_rng(seed)
    return Records(
        x=torch.from_numpy(generator.standard_normal((n, *shape)).astype(np.float32)),
        y=torch.from_numpy(generator.integers(classes, size=n)),
    )


def network(kind: str = "mlp", **options: Any) -> nn.Module:
    if kind == "cnn":
        return build(
            "cnn", {"channels": [4], "hidden": 3, "groups": 2, **options}, form=ExampleForm((1, 8, 8), 3), seed=1
        )
    return build("mlp", {"hidden": [5], **options}, form=ExampleForm((4,), 3), seed=1)


def plain(schedule: dict[str, Any] | None = None, **training: Any) -> Plan:
    return Plan.model_validate(
        {
            "training": {"expected_batch_size": 4, "schedule": schedule or {"kind": "constant"}, **training},
            "privacy": {"trust": "none"},
        }
    )


def private(sigma: float = 1.0, clip: float = 0.5, **training: Any) -> Plan:
    return Plan.model_validate(
        {
            "training": {"expected_batch_size": 8, "steps": 1, "learning_rate": 0.5, **training},
            "privacy": {"noise_multiplier": sigma, "clipping_norm": clip},
        }
    )


def flat(change: Parameters) -> npt.NDArray[np.float64]:
    return np.concatenate([np.ravel(value).astype(np.float64) for value in change.values()])


def assert_close(found: Parameters, expected: Parameters, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


def optimiser(model: nn.Module, plan: Plan, rate: float) -> torch.optim.Optimizer:
    training = plan.training
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return kind(model.parameters(), lr=rate, betas=training.betas, weight_decay=training.weight_decay)


OPTIMISERS: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adam", "learning_rate": 0.01, "betas": [0.8, 0.95], "weight_decay": 0.01},
    {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
]


@contextmanager
def global_randomness_untouched() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
