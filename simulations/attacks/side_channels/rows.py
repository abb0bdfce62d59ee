"""Rows of the study's table, and the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from simulations.attacks.side_channels.distinguish import Told

Standing = Literal["closed", "not seen", "open"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was measured.

    Attributes:
        channel: time, length, words or fields.
        what: is told apart, or looked for.
        found: in words, of a figure that needs no chance.
        told: how well two worlds are told apart, where chance plays a part.
        standing: closed by how it is made; not seen in so many trials; or open, and documented.
        remark: what closes it, or where it is documented.
    """

    channel: str
    what: str
    found: str = ""
    told: Told | None = None
    standing: Standing
    remark: str


def table(rows: Iterable[Row]) -> str:
    """All rows as text, channel by channel."""
    lines: list[str] = []
    for channel, some in groupby(rows, key=lambda row: row.channel):
        lines += [*([""] if lines else []), f"{channel:64s}{'AUC':>5s}  {'right':>5s} {'(95 %)':18s}  standing"]
        lines += map(_line, some)
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    told = row.told
    figures = (
        f"{row.found:32s}"
        if told is None
        else f"{told.auc:5.2f}  {told.accuracy:5.0%} ({told.low:.0%}-{told.high:.0%})".ljust(32)
    )
    return f"{row.what:64s}{figures}  {row.standing}: {row.remark}"
