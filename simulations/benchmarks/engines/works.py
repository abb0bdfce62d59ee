"""What is trained: users with their records, a network, a cohort. Facts alone; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

Model = Literal["cnn", "convnet", "mlp"]

CLASSES: Final = 10
NOISE_MULTIPLIER, CLIPPING_NORM, DELTA = 1.0, 1.0, 1e-5


@dataclass(frozen=True, kw_only=True)
class Work:
    """One federated training, of which a round is one local epoch of each client in a cohort.

    Attributes:
        name: of the work.
        users: number of clients there are.
        records: of each client.
        shape: of one example.
        model: Veil's name of the network.
        options: of the network, where they aren't its defaults.
        cohort: number of clients a round, drawn without replacement where the contender can.
        batch: examples a step.
        learning_rate: of plain SGD.
        private: whether clients train by DP-SGD of examples.
    """

    name: str
    users: int
    records: int
    shape: tuple[int, ...]
    model: Model
    options: Mapping[str, Any] = field(default_factory=dict)
    cohort: int
    batch: int
    learning_rate: float
    private: bool = False

    @property
    def steps(self) -> int:
        """Local steps a round: of an epoch."""
        return math.ceil(self.records / self.batch)

    @property
    def sample_rate(self) -> float:
        """Of a private step: as Opacus has it, so that an epoch draws each record once on average."""
        return 1 / self.steps

    @property
    def expected_batch(self) -> int:
        """What a private sum is divided by, as Opacus has it."""
        return int(self.records * self.sample_rate)

    def summary(self) -> str:
        """In one line."""
        shape = "x".join(map(str, self.shape))
        return (
            f"{self.users:,} users x {self.records} records of {shape}, {self.model}; a round: {self.cohort} clients, "
            f"one epoch in batches of {self.batch}{', DP-SGD' if self.private else ''}"
        )

    def as_json(self) -> dict[str, Any]:
        """For a command line or a file."""
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Work:
        """The same again."""
        return cls(**{**values, "shape": tuple(values["shape"])})


# A is the benchmark that pfl-research publishes (CIFAR-10, IID users), with another set's images.
_A = Work(
    name="A",
    users=1000,
    records=50,
    shape=(3, 32, 32),
    model="convnet",
    options={"channels": [32, 64], "hidden": 128, "dropout": 0.25, "hidden_dropout": 0.5},
    cohort=50,
    batch=10,
    learning_rate=0.1,
)
_B = Work(
    name="B",
    users=1000,
    records=20,
    shape=(64,),
    model="mlp",
    options={"hidden": [32]},
    cohort=100,
    batch=20,
    learning_rate=0.1,
)
_C = Work(name="C", users=100, records=200, shape=(1, 28, 28), model="cnn", cohort=20, batch=64, learning_rate=0.1)

WORKS: Final[dict[str, Work]] = {work.name: work for work in (_A, _B, _C, replace(_C, name="C-private", private=True))}


def scaled(work: Work, *, users: int, cohort: int, records: int | None = None) -> Work:
    """The same in small, for tests."""
    return replace(work, users=users, cohort=cohort, records=records or work.records)
