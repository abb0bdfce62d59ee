"""Adult: who earns more than 50,000 dollars a year, by census answers of 1994 (Becker and Kohavi 1996), UCI, CC BY 4.0.

The weight of the sample (`fnlwgt`) says nothing about a person, and `education` is in words what `education-num` is in
years: both are left out. Every column may name natural clients, also those two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.datasets.records import Parts
from client.datasets.sources import refuse_path
from client.datasets.tabular import table_records
from shared_models.cards import DataCard
from shared_models.downloads.fetch import fetched
from shared_models.plan_data import DataPlan

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
_PARTS: Final = ("adult.data", "adult.test")


def load(data: DataPlan, card: DataCard, *, columns: Sequence[str] = ()) -> Parts:
    """The 32,561 people of the training part and the 16,281 of the test part, as features by the card.

    Raises:
        UsageError: it isn't fetched yet, or damaged; or the plan names a column that isn't there.
    """
    refuse_path(data)
    files = fetched("adult")
    train, test = (table_records(_table(files[name]), data, card, source=name, columns=columns) for name in _PARTS)
    return train, test


def whole_table() -> pd.DataFrame:
    """All 48,842 people as text, both parts in one table.

    Raises:
        UsageError: it isn't fetched yet, or damaged.
    """
    import pandas as pd

    files = fetched("adult")
    return pd.concat([_table(files[name]) for name in _PARTS], ignore_index=True)


@cache
def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    lines = [line.rstrip(".") for line in path.read_text(encoding="ascii").splitlines()]
    rows = [[field.strip() for field in line.split(",")] for line in lines if line.count(",") == len(COLUMNS) - 1]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str)
