"""Checkpoints: after each round, all that is needed to go on as if nothing had happened.

A checkpoint is a folder that appears whole, by a rename, or not at all. The last two are kept, so that a damaged one
costs a round, not the run; and the last one that has waited for the disk, which a loss of power leaves whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file

from security.errors import RunError, UsageError
from server.run_folder import read_parameters, reason_of, sync_folder, write_arrays, write_atomically, write_parameters
from server.run_state import RunState
from server.strategies import State
from shared_models.parameters import Parameters

_KEPT = 2
_NAME = re.compile(r"round-(\d+)(?:\.(\d+))?")
_AVERAGE = "average.safetensors"
_HEAD = "state.json"
_HEAD_DIGEST = "state.sha256"
_SYNCED = "synced"  # an empty file in a checkpoint that has waited for the disk


@dataclass(frozen=True)
class Checkpoint:
    """A run as it stood after a round.

    Attributes:
        plan_digest: digest of the plan it belongs to.
        state: the books of the run.
        parameters: the shared model.
        average: the average of the rounds' models, where the plan keeps one.
        strategy: the strategy's memory, or None if it can't be kept.
        attachments: files of others that belong to the same moment (a simulation's clients).
    """

    plan_digest: str
    state: RunState
    parameters: Parameters
    strategy: State | None
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    average: Parameters | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, durable: bool = True) -> None:
    """Write a checkpoint and drop older ones.

    Args:
        folder: of the run's checkpoints.
        checkpoint: to be written.
        durable: whether it waits for the disk; if not, a loss of power may damage it (a killed process doesn't).

    Raises:
        RunError: it can't be written; the earlier checkpoints stay.
    """
    final = folder / f"round-{checkpoint.state.round:06d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_parameters(temporary / "model.safetensors", checkpoint.parameters, durable=durable)
        if checkpoint.average is not None:
            write_parameters(temporary / _AVERAGE, checkpoint.average, durable=durable)
        if checkpoint.strategy is not None:
            write_arrays(temporary / "strategy.safetensors", checkpoint.strategy, durable=durable)
        for attachment, data in checkpoint.attachments.items():
            write_atomically(temporary / attachment, data, durable=durable)
        head = {
            "version": 1,
            "plan_digest": checkpoint.plan_digest,
            "state": checkpoint.state.to_json(),
            "files": {path.name: _digest_of(path) for path in sorted(temporary.iterdir())},
        }
        text = json.dumps(head, sort_keys=True).encode()
        write_atomically(temporary / _HEAD, text, durable=durable)
        write_atomically(temporary / _HEAD_DIGEST, _digest(text).encode(), durable=durable)
        if durable:
            write_atomically(temporary / _SYNCED, b"")
        final = _free_name(folder, checkpoint.state.round)
        temporary.rename(final)
        if durable:
            sync_folder(folder)
        for old in _dispensable(_rounds(folder)):
            shutil.rmtree(old, ignore_errors=True)  # the disk is fuller for it, nothing else
    except OSError as error:
        raise RunError(
            f"{final}: can't write the checkpoint ({reason_of(error)}); free the disk and go on with --resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # there only if something went wrong


def _dispensable(rounds: list[Path]) -> list[Path]:
    """All but the newest, and the newest of those that are on the disk."""
    synced = [path for path in rounds if (path / _SYNCED).is_file()]
    return [path for path in rounds[:-_KEPT] if path not in synced[-1:]]


def load_checkpoint(folder: Path, plan_digest: str) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there is none at all.

    Raises:
        UsageError: every checkpoint is damaged, or they belong to another plan.
    """
    candidates = _rounds(folder)
    for path in reversed(candidates):
        found = _load(path)
        if found is None:
            continue
        if found.plan_digest != plan_digest:
            raise UsageError(f"{path}: belongs to another plan than the run's plan.toml; restore plan.toml")
        return found
    if candidates:
        raise UsageError(f"{folder}: every checkpoint is damaged; start the run anew")
    return None


def _load(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None if any of its files is missing or damaged."""
    try:
        text = (path / _HEAD).read_bytes()
        if _digest(text).encode() != (path / _HEAD_DIGEST).read_bytes():
            return None
        head = json.loads(text)
        if head["version"] != 1:
            return None
        if any(_digest_of(path / name) != digest for name, digest in head["files"].items()):
            return None
        own = ("model.safetensors", "strategy.safetensors", _AVERAGE)
        return Checkpoint(
            plan_digest=head["plan_digest"],
            state=RunState.from_json(head["state"]),
            parameters=read_parameters(path / "model.safetensors"),
            strategy=load_file(path / own[1]) if own[1] in head["files"] else None,
            average=read_parameters(path / _AVERAGE) if _AVERAGE in head["files"] else None,
            attachments={name: (path / name).read_bytes() for name in head["files"] if name not in own},
        )
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return None


def _rounds(folder: Path) -> list[Path]:
    """Checkpoints from the oldest to the newest, whole or not."""
    return sorted((path for path in folder.glob("round-*") if _NAME.fullmatch(path.name)), key=_place)


def _place(path: Path) -> tuple[int, int]:
    """The round of a checkpoint, and which attempt after it."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _free_name(folder: Path, round_number: int) -> Path:
    """Where a checkpoint goes.

    After a round that failed it has the number of the round before, whose checkpoint must stay until this one is
    whole: then it is another attempt, `round-000004.001`. Damaged checkpoints of the same round make room.
    """
    attempts = []
    for path in _rounds(folder):
        place = _place(path)
        if place[0] != round_number:
            continue
        if _load(path) is None:
            shutil.rmtree(path)
        else:
            attempts.append(place[1])
    suffix = f".{attempts[-1] + 1:03d}" if attempts else ""
    return folder / f"round-{round_number:06d}{suffix}"


def _digest_of(path: Path) -> str:
    """Of a file, which is read a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
