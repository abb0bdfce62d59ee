"""A run's folder: a crash or a full disk leaves the old content or the new, never half (principle 5)."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from security.errors import RunError, UsageError
from server import run_folder
from server.run_folder import RunFolder, read_parameters, write_atomically, write_parameters
from tests.server.conftest import START, make_plan, same_bits

Break = Callable[[pytest.MonkeyPatch, OSError], None]


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Cut:
    """A file that takes a few bytes and then has no room."""

    def __init__(self, file: Any, error: OSError) -> None:
        self.file, self.error = file, error

    def write(self, data: Any) -> int:
        self.file.write(data[:3])
        self.file.flush()
        raise self.error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def breaks_in_write(patch: pytest.MonkeyPatch, error: OSError) -> None:
    whole = Path.open
    patch.setattr(Path, "open", lambda path, *a, **k: Cut(whole(path, *a, **k), error))


def raising(error: OSError) -> Callable[..., None]:
    def broken(*_: object, **__: object) -> None:
        raise error

    return broken


def breaks_in_fsync(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.setattr(os, "fsync", raising(error))


def breaks_in_rename(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.setattr(Path, "replace", raising(error))


def breaks_in_open(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.setattr(Path, "open", raising(error))


BREAKS = [breaks_in_open, breaks_in_write, breaks_in_fsync, breaks_in_rename]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.create(make_plan())
    return found


# --- one file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", BREAKS)
def test_a_write_that_fails_leaves_the_old_content_and_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Break
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"the old content")
    with monkeypatch.context() as patch:
        fails(patch, full())
        with pytest.raises(RunError, match=r"file: can't write \(No space left on device\); free the disk and .*--re"):
            write_atomically(path, b"the new content")
    assert path.read_bytes() == b"the old content"
    assert list(tmp_path.iterdir()) == [path]  # nothing left over that would fill the disk


@pytest.mark.parametrize("fails", BREAKS)
def test_a_first_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Break) -> None:
    with monkeypatch.context() as patch:
        fails(patch, full())
        with pytest.raises(RunError):
            write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_before_the_rename_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a process can see, a kill is an exception that nobody catches."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_content_and_folder_are_on_the_disk_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append("folder" if Path(f"/proc/self/fd/{fd}").is_dir() else "file") or fsync(fd)
    )
    monkeypatch.setattr(Path, "replace", lambda *a: events.append("rename") or replace(*a))
    write_atomically(tmp_path / "file", b"content")
    assert events == ["file", "rename", "folder"]


def test_a_missing_folder_and_a_read_only_disk_are_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "file", b"")
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    breaks_in_open(monkeypatch, read_only)
    monkeypatch.setattr(
        Path, "unlink", raising(read_only)
    )  # on such a disk even a file that isn't there can't be removed
    with pytest.raises(RunError, match="Read-only file system"):
        write_atomically(tmp_path / "file", b"")


def test_an_error_without_words_is_still_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_in_open(monkeypatch, PermissionError())
    with pytest.raises(RunError, match=r"can't write \(PermissionError\)"):
        write_atomically(tmp_path / "file", b"")


# --- parameters ---------------------------------------------------------------------------------------------------


def test_a_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = {**START, "scale": np.array(3.0, np.float32), "turned": np.asfortranarray(START["layer.weight"])}
    write_parameters(tmp_path / "model", odd)
    assert same_bits(read_parameters(tmp_path / "model"), odd)


def test_a_model_is_written_without_a_copy_and_may_be_read_by_whom_the_mask_lets(tmp_path: Path) -> None:
    model = {"w": np.ones(1_000_000, np.float32)}  # 4 MB
    path = tmp_path / "model"
    before = os.umask(0o027)
    tracemalloc.start()
    try:
        write_parameters(path, model)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.umask(before)
    assert most < 1_000_000
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a file's size stands for a full disk")
def test_a_model_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_parameters(path, START)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=r"model: can't write \(File too large\); free the disk and .*--resume"):
            write_parameters(path, {"w": np.ones(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same_bits(read_parameters(path), START)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\xff" * 100])
def test_a_model_that_is_missing_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"can't be read as a model \(missing or damaged\)"):
        read_parameters(path)


def test_a_model_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_parameters(path, START)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError):
            read_parameters(path)


# --- the folder ---------------------------------------------------------------------------------------------------


def test_a_new_folder_holds_the_plan(folder: RunFolder) -> None:
    assert folder.read_plan() == make_plan()
    assert folder.checkpoints.is_dir()
    assert folder.model.parent.is_dir()
    assert not folder.summary.exists()


def test_a_folder_that_holds_a_run_is_not_written_into(folder: RunFolder) -> None:
    before = folder.plan.read_bytes()
    with pytest.raises(UsageError, match=r"holds a run already; name another folder with --out, or go on with --res"):
        folder.create(make_plan({"seed": 8}))
    assert folder.plan.read_bytes() == before


@pytest.mark.parametrize("fails", BREAKS)
def test_a_folder_that_cant_be_written_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Break
) -> None:
    """Nothing has run yet, so there is nothing to go on with."""
    with monkeypatch.context() as patch:
        fails(patch, full())
        with pytest.raises(UsageError, match=r"run: can't write .*\(No space left on device\); choose another --out$"):
            RunFolder(tmp_path / "run").create(make_plan())
    RunFolder(tmp_path / "run").create(make_plan())


def test_a_file_in_the_folders_place_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="choose another --out"):
        RunFolder(tmp_path / "run").create(make_plan())


def test_a_folder_without_a_run_has_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run here \(plan.toml is missing\)"):
        RunFolder(tmp_path).read_plan()


def test_a_damaged_plan_is_refused(folder: RunFolder) -> None:
    folder.plan.write_text(folder.plan.read_text().replace("rounds = 20", "rounds = -1"))
    with pytest.raises(UsageError, match="rounds"):
        folder.read_plan()


# --- metrics ------------------------------------------------------------------------------------------------------


def line(number: int) -> dict[str, Any]:
    return {"round": number, "evaluation": {"accuracy": 0.1 * number}}


def test_metrics_are_lines_in_order(folder: RunFolder) -> None:
    assert folder.read_metrics() == []
    for number in (1, 2, 3):
        folder.append_metrics(line(number))
    assert folder.read_metrics() == [line(1), line(2), line(3)]
    assert [json.loads(text)["round"] for text in folder.metrics.read_text().splitlines()] == [1, 2, 3]


def test_a_line_cut_off_anywhere_by_a_crash_is_left_out(folder: RunFolder) -> None:
    folder.append_metrics(line(1))
    first = folder.metrics.read_bytes()
    folder.append_metrics(line(2))
    whole = folder.metrics.read_bytes()
    for length in range(len(first), len(whole)):
        folder.metrics.write_bytes(whole[:length])
        assert folder.read_metrics() == [line(1)]
    folder.metrics.write_bytes(first + b"\x00\x00\xff\x00")  # what some file systems leave after a power loss
    assert folder.read_metrics() == [line(1)]
    folder.truncate_metrics(1)
    folder.append_metrics(line(2))
    assert folder.read_metrics() == [line(1), line(2)]


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b"[]", b"3", b'{"rund": 1}', b'{"round": "1"}', b""])
def test_a_damaged_line_in_between_is_named(folder: RunFolder, damage: bytes) -> None:
    folder.append_metrics(line(1))
    folder.metrics.write_bytes(folder.metrics.read_bytes() + damage + b"\n")
    folder.append_metrics(line(3))
    for read in (folder.read_metrics, lambda: folder.truncate_metrics(1)):
        with pytest.raises(UsageError, match=r"metrics\.jsonl: line 2 is damaged"):
            read()


def test_lines_of_rounds_that_are_played_again_are_dropped(folder: RunFolder) -> None:
    for number in (1, 2, 3, 4):
        folder.append_metrics(line(number))
    folder.truncate_metrics(2)
    assert folder.read_metrics() == [line(1), line(2)]
    folder.truncate_metrics(0)
    assert folder.read_metrics() == []


@pytest.mark.parametrize("fails", [breaks_in_open, breaks_in_write, breaks_in_fsync])
def test_a_line_that_cant_be_written_is_an_error_and_spoils_no_other(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fails: Break
) -> None:
    folder.append_metrics(line(1))
    with monkeypatch.context() as patch:
        fails(patch, full())
        with pytest.raises(RunError, match=r"metrics\.jsonl: can't write \(No space left on device\)"):
            folder.append_metrics(line(2))
    folder.truncate_metrics(1)
    assert folder.read_metrics() == [line(1)]


# --- summary ------------------------------------------------------------------------------------------------------


def test_a_summary_is_read_as_it_was_written(folder: RunFolder) -> None:
    summary = {"rounds": 3, "final": {"loss": 1 / 3}, "reason": None, "name": "Größe"}
    folder.write_summary(summary)
    assert folder.read_summary() == summary


def test_a_run_without_a_summary_is_not_finished(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match=r"the run is not finished \(no summary\.json\); go on with --resume"):
        folder.read_summary()


def test_the_summary_of_an_earlier_end_can_be_dropped(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.drop_summary()
    folder.write_summary({"rounds": 3})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", raising(PermissionError(errno.EACCES, "Permission denied")))
        with pytest.raises(RunError, match=r"summary\.json: can't write \(Permission denied\)"):
            folder.drop_summary()
    folder.drop_summary()
    assert not folder.summary.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_damaged_summary_is_refused(folder: RunFolder, content: bytes) -> None:
    folder.summary.write_bytes(content)
    with pytest.raises(UsageError, match=r"summary\.json"):
        folder.read_summary()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_json_has_no_word_for_is_never_written(folder: RunFolder, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        folder.write_summary({"epsilon": number})
    with pytest.raises(ValueError, match="JSON"):
        folder.append_metrics({"round": 1, "epsilon": number})
    assert not folder.summary.exists()


# --- the best model -----------------------------------------------------------------------------------------------


def test_statements_are_kept_as_they_were_said_and_outlive_a_summary(folder: RunFolder) -> None:
    """They prove what was spent: those of an earlier end are kept until the same client says something newer."""
    assert folder.read_statements() == {}
    folder.write_statements({"a": '{"x":1}', "b.2-c": "no statement"})
    folder.write_summary({"rounds": 1})
    folder.drop_summary()
    folder.write_statements({"a": '{"x":2}'})
    assert folder.read_statements() == {"a": '{"x":2}', "b.2-c": "no statement"}
    assert (folder.statements / "a.json").read_text() == '{"x":2}'


def test_statements_of_a_simulation_need_not_wait_for_the_disk(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    folder.write_statements({"a": "x", "b": "y"}, durable=False)
    assert synced == []
    assert folder.read_statements() == {"a": "x", "b": "y"}
    folder.write_statements({"a": "x"})
    assert len(synced) == 2  # the file, and the folder that has its name


def test_statements_that_cant_be_written_or_read_are_an_error_in_one_line(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", raising(full()))
        with pytest.raises(
            RunError, match=r"^[^\n]*statements: can't write \(No space left on device\)[^\n]*--resume$"
        ):
            folder.write_statements({"a": "x"})
    folder.write_statements({})
    (folder.statements / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"^[^\n]*statements: can't be read$"):
        folder.read_statements()


def test_a_report_of_an_earlier_end_goes_with_its_summary(folder: RunFolder) -> None:
    for suffix in (".html", ".json", ".pdf"):
        folder.report.with_suffix(suffix).write_text("of then")
    folder.drop_summary()
    assert not list(folder.path.glob("report.*"))


def test_a_candidate_becomes_the_best_model_once_its_round_is_on_disk(folder: RunFolder) -> None:
    write_parameters(folder.best_candidate(3), START)
    assert not folder.best_model.exists()
    folder.keep_best(3)
    assert same_bits(read_parameters(folder.best_model), START)
    folder.keep_best(3)
    assert same_bits(read_parameters(folder.best_model), START)
    assert [path.name for path in folder.best_model.parent.iterdir()] == ["best.safetensors"]


def test_a_candidate_of_a_round_without_a_checkpoint_is_dropped(folder: RunFolder) -> None:
    write_parameters(folder.best_candidate(2), START)
    folder.keep_best(2)
    write_parameters(folder.best_candidate(5), {name: value + 1 for name, value in START.items()})
    folder.keep_best(2)  # the run was interrupted before round 5 had its checkpoint
    assert same_bits(read_parameters(folder.best_model), START)
    assert [path.name for path in folder.best_model.parent.iterdir()] == ["best.safetensors"]


def test_a_best_model_that_cant_be_kept_is_an_error_in_one_line(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parameters(folder.best_candidate(1), START)
    breaks_in_rename(monkeypatch, full())
    with pytest.raises(RunError, match=r"best\.safetensors: can't write \(No space left on device\)"):
        folder.keep_best(1)


def test_nothing_here_needs_more_than_the_module_says() -> None:
    """Every file of the module's list has its place."""
    paths = RunFolder(Path("run"))
    listed = str(run_folder.__doc__)
    for path in (paths.plan, paths.metrics, paths.summary, paths.checkpoints, paths.model, paths.best_model):
        assert path.name in listed
