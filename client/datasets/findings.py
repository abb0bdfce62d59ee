"""What a check of one's own data has found, and what training will do with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Fate = Literal["refused", "left out", "clamped", "own place", "cut", "used"]
"""What becomes of the records that a finding is about. refused: no record of the file is trained on. left out: those
are not. clamped: to the public bound. own place: as missing, or as a value of its own beside the known ones. cut: at
the plan's number of tokens. used: as they are."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: names it, for programs.
        column: that it is about; "" for the file.
        text: what it is, without any value of a record.
        rows: how many records, or files, it is about: for the owner alone.
        private: what training under privacy does with them.
        plain: what training without privacy, and any simulation, does with them.
        places: where the first of them are (line numbers, names of files), and their values; for the owner alone, and
            only if they were asked for.
    """

    code: str
    text: str
    rows: int
    private: Fate
    plain: Fate
    column: str = ""
    places: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check came to.

    Attributes:
        path, kind: of the data.
        records: how many there are.
        used: how many a private plan would train on; 0 where the file is refused.
        findings: in the order of the file's columns.
    """

    path: str
    kind: str
    records: int
    used: int
    findings: tuple[Finding, ...]

    def refused(self, *, private: bool) -> bool:
        """Whether training could not use the file at all."""
        return any((one.private if private else one.plain) == "refused" for one in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def nothing_usable(path: str, kind: str, findings: Iterable[Finding]) -> Checked:
    """A file of which no record can be read."""
    return Checked(path=path, kind=kind, records=0, used=0, findings=tuple(findings))
