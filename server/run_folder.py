"""A run's folder: where each file lies, and writing them so that a crash leaves the old or the new, never half.

```
plan.toml         the resolved plan
metrics.jsonl     one line a round
summary.json      final metrics, timings, privacy summary
checkpoints/      round-000012/ ..., enough to resume
model/            model.safetensors (final), best.safetensors
clients.log       where in the code clients failed, if a simulation's did
ledger.sqlite     what each virtual client has spent; beside it the secret that their signatures follow from
population.sqlite what a trusted server has charged to the whole population, where it adds the noise
statements/       what each client says, and signs, that it spent
statistics.json   what a plan with [statistics] has released, in place of a model; statistics.svg: a picture of it
report.html       the privacy-budget report; report.json holds its facts
evaluation.html   the model in detail, if it was asked for; evaluation.json holds the facts
reconstruction.json  how much of its records a server could have seen, if the run's plan was attacked;
                  reconstruction.svg: training records, and what the attack made of them, if that was asked for
```
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

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
    def client_log(self) -> Path:
        return self.path / "clients.log"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def population(self) -> Path:
        return self.path / "population.sqlite"

    @property
    def statements(self) -> Path:
        return self.path / "statements"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def statistics(self) -> Path:
        return self.path / "statistics.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.html"

    @property
    def audit(self) -> Path:
        return self.path / "audit.json"

    @property
    def reconstruction(self) -> Path:
        return self.path / "reconstruction.json"

    @property
    def reconstruction_picture(self) -> Path:
        return self.path / "reconstruction.svg"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model" / "model.safetensors"

    @property
    def best_model(self) -> Path:
        return self.path / "model" / "best.safetensors"

    def best_candidate(self, round_number: int) -> Path:
        """Where a round's model waits that is better than those before, until the round's checkpoint is written."""
        return self.path / "model" / f".best-{round_number:06d}.safetensors"

    def keep_best(self, round_number: int) -> None:
        """Make a round's candidate the best model, if there is one, and drop the others.

        A candidate of a round that never got its checkpoint is of no run: the round is played again.
        """
        try:
            with suppress(FileNotFoundError):
                self.best_candidate(round_number).replace(self.best_model)
                sync_folder(self.best_model.parent)
            for other in self.best_model.parent.glob(".best-*.safetensors"):
                other.unlink()
        except OSError as error:
            raise _unwritable(self.best_model, error) from error

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
            if self.reconstruction.exists():
                raise UsageError(
                    f"{self.reconstruction}: is of an attack before this run, whose report would take it for its own; "
                    "name another folder with --out"
                )
            write_atomically(self.plan, write_plan(plan).encode())
            self.checkpoints.mkdir(exist_ok=True)
            self.model.parent.mkdir(exist_ok=True)
        except (OSError, RunError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            raise UsageError(
                f"{self.path}: can't write the run's folder ({reason_of(cause)}); choose another --out"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time may play a run.

        Raises:
            UsageError: another one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"{self.path}: another process is playing this run; wait for it or stop it") from None
            yield

    def read_plan(self) -> Plan:
        """The resolved plan of the run.

        Raises:
            UsageError: the folder holds no run, or its plan is damaged.
        """
        if not self.plan.is_file():
            raise UsageError(f"{self.path}: no run here (plan.toml is missing)")
        return read_plan(self.plan)

    def append_metrics(self, line: Mapping[str, Any], *, durable: bool = True) -> None:
        """Add one line to metrics.jsonl; if `durable`, bring it and all before it to the disk."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
                file.flush()
                if durable:
                    os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.metrics, error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut off by a crash is left out.

        Raises:
            UsageError: another line is damaged.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_bytes().split(b"\n")
        return [self._metrics_line(number, line) for number, line in enumerate(lines[:-1], start=1)]

    def _metrics_line(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("round"), int):
            raise UsageError(f"{self.metrics}: line {number} is damaged; remove it")
        return found

    def truncate_metrics(self, last_round: int) -> None:
        """Drop the lines of rounds after `last_round`: they will be played again."""
        kept = [line for line in self.read_metrics() if line["round"] <= last_round]
        text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in kept)
        write_atomically(self.metrics, text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def write_statements(self, statements: Mapping[str, str], *, durable: bool = True) -> None:
        """Write each client's signed statement, by client id.

        Args:
            statements: their texts.
            durable: whether to wait for the disk, file by file; only a simulation may do without.
        """
        try:
            self.statements.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(self.statements, error) from error
        for client, text in statements.items():
            write_atomically(self.statements / f"{client}.json", text.encode(), durable=durable)

    def read_statements(self) -> dict[str, str]:
        """The signed statements, by client id; none if there are none."""
        try:
            return {path.stem: path.read_text(encoding="utf-8") for path in sorted(self.statements.glob("*.json"))}
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.statements}: can't be read") from error

    def read_statistics(self) -> dict[str, Any]:
        """What the run has released, as its file says.

        Raises:
            UsageError: it is no run of statistics, has not ended, or the file is damaged.
        """
        try:
            found = json.loads(self.statistics.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{self.path}: no statistics here; give the folder of a finished run whose plan has [statistics]"
            ) from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.statistics}: can't be read") from error
        if not isinstance(found, dict):
            raise UsageError(f"{self.statistics}: holds no statistics")
        return found

    def drop_summary(self) -> None:
        """Remove summary.json, report, evaluation and statistics, if there are any: the run has not ended yet.

        Signed statements stay: they prove what was spent, should a ledger be lost.
        """
        try:
            pages = (self.report, self.evaluation)
            made = [page.with_suffix(suffix) for page in pages for suffix in (".html", ".json", ".pdf")]
            for path in (self.summary, self.statistics, self.statistics.with_suffix(".svg"), *made):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.summary, error) from error

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


def write_parameters(path: Path, parameters: Parameters, *, durable: bool = True) -> None:
    """Write a model as safetensors, atomically and without a copy of it; `durable` as of `write_atomically`.

    Raises:
        RunError: it can't be written; the old content stays.
    """
    write_arrays(path, parameters, durable=durable)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, durable: bool = True) -> None:
    """As `write_parameters`, for arrays of any type."""
    with _appearing(path, 0o666, durable=durable) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, temporary)
        except SafetensorError as error:  # whatever the system says reaches us as a text
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else error from error
        temporary.chmod(mode)  # the library makes a file of its own, for its owner alone


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


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666, durable: bool = True) -> None:
    """Write a file so that a crash or a full disk leaves the old content or the new.

    Args:
        path: of the file.
        data: all of it.
        mode: who may read it, less what the process's own mask takes away.
        durable: whether it waits for the disk; if not, a loss of power may leave neither.

    Raises:
        RunError: it can't be written; the old content stays.
    """
    with _appearing(path, mode, durable=durable) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextmanager
def _appearing(path: Path, mode: int, *, durable: bool = True) -> Iterator[Path]:
    """Where to write a file, which is brought to the disk (if `durable`) and gets its name when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode=mode)
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _unwritable(path, error) from error


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk (a rename alone isn't safe from power loss)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: can't write ({reason_of(error)}); free the disk and go on with --resume")


def reason_of(error: BaseException | None) -> str:
    """What the operating system says of an error, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A folder that is there and can be written, before hours go into what it is for; an empty one isn't left behind.

    Raises:
        UsageError: it can't.
    """
    try:
        there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"{folder}: can't be written ({reason_of(error)}); choose another folder") from error
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):
                folder.rmdir()
        raise
