"""Principle 5: a crash costs compute, never privacy. Whatever was acknowledged is there; nothing is charged twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import BudgetExhausted, Ledger, ReplyGone, Reserved, Stored, default_anchors
from privacy.ledger.check import verify
from privacy.lifetime import Limit
from tests.privacy.ledger.cases import FIELDS, Child, affordable, charged, play, reserve, task

WIDE = Limit(epsilon=2000.0, delta=1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, anchors=default_anchors(path)) as ledger:
        ledger.open_scope("site", owner="")
    return path


@pytest.mark.parametrize("durable", [True, False])
def test_kill_9_loses_nothing_that_was_acknowledged(path: Path, durable: bool) -> None:
    """Twenty writers, one after the other, each killed at a place of its own while it writes."""
    anchors = default_anchors(path)
    draw = random.Random(11)
    acknowledged: list[tuple[bytes, int]] = []

    def write(first: int) -> Callable[[Callable[[bytes], object]], None]:
        def work(send: Callable[[bytes], object]) -> None:
            with Ledger.open(path, durable=durable, anchors=anchors) as ledger:
                for number in range(first, first + 10_000):
                    reserve(ledger, number, limit=WIDE, rounds=1000)
                    send(b"r%8d\n" % number)
                    ledger.commit("site", task(number).id, b"reply %d" % number, fields=FIELDS)
                    send(b"c%8d\n" % number)

        return work

    for kill in range(20):
        child = Child(write(kill * 10_000))
        for _ in range(draw.randrange(1, 25)):
            line = child.pipe.readline()
            acknowledged.append((line[:1], int(line[1:])))
        until = time.perf_counter() + draw.random() * 2e-3  # somewhere within the next write
        while time.perf_counter() < until:
            pass
        child.kill()
        acknowledged += [(line[:1], int(line[1:])) for line in child.pipe.read().splitlines() if len(line) == 9]
        assert child.wait() == -signal.SIGKILL
        assert verify(path) == []

    with Ledger.open(path, anchors=anchors) as ledger:
        entries = list(ledger.entries("site"))
        reserved = {entry.body["task"]["round"] for entry in entries if entry.kind == "reserve"}
        committed = {entry.body["task"] for entry in entries if entry.kind == "commit"}
        assert {number for kind, number in acknowledged if kind == b"r"} <= reserved
        assert {task(number).id for kind, number in acknowledged if kind == b"c"} <= committed
        assert charged(ledger) == len(reserved)
        newest = max(number for kind, number in acknowledged if kind == b"c")
        answer = reserve(ledger, newest, limit=WIDE, rounds=1000)
        assert isinstance(answer, Stored)
        assert answer.reply == b"reply %d" % newest


@pytest.mark.parametrize("moment", ["sql", "files"])
def test_a_crash_at_every_single_step_leaves_a_ledger_that_goes_on(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task, killed before its first step, its second, ... until it gets through: before each statement to
    SQLite, or before each call that puts the anchor on the disk."""
    fates = Counter[str]()
    for step in range(100):
        path = tmp_path / f"ledger-{step}"
        with Ledger.create(path, anchors=default_anchors(path)) as ledger:
            ledger.open_scope("site", owner="")
            play(ledger, 0)

        def work(send: Callable[[bytes], object], path: Path = path, step: int = step) -> None:
            left = [step]

            def count(*_: object) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            with Ledger.open(path, anchors=default_anchors(path)) as ledger:
                if moment == "sql":
                    ledger._store._db.set_trace_callback(count)
                else:
                    for name in ("open", "fsync", "close", "fdopen"):
                        monkeypatch.setattr(os, name, counted(getattr(os, name), count))
                    monkeypatch.setattr(Path, "replace", counted(Path.replace, count))
                reserve(ledger, 1)
                send(b"r")
                ledger.commit("site", task(1).id, b"first", fields=FIELDS)
                send(b"c")
                ledger._store._db.set_trace_callback(None)
                monkeypatch.undo()

        child = Child(work)
        told = child.pipe.read()
        survived = child.wait() == 0
        assert verify(path) == []
        with Ledger.open(path, anchors=default_anchors(path)) as ledger:
            before = charged(ledger)
            assert before in (1, 2)
            answer = reserve(ledger, 1)
            assert charged(ledger) == 2  # once, whatever happened
            if b"r" in told:
                assert before == 2
            if b"c" in told:
                assert isinstance(answer, Stored)
            sent = answer.reply if isinstance(answer, Stored) else b"second"
            assert ledger.commit("site", task(1).id, b"second", fields=FIELDS) == sent
            fates["stored" if isinstance(answer, Stored) else "again" if answer.again else "anew"] += 1
        if survived:
            break
    else:
        pytest.fail("it never got through")
    # An anchor is put on the disk after its entry, so none of its steps undoes the reservation.
    assert set(fates) == {"sql": {"anew", "again", "stored"}, "files": {"again", "stored"}}[moment]


def counted(real: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        count()
        return real(*args, **kwargs)

    return call


def test_four_processes_share_one_budget_and_many_tasks(path: Path) -> None:
    """25 tasks each, most of them asked of two or three processes at once; the budget covers some of them."""
    limit = Limit(epsilon=6.5, delta=1e-5)
    budget = affordable(limit, rounds=200)
    assert 30 < budget < 60
    start = multiprocessing.get_context("fork").Barrier(4)

    def work(index: int) -> Callable[[Callable[[bytes], object]], None]:
        def run(send: Callable[[bytes], object]) -> None:
            with Ledger.open(path, durable=False, anchors=default_anchors(path)) as ledger:
                start.wait()
                for number in range(index * 15, index * 15 + 25):
                    try:
                        answer = reserve(ledger, number, limit=limit, rounds=200)
                        if isinstance(answer, Reserved) and not answer.again:
                            send(b"charged %d\n" % number)
                        mine = b"process %d" % index
                        sent = (
                            ledger.commit("site", task(number).id, mine, fields=FIELDS)
                            if isinstance(answer, Reserved)
                            else answer.reply
                        )
                        send(b"sent %d %s\n" % (number, sent))
                    except BudgetExhausted:
                        send(b"refused %d\n" % number)
                    except ReplyGone:  # two newer rounds have displaced it: nothing is sent
                        send(b"gone %d\n" % number)

        return run

    children = [Child(work(index)) for index in range(4)]
    lines = [line.split(maxsplit=2) for child in children for line in child.pipe.read().splitlines()]
    assert [child.wait() for child in children] == [0] * 4

    said = {kind: [int(number) for name, number, *_ in lines if name == kind] for kind in (b"charged", b"refused")}
    assert len(said[b"charged"]) == len(set(said[b"charged"])) == budget  # nothing twice, nothing beyond
    assert not set(said[b"charged"]) & set(said[b"refused"])
    assert sum(name != b"charged" for name, *_ in lines) == 100  # everybody was answered
    sent = {(int(line[1]), line[2]) for line in lines if line[0] == b"sent"}
    assert len({number for number, _ in sent}) == len(sent)  # one reply a task, whoever sent it
    with Ledger.open(path, anchors=default_anchors(path)) as ledger:
        assert charged(ledger) == budget
        kinds = Counter(entry.kind for entry in ledger.entries("site"))
        assert kinds["reserve"] == kinds["commit"] == budget
        spent = limit.spent(ledger.account("site", next(iter(ledger.balances("site")))))
        assert spent.epsilon <= limit.epsilon * (1 + 1e-9)
    assert verify(path) == []
