"""A small federation without a network: real clients and a real server, whose messages a test may see and change."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.identity import Identity
from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Attempt, Expected, Phase
from security.secure_sum.client import SumClient
from security.secure_sum.field import Entropy
from security.secure_sum.parameters import SumParameters, parameters_for
from security.secure_sum.server import SumServer

SECRET = b"identities of the secure sum tests"
CONTEXT = bytes(range(32))
STEPS = (Phase.KEYS, Phase.SHARES, Phase.MASKED, Phase.SURVIVORS, Phase.UNMASK)


def sparse(cohort: int, *, holders: int, threshold: int, corrupt: int = 0) -> SumParameters:
    """Parameters of a graph that isn't full, for cohorts far smaller than those that need one."""
    return replace(
        parameters_for(cohort=cohort, corrupt=corrupt, honest=1),
        holders=holders,
        threshold=threshold,
        security_bits=0.0,
    )


@dataclass(kw_only=True)
class Federation:
    """Clients `c000`, `c001`, ... with identities, and what they all agree on."""

    size: int
    corrupt: int = 0
    honest: int = 1
    length: int = 5
    bits: Any = 32
    number: int = 1
    nonce: bytes = bytes(32)
    given: SumParameters | None = None
    names: tuple[str, ...] = field(init=False)
    identities: dict[str, Identity] = field(init=False)
    roster: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(f"c{number:03}" for number in range(self.size))
        self.identities = {name: Identity.derive(SECRET, name) for name in self.names}
        self.roster = {name: identity.public_hex for name, identity in self.identities.items()}

    def parameters(self, cohort: int) -> SumParameters:
        return self.given or parameters_for(cohort=cohort, corrupt=self.corrupt, honest=self.honest)

    def attempt(self, **changes: Any) -> Attempt:
        fields: dict[str, Any] = {
            "federation": "tests",
            "run": "cafe",
            "round": 3,
            "purpose": "train",
            "number": self.number,
            "nonce": self.nonce,
            "cohort": self.names,
            "context": CONTEXT,
            "length": self.length,
            "bits": self.bits,
        } | changes
        return Attempt(**fields, parameters=self.parameters(len(fields["cohort"])))

    def expected(self, name: str, **changes: Any) -> Expected:
        fields: dict[str, Any] = {
            "federation": "tests",
            "run": "cafe",
            "round": 3,
            "purpose": "train",
            "context": CONTEXT,
            "length": self.length,
            "bits": self.bits,
            "client": name,
            "roster": self.roster,
            "parameters": self.parameters,
            "least_cohort": 2,
        } | changes
        return Expected(**fields)

    def begin(
        self, name: str, announcement: bytes, entropy: Entropy = os.urandom, **changes: Any
    ) -> tuple[SumClient, bytes]:
        return SumClient.begin(announcement, self.expected(name, **changes), self.identities[name].sign, entropy)

    def vectors(self, seed: int) -> dict[str, NDArray[Any]]:
        """Numbers from all over the ring, the ends of it among them."""
        drawn = np.random.default_rng(seed)
        top = np.iinfo(np.uint32 if self.bits == 32 else np.uint64).max
        dtype = np.uint32 if self.bits == 32 else np.uint64
        vectors = {name: drawn.integers(0, top, self.length, dtype, endpoint=True) for name in self.names}
        for vector in vectors.values():
            vector[drawn.integers(self.length)] = drawn.choice(np.array([0, 1, top // 2, top], dtype))
        return vectors

    def plain_sum(self, vectors: Mapping[str, NDArray[Any]], names: Iterable[str]) -> NDArray[Any]:
        """The sum by Python's integers, modulo 2^bits."""
        chosen = [[int(number) for number in vectors[name]] for name in names]
        return np.array(
            [sum(column) % (1 << self.bits) for column in zip(*chosen, strict=True)], next(iter(vectors.values())).dtype
        )


Change = Callable[[str, Any], Any]


@dataclass(kw_only=True)
class Round:
    """One attempt, played phase by phase with those who are still there."""

    federation: Federation
    vectors: Mapping[str, NDArray[Any]]
    gone: Mapping[str, Phase] = field(default_factory=dict)
    """From which phase on a client doesn't answer."""
    reply: Change = lambda _name, reply: reply
    """What becomes of a client's reply on its way."""
    moved: bool = False
    """Whether clients are written down and read again between phases."""
    entropy: Entropy = os.urandom
    """Of the clients' secrets and choices."""
    patient: bool = False
    """Whether the round goes on when a client or the server refuses something; else it is raised."""
    server: SumServer = field(init=False)
    clients: dict[str, SumClient] = field(default_factory=dict)
    refusals: dict[str, Abort] = field(default_factory=dict)
    """What clients refused, by client."""
    refused: dict[str, Abort] = field(default_factory=dict)
    """What the server refused, by client."""

    def __post_init__(self) -> None:
        self.server = SumServer(self.federation.attempt(), self.federation.roster)

    def ask(self, phase: Phase, step: Callable[[str], Any], take: Callable[[str, Any], None]) -> None:
        """Ask everybody who is still there, and hand the server what they reply."""
        assert self.server.phase is phase
        silent = STEPS[: STEPS.index(phase) + 1]
        for name in self.server.waiting_for:
            if self.gone.get(name) in silent:
                continue
            try:
                reply = step(name)
            except SecureSumError as error:
                self.refusals[name] = error.reason
                if not self.patient:
                    raise
                self.server.drop(name)
                continue
            try:
                take(name, self.reply(name, reply))
            except SecureSumError as error:
                self.refused[name] = error.reason
                if not self.patient:
                    raise

    def client(self, name: str) -> SumClient:
        client = self.clients[name]
        if self.moved:
            federation = self.federation
            sign = federation.identities[name].sign
            client = SumClient.from_bytes(client.to_bytes(), federation.expected(name), sign, self.entropy)
            self.clients[name] = client
        return client

    def keys(self) -> bytes:
        announcement = self.server.announcement()

        def begin(name: str) -> bytes:
            self.clients[name], reply = self.federation.begin(name, announcement, self.entropy)
            return reply

        self.ask(Phase.KEYS, begin, self.server.take_offer)
        return self.server.key_list()

    def shares(self, key_list: bytes) -> dict[str, bytes]:
        self.ask(Phase.SHARES, lambda name: self.client(name).share(key_list), self.server.take_shares)
        return self.server.inboxes()

    def masked(self, inboxes: Mapping[str, bytes]) -> bytes:
        def mask(name: str) -> NDArray[Any]:
            return self.client(name).mask(inboxes[name], self.vectors[name])

        self.ask(Phase.MASKED, mask, self.server.take_masked)
        return self.server.survivors()

    def survivors(self, survivors: bytes) -> bytes:
        self.ask(Phase.SURVIVORS, lambda name: self.client(name).confirm(survivors), self.server.take_confirmation)
        return self.server.confirmations()

    def unmask(self, confirmations: bytes) -> NDArray[Any]:
        self.ask(Phase.UNMASK, lambda name: self.client(name).unmask(confirmations), self.server.take_answer)
        return self.server.result()

    def until_masked(self) -> dict[str, bytes]:
        return self.shares(self.keys())

    def until_survivors(self) -> bytes:
        return self.masked(self.until_masked())

    def until_unmask(self) -> bytes:
        return self.survivors(self.until_survivors())

    def play(self) -> NDArray[Any]:
        return self.unmask(self.until_unmask())


def outcome(played: Round) -> tuple[NDArray[Any] | None, Abort | None]:
    """The sum, or why there is none."""
    try:
        return played.play(), None
    except SecureSumError as error:
        return None, error.reason


def random_gone(names: Collection[str], share: float, seed: int) -> dict[str, Phase]:
    """Some of the clients, each falling silent in a phase of its own."""
    drawn = random.Random(seed)
    return {name: drawn.choice(STEPS) for name in names if drawn.random() < share}
