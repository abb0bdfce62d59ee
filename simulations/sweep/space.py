"""What a sweep goes over: keys of the plan with the values to try, and the combinations that become trials.

Values are listed (`0.05,0.1,0.2`) or named by a range to draw from (`log:1e-3..1`, `uniform:0..1`, `int:1..10`).
Without a range every combination is tried (a grid). With one, or on request, so many points are drawn, each key for
itself, by Ray Tune's own samplers from a public seed. Nothing here looks at data or results: which trials there are
is fixed before the first begins, and that is what lets their costs be composed (rule 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from security.errors import UsageError

MOST_TRIALS: Final = 1000

_KINDS: Final = ("log", "uniform", "int")
_DRAWS: Final = 20  # for each point, before a space is taken to have no more
_OPENING: Final = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One key and what to try for it.

    Attributes:
        key: of the plan, with dots.
        kind: `values`, or the range that is drawn from: `log` (equal ratios equally likely), `uniform`, `int`.
        values: texts as after `--set KEY=`; of a range none.
        low, high: of a range, both within it.
    """

    key: str
    kind: Literal["values", "log", "uniform", "int"] = "values"
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0


Point = tuple[tuple[str, str], ...]
"""One combination: key and text of each axis, in the order they were given."""


def parse_axis(text: str) -> Axis:
    """What `--over KEY=VALUES` says.

    Raises:
        UsageError: it isn't a key with values, or a range is empty.
    """
    key, equals, given = text.partition("=")
    key, given = key.strip(), given.strip()
    if not equals or not key or not given:
        raise UsageError(
            f"--over {text!r}: give KEY=VALUE,VALUE,..., or a range as KEY=log:1e-3..1, uniform:0..1 or int:1..10"
        )
    kind, colon, bounds = given.partition(":")
    if colon and kind in _KINDS:
        low, high = _bounds(text, kind, bounds)
        return Axis(key=key, kind=kind, low=low, high=high)  # type: ignore[arg-type]
    values = tuple(_split(given))
    if any(not value for value in values):
        raise UsageError(f"--over {text!r}: a value is missing between two commas")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise UsageError(f"--over {text!r}: {twice} is there twice; keep one")
    return Axis(key=key, values=values)


def parse_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """All of them.

    Raises:
        UsageError: as `parse_axis`; or there are none, or a key is there twice.
    """
    axes = tuple(parse_axis(text) for text in texts)
    if not axes:
        raise UsageError("a sweep goes over something: give --over KEY=VALUE,VALUE,...")
    keys = [axis.key for axis in axes]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise UsageError(f"--over {twice}: is there twice; give all its values at once")
    return axes


def points(axes: Sequence[Axis], *, samples: int | None, random: bool, seed: int) -> list[Point]:
    """The combinations that are tried, in order, each once.

    Args:
        axes: at least one.
        samples: how many points to draw; None for all of a grid.
        random: draw from listed values too, instead of trying every combination.
        seed: of the draws; public.

    Raises:
        UsageError: samples without anything to draw, draws without their number, or too many trials.
    """
    drawn = random or any(axis.kind != "values" for axis in axes)
    if drawn and samples is None:
        raise UsageError("give --samples N: how many points to draw")
    if not drawn and samples is not None:
        raise UsageError("--samples draws points: give --random, or a range as KEY=log:1e-3..1")
    count = math.prod(len(axis.values) for axis in axes) if samples is None else samples
    if count > MOST_TRIALS:
        raise UsageError(f"{count} trials are more than {MOST_TRIALS}; give fewer values, or --random --samples N")
    return _grid(axes) if samples is None else _drawn(axes, samples, seed)


def _grid(axes: Sequence[Axis]) -> list[Point]:
    found: list[Point] = [()]
    for axis in axes:
        found = [(*point, (axis.key, value)) for point in found for value in axis.values]
    return found


def _drawn(axes: Sequence[Axis], samples: int, seed: int) -> list[Point]:
    """Points that differ; fewer than asked for where the space has no more."""
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    state = np.random.RandomState(seed % 2**32)
    space = {"config": {axis.key: _domain(axis) for axis in axes}}
    found: dict[Point, None] = {}
    for _ in range(samples * _DRAWS):
        if len(found) == samples:
            break
        _, variant = next(iter(generate_variants(space, random_state=state)))
        config = variant["config"]
        found[tuple((axis.key, _text(axis, config[axis.key])) for axis in axes)] = None
    return list(found)


def _domain(axis: Axis) -> Any:
    from ray import tune

    if axis.kind == "values":
        return tune.choice(list(axis.values))
    if axis.kind == "int":
        return tune.randint(int(axis.low), int(axis.high) + 1)
    return (tune.loguniform if axis.kind == "log" else tune.uniform)(axis.low, axis.high)


def _text(axis: Axis, value: Any) -> str:
    """Drawn numbers to four digits, never outside of the range: short enough to be read and typed again."""
    if axis.kind == "values":
        return str(value)
    if axis.kind == "int":
        return str(int(value))
    return repr(min(max(float(f"{value:.4g}"), axis.low), axis.high))


def _bounds(text: str, kind: str, given: str) -> tuple[float, float]:
    low, dots, high = given.partition("..")
    try:
        if not dots:
            raise ValueError
        ends = (float(int(low)), float(int(high))) if kind == "int" else (float(low), float(high))
    except ValueError:
        raise UsageError(f"--over {text!r}: give the range as {kind}:LOW..HIGH") from None
    if not (all(map(math.isfinite, ends)) and ends[0] < ends[1]):
        raise UsageError(f"--over {text!r}: the range is empty; give LOW below HIGH")
    if kind == "log" and ends[0] <= 0:
        raise UsageError(f"--over {text!r}: equal ratios need a LOW above 0")
    return ends


def _split(text: str) -> list[str]:
    """Values between commas; a comma within brackets or quotes is a value's own."""
    found, closing, quote = [""], [""], ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _OPENING:
            closing.append(_OPENING[letter])
        elif letter == closing[-1]:
            closing.pop()
        elif letter == "," and len(closing) == 1:
            found.append("")
            continue
        found[-1] += letter
    return [value.strip() for value in found]
