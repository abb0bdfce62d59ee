"""A run's folder: where each file lies, and writing them so that a crash leaves the old or the new, never half.

```
plan.toml         the resolved plan
metrics.jsonl     one line a round
summary.json      final metrics, timings, privacy summary
checkpoints/      round-000012/ ..., enough to resume
model/            model.safetensors (final), best.safetensors
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from security.errors import RunError, UsageError
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.plan_file import read_plan, write_plan


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model" / "model.safetensors"

    @property
    def best_model(self) -> Path:
        return self.path / "model" / "best.safetensors"

    def create(self, plan: Plan) -> None:
        """Make the folder and write the resolved plan.

        Raises:
            UsageError: the folder can't be written, or holds a run already.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.plan.exists():
                raise UsageError(
                    f"{self.path}: holds a run already; name another folder with --out, or go on with --resume"
                )
            write_atomically(self.plan, write_plan(plan).encode())
            self.checkpoints.mkdir(exist_ok=True)
            self.model.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.path}: can't write the run's folder ({error.strerror}); choose another --out"
            ) from (error)

    def read_plan(self) -> Plan:
        """The resolved plan of the run.

        Raises:
            UsageError: the folder holds no run, or its plan is damaged.
        """
        if not self.plan.is_file():
            raise UsageError(f"{self.path}: no run here (plan.toml is missing)")
        return read_plan(self.plan)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl and bring it to the disk."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.metrics, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut off by a crash is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def truncate_metrics(self, last_round: int) -> None:
        """Drop the lines of rounds after `last_round`: they will be played again."""
        kept = [line for line in self.read_metrics() if line["round"] <= last_round]
        text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in kept)
        write_atomically(self.metrics, text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def read_summary(self) -> dict[str, Any]:
        """The run's summary.

        Raises:
            UsageError: the run has none (yet), or it is damaged.
        """
        try:
            found = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.path}: the run is not finished (no summary.json); go on with --resume") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.summary}: can't be read") from error
        if not isinstance(found, dict):
            raise UsageError(f"{self.summary}: is not a summary")
        return found


def write_parameters(path: Path, parameters: Parameters) -> None:
    """Write a model as safetensors, atomically."""
    write_atomically(path, save({name: np.ascontiguousarray(value) for name, value in parameters.items()}))


def read_parameters(path: Path) -> Parameters:
    """Read a model written by `write_parameters`.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        found: Parameters = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: can't be read as a model (missing or damaged)") from error
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old content or the new.

    Raises:
        RunError: it can't be written; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk (a rename alone isn't safe from power loss)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: can't write ({error.strerror}); free the disk and go on with --resume")
