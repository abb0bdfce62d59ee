"""`veil features`."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_models.features import matrices, store
from veil.main import main


@pytest.fixture(autouse=True)
def few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "derive", lambda chosen, shape: matrices.derive(chosen, shape, images=100))
    store.matrices.cache_clear()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["features", *arguments])
    return int(ended.value.code or 0)


def test_list_shows_each_map_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert "scattering" in shown
    assert "10113" in shown


def test_derive_says_the_source_and_where_it_lies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("derive", "scattering", "--size", "16x16") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "scattering: 1296 features of images of 16x16"
    assert Path(shown[2]).is_file()


@pytest.mark.parametrize(
    "arguments", [("derive", "fourier"), ("derive", "scattering", "--size", "16"), ("list", "--size", "x")]
)
def test_a_wrong_name_or_size_is_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_cache_that_can_not_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "file" / "below"))
    assert run("derive", "scattering", "--size", "16x16") == 1
    assert "error: " in capsys.readouterr().err
