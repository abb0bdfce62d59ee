"""Tables of text to features, by the public bounds and values of a data card.

Nothing is computed from the data: no mean, no list of the categories that occur. A statistic of the records
would be a release, and one that every other client would have to agree on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.datasets.records import Records, StrArray
from client.datasets.sources import did_you_mean, listed, partition_column
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan, NumericColumn
from shared_models.table_encoding import encode_table, unreadable
from shared_models.tokens import tokens_of

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file (UTF-8, commas, one header line) as stripped text, indexed by each record's line number.

    Raises:
        UsageError: the file can't be read, is empty, isn't UTF-8, repeats a column, or a line has too few or
            too many fields. The text names file and line, never a value.
    """
    import pandas as pd

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = _lines(csv.reader(file, strict=True))
            _, header = next(lines, (0, None))
            if header is None:
                raise UsageError(f"{path}: the file is empty; it needs a header line and a line for each record")
            _check_header(path, header)
            numbers, rows = [], []
            for number, row in lines:
                if len(row) != len(header):
                    raise UsageError(f"{path}: line {number} has {len(row)} fields, the header {len(header)}; mend it")
                numbers.append(number)
                rows.append(row)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text; save it as CSV with UTF-8 encoding") from error
    except csv.Error as error:
        raise UsageError(f"{path}: is not a CSV file that can be read ({error})") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    return pd.DataFrame(rows, columns=header, index=numbers, dtype=str)


def table_records(
    table: pd.DataFrame,
    data: DataPlan,
    card: DataCard,
    *,
    source: str,
    leave_out: bool = False,
    columns: Sequence[str] = (),
) -> Records:
    """A table of text as records.

    Args:
        table: stripped text, indexed by line numbers for errors.
        data: says which column names the person and which the natural clients.
        card: target, classes, and the columns or the text.
        source: name of the file, for errors.
        leave_out: whether a record that the card doesn't describe is left out, each by itself, in place of an error.
        columns: more of the table's columns to keep beside the records, as text, for who judges a model.

    Returns:
        Records with x (n, `table_width(card.columns)`): for each column of the card, in the card's order, a
        number takes two places (scaled to [-1, 1], and 1 if missing), a category one for each value and one
        for any other. Where the card names a text, its tokens (n, places).

    Raises:
        UsageError: a column is not in the table, a target is not one of the classes, a number is none, or a
            record names no person.
    """
    target, group, person = card.target, partition_column(data), data.person_column
    if target is None:
        raise ValueError(f"the card of '{card.name}' names no target")
    asked = {"data.card.target": target, "data.partition.column": group, "data.person_column": person}
    asked["data.card.text"] = card.text_column
    asked |= {f"data.card.columns.{name}": name for name in card.columns}
    for key, name in (*asked.items(), *(("--by", name) for name in columns)):
        if name is not None and name not in table.columns:
            raise UsageError(
                f"{key}: {source} has no column {name!r}{did_you_mean(name, table.columns)}; "
                f"columns there: {listed(table.columns)}"
            )
    if leave_out:
        table = table[_fits(table, card, target, person)]
    y = _labels(table[target], card.classes, source)
    for name, column in card.columns.items():
        if isinstance(column, NumericColumn):
            bad = unreadable(table[name], card.missing)
            _refuse(table[name], bad, "is not a finite number nor one of data.card.missing", source)
    if card.text_column is None:
        x = encode_table(table, card.columns, card.missing)
    else:
        x = tokens_of(table[card.text_column].tolist(), data.texts).astype(np.float32)
    return Records(
        x=torch.from_numpy(x),
        y=y,
        groups={name: _text(table[name]) for name in (group, *columns) if name is not None},
        people=None if person is None else _people(table[person], card.missing, source),
    )


def _lines(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped fields of every line that isn't blank."""
    for row in reader:
        if row:
            yield reader.line_num, [field.strip() for field in row]  # type: ignore[attr-defined]


def _check_header(path: Path, header: Sequence[str]) -> None:
    repeated = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if repeated:
        raise UsageError(f"{path}: the header repeats columns: {listed(repeated)}; give each a name of its own")


def _fits(table: pd.DataFrame, card: DataCard, target: str, person: str | None) -> npt.NDArray[np.bool_]:
    """Which records the card describes."""
    fits = _classes(table[target], card.classes) >= 0
    for name, column in card.columns.items():
        if isinstance(column, NumericColumn):
            fits &= ~unreadable(table[name], card.missing)
    if person is not None:
        fits &= ~_nameless(table[person], card.missing)
    return fits


def _classes(texts: pd.Series[str], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The number of each record's class, -1 for none of them."""
    import pandas as pd

    found = pd.Index([name.strip() for name in classes]).get_indexer(pd.Index(texts))
    return np.asarray(found, dtype=np.int64)


def _labels(texts: pd.Series[str], classes: Sequence[str], source: str) -> Tensor:
    numbers = _classes(texts, classes)
    _refuse(texts, numbers < 0, f"is not one of the classes ({', '.join(classes)})", source)
    return torch.from_numpy(numbers)


def _nameless(texts: pd.Series[str], missing: Sequence[str]) -> npt.NDArray[np.bool_]:
    return texts.isin([*missing, ""]).to_numpy(dtype=bool)


def _people(texts: pd.Series[str], missing: Sequence[str], source: str) -> StrArray:
    # Records without a name can't be bounded: they may be anybody's, also of a person who is named elsewhere.
    _refuse(texts, _nameless(texts, missing), "names no person; fill it in or remove it", source)
    return _text(texts)


def _text(texts: pd.Series[str]) -> StrArray:
    return np.array(texts.tolist(), dtype=np.str_)


def _refuse(texts: pd.Series[str], bad: npt.NDArray[np.bool_], what: str, source: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise UsageError(
            f"{source}: line {texts.index[first]}, column {texts.name!r}: {what} ({int(bad.sum())} such lines)"
        )
