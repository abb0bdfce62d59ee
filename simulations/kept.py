"""Results of long work kept as lines of a file, so that work which was cut off goes on where it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_kept(path: Path, kind: type[T]) -> list[T]:
    """The dataclasses that a file holds, one a line.

    A line that is none, for it was cut off or another version wrote it, is left out: its work is done again.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(kind(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return found


def keep(path: Path, result: Any) -> None:
    """Add a dataclass as a line, and wait for the disk."""
    with path.open("a", encoding="utf-8") as file:
        if _is_cut_off(path):
            file.write("\n")  # or the new line would be spoilt by the old one's half
        file.write(json.dumps(asdict(result)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _is_cut_off(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
