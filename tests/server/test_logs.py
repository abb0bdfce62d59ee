"""The log: JSON lines of known fields, each in its form, in files that others can't read."""

from __future__ import annotations

import errno
import json
import os
import stat
from datetime import datetime
from pathlib import Path

import pytest

from security.frames import Goodbye, Taken
from server.logs import FIELDS, EventLog, LogWatcher, line_of
from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from shared_models.faults import Fault
from tests.server.fake_link import secret_plan, small_plan

SECRET = "patient 4711; age 93 /srv/data/rows.csv"
ENTRY = Entry(run="ab", name="digits", digest="0" * 64, plan="plans/x", folder="runs/x", added="now")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_how_bad_and_what(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "server.log")
    log("round", level="warning", site="clinic-a", run="00ff", round=3, seconds=1.5, epsilon=None)
    log.close()
    (line,) = lines(tmp_path / "server.log")
    assert datetime.fromisoformat(str(line.pop("time"))).tzinfo is not None
    assert line == {
        "level": "warning",
        "event": "round",
        "site": "clinic-a",
        "run": "00ff",
        "round": 3,
        "seconds": 1.5,
    }


def test_a_field_that_is_not_on_the_list_can_not_be_written() -> None:
    with pytest.raises(ValueError, match="not for a log: text"):
        line_of("round", level="info", fields={"text": "x"})
    with pytest.raises(ValueError, match="not for a log"):
        line_of(SECRET, level="info", fields={})


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_no_field_takes_free_text(field: str) -> None:
    text = line_of("event", level="info", fields={field: SECRET})
    assert json.loads(text)[field] == "?"
    assert json.loads(line_of("event", level="info", fields={field: float("nan")}))[field] == "?"


def test_files_are_rotated_and_private(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "server.log", largest=500, kept=2)
    for number in range(40):
        log("round", round=number)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["server.log", "server.log.1", "server.log.2"]
    assert all(path.stat().st_size <= 500 for path in files)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert lines(files[0])[-1]["round"] == 39


def test_a_full_disk_stops_nothing_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(tmp_path / "server.log")
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args, **more: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    log("round", round=1)
    monkeypatch.setattr(os, "open", real)
    log("round", round=2)
    log.close()
    assert [line["round"] for line in lines(tmp_path / "server.log")] == [2]
    assert capfd.readouterr() == ("", "")


def test_what_a_server_does_is_in_the_log(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "server.log")
    watcher, folder, plan = LogWatcher(log), RunFolder(tmp_path), small_plan()
    watcher.serving(8443)
    watcher.queued(ENTRY)
    watcher.waiting(ENTRY, f"waiting for {SECRET}")
    watcher.connected("a", "0.1.0")
    watcher.refused(None, Goodbye.UNKNOWN_SITE)
    watcher.refused("b", Goodbye.REVOKED)
    watcher.answered("a", int(Fault.POLICY_UNIT))
    watcher.begins(ENTRY, plan, folder)
    watcher.started(plan, 2, 0)
    watcher.note(SECRET)
    watcher.task_sent("a", "0" * 64, 10)
    watcher.reply_stored("a", "0" * 64, 10)
    watcher.reply_refused("a", "0" * 64, Taken.TOO_LARGE)
    watcher.failed("a", f"OSError at {tmp_path}/link.py:7")
    watcher.round_done(
        RoundRecord(
            round=1,
            seconds=2.0,
            cohort=2,
            updates=1,
            faults=[{"client": "b", "reason": "timed-out"}],
            train_loss=None,
            epsilon_max=0.5,
            bytes_up=1,
            bytes_down=2,
            evaluation={"accuracy": 0.9},
        )
    )
    watcher.warns("certificate-expires", SECRET, days=3)
    watcher.disconnected("a", None, 1.0)
    watcher.ends(ENTRY, folder)
    log.close()
    written = (tmp_path / "server.log").read_text()
    assert "4711" not in written
    assert str(tmp_path) not in written
    assert '"?"' not in written  # whatever is told has the form of its field
    told = {str(line["event"]): line for line in lines(tmp_path / "server.log")}
    assert told["refused"]["reason"] == "revoked"
    assert told["answered"]["answer"] == "refused: policy-unit"
    assert told["missing from round"]["site"] == "b"
    assert (told["round"]["metric"], told["round"]["epsilon"], told["round"]["run"]) == (0.9, 0.5, "ab")
    assert told["stream failed"]["where"] == "OSError at link.py:7"
    assert told["warning"]["warning"] == "certificate-expires"
    assert told["run ends"]["run"] == "ab"


def test_of_secret_cohorts_the_log_tells_no_member(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "server.log")
    watcher, folder, secret = LogWatcher(log), RunFolder(tmp_path), secret_plan()
    for plan, site in ((secret, "drawn"), (small_plan(), "asked")):
        watcher.begins(ENTRY, plan, folder)
        watcher.task_sent(site, "ab", 10)
        watcher.reply_stored(site, "ab", 10)
        watcher.reply_refused(site, "ab", Taken.TOO_LARGE)
        watcher.ends(ENTRY, folder)
        watcher.reply_stored(site, "ab", 10)  # what happens on the link may be told late
    log.close()
    sites = [line["site"] for line in lines(tmp_path / "server.log") if "site" in line]
    assert sites == ["asked"] * 4


def test_no_site_can_write_the_log_full(tmp_path: Path) -> None:
    """Files are rotated: a flood would take away what was written before, and what others do meanwhile."""
    now = [0.0]
    log = EventLog(tmp_path / "server.log")
    watcher = LogWatcher(log, clock=lambda: now[0])
    for _ in range(5000):
        watcher.reply_refused("loud", "ab", Taken.UNASKED)
        watcher.refused("loud", Goodbye.BUSY)
    watcher.refused("quiet", Goodbye.BUSY)
    now[0] += 1.0
    watcher.answered("loud", 0)
    log.close()
    found = lines(tmp_path / "server.log")
    assert len(found) == 102
    assert [line["site"] for line in found[-2:]] == ["quiet", "loud"]
    assert found[-1]["unwritten"] == 9900
