"""What attackers there are among a simulation's clients, and what they do: told to every worker as one text.

| kind | an attacker sends | from |
|---|---|---|
| `label-flip` | what training gives with label y turned into `classes - 1 - y` | Fang et al. 2020 |
| `sign-flip` | its honest update times -`strength`, by default 4 | Li et al. 2019 (RSA) |
| `scaled` | a label flip's update times `strength`, by default clients / attackers | Bagdasaryan et al. 2020 |
| `backdoor` | what training gives if half its records bear trigger and target's label | Gu et al. 2017 |
| `replacement` | the same times `strength`, as of `scaled` | Bagdasaryan et al. 2020 |
| `little` | attackers' mean honest update less `strength` deviations, by default z_max | Baruch et al. 2019 |
| `free-rider` | zeros | Fraboni et al. 2021 |
| `noise` | noise of deviation `strength`, by default 0.1, in each value | Fraboni et al. 2021 |
| `nan` | NaN in each value | |
| `sybil` | the first attacker's `scaled` update, under every attacker's id | Fung et al. 2018 |
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

import numpy as np

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_adaptive import is_adaptive
from shared_models.seeds import derive_seed

Kind = Literal[
    "label-flip",
    "sign-flip",
    "scaled",
    "backdoor",
    "replacement",
    "little",
    "free-rider",
    "noise",
    "nan",
    "sybil",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

BACKDOORS: Final = ("backdoor", "replacement")

POISONING: Final = "poisoning"
"""Key of a simulated client's configuration: a `Poisoning` as JSON."""


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """Who attacks, and how.

    Attributes:
        kind: what they do.
        attackers: their ids; of Sybils, the first is who made the others up.
        clients: how many take part in a round, attackers included.
        classes: of the data.
        strength: see the table; None for the kind's own.
        target: class that a trigger shall be taken for.
        side: of the trigger, a square in the lower right corner, in pixels.
        bright: its value.
        weight: that attackers claim, where they claim another than their own.
        keeps_norm: under sums: whether attackers clip what they put in, as their own guard would have them.

    Raises:
        UsageError: a value is out of range.
    """

    kind: Kind
    attackers: tuple[str, ...]
    clients: int
    classes: int
    strength: float | None = None
    target: int = 0
    side: int = 2
    bright: float = 1.0
    weight: int | None = None
    keeps_norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"attack {self.kind!r}: there is none of that name; allowed: {', '.join(KINDS)}")
        if not len(set(self.attackers)) == len(self.attackers) <= self.clients:
            raise UsageError(f"{len(self.attackers)} attackers among {self.clients} clients: name each once")
        if not 0 <= self.target < self.classes:
            raise UsageError(f"target {self.target}: there are {self.classes} classes, counted from 0")
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength >= 0):
            raise UsageError(f"strength {self.strength}: give a number from 0")

    @property
    def boost(self) -> float:
        """What an update is multiplied by so that these attackers together replace the mean of all."""
        return self.strength if self.strength is not None else self.clients / max(1, len(self.attackers))

    def to_json(self) -> str:
        """For a client's configuration."""
        return json.dumps(asdict(self))


@lru_cache(maxsize=4)
def read_poisoning(text: str) -> Poisoning:
    """What `Poisoning.to_json` wrote."""
    raw = json.loads(text)
    return Poisoning(**{**raw, "attackers": tuple(raw["attackers"])})


def some_attackers(clients: Sequence[str], share: float, *, seed: int) -> tuple[str, ...]:
    """A share of the clients, to the nearest number, drawn by a seed; a larger share holds the smaller one.

    Raises:
        UsageError: the share is none.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"share of attackers {share}: give a number from 0 to 1")
    order = np.random.default_rng(derive_seed(seed, "attackers")).permutation(len(clients))
    return tuple(clients[place] for place in order[: math.floor(share * len(clients) + 0.5)])


def check_attackable(plan: Plan) -> None:
    """Refuse a plan whose replies the attackers don't know how to write.

    Raises:
        UsageError: it has one of the few features that are not attacked here.
    """
    others = {
        "statistics": plan.statistics is not None,
        "personal": plan.personal is not None,
        "privacy.adaptive": is_adaptive(plan),
        "federation.asynchronous": plan.federation.asynchronous is not None,
    }
    for key, used in others.items():
        if used:
            raise UsageError(f"{key}: attackers can't be put among the clients of such a plan; remove it")
