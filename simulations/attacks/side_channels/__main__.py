"""What a client's time, lengths, words and fields tell besides the update that it releases: measured, as one table.

python -m simulations.attacks.side_channels --out docs/evidence/side_channels.txt
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from security.errors import RunError, UsageError
from simulations.attacks.side_channels.distinguish import told_apart
from simulations.attacks.side_channels.fields import fields
from simulations.attacks.side_channels.lengths import (
    as_encoded,
    compressed,
    differing,
    fault_lengths,
    lengths,
    of_an_empty_client,
    on_the_wire,
    two_worlds,
)
from simulations.attacks.side_channels.paced import paced_times
from simulations.attacks.side_channels.rows import Row, table
from simulations.attacks.side_channels.texts import SITUATIONS, everything_written, findings, needles
from simulations.attacks.side_channels.timing import rows
from simulations.attacks.side_channels.worlds import MODES, Sent, plan_in

_EVERY = 0.1  # seconds


def of_lengths_and_fields() -> Iterator[Row]:
    """Every reply of whole runs in two worlds, mode by mode."""
    of_fields = []
    for mode in MODES:
        with tempfile.TemporaryDirectory(prefix="veil-worlds-") as folder:
            one, other = two_worlds(mode, Path(folder))
            left = fields([*one, *other], plan_in(mode, Path(folder) / "0.csv"))
        yield _lengths(f"{mode}: as sent", one, other)
        yield _as_it_was(f"{mode}: with whole numbers as they are", one, other, as_encoded)
        yield _as_it_was(f"{mode}: if sites compressed", one, other, compressed)
        unknown = [f"{field.kind} {field.name}" for field in left if field.disclosure is None]
        of_fields.append(
            Row(
                channel="fields of",
                what=mode,
                found=", ".join(unknown) if unknown else f"{len(left)}, all with a class",
                standing="open" if unknown else "closed",
                remark=_classes([field.disclosure or "unknown" for field in left]),
            )
        )
    yield Row(
        channel="lengths of",
        what="every fault's code",
        found=f"{len(fault_lengths(one[0].reply))} length",
        standing="closed",
        remark="a code and no text",
    )
    for count, what, closed in ((on_the_wire, "as sent", True), (compressed, "if sites compressed", False)):
        full, empty = of_an_empty_client(count)
        yield Row(
            channel="lengths of",
            what=f"client x central, with records or without: {what}",
            found="equal" if full == empty else f"{full:,} or {empty:,} bytes",
            standing="closed" if full == empty or not closed else "open",
            remark="nothing is compressed" if closed else "not sent so",
        )
    yield from of_fields


def _classes(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)))


def _lengths(what: str, one: Sequence[Sent], other: Sequence[Sent]) -> Row:
    where = differing(lengths(one), lengths(other))
    return Row(
        channel="lengths of",
        what=what,
        found=f"differ: {', '.join(where)}" if where else f"{len(one)} replies equal",
        standing="open" if where else "closed",
        remark="a finding" if where else "whole numbers are filled up, nothing is compressed",
    )


def _as_it_was(what: str, one: Sequence[Sent], other: Sequence[Sent], count: Callable[..., int]) -> Row:
    where = differing(lengths(one, count), lengths(other, count))
    trained = [[count(sent.reply) for sent in world if sent.kind == "train"] for world in (one, other)]
    spread = max(map(max, trained)) - min(map(min, trained))
    return Row(
        channel="lengths of",
        what=what,
        found=f"differ by up to {spread} bytes" if where else f"{len(one)} replies equal",
        standing="closed",
        remark="not sent so",
    )


def of_texts() -> Iterator[Row]:
    """All that is written in every mode and situation."""
    for name, situation in SITUATIONS.items():
        written, found = 0, list[str]()
        for mode in MODES:
            if situation.private and mode.startswith("no privacy"):
                continue
            with tempfile.TemporaryDirectory(prefix="veil-texts-") as folder:
                some, keys = everything_written(mode, situation, Path(folder))
            written += sum(len(one.data) for one in some)
            found += [f"{mode}: {text}" for text in findings(some, needles(keys))]
        yield Row(
            channel="words of runs",
            what=name,
            found="; ".join(found) if found else f"nothing in {written:,} bytes",
            standing="open" if found else "closed",
            remark="a finding" if found else "logs, terminal, errors, files, replies; records and keys of noise",
        )


def of_pacing(trials: int) -> Iterator[Row]:
    """Time at a site that gives each task a whole multiple of a time, and at one that doesn't."""
    plan = plan_in("no privacy", Path("none.csv"))
    for every, what in ((0.0, "at once: 20 ms of work, or none"), (_EVERY, f"every {_EVERY:g} s: half of it, or none")):
        slow, fast = paced_times(plan, every=every, trials=trials)
        told, apart = told_apart(slow, fast), 1e3 * abs(float(np.median(slow) - np.median(fast)))
        yield Row(
            channel="time of a site's reply",
            what=f"leaving {what}",
            told=told,
            standing="open" if told.tells else "not seen",
            remark=f"medians {apart:.2f} ms apart; " + ("release.every_seconds" if every else "the default"),
        )


def study(trials: int) -> Iterator[Row]:
    """All rows."""
    yield from rows(trials)
    yield from of_pacing(trials)
    yield from of_lengths_and_fields()
    yield from of_texts()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is there, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.attacks.side_channels", description=__doc__)
    parser.add_argument("--trials", type=int, default=300, help="of each world, where time is measured")
    parser.add_argument("--out", type=Path, help="of the table")
    given = parser.parse_args(arguments)
    if given.trials < 20:
        parser.exit(2, f"--trials {given.trials}: with fewer than 20 of each world nothing is told; give more\n")
    found = []
    try:
        for row in study(given.trials):
            found.append(row)
            print(".", end="", flush=True)
    except (RunError, UsageError) as error:
        parser.exit(1, f"\n{error}\n")
    text = table(found)
    print("\n" + text, end="")
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
