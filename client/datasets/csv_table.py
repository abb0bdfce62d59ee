"""The user's own CSV file, read by the data card of the plan: UTF-8, commas, one header line."""

from __future__ import annotations

from client.datasets.records import Parts
from client.datasets.sources import data_path
from client.datasets.tabular import read_table, table_records
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan


def load(data: DataPlan, card: DataCard, *, leave_out: bool = False) -> Parts:
    """All records of `data.path`; any column may name people or natural clients. There is no test part.

    With `leave_out`, those that the card describes.
    """
    path = data_path(data)
    return table_records(read_table(path), data, card, source=str(path), leave_out=leave_out), None
