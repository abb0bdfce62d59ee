"""Models that wait are the same in memory and in a file, and of the file nothing stays behind."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from security.errors import RunError
from server import kept_models
from server.kept_models import KeptModels
from shared_models.parameters import Parameters
from tests.server.conftest import same_bits

SHAPES = {"weight": (3, 5), "none": (0, 2), "scale": (), "bias": (7,)}
SIZE = 4 * (15 + 1 + 7)


def model(seed: int) -> Parameters:
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def files_of_this_process() -> list[str]:
    return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


@pytest.mark.parametrize("room", [0, SIZE, 3 * SIZE + 1, 10 * SIZE])
def test_what_is_kept_comes_back_bit_for_bit_wherever_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: int
) -> None:
    monkeypatch.setattr(kept_models, "IN_MEMORY", room)
    kept = KeptModels(tmp_path)
    for client in "dbca":
        kept.put(client, model(ord(client)).items(), SIZE)
    for client in "abcd":
        found = kept.get(client)
        kept.let_go()
        assert same_bits(found, model(ord(client)))
        assert list(found) == list(SHAPES)
    assert len(kept._in_memory) == min(4, room // SIZE)
    kept.close()


def test_values_in_a_file_are_read_only_and_outlive_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept_models, "IN_MEMORY", 0)
    kept = KeptModels(tmp_path)
    kept.put("a", model(1).items(), SIZE)
    found = kept.get("a")
    kept.close()
    assert not found["weight"].flags.writeable
    assert same_bits(found, model(1))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux")
def test_the_file_has_no_name_and_its_room_is_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept_models, "IN_MEMORY", 0)
    kept = KeptModels(tmp_path)
    kept.put("a", model(1).items(), SIZE)
    found = kept.get("a")
    assert list(tmp_path.iterdir()) == []
    assert any(str(tmp_path) in name for name in files_of_this_process())
    kept.close()
    del found
    gc.collect()
    assert not any(str(tmp_path) in name for name in files_of_this_process())
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_without_a_need_there_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = KeptModels(tmp_path / "is not there")
    kept.put("a", model(1).items(), SIZE)
    assert same_bits(kept.get("a"), model(1))
    monkeypatch.setattr(kept_models, "IN_MEMORY", 0)
    empty = KeptModels(tmp_path)
    empty.put("a", [("none", np.zeros((0, 2), np.float32))], 4)
    assert empty.get("a")["none"].shape == (0, 2)


def test_a_full_disk_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept_models, "IN_MEMORY", 0)

    def full(**settings: Any) -> Any:
        return open("/dev/full", "r+b", buffering=0)  # noqa: PTH123

    with pytest.raises(RunError, match=r"can't keep the round's updates \(No such file or directory\)"):
        KeptModels(tmp_path / "is not there").put("a", model(1).items(), SIZE)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    kept = KeptModels(tmp_path)
    with pytest.raises(RunError) as told:
        kept.put("a", model(1).items(), SIZE)
    assert str(told.value) == (
        f"{tmp_path}: can't keep the round's updates (No space left on device); free the disk and go on with --resume"
    )
    assert kept._file is None
