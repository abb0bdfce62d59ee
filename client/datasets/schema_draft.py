"""A first `data.toml` for a table of one's own, for its owner to mend.

Only names of columns and what kind of values they seem to hold are taken from the records. Bounds, categories and
classes are left open (`"?"`): they must be public facts, and a draft that held the records' own would leak them to
whoever it is shared with (rule 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.datasets.own_tables import READERS
from client.datasets.sources import did_you_mean, is_number, listed
from security.errors import UsageError
from shared_models.schema_card import UNKNOWN
from shared_models.toml_errors import quoted

if TYPE_CHECKING:
    import pandas as pd

_MISSING: Final = ("", "?", "NA", "nan", "NaN")
_MOST_VALUES: Final = 30  # of a category; more are a text

_MOSTLY: Final = 0.8  # of the values are numbers: the others are slips, or codes for missing ones

_HEAD: Final = f"""\
# A draft, for its owner to mend. What is "{UNKNOWN}" has to be given before anything can be done with it.
# Give PUBLIC facts alone: bounds from a textbook or an instrument, categories from a code book. Bounds or values that
# are looked up in the records would tell of them to everybody this file is shared with.
# The types were guessed from the records; check them too. feature = false: a model doesn't see the column.
"""


def draft_schema(path: Path, kind: str, *, target: str | None = None, person: str | None = None) -> str:
    """The text of a draft.

    Args:
        path: of the table.
        kind: its form.
        target: the column to be predicted; default: the last one.
        person: the column that names people, if one does.

    Raises:
        UsageError: the table can't be read, or a column is not there.
    """
    if kind not in READERS:
        raise UsageError(f"{path}: drafts are made of tables ({', '.join(READERS)}); write a data.toml by hand")
    table = READERS[kind](path)
    for option, name in (("--target", target), ("--person", person)):
        if name is not None and name not in table.columns:
            raise UsageError(
                f"{option}: {path} has no column {name!r}{did_you_mean(name, table.columns)}; columns there: "
                f"{listed(table.columns)}"
            )
    names = [str(name) for name in table.columns]
    if any(is_number(name) for name in names):  # they would be the first record, for everybody to read
        raise UsageError(f"{path}: some columns are named by numbers; is the header line missing?")
    label = target if target is not None else next(name for name in reversed(names) if name != person)
    codes = ", ".join(f'"{code}"' for code in _MISSING)
    lines = [_HEAD, 'description = ""', 'licence = ""', f"missing = [{codes}]  # texts that mean a missing value"]
    if person is not None:
        name = _text(person)
        lines += ["", "[person]", f"column = {name}", f'max_rows = "{UNKNOWN}"  # most records of one person, public']
    for name in names:
        if name != person:
            lines += ["", f"[columns.{quoted(name)}]", *_column(table[name], is_label=name == label)]
    return "\n".join(lines) + "\n"


def _column(texts: pd.Series[str], *, is_label: bool) -> list[str]:
    values = f'values = ["{UNKNOWN}"]'
    if is_label:
        return ['type = "label"', f"{values}  # names of the classes, in order"]
    kind = _kind(texts)
    if kind in ("number", "integer"):
        return [f'type = "{kind}"', f'low = "{UNKNOWN}"  # public bounds', f'high = "{UNKNOWN}"', 'unit = ""']
    if kind == "category":
        return ['type = "category"', f"{values}  # public list; any other value gets a place of its own"]
    if kind == "boolean":
        return ['type = "boolean"', 'values = ["false", "true"]']
    return ['type = "text"', "feature = false  # a text is a feature alone, or none"]


def _kind(texts: pd.Series[str]) -> str:
    import pandas as pd

    there = texts[~texts.isin(_MISSING)]
    if len(there) == 0:
        return "category"
    numbers = pd.to_numeric(there, errors="coerce")
    if numbers.notna().mean() >= _MOSTLY:
        return "integer" if (numbers.dropna() % 1 == 0).all() else "number"
    values = set(there.unique())
    if values <= {"false", "true"}:
        return "boolean"
    return "category" if len(values) <= min(_MOST_VALUES, max(2, len(there) // 2)) else "text"


def _text(value: str) -> str:
    import tomli_w

    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
