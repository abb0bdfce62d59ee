"""Proof by killing: a client that trains is killed at random points, started again and asked again.

    python -m tests.proofs.ledger --kills 200 --seed 1

A campaign is one plan on one ledger, its budget equal to the plan's epsilon. The server's part asks a real client
process for each round, kills it (signal 9) at random instants or right after a random write to its ledger, starts a new
one and asks again, until it has the reply; now and then it asks once more for what it has. Checked throughout:

* what the ledger says was spent is never below what left the client;
* the chain verifies after every kill;
* a request is charged once, however often it was asked, and every reply to it is the same;
* the plan finishes within its budget.

Each campaign follows from the seed and its number (its instants are the machine's); finished ones are kept in a file
and not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from client.books import create_simulated
from client.workplace import workplace
from privacy.accountant import epsilon
from privacy.ledger import Ledger, Task
from privacy.ledger.check import verify
from shared_models.flower_messages import act_as_server, give_id
from shared_models.parameters import from_arrays, get_parameters, to_arrays
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST, METRICS, PLAN_DIGEST, ROUND, RUN, TOTAL
from shared_models.resolve import resolve
from simulations.scenarios import find_plan
from tests.proofs.ledger_client import serve

ROUNDS = 12
CLIENT = "0"


@dataclass
class Counts:
    """What one campaign saw.

    Attributes:
        seed: it follows from.
        kills: of a client at work.
        kills_at_a_write: of those, right after a write to the ledger.
        lost: kills after which the ledger had no entry of the task: it was charged later.
        reserved: kills after which the task was reserved and not committed: it ran again under its reservation.
        committed: kills after which it was committed, and the reply had not arrived: it was sent again.
        redelivered: requests that were asked again after their reply had arrived.
        releases: replies that left the client, each counted once.
        charged: releases that the ledger has charged.
        epsilon: that the ledger has spent.
        budget: of the plan.
    """

    seed: int
    kills: int = 0
    kills_at_a_write: int = 0
    lost: int = 0
    reserved: int = 0
    committed: int = 0
    redelivered: int = 0
    releases: int = 0
    charged: int = 0
    epsilon: float = 0.0
    budget: float = 0.0


def proof_plan(rounds: int = ROUNDS) -> Plan:
    """A small private plan whose clients also evaluate."""
    overrides = (
        *("model.name=mlp", f"federation.rounds={rounds}", "evaluation.where=clients", "evaluation.every=2"),
        *("training.steps=4", "privacy.epsilon=4"),
    )
    return resolve(find_plan("digits", overrides))


def campaign(seed: int, folder: Path, *, kills: int, rounds: int = ROUNDS) -> Counts:
    """One plan on one ledger, with at least so many kills spread over its rounds.

    Raises:
        AssertionError: a check failed.
    """
    plan = proof_plan(rounds)
    ledger = folder / "ledger.sqlite"
    create_simulated(ledger)
    server = _Server(plan, ledger, random.Random(seed), Counts(seed=seed, budget=plan.privacy.epsilon or 0.0))
    try:
        server.play(kills)
    finally:
        server.stop()
    return server.counts


class _Server:
    """Asks a client for every round, and kills it on the way."""

    def __init__(self, plan: Plan, ledger: Path, chance: random.Random, counts: Counts) -> None:
        act_as_server(1)
        self.plan = plan
        self.ledger = ledger
        self.chance = chance
        self.counts = counts
        self.replies: dict[str, str] = {}
        self.seconds = [1.0]
        self.client: BaseProcess | None = None
        self.link: Connection | None = None
        place = workplace(write_plan(plan))
        self.layout, self.parameters = place.layout, get_parameters(place.model)

    def play(self, kills: int) -> None:
        phases = [
            (number, phase)
            for number in range(1, self.plan.federation.rounds + 1)
            for phase in ("train", "evaluate")
            if phase == "train" or self.plan.is_evaluated(number)
        ]
        for place, (number, phase) in enumerate(phases):
            due = kills * (place + 1) // len(phases)
            request = self._request(number, phase)
            name = f"{number} {phase}"
            reply = None
            while reply is None or self.counts.kills < due:
                if reply is not None:
                    self.counts.redelivered += 1
                found = self._ask(request, kill=self.counts.kills < due, answered=reply is not None)
                if found is not None:
                    reply = found
                    self._left(name, found)
            if phase == "train":
                delta = from_arrays(reply[ARRAYS], self.layout)
                self.parameters = {key: value + delta[key] for key, value in self.parameters.items()}
        self._check()
        assert self.counts.charged == len(phases), "a request was charged twice, or not at all"
        assert self.counts.epsilon <= self.counts.budget * (1 + 1e-9)

    def stop(self) -> None:
        if self.client is not None:
            self.client.kill()
            self.client.join()

    def _request(self, number: int, phase: str) -> Message:
        config = {
            PLAN_DIGEST: self.plan.digest(),
            LAYOUT_DIGEST: self.layout.digest,
            RUN: f"proof-{self.counts.seed}",
            ROUND: number,
        }
        content = RecordDict({ARRAYS: to_arrays(self.parameters, self.layout), CONFIG: ConfigRecord(config)})
        kind = MessageType.TRAIN if phase == "train" else MessageType.EVALUATE
        message = Message(content, 1, kind, group_id=str(number))
        give_id(message)
        return message

    def _ask(self, request: Message, *, kill: bool, answered: bool) -> RecordDict | None:
        """One delivery; None if the client was killed before its reply had arrived."""
        link = self._running()
        begun = time.monotonic()
        before = self._wal()
        link.send((request.metadata, request.content))
        if kill:
            at_a_write = not answered and self.chance.random() < 0.5
            if at_a_write:
                arrived = self._wait_for_writes(link, before, self.chance.randint(1, 4))
                _spin(self.chance.random() * 5e-4)
            else:
                arrived = link.poll(self.chance.random() * 1.2 * statistics.median(self.seconds[-20:]))
            if not arrived or self.chance.random() < 0.3:
                return self._kill(link, at_a_write=at_a_write, request=request)
        if not link.poll(120):
            raise AssertionError("a client that nobody killed didn't answer")
        reply = link.recv()
        self.seconds.append(time.monotonic() - begun)
        return _content(reply)

    def _kill(self, link: Connection, *, at_a_write: bool, request: Message) -> RecordDict | None:
        """Kill the client; what it had sent before has left it."""
        assert self.client is not None
        assert self.client.pid is not None
        os.kill(self.client.pid, signal.SIGKILL)
        self.client.join()
        self.client = None
        self.counts.kills += 1
        self.counts.kills_at_a_write += at_a_write
        found = None
        try:
            if link.poll(0):
                found = _content(link.recv())
        except (EOFError, OSError, ValueError):
            found = None  # killed in the middle of sending: what arrived is no reply
        link.close()
        self._note_state(request, found)
        self._check()
        return found

    def _note_state(self, request: Message, found: RecordDict | None) -> None:
        """Which state a kill left the task in, where its reply was lost."""
        if found is not None:
            return
        phase = "train" if request.metadata.message_type == MessageType.TRAIN else "evaluate"
        state = "lost"
        with Ledger.open(self.ledger, durable=False, read_only=True) as ledger:
            task = None
            for entry in ledger.entries(CLIENT) if CLIENT in ledger.scopes() else ():
                if entry.kind == "reserve":
                    asked = Task.from_json(entry.body["task"])
                    if (asked.round, asked.phase) == (int(request.metadata.group_id), phase):
                        task, state = asked.id, "reserved"
                elif entry.kind == "commit" and entry.body["task"] == task:
                    state = "committed"
        setattr(self.counts, state, getattr(self.counts, state) + 1)

    def _left(self, name: str, reply: RecordDict) -> None:
        """Every reply to one request is the same."""
        digest = hashlib.sha256(repr(sorted(_plain(reply).items())).encode()).hexdigest()
        assert self.replies.setdefault(name, digest) == digest, "two replies to one request"
        self.counts.releases = len(self.replies)

    def _check(self) -> None:
        """The chain holds, and the ledger has charged at least what left."""
        problems = verify(self.ledger)
        assert not problems, f"the ledger is damaged: {problems[0]}"
        charged: dict[Any, int] = {}
        with Ledger.open(self.ledger, durable=False, read_only=True) as ledger:
            if CLIENT in ledger.scopes():
                for plan in ledger.account(CLIENT, self.plan.balance).plans:
                    for release, times in plan.charged:
                        charged[release] = charged.get(release, 0) + times
        self.counts.charged = sum(charged.values())
        self.counts.epsilon = epsilon(charged, self.plan.privacy.delta).epsilon
        assert self.counts.charged >= self.counts.releases, "more left the client than its ledger has charged"

    def _running(self) -> Connection:
        if self.client is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["tests.proofs.ledger_client"])
            here, there = context.Pipe()
            self.client = context.Process(
                target=serve, args=(there, write_plan(self.plan), str(self.ledger)), daemon=True
            )
            self.client.start()
            there.close()
            self.link = here
        assert self.link is not None
        return self.link

    def _wal(self) -> tuple[int, int]:
        try:
            found = self.ledger.with_name(self.ledger.name + "-wal").stat()
        except FileNotFoundError:
            return (0, 0)
        return found.st_mtime_ns, found.st_size

    def _wait_for_writes(self, link: Connection, seen: tuple[int, int], writes: int) -> bool:
        """Wait until the ledger's log has changed so often; whether the reply came first."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = self._wal()
            if now != seen:
                seen, writes = now, writes - 1
                if writes == 0:
                    return False
            if link.poll(0):
                return True
        raise AssertionError("a client that nobody killed neither wrote nor answered")


def _content(reply: Message) -> RecordDict:
    assert reply.has_content(), f"the client refused: {reply.error.code}"
    return reply.content


def _plain(reply: RecordDict) -> dict[str, Any]:
    found = {f"{METRICS}.{key}": value for key, value in reply[METRICS].items()}
    if ARRAYS in reply:
        found |= {f"{ARRAYS}.{key}": value.data for key, value in reply[ARRAYS].items()}
    else:
        assert TOTAL in reply[METRICS]
    return found


def _spin(seconds: float) -> None:
    """Let so little time pass that no sleep would do."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def prove(kills: int, seed: int, results: Path, *, each: int = 40) -> list[Counts]:
    """Campaigns until there were so many kills; those in `results` are not repeated."""
    done = {}
    if results.is_file():
        found = [Counts(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
        done = {counts.seed: counts for counts in found}
    made: list[Counts] = []
    while sum(counts.kills for counts in made) < kills:
        number = seed + len(made)
        if number not in done:
            with tempfile.TemporaryDirectory() as folder:
                done[number] = campaign(number, Path(folder), kills=each)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(done[number])) + "\n")
        made.append(done[number])
        print(describe([made[-1]]), flush=True)
    return made


def describe(made: list[Counts]) -> str:
    """The counts, in words."""
    total = {key: sum(getattr(counts, key) for counts in made) for key in asdict(made[0])}
    return (
        f"{total['kills']} kills ({total['kills_at_a_write']} right after a write to the ledger): the reply was lost "
        f"{total['lost']} times before the reservation, {total['reserved']} times after it, {total['committed']} times "
        f"after the commit; {total['redelivered']} requests asked again after their reply; {total['releases']} "
        f"releases left the client, {total['charged']} were charged; epsilon "
        f"{max(counts.epsilon for counts in made):.4f} of {max(counts.budget for counts in made):g}"
    )


def main() -> None:
    """Run the proof, print its counts and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("build/prove-ledger.jsonl"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence/ledger.txt"))
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    made = prove(given.kills, given.seed, given.results)
    text = f"{len(made)} campaigns, seeds {made[0].seed} to {made[-1].seed}\n{describe(made)}\n"
    text += "every chain verified after every kill; every plan finished within its budget\n"
    print(text, end="")
    given.evidence.parent.mkdir(parents=True, exist_ok=True)
    given.evidence.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
