"""A small ledger to break, and the ways to break it."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from privacy.canonical_json import canonical
from privacy.ledger import FieldClass, Ledger, Reserved, Stored, Task
from privacy.lifetime import Account, Balance, Limit, PlanAccount, Releases, Terms, multiset
from privacy.mechanisms import DpSgd

RELEASE = DpSgd(noise_multiplier=5.0, sample_rate=1.0, steps=1)
ROUND: Releases = multiset([RELEASE])
RECORDS = Balance(unit="record", trust="local")
PERSONS = Balance(unit="person:5", trust="local")
LIMIT = Limit(epsilon=8.0, delta=1e-5)
FIELDS: dict[str, FieldClass] = {"update": "charged", "weight": "public"}
PLAN = "a" * 64
OTHER_PLAN = "b" * 64


def task(number: int = 0, *, phase: str = "train", run: str = "run-1", client: str = "site", salt: str = "") -> Task:
    request = sha256(f"{number} {phase} {salt}".encode()).hexdigest()
    return Task(federation="fed", run=run, round=number, phase=phase, client=client, request=request)


def terms(rounds: int = 20, *, plan: str = PLAN, releases: Releases = ROUND) -> Terms:
    return Terms(plan=plan, rounds=(releases,) * rounds, delta=1e-5)


def reserve(
    ledger: Ledger,
    number: int = 0,
    *,
    scope: str = "site",
    balance: Balance = RECORDS,
    limit: Limit = LIMIT,
    plan: str = PLAN,
    rounds: int = 20,
    releases: Releases = ROUND,
    **which: str,
) -> Reserved | Stored:
    """One charged task of a plan."""
    return ledger.reserve(
        scope,
        task(number, **which),
        balance=balance,
        terms=terms(rounds, plan=plan, releases=releases),
        releases=releases,
        limit=limit,
    )


def play(ledger: Ledger, number: int = 0, *, scope: str = "site", reply: bytes | None = None, **how: Any) -> bytes:
    """Reserve and commit one task."""
    assert isinstance(reserve(ledger, number, scope=scope, **how), Reserved)
    which = {key: how[key] for key in ("phase", "run", "client", "salt") if key in how}
    answer = f"reply {number}".encode() if reply is None else reply
    return ledger.commit(scope, task(number, **which).id, answer, fields=FIELDS)


def charged(ledger: Ledger, *, scope: str = "site", balance: Balance = RECORDS) -> int:
    """How many releases the balance was charged."""
    return sum(count for plan in ledger.account(scope, balance).plans for _, count in plan.charged)


def affordable(limit: Limit, rounds: int = 20) -> int:
    """How many rounds a limit covers, by asking it alone, without a ledger."""
    account, count = Account(), 0
    while admission := limit.admit(account, terms(rounds), ROUND):
        count += 1
        envelope = admission.envelope if count == 1 else account.plans[0].envelope
        entry = PlanAccount(
            plan=PLAN, proof=admission.proof, envelope=envelope, charged=((RELEASE, count),), delta=1e-5
        )
        account = Account(plans=(entry,))
    return count


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def move(self, **by: float) -> None:
        self.time += timedelta(**by)


# --- breaking a file --------------------------------------------------------------------------------------------------


def tamper(path: Path, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
    """Change a ledger behind its back, triggers and all."""
    connection = sqlite3.connect(path, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        sql, values = (statement, ()) if isinstance(statement, str) else statement
        connection.execute(sql, values)
    for _, sql in triggers:
        connection.execute(sql)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def rehash(path: Path, scope: str, start: int) -> None:
    """What the key's holder, or any thief of the file, can do after an edit: make all hashes fit again."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT scope, position, kind, time, body, previous, hash FROM entries WHERE scope = ? ORDER BY position",
        (scope,),
    ).fetchall()
    connection.close()
    previous = "0" * 64
    changes: list[tuple[str, tuple[Any, ...]]] = []
    for _, position, kind, time, body, _, old_hash in rows:
        if position < start:
            previous = old_hash
            continue
        value = {"position": position, "kind": kind, "time": time, "body": json.loads(body)}
        digest = sha256(canonical({**value, "scope": scope, "previous": previous}).encode()).hexdigest()
        changes.append(
            (
                "UPDATE entries SET previous = ?, hash = ? WHERE scope = ? AND position = ?",
                (previous, digest, scope, position),
            )
        )
        previous = digest
    tamper(path, *changes)


def content(path: Path) -> tuple[list[Any], list[Any]]:
    """All entries and replies, read without any of Veil's code."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.text_factory = bytes
    try:
        entries = connection.execute("SELECT * FROM entries ORDER BY scope, position").fetchall()
        replies = connection.execute("SELECT * FROM replies ORDER BY scope, task").fetchall()
    finally:
        connection.close()
    return entries, replies


# --- other processes --------------------------------------------------------------------------------------------------


class Child:
    """A forked process that runs a function, and what it wrote to its pipe."""

    def __init__(self, work: Callable[[Callable[[bytes], object]], object]) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            status = 1
            try:
                work(lambda data: os.write(write, data))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write)
        self.pipe = os.fdopen(read, "rb")

    def wait(self) -> int:
        """What is left in the pipe goes unread; minus the signal that ended it, or the exit status."""
        self.pipe.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        os.kill(self.pid, 9)


def in_child(work: Callable[[], Any]) -> Any:
    """What a function returns, or raises, in a process of its own."""

    def job(send: Callable[[bytes], object]) -> None:
        try:
            outcome: tuple[bool, Any] = True, work()
        except Exception as error:
            outcome = False, error
        send(pickle.dumps(outcome))

    child = Child(job)
    data = child.pipe.read()
    assert child.wait() == 0
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value
