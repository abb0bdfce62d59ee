"""A public table as CSV files, as its owner might have it: for tutorials, trials and tests of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.datasets import adult, heart_disease
from client.datasets.partition import slug
from client.datasets.sources import did_you_mean, listed
from security.errors import UsageError
from shared_models.cards import KNOWN

if TYPE_CHECKING:
    import pandas as pd

_MOST_FILES: Final = 1000

_TABLES: Final[Mapping[str, Callable[[], pd.DataFrame]]] = {
    "adult": adult.whole_table,
    "heart-disease": lambda: heart_disease.mended(KNOWN["heart-disease"]),
}


def write_csv(name: str, out: Path, *, by: str | None = None) -> dict[Path, int]:
    """Write a public table, all records and columns.

    Args:
        name: of the set.
        out: the file; with `by` a folder, which gets a file for each of the column's values.
        by: a column.

    Returns:
        Records in each file.

    Raises:
        UsageError: the set is no table, isn't fetched or has no such column; or there is a file already.
    """
    if name not in _TABLES:
        raise UsageError(f"{name}: is not a table{did_you_mean(name, _TABLES)}; tables: {', '.join(sorted(_TABLES))}")
    table = _TABLES[name]()
    parts = {out: table} if by is None else _by(table, by, name, out)
    there = next((path for path in parts if path.exists()), None)
    if there is not None:
        raise UsageError(f"{there}: is there already; remove it, or give --csv another name")
    try:
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part.to_csv(path, index=False, lineterminator="\n", mode="x")
    except OSError as error:
        raise UsageError(f"{out}: can't be written ({error.strerror}); give --csv a place that can") from error
    return {path: len(part) for path, part in parts.items()}


def _by(table: pd.DataFrame, column: str, name: str, out: Path) -> dict[Path, pd.DataFrame]:
    if column not in table.columns:
        near = did_you_mean(column, table.columns)
        raise UsageError(f"--by {column}: {name} has no such column{near}; columns there: {listed(table.columns)}")
    values = table[column].unique()
    if len(values) > _MOST_FILES:
        raise UsageError(f"--by {column}: has {len(values)} values; at most {_MOST_FILES} files are written")
    parts = {out / f"{slug(str(value))}.csv": table[table[column] == value] for value in sorted(values)}
    if len(parts) < len(values):
        raise UsageError(f"--by {column}: some of its values make the same name of a file; take another column")
    return parts
