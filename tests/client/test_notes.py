"""What a client tells its owner: a status that is always whole, a log that ends somewhere, lines that don't repeat."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import notes as module
from client.notes import Notes, read_status
from security.errors import UsageError
from tests.client.link_server import eventually

SECRET = "patient-4711"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def notes(tmp_path: Path, lines: list[str]) -> Iterator[Notes]:
    found = Notes(
        status=tmp_path / "status.json", log=tmp_path / "client.log", server="fl.example.org:443", say=lines.append
    )
    yield found
    found.close()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "client.log").read_text().splitlines()]


def test_the_status_is_there_from_the_beginning_and_says_when_it_is_over(notes: Notes, tmp_path: Path) -> None:
    found = read_status(tmp_path / "status.json")
    assert found is not None
    assert (found.running, found.connected, found.server) == (True, False, "fl.example.org:443")
    notes.show(connected=True, waiting="on battery", working=True)
    notes.close()
    found = read_status(tmp_path / "status.json")
    assert found is not None
    assert (found.running, found.connected, found.waiting, found.working) == (False, False, None, False)


def test_of_many_changes_the_last_one_is_written(notes: Notes, tmp_path: Path) -> None:
    for number in range(200):
        notes.show(round=number)
        notes.fault("client-failed")
    eventually(lambda: read_status(tmp_path / "status.json") == notes.status)
    assert notes.status.round == 199
    assert notes.status.faults == {"client-failed": 200}


def test_since_is_when_the_connection_last_came_or_went(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(["1", "2", "3"])
    monkeypatch.setattr(module, "_now", lambda: next(times))
    notes.show(connected=True)
    notes.show(connected=True, round=1)
    assert notes.status.since == "1"
    notes.show(connected=False)
    assert notes.status.since == "2"


def test_a_line_that_comes_again_and_again_is_printed_when_it_changes_and_always_logged(
    notes: Notes, lines: list[str], tmp_path: Path
) -> None:
    for line in ("away", "away", "busy", "away"):
        notes.once("not connected", line)
    notes.over("not connected")
    notes.once("not connected", "away")
    assert lines == ["away", "busy", "away", "away"]
    assert [line["event"] for line in log_of(tmp_path)] == ["not connected"] * 5


def test_details_are_printed_for_who_asks_for_them(tmp_path: Path, lines: list[str]) -> None:
    for verbose in (False, True):
        notes = Notes(
            status=tmp_path / "s", log=tmp_path / "client.log", server="x:1", say=lines.append, verbose=verbose
        )
        notes.detail("task", f"verbose: {verbose}")
        notes.close()
    assert lines == ["verbose: True"]
    assert len(log_of(tmp_path)) == 2


def test_what_veils_modules_log_is_in_the_file_and_not_on_the_screen_and_no_exceptions_text_is(
    notes: Notes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        raise RuntimeError(SECRET)
    except RuntimeError:
        logging.getLogger("veil.client").warning("a train failed: %s", "RuntimeError at app.py:1", exc_info=True)
    assert log_of(tmp_path)[-1]["event"] == "a train failed: RuntimeError at app.py:1"
    assert log_of(tmp_path)[-1]["level"] == "warning"
    output = capfd.readouterr()
    for text in (output.out, output.err, (tmp_path / "client.log").read_text()):
        assert SECRET not in text
    notes.close()
    assert logging.getLogger("veil").propagate


def test_the_log_is_rotated_and_the_oldest_of_it_goes(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST_LOG", 1000)
    monkeypatch.setattr(module, "_OLD_LOGS", 2)
    notes = Notes(status=tmp_path / "status.json", log=tmp_path / "client.log", server="x:1", say=lines.append)
    for number in range(100):
        notes.note("round", number=number)
    notes.close()
    files = sorted(tmp_path.glob("client.log*"))
    assert [file.name for file in files] == ["client.log", "client.log.1", "client.log.2"]
    assert all(file.stat().st_size <= 1000 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert log_of(tmp_path)[-1]["number"] == 99


def test_a_log_that_can_not_be_written_stops_nothing_and_says_nothing(
    tmp_path: Path, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "client.log"
    log.mkdir()
    notes = Notes(status=tmp_path / "status.json", log=log, server="x:1", say=lines.append)
    notes.note("connected", "connected")
    log.rmdir()
    notes.note("round", "round 1")
    notes.close()
    assert lines == ["connected", "round 1"]
    assert [line["event"] for line in log_of(tmp_path)] == ["round"]
    assert capfd.readouterr().err == ""


def test_who_never_ran_has_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path / "status.json") is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"process": 1, "since": "", "server": "", "more": 1}', "\xff"])
def test_what_is_no_status_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"status.json: is no status; remove it"):
        read_status(path)
