"""Words and numbers of a report, in one language.

One TOML file a language, in `lang/`; a text may hold `{names}` to be filled in. A text with a plural is a table of
`one` and `other`. Bounds are rounded so that what is printed is never stronger than what was computed: an epsilon up,
what is left of a budget down.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup, escape

from security.errors import UsageError

LANGUAGES = ("en", "zh")

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NEARLY = 1e-9  # relative: what rounding left over must not become another digit


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The texts of one language.

    Attributes:
        language: its code.
        texts: by dotted key.
    """

    language: str
    texts: Mapping[str, str]

    def __call__(self, key: str, /, **values: Any) -> Markup:
        """The text of `key` with `values` filled in, escaped; values that are `Markup` already are kept.

        `n` chooses the plural where the text has one.

        Raises:
            KeyError: there is no such text, or it names a value that isn't given.
        """
        return escape(self._text(key, values)).format(**_grouped(values))

    def plain(self, key: str, /, **values: Any) -> str:
        """The same as text that is not yet fit for HTML: for charts, which escape what they are given.

        Raises:
            KeyError: as above.
        """
        return self._text(key, values).format(**_grouped(values))

    def _text(self, key: str, values: Mapping[str, Any]) -> str:
        if key in self.texts:
            return self.texts[key]
        return self.texts[f"{key}.one" if values["n"] == 1 else f"{key}.other"]

    def has(self, key: str) -> bool:
        """Whether there is a text of this key."""
        return key in self.texts

    def name(self, group: str, code: str) -> Markup:
        """What a code is called; a code that this version doesn't know stays as it is."""
        key = f"{group}.{code}"
        return self(key) if key in self.texts else escape(code)

    def list_of(self, items: list[str], most: int = 12) -> Markup:
        """Names in a row; of a long list the first ones and how many more."""
        shown = self.texts["page.comma"].join(items[:most])
        if len(items) <= most:
            return escape(shown)
        return self("page.and_more", items=shown, n=len(items) - most)

    def rounds(self, numbers: list[int], most: int = 8) -> Markup:
        """Round numbers in a row, neighbours drawn together: 1-3, 7."""
        runs: list[list[int]] = []
        for number in numbers:
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return self.list_of([str(a) if a == b else f"{a}–{b}" for a, b in runs], most)

    def whole(self, number: int) -> str:
        """A whole number with its thousands apart."""
        return f"{number:,}"


@cache
def catalogue(language: str) -> Catalogue:
    """The texts of a language.

    Raises:
        UsageError: there is none.
    """
    if language not in LANGUAGES:
        raise UsageError(f"language = {language!r} is not known; allowed: {', '.join(LANGUAGES)}")
    text = resources.files("privacy.report").joinpath("lang", f"{language}.toml").read_text(encoding="utf-8")
    return Catalogue(language=language, texts=dict(_flat(tomllib.loads(text))))


def _grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Whole numbers with their thousands apart."""
    return {key: f"{value:,}" if type(value) is int else value for key, value in values.items()}


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in table.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", str(value))]
    return found


def upper(value: float | None) -> str:
    """An upper bound, rounded up: 7.9995 is 8.00. A dash where there is none."""
    return _rounded(value, math.ceil)


def lower(value: float | None) -> str:
    """What is left at least, rounded down."""
    return _rounded(value, math.floor)


def _rounded(value: float | None, way: Any) -> str:
    if value is None:
        return "–"
    if value <= 0:
        return "0"
    decimals = max(0, 2 - max(0, math.floor(math.log10(value)))) if value >= 1 else 1 - math.floor(math.log10(value))
    decimals = min(decimals, 6)
    nudge = _NEARLY * value if way is math.floor else -_NEARLY * value
    rounded = way((value + nudge) * 10**decimals) / 10**decimals
    return "0" if rounded <= 0 else f"{rounded:.{decimals}f}"


def exact(value: float | None) -> str:
    """A number somebody chose, as it was chosen."""
    return "–" if value is None else f"{value:g}" if 1e-4 <= abs(value) < 1e7 or value == 0 else power(value)


def pretty(text: str) -> str:
    """A number's text as `exact` writes it; any other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return exact(value) if math.isfinite(value) else text


def power(value: float) -> str:
    """A small or large number: 10⁻⁵, 2.5·10⁻⁶."""
    exponent = math.floor(math.log10(value) + 1e-12)
    mantissa = value / 10**exponent
    ten = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return ten if abs(mantissa - 1) < 1e-6 else f"{mantissa:.3g}·{ten}"


def percent(value: float | None, way: Any = math.ceil) -> str:
    """A part of a whole, rounded up (or down) to a tenth of a percent."""
    if value is None:
        return "–"
    nudge = _NEARLY if way is math.floor else -_NEARLY
    shown = max(0.0, way(value * 1000 + nudge) / 10)
    return f"{shown:g}\u00a0%"


def sure(value: float) -> str:
    """How sure somebody is at most: rounded up, and never to a certainty that isn't there."""
    digits = 1 if value < 0.999 else 4
    return f"{min(100.0, math.ceil(value * 10 ** (digits + 2) - _NEARLY) / 10**digits):g}\u00a0%"


def percent_left(value: float | None) -> str:
    """A part that is left, rounded down."""
    return percent(value, math.floor)


def of_100(value: float) -> str:
    """How many of 100 at most, rounded up; to a tenth near the ends."""
    shown = math.ceil(value * 100 - 1e-7) if 0.02 < value < 0.98 else math.ceil(value * 1000 - 1e-6) / 10
    return f"{min(100, shown):g}"
