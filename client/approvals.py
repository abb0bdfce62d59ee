"""Which plans the owner has approved, and which wait for that.

A plan is known by its digest, so what was approved is exactly what runs: another noise, another round more, and it is
another plan. Approvals lie in a file that is replaced as a whole; the client sees a change as soon as it looks again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from security.errors import UsageError
from security.home_lock import holding
from security.homes import read_public
from security.private_files import make_folder, replace_file
from security.strict_json import parse_record, pretty
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, write_plan
from shared_models.toml_errors import read_text

_KIND: Final = "veil approved plans 1"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOST_PENDING: Final = 64  # a server that offers without end fills no disk

How = Literal["asked", "yes"]
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Approval:
    """That the owner said yes to a plan.

    Attributes:
        plan: its name.
        when: ISO time, UTC.
        how: "asked": somebody read what it costs and said yes; "yes": by `--yes`.
        text: all of it, as TOML: what was approved can be read again.
    """

    plan: str
    when: str
    how: str
    text: str


class Approvals:
    """The plans that may run, by digest.

    Args:
        path: of the file; there is none before the first approval.
        clock: for tests.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._clock = clock
        self._read: tuple[Stamp, Mapping[str, Approval]] = (None, {})

    def all(self) -> Mapping[str, Approval]:
        """Every approved plan, by digest; read again if the file has changed.

        Raises:
            UsageError: the file can't be read, or holds something else. Then nothing is approved.
        """
        stamp = stamp_of(self._path)
        if stamp is None:
            return {}
        if stamp != self._read[0]:
            self._read = (stamp, _parsed(self._path))
        return self._read[1]

    def holds(self, digest: str) -> bool:
        """Whether a plan is approved. As `all`."""
        return digest in self.all()

    def plans(self) -> dict[str, Plan]:
        """The approved plans themselves. As `all`."""
        found = {digest: parse_plan(item.text, where=str(self._path)) for digest, item in self.all().items()}
        if any(plan.digest() != digest for digest, plan in found.items()):
            raise UsageError(f"{self._path}: was changed: a plan there is not the one that was approved; remove it")
        return found

    def add(self, plan: Plan, how: How) -> None:
        """Approve a plan.

        Raises:
            UsageError: as `all`, or the file can't be written, or another command is writing it.
        """
        when = self._clock().isoformat(timespec="seconds")
        with self._changing() as plans:
            plans[plan.digest()] = Approval(plan=plan.name, when=when, how=how, text=write_plan(plan))

    def remove(self, digest: str) -> None:
        """Take an approval back: the plan's next task is refused.

        Raises:
            UsageError: as `add`, or there is no such approval.
        """
        with self._changing() as plans:
            if plans.pop(digest, None) is None:
                raise UsageError(f"{self._path}: no plan {digest} is approved")

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Approval]]:
        with holding(self._path.with_name(f".{self._path.name}.lock"), "another `veil client approve`"):
            plans = dict(self.all())
            yield plans
            data = {"kind": _KIND, "plans": {digest: asdict(approval) for digest, approval in plans.items()}}
            replace_file(self._path, pretty(data), mode=0o600)


class PendingPlans:
    """Plans that were offered and wait for the owner: one TOML file each, named by its digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, plan: Plan) -> None:
        """Keep a plan until the owner has decided; of very many the oldest go.

        Raises:
            UsageError: it can't be written.
        """
        path = self._path(plan.digest())
        if path.exists():
            return
        make_folder(self._folder, private=True)
        # In our own words: comments and layout of a stranger's text could make it say something else to a reader.
        replace_file(path, write_plan(plan).encode(), mode=0o600)
        for old in self._files()[:-_MOST_PENDING]:
            with suppress(OSError):
                old.unlink()

    def read(self, digest: str) -> Plan:
        """A plan that waits.

        Raises:
            UsageError: there is none, or its file was changed.
        """
        path = self._path(digest)
        plan = parse_plan(read_text(path), where=str(path))
        if plan.digest() != digest:
            raise UsageError(f"{path}: was changed: it is not the plan that was offered; remove the file")
        return plan

    def digests(self) -> tuple[str, ...]:
        """Those that wait, oldest first."""
        return tuple(path.stem for path in self._files())

    def remove(self, digest: str) -> None:
        """The owner has decided."""
        with suppress(OSError):
            self._path(digest).unlink()

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise UsageError(f"{digest[:80]!r}: is no plan's digest of 64 hexadecimal digits")
        return self._folder / f"{digest}.toml"

    def _files(self) -> list[Path]:
        found = []
        with suppress(OSError):  # no folder: none has ever waited
            for path in self._folder.iterdir():
                if path.suffix == ".toml" and _DIGEST.fullmatch(path.stem):
                    with suppress(OSError):  # decided meanwhile
                        found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]


def stamp_of(path: Path) -> Stamp:
    """Changes whenever the file does: it is only ever replaced. None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _parsed(path: Path) -> Mapping[str, Approval]:
    try:
        plans = parse_record(read_public(path), _KIND, plans=dict)["plans"]
        found = {digest: Approval(**values) for digest, values in plans.items()}
        texts = [text for approval in found.values() for text in asdict(approval).values()]
        if not all(_DIGEST.fullmatch(digest) for digest in found) or not all(type(text) is str for text in texts):
            raise ValueError("names something that is no plan")
    except (ValueError, TypeError, AttributeError):
        raise UsageError(
            f"{path}: is damaged, so no plan is approved; remove it, and approve plans with `veil client approve` anew"
        ) from None
    return found
