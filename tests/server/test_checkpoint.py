"""Checkpoints appear whole or not at all, and what is damaged is never taken for whole (principle 5)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from security.errors import RunError, UsageError
from server import checkpoint as module
from server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from server.replies import ClientFault
from server.run_state import RunState
from shared_models.faults import Fault
from tests.server.conftest import START, head, same_bits

PLAN = "a" * 64


def checkpoint(number: int, *, plan: str = PLAN, charged: int | None = None) -> Checkpoint:
    state = RunState(run="r" * 32, round=number, bytes_up=10 * number, evaluation={"accuracy": number / 10})
    for played in range(1, (number if charged is None else charged) + 1):
        state.note_client(played, "north", None)
        assert state.client("north").tell(played, epsilon=0.1 * played, head=head(played))
        state.note_client(played, "south", ClientFault("south", Fault.CLIENT_FAILED))
    return Checkpoint(
        plan_digest=plan,
        state=state,
        parameters={name: value + np.float32(number) for name, value in START.items()},
        strategy={"m.layer.bias": np.full(2, number, dtype=np.float32), "count": np.array([number])},
        attachments={"clients.json": f"state after {number}".encode()},
    )


def same(found: Checkpoint | None, expected: Checkpoint) -> bool:
    return (
        found is not None
        and found.plan_digest == expected.plan_digest
        and found.state == expected.state
        and same_bits(found.parameters, expected.parameters)
        and (found.strategy is None) == (expected.strategy is None)
        and same_bits(found.strategy or {}, expected.strategy or {})
        and dict(found.attachments) == dict(expected.attachments)
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(3))
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(3))


@pytest.mark.parametrize("strategy", [None, {}])
def test_a_strategy_that_keeps_nothing_is_not_one_that_cant_be_kept(
    tmp_path: Path, strategy: dict[str, np.ndarray] | None
) -> None:
    save_checkpoint(tmp_path, replace(checkpoint(1), strategy=strategy, attachments={}))
    found = load_checkpoint(tmp_path, PLAN)
    assert found is not None
    assert found.strategy == strategy
    assert found.attachments == {}


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, PLAN) is None
    assert load_checkpoint(tmp_path / "nowhere", PLAN) is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        save_checkpoint(tmp_path, checkpoint(number))
        assert len(names(tmp_path)) <= 2
    assert names(tmp_path) == ["round-000003", "round-000004"]


def test_the_last_one_that_waited_for_the_disk_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power may damage the others."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    kept = []
    for number in range(7):
        before = len(synced)
        save_checkpoint(tmp_path, checkpoint(number), durable=number in (1, 4))
        assert (len(synced) > before) == (number in (1, 4))
        kept.append([int(name[-1]) for name in names(tmp_path)])
        assert same(load_checkpoint(tmp_path, PLAN), checkpoint(number))
    assert kept == [[0], [0, 1], [1, 2], [1, 2, 3], [3, 4], [4, 5], [4, 5, 6]]
    for newest in (6, 5):
        (tmp_path / f"round-{newest:06d}" / "model.safetensors").write_bytes(b"")
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(4))


def test_rounds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (9, 10, 999_999, 1_000_000, 1_000_001):
        save_checkpoint(tmp_path, checkpoint(number, charged=0))
        assert same(load_checkpoint(tmp_path, PLAN), checkpoint(number, charged=0))
    assert names(tmp_path) == ["round-1000000", "round-1000001"]


def test_another_plans_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1, plan="b" * 64))
    with pytest.raises(UsageError, match=r"round-000001: belongs to another plan .*; restore plan\.toml"):
        load_checkpoint(tmp_path, PLAN)


# --- a round that failed ------------------------------------------------------------------------------------------


def test_after_a_failed_round_the_charges_are_kept_beside_the_checkpoint_before(tmp_path: Path) -> None:
    """Both have the same number of rounds; the newer one wins, however often it happens."""
    save_checkpoint(tmp_path, checkpoint(2))
    for charged in range(3, 9):
        save_checkpoint(tmp_path, checkpoint(2, charged=charged))
        assert same(load_checkpoint(tmp_path, PLAN), checkpoint(2, charged=charged))
        assert len(names(tmp_path)) == 2
    save_checkpoint(tmp_path, checkpoint(3))
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(3))


def test_there_is_no_moment_without_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any call that changes the disk, while the only checkpoint's round is written once more."""

    class Killed(BaseException):
        pass

    calls: list[str] = []

    def watched(owner: object, name: str, kill_at: int | None) -> None:
        original = getattr(owner, name)

        def call(*arguments: object, **keywords: object) -> object:
            calls.append(name)
            if kill_at is not None and len(calls) > kill_at:
                raise Killed
            return original(*arguments, **keywords)

        patch.setattr(owner, name, call)

    def watch(kill_at: int | None) -> None:
        calls.clear()
        for owner, name in (
            (Path, "rename"),
            (Path, "replace"),
            (Path, "mkdir"),
            (Path, "open"),
            (shutil, "rmtree"),
            (os, "fsync"),
        ):
            watched(owner, name, kill_at)

    def prepared(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_checkpoint(folder, checkpoint(0))
        return folder

    folder = prepared("count")
    with monkeypatch.context() as patch:
        watch(None)
        save_checkpoint(folder, checkpoint(0, charged=1))
    total = len(calls)
    assert total > 20
    seen = set()
    for kill_at in range(total):
        folder = prepared(f"killed-{kill_at}")
        with monkeypatch.context() as patch:
            watch(kill_at)
            with pytest.raises(Killed):
                save_checkpoint(folder, checkpoint(0, charged=1))
        found = load_checkpoint(folder, PLAN)
        assert found is not None, calls
        before, after = same(found, checkpoint(0)), same(found, checkpoint(0, charged=1))
        assert before or after
        seen.add(after)
        save_checkpoint(folder, checkpoint(0, charged=2))  # and what the kill left over is in nobody's way
        assert same(load_checkpoint(folder, PLAN), checkpoint(0, charged=2))
    assert seen == {False, True}


# --- disks that are full ------------------------------------------------------------------------------------------


def fail_at_mkdir(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.setattr(Path, "mkdir", raising(error))


def fail_at_write(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.setattr(Path, "open", raising(error))


def fail_at_rename(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.setattr(Path, "rename", raising(error))


def raising(error: OSError) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("fails", [fail_at_mkdir, fail_at_write, fail_at_rename])
def test_a_full_disk_is_one_line_leaves_the_earlier_checkpoints_and_takes_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[[pytest.MonkeyPatch, OSError], None]
) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    with monkeypatch.context() as patch:
        fails(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(RunError, match=r"^[^\n]*round-000002[^\n]*\(No space left on device\)[^\n]*--resume$"):
            save_checkpoint(tmp_path, checkpoint(2))
    assert names(tmp_path) == ["round-000001"]
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(2))


def test_an_old_checkpoint_that_cant_be_removed_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint(number))
    original = os.rmdir

    def refuses(path: object, *arguments: object, **keywords: object) -> None:
        if "round-000001" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        original(path, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", refuses)
    save_checkpoint(tmp_path, checkpoint(3))
    monkeypatch.undo()
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(3))


# --- damage -------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(bytes(data))


def test_every_byte_of_every_file_counts(tmp_path: Path) -> None:
    """One bit flipped anywhere: the checkpoint is damaged, and never one with other charges, moments or weights."""
    save_checkpoint(tmp_path, checkpoint(2))
    (newest,) = tmp_path.iterdir()
    files = sorted(newest.iterdir())
    assert [path.name for path in files] == [
        "clients.json",
        "model.safetensors",
        "state.json",
        "state.sha256",
        "strategy.safetensors",
        "synced",  # empty, and of no consequence for what is read
    ]
    for path in files:
        whole = path.read_bytes()
        for place in range(len(whole)):
            flip(path, place, 1 << place % 8)
            with pytest.raises(UsageError, match="every checkpoint is damaged"):
                load_checkpoint(tmp_path, PLAN)
            path.write_bytes(whole)
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(2))


@pytest.mark.parametrize(
    "file", ["clients.json", "model.safetensors", "state.json", "state.sha256", "strategy.safetensors"]
)
@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "empty", "a folder"])
def test_a_damaged_newest_checkpoint_costs_a_round_not_the_run(tmp_path: Path, file: str, damage: str) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint(number))
    path = tmp_path / "round-000002" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"cut": content[:-1], "longer": content + b"\n", "empty": b""}[damage])
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))  # the round is played again: the damaged one makes room
    assert names(tmp_path) == ["round-000001", "round-000002"]
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(2))


def test_all_damaged_is_an_error_not_a_new_run(tmp_path: Path) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint(number))
        flip(tmp_path / f"round-{number:06d}" / "model.safetensors", -1)
    with pytest.raises(UsageError, match="every checkpoint is damaged; start the run anew"):
        load_checkpoint(tmp_path, PLAN)


def test_a_checkpoint_of_another_version_is_not_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    head = tmp_path / "round-000001" / "state.json"
    text = head.read_bytes().replace(b'"version": 1', b'"version": 2')
    head.write_bytes(text)
    (tmp_path / "round-000001" / "state.sha256").write_bytes(module._digest(text).encode())
    with pytest.raises(UsageError, match="every checkpoint is damaged"):
        load_checkpoint(tmp_path, PLAN)


def test_what_a_crash_or_a_person_left_over_is_in_nobodys_way(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    half = tmp_path / ".round-000002.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "round-notes").mkdir()
    (tmp_path / "round-000009.txt").write_text("notes")
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    assert same(load_checkpoint(tmp_path, PLAN), checkpoint(2))
    assert not half.exists()
    assert (tmp_path / "round-notes").is_dir()
