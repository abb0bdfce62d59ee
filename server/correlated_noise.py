"""Correlated noise over a run, and its secret on the disk (`privacy.factorisation.noise_stream`).

For one round there may be one published result, ever. So a round goes in this order: the sum; its result; the noise's
state after it, on the disk; the result, committed to the population's ledger; the model; the checkpoint. What a crash
leaves, wherever it falls:

- before the commit nothing was published. The round is asked for again and gets other noise, from the state after the
  round before, which is still there; what this round's state file holds is written over.
- after the commit the ledger gives the committed result again, and the state that belongs to it is on the disk already.

A state's file names the run, its round, who was asked in it, and the result that was made with it; the run's books name
the newest result. So a state of another run, of another try at a round, or from a copy of another time is found out,
and the run ends there: no other state gives noise that was paid for. And if the newest checkpoint is lost, so that a
committed round is played again by older books, those who took part in it are known from here, and not asked too soon
again.

The state is secret: with it, what is published tells the exact sums. It lies below the checkpoints, readable by its
owner alone, and is removed once no round is to come.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from privacy.central_sum import SumNoise, Vector, Whole
from privacy.factorisation import BandedNoise
from privacy.noise import NoiseSource
from security.errors import RunError
from server.run_folder import reason_of, write_atomically
from server.run_state import RunState

FOLDER: Final = "noise"
"""Below the run's checkpoints."""

_MAGIC: Final = b"veil noise of a run 1\n"
_KEPT: Final = 3  # as many as there may be rounds to replay, and the one before them


def forget(folder: Path) -> None:
    """Remove a run's states: no round is to come."""
    for path in (*folder.glob("round-*"), *folder.glob(".round-*")):  # and what a killed process had half written
        path.unlink(missing_ok=True)


def digest_of(released: npt.NDArray[np.float32]) -> str:
    """SHA-256 of what a round released, in hexadecimal."""
    return hashlib.sha256(released.astype("<f4").tobytes()).hexdigest()


class CorrelatedNoise:
    """The noise of one run.

    Args:
        noise: of the run, before its first round.
        folder: where its states lie; made if it isn't there.
        source: of each round's own noise.
    """

    def __init__(self, noise: BandedNoise, folder: Path, source: Callable[[int], NoiseSource]) -> None:
        self._noise = noise
        self._folder = folder
        self._source = source

    def of_round(self, number: int, state: RunState) -> SumNoise:
        """Of the round that comes next.

        Args:
            number: from 1.
            state: the run's books, as the round before has left them, and with who is asked in this one.
        """
        return _Round(self, number, state)

    def publish(self, number: int, total: Whole, state: RunState) -> Whole:
        """A round's sum with its noise; once.

        Raises:
            RunError: the state after the round before is missing, damaged, or of something else.
        """
        if self._noise.round != number:
            _, noise = self._read(number - 1, state.run, state.released)
            self._restore(noise, number)
        return self._noise.publish(number, total, self._source(number))

    def write(self, number: int, state: RunState, released: Vector) -> None:
        """Have the state on the disk that belongs to what a round will release, and who was asked for it.

        Raises:
            RunError: it can't be written; nothing may be released.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)  # it may have been unpacked from a copy
        except OSError as error:
            raise RunError(f"{self._folder}: can't be made ({reason_of(error)}); free the disk") from error
        asked = sorted(client for client, tally in state.clients.items() if number in tally.asked)
        head = _head(state.run, number, digest_of(released)) + json.dumps(asked).encode() + b"\n"
        content = head + self._noise.state()
        write_atomically(self._path(number), content + hashlib.sha256(content).digest(), mode=0o600)
        for old in self._folder.glob("round-*"):
            if old.name < self._path(number - _KEPT + 1).name:
                old.unlink(missing_ok=True)
        for cut_off in self._folder.glob(".round-*"):  # of a process that was killed
            cut_off.unlink(missing_ok=True)

    def asked(self, number: int, state: RunState, released: Vector) -> list[str]:
        """Who was asked for what a round has released.

        Raises:
            RunError: as `publish`, of this round's own state.
        """
        return self._read(number, state.run, digest_of(released))[0]

    def _read(self, number: int, run: str, released: str | None) -> tuple[list[str], bytes]:
        """Who was asked in a round, and the noise's state after it, if they belong to what it released."""
        path = self._path(number)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RunError(
                f"{path}: can't be read ({reason_of(error)}), and without it no round of correlated noise follows; put "
                "it back, or start a new run"
            ) from error
        head, whole = _head(run, number, released or ""), content[:-32]
        if released is None or not whole.startswith(head) or hashlib.sha256(whole).digest() != content[-32:]:
            raise _strange(path)
        names, _, noise = whole[len(head) :].partition(b"\n")
        return json.loads(names), noise

    def _restore(self, noise: bytes, number: int) -> None:
        try:
            self._noise.restore(noise)
        except ValueError:
            raise _strange(self._path(number - 1)) from None
        if self._noise.round != number:
            raise _strange(self._path(number - 1))

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}"


class _Round:
    """One round's noise."""

    def __init__(self, of: CorrelatedNoise, number: int, state: RunState) -> None:
        self._of = of
        self._number = number
        self._state = state

    def noisy(self, total: Whole) -> Whole:
        """The sum as it may be released."""
        return self._of.publish(self._number, total, self._state)

    def settle(self, released: Vector) -> None:
        """Have the state on the disk before that is committed."""
        self._of.write(self._number, self._state, released)

    def recall(self, released: Vector) -> None:
        """Note who has taken part in it, whatever the books say: they may be of a checkpoint from before."""
        for client in self._of.asked(self._number, self._state, released):
            self._state.client(client).ask(self._number)


def _head(run: str, number: int, released: str) -> bytes:
    return _MAGIC + f"{run} {number} {released}\n".encode()


def _strange(path: Path) -> RunError:
    return RunError(
        f"{path}: is damaged, or of another run or time than the last checkpoint and the population's ledger; put back "
        "the files that belong together, or start a new run"
    )
