"""The doctor: finds what is missing and says how to mend it."""

from __future__ import annotations

import importlib.metadata
import shutil

import pytest

from tests.veil.test_main import run
from veil.commands import doctor


def test_a_good_machine_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    assert "all that is needed is there" in capsys.readouterr().out


def test_a_missing_package_is_named_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "opacus":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "flwr" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert "opacus: not installed; pip install 'opacus==1.6.*'" in out
    assert "flwr: 0.1; Veil needs ==1.41.*: pip install 'flwr==1.41.*'" in out
    assert "2 needed things are missing or wrong" in out


def test_a_full_disk_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    finding = next(finding for finding in doctor.examine() if finding.name == "disk")
    assert not finding.good
    assert not finding.needed
    assert "free some" in finding.text


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> object:
        raise OSError("no such device")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    finding = next(finding for finding in doctor.examine() if finding.name == "disk")
    assert not finding.good
    assert "OSError: no such device" in finding.text
