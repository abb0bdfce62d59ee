"""A link in memory: sites come, go and answer as a test says; and a grid in this process that can be stopped."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flwr.app import Message

from client.books import create_simulated
from security.frames import ACCEPTED
from server.evaluation import TestData
from server.link_grid import GridStopped
from server.watchers import Watcher
from shared_models.flower_messages import payload_to_bytes
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, write_plan
from shared_models.resolve import resolve
from simulations.inline_grid import InlineGrid
from simulations.run import load_data
from simulations.scenarios import find_plan

SITES = ("0", "1", "2")

Words = tuple[str, str, str, str]
"""What was asked: of whom, type and group of the message, digest of all that it says."""


def small_plan(*overrides: str) -> Plan:
    """Digits at three sites, a tiny network, three rounds, no privacy; overrides as after --set."""
    base = (
        "model.name=mlp",
        "model.options.hidden=[8]",
        "data.partition.clients=3",
        "training.steps=2",
        "federation.rounds=3",
        "privacy.trust=none",
    )
    keys = {text.partition("=")[0] for text in overrides}
    return find_plan("digits", (*(text for text in base if text.partition("=")[0] not in keys), *overrides))


def secret_plan() -> Plan:
    """The same, with noise by the server and cohorts that nobody may learn of."""
    return small_plan(
        "privacy={ unit = 'client', trust = 'central', epsilon = 8.0, delta = 1e-3, clipping_norm = 1.0 }",
        "federation.cohort={ sampling = 'poisson', rate = 0.5 }",
        "federation.min_clients=1",
    )


def test_part(plan: Plan) -> TestData | None:
    """The server's own test data: what a simulation of the plan has."""
    return load_data(plan)[0]


test_part.__test__ = False  # type: ignore[attr-defined]  # no test


class FakeLink:
    """Sites that are there answer each offer at once, as `answer` says; None is silence."""

    def __init__(self, sites: Sequence[str] = SITES, answer: Callable[[str, Plan], int | None] | None = None) -> None:
        self.there = set(sites)
        self.answer = answer or (lambda site, plan: ACCEPTED)
        self.offers: list[tuple[str, str, str]] = []
        self.offered: Plan | None = None
        self._answers: dict[str, int] = {}
        self._changed = threading.Condition()

    def offer(self, run: str, plan: str, digest: str) -> None:
        self.offers.append((run, plan, digest))
        self.offered = resolve(parse_plan(plan, where="offer"))
        assert self.offered.digest() == digest
        self._answers = {}
        for site in sorted(self.there):
            self._say(site)

    def withdraw(self) -> None:
        self.offered = None
        self._answers = {}

    def answers(self) -> Mapping[str, int]:
        return dict(self._answers)

    def connected(self) -> Mapping[str, object]:
        return dict.fromkeys(self.there, None)

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def comes(self, site: str) -> None:
        """A site connects, and answers what is offered."""
        self.there.add(site)
        self._say(site)

    def says(self, site: str, code: int) -> None:
        """A site answers, perhaps once more."""
        with self._changed:
            self._answers[site] = code
            self._changed.notify_all()

    def _say(self, site: str) -> None:
        code = None if self.offered is None else self.answer(site, self.offered)
        if code is not None:
            self.says(site, code)
        with self._changed:
            self._changed.notify_all()


class StoppableGrid(InlineGrid):
    """Plays sites in this process, and notes what was asked."""

    def __init__(
        self, members: Sequence[str], plan: Plan, ledger: Path, asked: list[tuple[str, str, str, str]]
    ) -> None:
        if not ledger.exists():
            create_simulated(ledger)
        super().__init__(members, config={"plan": write_plan(plan), "ledger": str(ledger)})
        self.asked = asked
        self.before: Callable[[Message], object] = lambda message: None
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        for message in messages:
            if self._stopped.is_set():
                raise GridStopped("stopped")
            self.before(message)
            meta = message.metadata
            digest = hashlib.sha256(payload_to_bytes(message)).hexdigest()
            self.asked.append((self._clients[meta.dst_node_id], meta.message_type, meta.group_id, digest))
            yield from super()._deliver([message], None)


class Notes(Watcher):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, object]] = []

    def waiting(self, entry: object, text: str) -> None:
        self.entries.append(("waiting", text))

    def ends(self, entry: object, folder: object) -> None:
        self.entries.append(("ends", entry))

    def round_done(self, record: object) -> None:
        self.entries.append(("round", record))

    def of(self, kind: str) -> list[object]:
        """What was told of this kind."""
        return [found for name, found in self.entries if name == kind]
