"""Honest sites of a secure sum on a grid in memory, which a test has drop out, refuse or lie where it likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from security.identity import Identity
from security.secure_sum.attempt import Expected
from security.secure_sum.client import SumClient
from server.replies import Head
from shared_models.faults import Fault
from shared_models.parameters import Parameters, unflat
from shared_models.plan import Plan
from shared_models.plan_secure_sum import computed
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    EPSILON,
    LEDGER,
    MASKED,
    METRICS,
    ROUND,
    RUN,
    SECURE_KEYS,
    SECURE_MESSAGE,
    SECURE_MODEL,
    SECURE_SHARES,
    SECURE_SURVIVORS,
    SECURE_UNMASK,
    WEIGHT,
)
from shared_models.secure_context import attempt_context
from tests.server.conftest import LAYOUT, error, head_record, make_plan

PHASES = {
    "keys": SECURE_KEYS,
    "shares": SECURE_SHARES,
    "masked": "train",
    "survivors": SECURE_SURVIVORS,
    "unmask": SECURE_UNMASK,
}
NAMES = {kind: phase for phase, kind in PHASES.items()}

Act = Callable[[Message, Message], list[Message]]
"""What becomes of an honest reply: the request and the reply go in, what is sent comes out."""


def secure_plan(clients: int = 6, **tables: Any) -> Plan:
    """A resolved plan for secure sums of the test model's eight values; noise that no test here adds."""
    secure = {"honest": 0.5, "corrupt": 0.0, "phase_timeout": 7.0, **tables.pop("secure_sum", {})}
    privacy = {
        "unit": "client",
        "trust": "distributed",
        "noise_multiplier": 4.0,
        "epsilon": 9.0,
        "calibrated_from": "epsilon",
    }
    plan = make_plan(
        {"privacy": privacy, "secure_sum": secure, "data": {"partition": {"kind": "iid", "clients": clients}}}, tables
    )
    found = plan.secure.model_copy(update=computed(plan, dimension=LAYOUT.size))
    return Plan.model_validate(plan.model_copy(update={"secure_sum": found}).model_dump())


def names(clients: int) -> list[str]:
    return [f"site-{i}" for i in range(clients)]


def whole(client: str, number: int) -> npt.NDArray[np.int64]:
    """What a site adds in a round, in steps of the grid."""
    generator = np.random.default_rng([sum(client.encode()), number])
    return generator.integers(-(1 << 14), 1 << 14, LAYOUT.size)


def mean_of(plan: Plan, clients: list[str], number: int) -> Parameters:
    """The mean update of some sites, computed in the open."""
    total = sum((whole(client, number) for client in clients), np.zeros(LAYOUT.size, np.int64))
    return unflat((total.astype(np.float64) * (plan.sum_grid().step / len(clients))).astype(np.float32), LAYOUT)


@dataclass
class Sites:
    """Sites that follow the protocol.

    Attributes:
        plan: the resolved plan.
        clients: their names.
        acts: what becomes of a site's reply, by (name, phase); counted attempts begin at 1, 0 stands for all.
        asked: the attempts' numbers that each site was asked for a masked vector of, in order.
        seen: (site, phase, attempt's place in the run) of each request, in order.
    """

    plan: Plan
    clients: list[str]
    acts: dict[tuple[str, str, int], Act] = field(default_factory=dict)
    asked: dict[str, list[int]] = field(default_factory=dict)
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    _open: dict[str, SumClient] = field(default_factory=dict)
    _attempts: list[bytes] = field(default_factory=list)
    _entries: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.owners = {client: Identity.derive(b"sixteen bytes or more", client) for client in self.clients}

    @property
    def identities(self) -> dict[str, str]:
        return {client: owner.public_hex for client, owner in self.owners.items()}

    @property
    def attempts(self) -> int:
        """How many attempts any site has heard of."""
        return len(self._attempts)

    def newest(self, client: str) -> int:
        """Number of the newest attempt that a site has heard of."""
        return self._open[client].attempt.number

    def on(self, client: str, phase: str, act: Act, *, attempt: int = 0) -> Sites:
        """Have a site act otherwise in a phase, of one attempt or of all."""
        self.acts[client, phase, attempt] = act
        return self

    def __call__(self, client: str, message: Message) -> list[Message]:
        phase = NAMES[message.metadata.message_type]
        config = message.content.config_records[CONFIG]
        self.runs.add(str(config[RUN]))
        words = config[SECURE_MESSAGE]
        assert isinstance(words, bytes)
        if phase == "keys" and words not in self._attempts:
            self._attempts.append(words)
        place = len(self._attempts)
        self.seen.append((client, phase, place))
        reply = self._honest(client, phase, message, words)
        act = self.acts.get((client, phase, place)) or self.acts.get((client, phase, 0))
        return [reply] if act is None else act(message, reply)

    def _honest(self, client: str, phase: str, message: Message, words: bytes) -> Message:
        if phase == "keys":
            config = message.content.config_records[CONFIG]
            self._open[client], said = SumClient.begin(words, self._expected(client, config), self.owners[client].sign)
            return spoken(message, said)
        own = self._open[client]
        if phase == "masked":
            self.asked.setdefault(client, []).append(own.attempt.number)
            number = int(message.content.config_records[CONFIG][ROUND])  # type: ignore[arg-type]
            vector = whole(client, number).astype(own.attempt.dtype)
            self._entries[client] += 1
            return masked(message, own.mask(words, vector), entry=self._entries[client])
        step = {"shares": own.share, "survivors": own.confirm, "unmask": own.unmask}[phase]
        return spoken(message, step(words))

    def _expected(self, client: str, config: ConfigRecord) -> Expected:
        context = attempt_context(plan=self.plan.digest(), layout=LAYOUT.digest, model=str(config[SECURE_MODEL]))
        assert self.plan.secure.dimension is not None
        assert self.plan.secure.bits is not None
        return Expected(
            federation=self.plan.name,
            run=str(config[RUN]),
            round=int(config[ROUND]),  # type: ignore[arg-type]
            purpose="train",
            context=context,
            length=self.plan.secure.dimension,
            bits=self.plan.secure.bits,
            client=client,
            roster=self.identities,
            parameters=self.plan.secure_parameters,
        )


def spoken(message: Message, words: bytes) -> Message:
    """A reply of a short phase."""
    return Message(RecordDict({CONFIG: ConfigRecord({SECURE_MESSAGE: words})}), reply_to=message)


def masked(message: Message, vector: npt.NDArray[Any], *, entry: int = 1, **metrics: Any) -> Message:
    """A reply of the masked phase."""
    fields = {WEIGHT: 1, EPSILON: 0.5, **{name.replace("_", "-"): value for name, value in metrics.items()}}
    content = RecordDict({ARRAYS: ArrayRecord({MASKED: Array(vector)}), METRICS: MetricRecord(fields)})
    content[LEDGER] = head_record(Head(entry, sha256(str(entry).encode()).hexdigest()))
    return Message(content, reply_to=message)


def silent(message: Message, reply: Message) -> list[Message]:
    return []


def says(fault: Fault) -> Act:
    return partial(_says, fault)


def _says(fault: Fault, message: Message, reply: Message) -> list[Message]:
    return [error(message, fault)]


def noise(message: Message, reply: Message) -> list[Message]:
    """Bytes that are no message of the protocol."""
    return [spoken(message, b"\x07" * 40)]
