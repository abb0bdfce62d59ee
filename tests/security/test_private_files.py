"""Who else may read a private file makes it useless; a crash leaves an old file or a new one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from security.errors import UsageError
from security.private_files import make_folder, read_private, replace_file, write_private


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    before = os.umask(0)
    try:
        write_private(path, b"hidden")
    finally:
        os.umask(before)
    assert read_private(path) == b"hidden"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_what_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    write_private(path, b"hidden")
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600") as error:
        read_private(path)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"old"), lambda path: path.symlink_to("nowhere")])
def test_nothing_is_overwritten(tmp_path: Path, make: object) -> None:
    path = tmp_path / "secret"
    make(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match="never overwritten"):
        write_private(path, b"new")
    assert names(tmp_path) == ["secret"]
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read the key"):
        read_private(tmp_path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file; make one"):
        read_private(tmp_path / "none", hint="make one")


def test_a_file_that_can_t_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roster.json"
    replace_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        replace_file(path, b"new")
    with pytest.raises(UsageError, match="No space left"):
        write_private(tmp_path / "key", b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["roster.json"]


def test_a_replaced_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    replace_file(path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    replace_file(path, b"2", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"2"


def test_a_private_folder_is_entered_by_its_owner_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "keys", private=True)
    assert stat.S_IMODE((tmp_path / "a" / "keys").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't make this folder"):
        make_folder(tmp_path / "file" / "keys")
