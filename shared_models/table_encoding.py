"""Columns of a table as a network sees them, by the public bounds and values of a data card.

Nothing is computed from the records: no mean, no list of the categories that occur. A site encodes its table so before
training, and a service each record that it is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shared_models.cards import NormalisedColumn, table_width
from shared_models.plan_data import CategoricalColumn, Column, NumericColumn

if TYPE_CHECKING:
    import pandas as pd

Features = npt.NDArray[np.float32]


def encode_table(table: pd.DataFrame, columns: Mapping[str, Column], missing: Sequence[str]) -> Features:
    """Features (n, `table_width(columns)`) of a table of stripped text, column by column in the card's order.

    A number takes two places (scaled to [-spread, spread], or normalised by released statistics; and 1 if missing; one
    that is no number counts as missing here: `unreadable` finds those), a category one for each value and one for any
    other.

    Args:
        table: has every column of the card, as text.
        columns: the card's.
        missing: texts that mean a missing value.
    """
    parts = [
        _number(table[name], column, missing) if isinstance(column, NumericColumn) else _category(table[name], column)
        for name, column in columns.items()
    ]
    if not parts:
        return np.empty((len(table), table_width(columns)), np.float32)
    return np.concatenate(parts, axis=1)


def unreadable(texts: pd.Series[str], missing: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which texts are neither a finite number nor missing."""
    values, is_missing = _values(texts, missing)
    return ~is_missing & ~np.isfinite(values)


def _values(texts: pd.Series[str], missing: Sequence[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Each record's number, NaN where it is none, and whether it is missing."""
    import pandas as pd

    is_missing = texts.isin(missing).to_numpy(dtype=bool)
    return pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64), is_missing


def _number(texts: pd.Series[str], column: NumericColumn, missing: Sequence[str]) -> Features:
    values, is_missing = _values(texts, missing)
    is_missing = is_missing | ~np.isfinite(values)
    clipped = np.clip(values, column.low, column.high)
    if isinstance(column, NormalisedColumn):
        found = (clipped - column.scale.mean) / column.scale.scale
    else:
        found = column.spread * (2 * (clipped - column.low) / (column.high - column.low) - 1)
    return np.stack([np.where(is_missing, 0.0, found), is_missing], axis=1).astype(np.float32)


def _category(texts: pd.Series[str], column: CategoricalColumn) -> Features:
    import pandas as pd

    places = pd.Index([value.strip() for value in column.values]).get_indexer(pd.Index(texts))
    # -1, "none of them", picks the last place: the one for other and missing values.
    return np.eye(len(column.values) + 1, dtype=np.float32)[places]
