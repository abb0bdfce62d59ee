"""The records that a finished simulation's model is judged on, and whose they are: all are in one place here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from client.datasets.features import as_seen
from client.datasets.partition import partition, slug
from client.datasets.records import Records, StrArray
from client.datasets.registry import load
from client.datasets.split import split
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_data import NaturalPartition


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Records that no client has trained on.

    Attributes:
        records: n of them, as the plan's network sees them, with the columns that were asked for.
        holder: whose they are: the server's test part, or what the clients hold out.
        owners: the client that each belongs to (n,), "" for none of them; None where the server's records are spread
            over clients by a draw, so that no part of its test records is any client's.
    """

    records: Records
    holder: Literal["server", "clients"]
    owners: StrArray | None


def judged_records(plan: Plan, *, split_key: bytes, columns: Sequence[str] = ()) -> Judged:
    """What a simulation's model is judged on.

    With evaluation.where = "clients" what each client holds out. Otherwise the set's test part; under a natural
    partition each of its records belongs to the client that its column names.

    Args:
        plan: resolved.
        split_key: as for `load`.
        columns: as for `load`.

    Raises:
        UsageError: as `load` and `partition`; or nothing is held out.
    """
    loaded = load(plan.data, split_key=split_key, whole=plan.evaluates_at_clients, columns=columns)
    owners: StrArray | None = None
    if plan.evaluates_at_clients:
        pool = replace(loaded.train, rows=np.arange(len(loaded.train)))
        rows, names = [], []
        for name, own in partition(
            pool, plan.data.partition, seed=plan.seed, leave_out=plan.data.leave_out or ()
        ).items():
            held_out = split(own, key=split_key, test_fraction=plan.data.test_fraction)[1]
            assert held_out.rows is not None
            rows.append(held_out.rows)
            names += [name] * len(held_out)
        records, owners = loaded.train.take(np.concatenate(rows)), np.array(names, dtype=np.str_)
    else:
        records = loaded.test
        if isinstance(plan.data.partition, NaturalPartition):
            owners = _owners(loaded.train, records, plan.data.partition.column)
    if len(records) == 0:
        raise UsageError("no record was held out, so there is nothing to judge the model on; raise data.test_fraction")
    seen = as_seen(plan, records, cached=False)
    return Judged(records=seen, holder="clients" if plan.evaluates_at_clients else "server", owners=owners)


def _owners(train: Records, test: Records, column: str) -> StrArray | None:
    """The client of each test record, by the column that makes the clients; "" where that one never trained."""
    if column not in test.groups:
        return None
    clients = {slug(str(value)) for value in np.unique(train.groups[column])}
    names = {str(value): slug(str(value)) for value in np.unique(test.groups[column])}
    found = [names[str(value)] if names[str(value)] in clients else "" for value in test.groups[column]]
    return np.array(found, dtype=np.str_)
