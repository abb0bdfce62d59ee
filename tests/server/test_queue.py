"""The queue: what is on disk is what a server that was killed goes on with."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from security.errors import RunError, UsageError
from server.queue import Queue
from shared_models.plan import Plan
from shared_models.resolve import resolve
from tests.server.fake_link import small_plan


@pytest.fixture
def plan() -> Plan:
    return resolve(small_plan())


def queue_in(home: Path) -> Queue:
    return Queue.read(home, home / "queue.json")


def test_a_plan_is_copied_into_the_home(tmp_path: Path, plan: Plan) -> None:
    queue = queue_in(tmp_path)
    entry = queue.add(plan)
    assert queue.plan(entry) == plan
    assert queue.plan_path(entry).is_relative_to(tmp_path)
    assert queue.folder(entry).parent == tmp_path / "runs"
    assert (entry.state, entry.members, entry.digest) == ("waiting", (), plan.digest())
    assert set(entry.run) <= set("0123456789abcdef")


def test_entries_are_played_in_their_order_and_no_two_have_one_name(tmp_path: Path, plan: Plan) -> None:
    queue = queue_in(tmp_path)
    entries = [queue.add(plan) for _ in range(3)]
    assert queue.entries == tuple(entries)
    assert len({entry.run for entry in entries}) == len({entry.folder for entry in entries}) == 3
    assert queue.next == entries[0]
    queue.update(entries[0].run, state="done")
    assert queue.next is not None
    assert queue.next.run == entries[1].run


def test_what_is_written_is_what_another_process_reads(tmp_path: Path, plan: Plan) -> None:
    queue = queue_in(tmp_path)
    entry = queue.add(plan)
    keys = {"a": "0" * 64, "b": "1" * 64}
    queue.update(entry.run, state="running", members=("a", "b"), identities=keys)
    again = queue_in(tmp_path).entry(entry.run)
    assert (again.state, again.members, again.identities) == ("running", ("a", "b"), keys)
    queue.remove(entry.run)
    assert queue_in(tmp_path).entries == ()
    assert queue.plan_path(entry).exists()


def test_a_disk_that_is_full_leaves_the_old_queue(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = queue_in(tmp_path)
    entry = queue.add(plan)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        queue.update(entry.run, state="running")
    assert queue.entry(entry.run).state == "waiting"
    assert queue_in(tmp_path).entry(entry.run).state == "waiting"


def test_another_plan_in_the_place_of_the_copy_is_found_out(tmp_path: Path, plan: Plan) -> None:
    queue = queue_in(tmp_path)
    entry = queue.add(plan)
    path = queue.plan_path(entry)
    path.write_text(path.read_text().replace("rounds = 3", "rounds = 300"))
    with pytest.raises(UsageError, match="is another plan than the one that was queued"):
        queue.plan(entry)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "entries": []}',
        '{"version": 1, "entries": [{}]}',
        '{"version": 1, "entries": {"a": 1}}',
        "\xff",
    ],
)
def test_a_damaged_queue_is_said_to_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "queue.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"queue\.json: is no queue, or is damaged"):
        queue_in(tmp_path)


@pytest.mark.parametrize("change", [{"state": "lost"}, {"run": 5}, {"members": [1]}, {"identities": {"a": 1}}])
def test_a_queue_that_says_something_else_is_damaged(tmp_path: Path, plan: Plan, change: dict[str, object]) -> None:
    queue_in(tmp_path).add(plan)
    path = tmp_path / "queue.json"
    document = json.loads(path.read_text())
    document["entries"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="is no queue, or is damaged"):
        queue_in(tmp_path)
