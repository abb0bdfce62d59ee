"""When work may begin: the owner's hours across midnight, no battery, no metered network, a program of the owner's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from client import conditions as module
from client.conditions import Conditions, on_battery, on_metered_network, run_program
from client.site_settings import ScheduleSettings


def at(hour: int, minute: int = 0, day: int = 10, month: int = 6) -> datetime:
    """What the clock on the wall shows."""
    return datetime.fromisoformat(f"2026-{month:02}-{day:02}T{hour:02}:{minute:02}")


def conditions(now: datetime | None = None, **given: Any) -> Conditions:
    """Conditions on a machine that is plugged in, on a network that costs nothing."""
    asked = {name: given.pop(name) for name in ("battery", "metered", "run") if callable(given.get(name))}
    schedule = ScheduleSettings.model_validate(given)
    machine: dict[str, Any] = {"battery": lambda: False, "metered": lambda: None, **asked}
    return Conditions(schedule, clock=lambda: now or at(12), **machine)


# --- hours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("22:00-06:00", [(22, 0), (23, 59), (0, 0), (5, 59)], [(6, 0), (12, 0), (21, 59)]),
        ("09:30-17:45", [(9, 30), (12, 0), (17, 44)], [(0, 0), (9, 29), (17, 45), (23, 59)]),
        ("20:00-24:00", [(20, 0), (23, 59)], [(0, 0), (19, 59)]),
        ("00:00-24:00", [(0, 0), (12, 0), (23, 59)], []),
        ("23:59-00:01", [(23, 59), (0, 0)], [(0, 1), (23, 58)]),
    ],
)
def test_hours_hold_to_the_minute_also_across_midnight(
    window: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    for hour, minute in inside:
        assert conditions(at(hour, minute), windows=[window]).may_work() is None
    for hour, minute in outside:
        assert conditions(at(hour, minute), windows=[window]).may_work() == f"outside of the hours {window}"


def test_one_of_several_hours_is_enough_and_none_at_all_is_always() -> None:
    windows = ["22:00-06:00", "12:00-13:00"]
    assert conditions(at(12, 30), windows=windows).may_work() is None
    assert conditions(at(14), windows=windows).may_work() == "outside of the hours 22:00-06:00, 12:00-13:00"
    assert conditions(at(14)).may_work() is None


def test_it_is_worth_asking_again_when_the_hours_begin() -> None:
    found = conditions(at(21, 30), windows=["22:00-06:00"])
    assert found.next_change() == 1800
    assert conditions(at(12), windows=["22:00-06:00"]).next_change() == 3600  # no more: a clock may be set
    inside = conditions(at(5, 59), windows=["22:00-06:00"], on_battery=True, metered=True)
    assert inside.next_change() == 60
    assert conditions(at(12), on_battery=True, metered=True).next_change() == 3600
    assert conditions(at(12), on_battery=True, metered=True, windows=["00:00-24:00"]).next_change() == 3600


def test_what_only_asking_tells_is_asked_every_minute_within_the_hours() -> None:
    assert conditions(at(12)).next_change() == 60
    assert conditions(at(12), on_battery=True, metered=True, hook="/go").next_change() == 60
    assert conditions(at(12), windows=["20:00-21:00"], hook="/go").next_change() == 3600  # nobody looks before


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_a_night_that_is_an_hour_shorter_or_longer_begins_and_ends_by_the_wall() -> None:
    spring = at(1, 50, day=29, month=3)  # at 2:00 the clock goes to 3:00
    assert conditions(spring, windows=["03:00-05:00"]).next_change() == 600
    autumn = at(2, 50, day=25, month=10)  # at 3:00 it goes back to 2:00
    assert conditions(autumn, windows=["03:00-05:00"]).next_change() == 3600
    assert conditions(autumn.replace(fold=1), windows=["03:00-05:00"]).next_change() == 600


def test_a_day_of_asking_when_told_to_finds_every_change_at_once() -> None:
    now, found = at(0), []
    while now < at(0, day=11):
        asked = conditions(now, windows=["22:00-06:00", "12:00-13:00"], on_battery=True, metered=True)
        answer = asked.may_work() is None
        if not found or found[-1][1] != answer:
            found.append((now.hour, answer))
        now += timedelta(seconds=asked.next_change())
    assert found == [(0, True), (6, False), (12, True), (13, False), (22, True)]


# --- battery and network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "allowed", "reason"),
    [
        (True, False, "the machine runs on battery"),
        (True, True, None),
        (False, False, None),
        (None, False, None),
    ],
)
def test_on_battery_work_waits_unless_the_owner_says_otherwise(
    state: bool | None, allowed: bool, reason: str | None
) -> None:
    assert conditions(battery=lambda: state, on_battery=allowed).may_work() == reason


@pytest.mark.parametrize(
    ("state", "allowed", "reason"),
    [
        (True, False, "the network is metered"),
        (True, True, None),
        (False, False, None),
        (None, False, None),
    ],
)
def test_on_a_metered_network_work_waits_unless_the_owner_says_otherwise(
    state: bool | None, allowed: bool, reason: str | None
) -> None:
    found = Conditions(
        ScheduleSettings(metered=allowed), clock=lambda: at(12), battery=lambda: None, metered=lambda: state
    )
    assert found.may_work() == reason


@pytest.mark.parametrize(("plugged", "expected"), [(True, False), (False, True), (None, None)])
def test_psutil_tells_of_the_battery(
    monkeypatch: pytest.MonkeyPatch, plugged: bool | None, expected: bool | None
) -> None:
    battery = psutil._ntp.sbattery(percent=50, secsleft=1, power_plugged=plugged) if hasattr(psutil, "_ntp") else None
    battery = battery or type("Battery", (), {"power_plugged": plugged})()
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert on_battery() is expected
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert on_battery() is None

    def broken() -> None:
        raise OSError("odd /sys")

    monkeypatch.setattr(psutil, "sensors_battery", broken, raising=False)
    assert on_battery() is None
    monkeypatch.delattr(psutil, "sensors_battery")
    assert on_battery() is None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo GENERAL.METERED:no; echo; echo 'GENERAL.METERED:yes (guessed)'", True),
        ("echo GENERAL.METERED:yes", True),
        ("echo 'GENERAL.METERED:no (guessed)'; echo GENERAL.METERED:unknown", False),
        ("echo; ", False),
        ("echo GENERAL.METERED:yes; exit 8", None),
        ('[ "$LC_ALL" = C ] && echo GENERAL.METERED:yes', True),
    ],
)
def test_network_manager_tells_of_a_metered_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, expected: bool | None
) -> None:
    program = tmp_path / "nmcli"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert on_metered_network() is expected


def test_a_machine_without_network_manager_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert on_metered_network() is None


# --- the owner's program -------------------------------------------------------------------------------------------


def test_the_owners_program_decides_by_its_exit_code(tmp_path: Path) -> None:
    for code, reason in ((0, None), (1, "the site's program go said no (exit 1)")):
        program = tmp_path / "go"
        program.write_text(f"#!/bin/sh\nexit {code}\n")
        program.chmod(0o755)
        assert conditions(hook=str(program)).may_work() == reason


def test_it_is_run_without_a_shell_and_asked_last() -> None:
    asked: list[Sequence[str]] = []

    def run(arguments: Sequence[str], seconds: float) -> int:
        asked.append(arguments)
        return 0

    hook = "/opt/go; rm -rf $HOME"
    assert conditions(at(12), windows=["20:00-21:00"], hook=hook, run=run).may_work() is not None
    assert conditions(battery=lambda: True, hook=hook, run=run).may_work() is not None
    assert asked == []
    assert conditions(hook=hook, run=run).may_work() is None
    assert asked == [[hook]]


def test_a_program_that_hangs_is_ended_and_says_no(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    assert run_program([sys.executable, "-S", "-c", script], 3.0) == "gave no answer within 3 s"
    assert started.exists()


def test_a_program_that_is_not_there_says_no(tmp_path: Path) -> None:
    reason = conditions(hook=str(tmp_path / "gone")).may_work()
    assert reason == "the site's program gone can't be run (No such file or directory)"
    (tmp_path / "plain").write_text("exit 0\n")
    assert (
        conditions(hook=str(tmp_path / "plain")).may_work()
        == "the site's program plain can't be run (Permission denied)"
    )


def test_its_output_goes_nowhere(tmp_path: Path) -> None:
    program = tmp_path / "talks"
    program.write_text("#!/bin/sh\necho secret; echo secret >&2; cat > /dev/null\n")
    program.chmod(0o755)
    script = f"from client.conditions import run_program; print(run_program([{str(program)!r}], 60.0))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, input="secret"
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_by_default_the_machine_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "on_battery", lambda: True)
    assert Conditions(ScheduleSettings()).may_work() == "the machine runs on battery"
    assert 0 < Conditions(ScheduleSettings()).next_change() <= 60
