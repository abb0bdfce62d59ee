"""Models of a round that wait until all are there: in memory up to a bound, the rest in a file.

The file lies where the run is written and has no name: however the process ends, its room on the disk is free again.
It is read through a map of the whole file, whose pages the system takes back when it needs them.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

from security.errors import RunError
from server.run_folder import reason_of
from shared_models.parameters import Parameters, bytes_of

IN_MEMORY: Final = 2**30
"""Bytes of a round's models that stay in memory."""

_Place = tuple[str, int, tuple[int, ...]]  # an array in the file: its name, its first byte, its shape


class KeptModels:
    """Keeps models by their clients' ids: `put` all of them, then `get` each.

    Args:
        folder: where the file is made, if one is needed; None for the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._room = IN_MEMORY
        self._in_memory: dict[str, Parameters] = {}
        self._in_file: dict[str, list[_Place]] = {}
        self._file: IO[bytes] | None = None
        self._end = 0
        self._map: mmap.mmap | None = None

    def put(self, client: str, model: Iterable[tuple[str, npt.NDArray[np.float32]]], size: int) -> None:
        """Keep a model.

        Args:
            client: whose it is.
            model: names and values, which may be made one after the other.
            size: bytes of them all.

        Raises:
            RunError: the disk is full, or can't be written.
        """
        if size <= self._room:
            self._room -= size
            self._in_memory[client] = dict(model)
            return
        try:
            self._in_file[client] = [self._write(name, value) for name, value in model]
        except OSError as error:
            self.close()
            raise RunError(
                f"{self._folder or tempfile.gettempdir()}: can't keep the round's updates ({reason_of(error)}); free "
                "the disk and go on with --resume"
            ) from error

    def get(self, client: str) -> Parameters:
        """A model, not to be written to. After the first call none may be put any more."""
        if client in self._in_memory:
            return self._in_memory[client]
        if self._map is None:
            assert self._file is not None
            self._map = mmap.mmap(self._file.fileno(), self._end, access=mmap.ACCESS_READ) if self._end else None
        data = self._map or b""
        return {
            name: np.frombuffer(data, np.float32, int(np.prod(shape, dtype=np.int64)), start).reshape(shape)
            for name, start, shape in self._in_file[client]
        }

    def let_go(self) -> None:
        """Take no memory for what was read from the file; what is looked at again is read again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget all models. Those that somebody still holds stay what they are."""
        if self._file is not None:
            self._file.close()
        self._in_memory, self._in_file, self._file, self._map = {}, {}, None, None

    def _write(self, name: str, value: npt.NDArray[np.float32]) -> _Place:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # see `close`
        place, left = (name, self._end, value.shape), bytes_of(value)
        self._end += len(left)
        while left:
            left = left[self._file.write(left) :]  # a disk that is nearly full takes a part, and then refuses
        return place
