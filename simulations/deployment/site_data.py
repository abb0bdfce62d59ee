"""What each site of a pilot would have on its own disk: a simulated federation's records, written to files.

A site that trains on such a file computes the same as the virtual client it was written for, bit for bit: the same
records in the same order, by the same plan, under the same name.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from client.datasets import heart_disease
from client.datasets.partition import client_parts, client_records
from client.datasets.records import Records
from client.datasets.registry import load
from client.workplace import split_key
from security.errors import UsageError
from shared_models.cards import DataCard, card_for
from shared_models.plan import Plan
from shared_models.plan_data import NaturalPartition


@dataclass(frozen=True, kw_only=True)
class SiteFile:
    """A file that answers plans whose `data.name` is `name`; `format` is as in site.toml."""

    name: str
    format: str
    path: Path


def write_site_data(plan: Plan, folders: Mapping[str, Path], test: Path) -> tuple[dict[str, SiteFile], SiteFile | None]:
    """Write each client's records into its folder, and the server's test records into the folder `test`.

    Args:
        plan: a plan on digits, fashion-mnist or heart-disease; the last by hospital.
        folders: one for each client of the plan, by id.
        test: where the server's part goes, if the plan is judged there.

    Returns:
        The files by client, and the server's.

    Raises:
        UsageError: the clients are not those of the plan, or its data set can't be written out.
    """
    clients = _client_ids(plan)
    if set(folders) != set(clients):
        raise UsageError(f"the plan's clients are {', '.join(sorted(clients))}, not {', '.join(sorted(folders))}")
    if plan.data.name == "heart-disease":
        return _write_tables(plan, folders, test)
    return _write_arrays(plan, folders, test)


def _client_ids(plan: Plan) -> tuple[str, ...]:
    return tuple(
        client_parts(plan.data, seed=plan.seed, split_key=split_key(plan), whole=plan.spreads_all)
        if plan.holds_out
        else client_records(plan.data, seed=plan.seed, split_key=split_key(plan))
    )


def _write_arrays(plan: Plan, folders: Mapping[str, Path], test: Path) -> tuple[dict[str, SiteFile], SiteFile | None]:
    card = card_for(plan.data)
    if plan.holds_out:
        parts = client_parts(plan.data, seed=plan.seed, split_key=split_key(plan), whole=plan.spreads_all)
        records = {client: _joined(train, held_out) for client, (train, held_out) in parts.items()}
    else:
        records = dict(client_records(plan.data, seed=plan.seed, split_key=split_key(plan)))
    files = {client: _array_file(plan, card, own, folders[client]) for client, own in records.items()}
    if plan.evaluation.where != "server":
        return files, None
    return files, _array_file(plan, card, load(plan.data, split_key=split_key(plan)).test, test)


def _joined(first: Records, second: Records) -> Records:
    return Records(x=torch.cat([first.x, second.x]), y=torch.cat([first.y, second.y]))


def _array_file(plan: Plan, card: DataCard, records: Records, folder: Path) -> SiteFile:
    raw = records.x.numpy().astype(np.float64) * card.std + card.mean  # the loader's normalisation, undone
    path = folder / "records.npz"
    np.savez(path, x=raw.astype(np.float32), y=records.y.numpy())
    return SiteFile(name=plan.data.name, format="npz", path=path)


def _write_tables(plan: Plan, folders: Mapping[str, Path], test: Path) -> tuple[dict[str, SiteFile], SiteFile | None]:
    """The hospitals' rows, as the loader mends them."""
    partition = plan.data.partition
    if not isinstance(partition, NaturalPartition) or partition.column != "hospital" or plan.spreads_all:
        raise UsageError("heart-disease is written out by hospital, for plans that are judged at the server")
    table = heart_disease.mended(card_for(plan.data))
    # Which rows are for training depends on plan and row; one client a patient tells which they are.
    by_patient = plan.data.model_copy(update={"partition": NaturalPartition(column="id")})
    training = set(client_records(by_patient, seed=plan.seed, split_key=split_key(plan)))
    rows = [{str(key): str(value) for key, value in row.items()} for row in table.to_dict("records")]
    columns = [str(column) for column in table.columns]
    files = {
        client: _table_file(
            plan, columns, [row for row in rows if row["hospital"] == client and row["id"] in training], folder
        )
        for client, folder in folders.items()
    }
    return files, _table_file(plan, columns, [row for row in rows if row["id"] not in training], test)


def _table_file(plan: Plan, columns: Sequence[str], rows: Sequence[dict[str, str]], folder: Path) -> SiteFile:
    path = folder / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return SiteFile(name=plan.data.name, format="csv", path=path)
