"""Checkpoints: after each round, all that is needed to go on as if nothing had happened.

A checkpoint is a folder that appears whole, by a rename, or not at all. The last two are kept, so that a damaged one
costs a round, not the run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file, save

from security.errors import RunError, UsageError
from server.run_folder import read_parameters, sync_folder, write_atomically, write_parameters
from server.run_state import RunState
from server.strategies import State
from shared_models.parameters import Parameters

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A run as it stood after a round.

    Attributes:
        plan_digest: digest of the plan it belongs to.
        state: the books of the run.
        parameters: the shared model.
        strategy: the strategy's memory, or None if it can't be kept.
        attachments: files of others that belong to the same moment (a simulation's clients).
    """

    plan_digest: str
    state: RunState
    parameters: Parameters
    strategy: State | None
    attachments: Mapping[str, bytes] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and drop the older ones but one.

    Raises:
        RunError: it can't be written; the earlier checkpoints stay.
    """
    name = f"round-{checkpoint.state.round:06d}"
    temporary, final = folder / f".{name}.tmp", folder / name
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_parameters(temporary / "model.safetensors", checkpoint.parameters)
        if checkpoint.strategy is not None:
            write_atomically(temporary / "strategy.safetensors", save(dict(checkpoint.strategy)))
        for attachment, data in checkpoint.attachments.items():
            write_atomically(temporary / attachment, data)
        head = {
            "version": 1,
            "plan_digest": checkpoint.plan_digest,
            "state": checkpoint.state.to_json(),
            "files": {path.name: _digest(path) for path in sorted(temporary.iterdir())},
        }
        write_atomically(temporary / "state.json", json.dumps(head, sort_keys=True).encode())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(folder)
        for old in _rounds(folder)[:-_KEPT]:
            shutil.rmtree(old)
    except OSError as error:
        raise RunError(
            f"{final}: can't write the checkpoint ({error.strerror}); free the disk and go on with --resume"
        ) from error


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
        head = json.loads((path / "state.json").read_bytes())
        if head["version"] != 1 or any(_digest(path / name) != digest for name, digest in head["files"].items()):
            return None
        own = ("model.safetensors", "strategy.safetensors")
        return Checkpoint(
            plan_digest=head["plan_digest"],
            state=RunState.from_json(head["state"]),
            parameters=read_parameters(path / "model.safetensors"),
            strategy=load_file(path / own[1]) if own[1] in head["files"] else None,
            attachments={name: (path / name).read_bytes() for name in head["files"] if name not in own},
        )
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return None


def _rounds(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
