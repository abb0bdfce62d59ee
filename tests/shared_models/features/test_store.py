"""The cache folder: what is kept is used again, what is wrong is made again."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
import torch

from shared_models.features import store
from shared_models.features.maps import feature_map
from shared_models.features.store import cache_folder, keep, matrices, matrices_file, read_matrices, write_matrices

SHAPE = (1, 16, 16)


def file() -> Path:
    return matrices_file(feature_map("scattering"), SHAPE)


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the maps that were derived."""
    told: list[str] = []
    before = store.derive
    monkeypatch.setattr(store, "derive", lambda chosen, shape: told.append(chosen.name) or before(chosen, shape))
    return told


def again() -> None:
    store.matrices.cache_clear()
    matrices("scattering", SHAPE)


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("VEIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "veil"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "veil"


def test_matrices_are_derived_once(derived: list[str]) -> None:
    matrices("scattering", SHAPE)
    again()
    assert derived == ["scattering"]
    assert stat.S_IMODE(file().stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["bit", "short", "other source", "folder of rubbish"])
def test_a_file_that_is_not_what_it_says_is_made_again_with_one_note(
    damage: str, derived: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = matrices("scattering", SHAPE)
    content = bytearray(file().read_bytes())
    if damage == "bit":
        content[-5] ^= 1
        file().write_bytes(content)
    elif damage == "short":
        file().write_bytes(content[: len(content) // 2])
    elif damage == "other source":
        write_matrices(file(), found, "0" * 64)
    else:
        file().write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING, "veil.features"):
        again()
    assert derived == ["scattering"] * 2
    assert sum("is damaged, or not what its name says" in line for line in caplog.messages) == 1
    again()
    assert derived == ["scattering"] * 2


def test_what_is_read_is_what_was_written() -> None:
    found = matrices("scattering", SHAPE)
    read = read_matrices(file(), feature_map("scattering").source(SHAPE))
    assert read is not None
    for name, tensor in found.tensors().items():
        assert torch.equal(read.tensors()[name], tensor)


def test_without_room_work_goes_on_with_one_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING, "veil.features"):
        assert matrices("scattering", SHAPE).features(torch.rand(1, *SHAPE)).shape == (1, 81 * 16)
    assert sum("can't be written" in line for line in caplog.messages) == 1


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert not keep(tmp_path / "data" / "whole", write)
    assert list((tmp_path / "data").iterdir()) == []
