"""What a curious server gets to see: one round of a plan is played, and each movement of the model is written down.

Nothing is imitated. The round is that of any simulation (`simulations.run`), with the client app, its guard, clipping,
noise and secure sums; only the auditor who listens in the server's place is added (`simulations.audit.listening`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message

from client.datasets.features import seen_parts, seen_records
from client.datasets.records import Records
from client.workplace import split_key
from security.errors import RunError, UsageError
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from simulations.audit.canaries import layout_of_plan
from simulations.audit.listening import Ear
from simulations.run import Settings, load_data, start_run

MOST_OTHERS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Overheard:
    """A movement of the model that a server saw.

    Attributes:
        client: whose update it is; None for what became of the model, to which all clients of a round gave.
        start: the model before.
        movement: by how much it was moved, by name.
    """

    client: str | None
    start: Parameters
    movement: Parameters


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round as the server saw it, and what there was to see.

    Attributes:
        plan: that was played, resolved.
        overheard: what the server saw: of each client, or one movement of all.
        cohort: who was in the round.
        truth: the records of each of them. No attack is given these; scores are made with them.
        others: records of clients that weren't in the round: what an original has to be told from.
        public: records that the server has itself, to evaluate the model.
    """

    plan: Plan
    overheard: tuple[Overheard, ...]
    cohort: tuple[str, ...]
    truth: Mapping[str, Records]
    others: Records
    public: Records

    def records_behind(self, seen: Overheard) -> Records:
        """Who a movement may be computed from: one client's records, or those of all (`Replay.touched` of them)."""
        own = [self.truth[name] for name in self.cohort if seen.client in (None, name)]
        return _together(own)


@dataclass
class _Notes:
    """A listener who keeps everything."""

    heard: list[Overheard] = field(default_factory=list)

    def moved(self, client: str | None, start: Parameters, movement: Parameters) -> None:
        self.heard.append(Overheard(client=client, start=start, movement=movement))

    def scores(self) -> npt.NDArray[np.float64]:
        return np.zeros(0)


def play_round(plan: Plan, models: Mapping[str, str] | None = None) -> Round:
    """Play a plan of one round in this process, in a folder that is removed, and listen.

    Args:
        plan: resolved.
        models: networks of the user's own, by name.

    Raises:
        UsageError: the plan has more rounds than one, or can't be played.
        RunError: the round failed, or the server saw nothing.
    """
    if plan.federation.rounds != 1:
        raise UsageError(f"federation.rounds = {plan.federation.rounds}: one round is attacked; give 1")
    notes, cohort = _Notes(), list[str]()
    ear = Ear(plan, layout_of_plan(plan), (notes,))

    def hear(client: str, asked: Message, reply: Message) -> None:
        if asked.metadata.message_type == "train" and client not in cohort:
            cohort.append(client)
        ear(client, asked, reply)

    with tempfile.TemporaryDirectory(prefix="veil-overheard-") as place:
        _, outcome = start_run(plan, Path(place) / "run", Settings(engine="inline", hear=hear, models=models or {}))
        ear.became(outcome.parameters, "")
    if outcome.stopped == "failed" or not notes.heard:
        raise RunError(f"the round that was to be attacked failed: {outcome.reason}")
    test, _ = load_data(plan)
    key = split_key(plan)
    own = (
        {name: train for name, (train, _) in seen_parts(plan, split_key=key).items()}
        if plan.holds_out
        else seen_records(plan, split_key=key)
    )
    return Round(
        plan=plan,
        overheard=tuple(notes.heard),
        cohort=tuple(sorted(cohort)),
        truth={name: own[name] for name in cohort},
        # With a part of nothing, for there may be nobody else.
        others=_together(
            [own[cohort[0]].take([]), *(records for name, records in own.items() if name not in cohort)]
        ).part(slice(MOST_OTHERS)),
        public=Records(x=test.x, y=test.y),
    )


def _together(parts: Sequence[Records]) -> Records:
    return Records(x=torch.cat([one.x for one in parts]), y=torch.cat([one.y for one in parts]))
