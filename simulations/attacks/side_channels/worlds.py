"""Two worlds that nobody should tell apart, and everything that their clients send.

A world is a table of records; the plan, the network and the numbers of clients and rounds are the same in all of them.
A whole run of real clients, guards and server is played in each, by `simulations.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Message

from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve
from simulations.run import Settings, start_run

CLASSES: Final = ("negative", "positive", "unknown")
COLUMNS: Final = ("first", "second")
CLIENTS: Final = 5

_EXAMPLE: Final = {"unit": "example", "delta": 1e-5}
_CLIENT: Final = {"unit": "client", "delta": 1e-5}
_JUDGED: Final = {"where": "clients", "count_noise": 10.0}
_SUM: Final = {"trust": "distributed", "noise_multiplier": 2.0}

MODES: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "no privacy": {"privacy": {"trust": "none"}, "evaluation": {"where": "clients"}},
    "no privacy, by class": {
        "privacy": {"trust": "none"},
        "evaluation": {"where": "clients", "per_class": True},
    },
    "example x local": {
        "privacy": {**_EXAMPLE, "trust": "local", "noise_multiplier": 2.0},
        "evaluation": _JUDGED,
    },
    "example x local, int8": {
        "privacy": {**_EXAMPLE, "trust": "local", "noise_multiplier": 2.0},
        "federation": {"wire": "int8"},
    },
    "example x distributed": {"privacy": {**_EXAMPLE, **_SUM}, "training": {"steps": 1}},
    "client x distributed": {"privacy": {**_CLIENT, **_SUM}},
    "client x central": {"privacy": {**_CLIENT, "trust": "central", "noise_multiplier": 2.0}},
    "client x central, adaptive norm": {
        "privacy": {**_CLIENT, "trust": "central", "noise_multiplier": 2.0, "adaptive": {}},
    },
}
"""Tables of a plan, by mode."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One reply.

    Attributes:
        client: who sent it.
        kind: what was asked: "train", "evaluate", or a query with its name.
        reply: all of it.
    """

    client: str
    kind: str
    reply: Message


def plan_in(mode: str, table: Path, **changes: Mapping[str, object]) -> Plan:
    """The plan of a mode on a table, resolved; changes come on top, table by table."""
    sections: dict[str, dict[str, object]] = {
        "data": {
            "name": "csv",
            "path": str(table),
            "card": {
                "classes": list(CLASSES),
                "target": "label",
                "columns": {name: {"kind": "numeric", "low": -1.0, "high": 1.0} for name in COLUMNS},
            },
            "partition": {"kind": "iid", "clients": CLIENTS},
        },
        "model": {"name": "mlp", "options": {"hidden": [4]}},
        "training": {"steps": 2, "sample_rate": 0.5, "expected_batch_size": 8, "device": "cpu"},
        "federation": {"rounds": 2},
    }
    for given in (MODES[mode], changes):
        for name, section in given.items():
            sections[name] = {**sections.get(name, {}), **section}
    return resolve(plan_from({"name": "worlds", **sections}, where="the study's plan"))


def write_world(path: Path, *, records: int, seed: int) -> None:
    """A table of records that are drawn anew for each seed."""
    generator = np.random.default_rng(seed)
    rows = [
        ",".join((*(f"{value:.6f}" for value in generator.uniform(-1, 1, len(COLUMNS))), label))
        for label in generator.choice(CLASSES, records)
    ]
    path.write_text("\n".join((",".join((*COLUMNS, "label")), *rows)) + "\n")


def play(plan: Plan, out: Path) -> list[Sent]:
    """Play a plan in this process, in a new folder; all that its clients sent, in order.

    Raises:
        UsageError, RunError: as for `start_run`.
    """
    sent: list[Sent] = []

    def hear(client: str, asked: Message, reply: Message) -> None:
        sent.append(Sent(client=client, kind=asked.metadata.message_type, reply=reply))

    start_run(plan, out, Settings(engine="inline", hear=hear))
    return sent
