"""Texts to records, by the plan's public rules for tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.records import Records, StrArray
from client.datasets.sources import did_you_mean, listed, partition_column
from security.errors import UsageError
from shared_models.plan_data import DataPlan
from shared_models.tokens import tokens_of


def text_records(
    texts: Sequence[str],
    labels: npt.NDArray[np.int64],
    columns: Mapping[str, StrArray],
    data: DataPlan,
    *,
    source: str,
) -> Records:
    """Labelled texts as records of tokens, x (n, places).

    Args:
        texts: n of them.
        labels: (n,), numbers of classes.
        columns: text, each (n,): whom a natural partition or a person's bound may go by.
        data: the plan's.
        source: of the texts, for errors.

    Raises:
        UsageError: the plan names a column that isn't there, or a text of which it has to be known names nobody.
    """
    x = torch.from_numpy(tokens_of(texts, data.texts).astype(np.float32))
    groups, people = owners(columns, data, source=source)
    return Records(x=x, y=torch.from_numpy(labels), groups=groups, people=people)


def owners(
    columns: Mapping[str, StrArray], data: DataPlan, *, source: str
) -> tuple[dict[str, StrArray], StrArray | None]:
    """`groups` and `people` of records with such columns, as the plan asks for them.

    Raises:
        UsageError: as `text_records`.
    """
    group, person = partition_column(data), data.person_column
    for key, column in (("data.partition.column", group), ("data.person_column", person)):
        if column is not None and column not in columns:
            raise UsageError(
                f"{key}: {source} has no column {column!r}{did_you_mean(column, columns)}; columns there: "
                f"{listed(columns)}"
            )
    people = None if person is None else columns[person]
    if people is not None and (people == "").any():
        raise UsageError(f"data.person_column: {int((people == '').sum())} records of {source} name no person")
    return {} if group is None else {group: columns[group]}, people
