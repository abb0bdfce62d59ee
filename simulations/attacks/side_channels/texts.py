"""Whether anything of records or of noise's keys is in what a run writes: logs, terminal, errors, files, replies.

Records hold one recognisable value and one recognisable text; keys of noise are noted as they are made. Both are looked
for in every byte that was written, as text, in hexadecimal, and as floats of either width.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privacy.noise import source as noise_source
from security.errors import VeilError
from shared_models.even_length import even_payload
from simulations.attacks.side_channels.worlds import COLUMNS, Sent, plan_in, play

VALUE: Final = 0.47114711
TEXT: Final = "patient-4711"

_RECORDS: Final = 40


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What happens in a run.

    Attributes:
        rows: of the table, beside the good ones.
        changes: of the plan.
        private: whether it needs a plan with privacy.
    """

    rows: tuple[str, ...] = ()
    changes: Mapping[str, Mapping[str, object]] | None = None
    private: bool = False


SITUATIONS: Final[Mapping[str, Situation]] = {
    "all goes well": Situation(),
    "records that are damaged": Situation(
        rows=(f"{VALUE},{TEXT},positive", f"{VALUE},0.5,{TEXT}", f"{VALUE},,unknown")
    ),
    "a file that is damaged": Situation(rows=(f"{VALUE},{TEXT}",)),
    "training that diverges": Situation(changes={"training": {"learning_rate": 1e30}}),
    "a budget that is used up": Situation(changes={"privacy": {"budget": 1e-6}}, private=True),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """Something that was written.

    Attributes:
        where: a file, "log", "terminal", "error", or what was asked of a client.
        data: all of it.
    """

    where: str
    data: bytes


def needles(keys: Sequence[bytes] = ()) -> dict[str, bytes]:
    """What is looked for, by name."""
    found = {
        "the text": TEXT.encode(),
        "the value in digits": f"{VALUE:.7f}".rstrip("0").encode(),
        "the value in digits, of float32": f"{struct.unpack('<f', struct.pack('<f', VALUE))[0]:.6f}".encode(),
        "the value as float32": struct.pack("<f", VALUE),
        "the value as float64": struct.pack("<d", VALUE),
        "the value as float32 in float64": struct.pack("<d", struct.unpack("<f", struct.pack("<f", VALUE))[0]),
    }
    found |= {f"{name}, in hexadecimal": data.hex().encode() for name, data in found.items()}
    for number, key in enumerate(keys):
        found |= {f"key {number}": key, f"key {number}, in hexadecimal": key.hex().encode()}
    return found


def findings(written: Sequence[Written], looked_for: Mapping[str, bytes]) -> list[str]:
    """Where something was found, and what."""
    return [f"{one.where}: {name}" for one in written for name, needle in looked_for.items() if needle in one.data]


def write_table(path: Path, situation: Situation) -> None:
    """Records that all hold the value."""
    labels = ("negative", "positive", "unknown")
    rows = [f"{VALUE},{(-1) ** row * VALUE},{labels[row % 3]}" for row in range(_RECORDS)]
    path.write_text("\n".join((",".join((*COLUMNS, "label")), *rows, *situation.rows)) + "\n")


def everything_written(mode: str, situation: Situation, folder: Path) -> tuple[list[Written], list[bytes]]:
    """Play a run and gather all that it wrote, at the chattiest level of every log; and the keys of its noise.

    Args:
        mode: of `worlds.MODES`.
        situation: that it gets into; a run that can't go on has written something all the same.
        folder: empty; the table in it is no output.
    """
    table, out, sent = folder / "table.csv", folder / "run", list[Sent]()
    write_table(table, situation)
    log, terminal, error = io.StringIO(), io.StringIO(), ""
    with _keys() as keys, _loudly(log), contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        try:
            sent = play(plan_in(mode, table, **(situation.changes or {})), out)
        except VeilError as found:
            error = str(found)
    texts = {"log": log.getvalue(), "terminal": terminal.getvalue(), "error": error}
    written = [Written(where=where, data=text.encode()) for where, text in texts.items()]
    written += [
        Written(where=str(path.relative_to(out)), data=path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]
    written += [Written(where=one.kind, data=even_payload(one.reply)) for one in sent]
    return written, keys


@contextlib.contextmanager
def _loudly(into: io.StringIO) -> Iterator[None]:
    """Every log of this process at its chattiest, also of those that pass nothing on."""
    handler, root = logging.StreamHandler(into), logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("veil", "veil.client", "flwr"))]
    before = [(one, one.level) for one in loggers]
    for one in loggers:  # each by itself: while a client is at work in a simulation, its log passes nothing on
        one.setLevel(logging.DEBUG)
        one.addHandler(handler)
    try:
        yield
    finally:
        for one, level in before:
            one.setLevel(level)
            one.removeHandler(handler)


@contextlib.contextmanager
def _keys() -> Iterator[list[bytes]]:
    """The keys of all noise that is begun inside."""
    keys: list[bytes] = []
    kind = noise_source._AesNoise
    start = kind._start

    def noted(self: noise_source._AesNoise, key: bytes) -> None:
        keys.append(key)
        start(self, key)

    kind._start = noted  # type: ignore[method-assign]
    try:
        yield keys
    finally:
        kind._start = start  # type: ignore[method-assign]
