"""A real server of a secure sum against real clients, message by message; tests step in between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from security.secure_sum.attempt import Attempt
from security.secure_sum.server import SumServer
from shared_models.parameters import Parameters, to_arrays
from shared_models.plan import Plan
from shared_models.protocol import (
    ARRAYS,
    CLIPPING_NORM,
    CONFIG,
    LAYOUT_DIGEST,
    MASKED,
    PLAN_DIGEST,
    ROUND,
    RUN,
    SECURE_ATTEMPT,
    SECURE_KEYS,
    SECURE_MESSAGE,
    SECURE_MODEL,
    SECURE_SHARES,
    SECURE_SURVIVORS,
    SECURE_UNMASK,
)
from shared_models.secure_context import attempt_context, model_digest
from tests.client.conftest import layout_of, model_of, plan_of

TRAIN = "train"

Ask = Callable[[str, str, RecordDict], Message]
"""Sends a client a message of a kind, and brings back its reply."""


def secure_plan(clients: int = 5, private: Mapping[str, Any] | None = None, **changes: Any) -> Plan:
    """A resolved plan of three rounds, in which so many clients add up."""
    privacy = {"unit": "client", "trust": "distributed", "noise_multiplier": 1.0, **(private or {})}
    data = {"partition": {"kind": "iid", "clients": clients}}
    return plan_of(**{"data": data, "privacy": privacy, **changes})


class Sum:
    """One attempt. Phase by phase, each over all who are left, or over some.

    Args:
        plan: resolved.
        ask: how clients are reached.
        roster: their identities by name; the cohort is all of them unless it is given.
        federation: whose sum.
        number, nonce, run, round, cohort: of the attempt.
        model: that is trained.
        norm: the round's clipping norm, where it adapts.
        changes: of the attempt's fields.
    """

    def __init__(
        self,
        plan: Plan,
        ask: Ask,
        roster: Mapping[str, str],
        *,
        federation: str | None = None,
        number: int = 1,
        nonce: bytes = b"n" * 32,
        run: str = "run-1",
        round: int = 1,
        cohort: Collection[str] | None = None,
        model: Parameters | None = None,
        norm: float | None = None,
        **changes: Any,
    ) -> None:
        self.plan, self.ask = plan, ask
        self.arrays = to_arrays(model or model_of(plan), layout_of(plan))
        names = tuple(sorted(roster if cohort is None else cohort))
        self.config: dict[str, Any] = {
            PLAN_DIGEST: plan.digest(),
            LAYOUT_DIGEST: layout_of(plan).digest,
            ROUND: round,
            RUN: run,
        }
        if norm is not None:
            self.config[CLIPPING_NORM] = norm
        self.model = model_digest(self.arrays, norm)
        fields: dict[str, Any] = {
            "federation": plan.name if federation is None else federation,
            "run": run,
            "round": round,
            "purpose": "train",
            "number": number,
            "nonce": nonce,
            "cohort": names,
            "context": attempt_context(plan=plan.digest(), layout=layout_of(plan).digest, model=self.model),
            "length": plan.secure.dimension,
            "bits": plan.secure.bits,
            "parameters": plan.secure_parameters(len(names)),
        }
        self.attempt = Attempt(**{**fields, **changes})
        self.server = SumServer(self.attempt, roster)
        self.replies: dict[tuple[str, str], Message] = {}

    def request(self, kind: str, words: bytes, **config: Any) -> RecordDict:
        """What a server sends in a phase."""
        more = {SECURE_MODEL: self.model} if kind == SECURE_KEYS else {SECURE_ATTEMPT: self.attempt.digest}
        content = RecordDict({CONFIG: ConfigRecord({**self.config, **more, SECURE_MESSAGE: words, **config})})
        if kind == TRAIN:
            content[ARRAYS] = self.arrays
        return content

    def say(self, kind: str, name: str, words: bytes, **config: Any) -> Message:
        """One client's answer in a phase; the server hears nothing of it."""
        reply = self.replies[kind, name] = self.ask(name, kind, self.request(kind, words, **config))
        return reply

    def keys(self, *, but: Collection[str] = ()) -> bytes:
        """Phase keys over all but some; what is sent next."""
        for name in self._left(but):
            self.server.take_offer(name, words_of(self.say(SECURE_KEYS, name, self.server.announcement())))
        return self.server.key_list()

    def shares(self, *, but: Collection[str] = ()) -> dict[str, bytes]:
        """The phases up to shares; what each is sent next."""
        key_list = self.keys()
        for name in self._left(but):
            self.server.take_shares(name, words_of(self.say(SECURE_SHARES, name, key_list)))
        return self.server.inboxes()

    def masked(self, *, but: Collection[str] = ()) -> bytes:
        """The phases up to masked; what is sent next."""
        inboxes = self.shares()
        for name in self._left(but):
            self.server.take_masked(name, vector_of(self.say(TRAIN, name, inboxes[name])))
        return self.server.survivors()

    def survivors(self, *, but: Collection[str] = ()) -> bytes:
        """The phases up to survivors, some falling out in masked; what is sent next."""
        said = self.masked(but=but)
        for name in self.server.waiting_for:
            self.server.take_confirmation(name, words_of(self.say(SECURE_SURVIVORS, name, said)))
        return self.server.confirmations()

    def result(self, *, but: Collection[str] = ()) -> np.ndarray[Any, Any]:
        """All phases, some falling out in masked: the sum."""
        said = self.survivors(but=but)
        for name in self.server.waiting_for:
            self.server.take_answer(name, words_of(self.say(SECURE_UNMASK, name, said)))
        return self.server.result()

    def _left(self, but: Collection[str]) -> list[str]:
        return [name for name in self.server.waiting_for if name not in but]


def words_of(reply: Message) -> bytes:
    """The bytes of a good reply in one of the short phases: its only field."""
    assert not reply.has_error(), reply.error
    assert {name: list(record) for name, record in reply.content.items()} == {CONFIG: [SECURE_MESSAGE]}
    found = reply.content.config_records[CONFIG][SECURE_MESSAGE]
    assert isinstance(found, bytes)
    return found


def vector_of(reply: Message) -> np.ndarray[Any, Any]:
    """The vector of a good reply in the masked phase."""
    assert not reply.has_error(), reply.error
    assert list(reply.content.array_records[ARRAYS]) == [MASKED]
    return reply.content.array_records[ARRAYS][MASKED].numpy()
