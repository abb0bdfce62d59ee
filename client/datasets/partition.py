"""Virtual clients: how a simulation spreads one pool of records over many clients.

The drawing is flwr-datasets' own, but for equal parts, which need no library. It sees only row numbers with a label or
a group for each, never a record, and the rows are shuffled by the plan's seed first, so that every process of a
simulation draws the same clients. A person's records stay wherever they fall: a person spread over several clients pays
in each, and those charges add up. A natural partition by the person column would keep people whole, but name each to
the server: a private plan may not ask for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import os
import re
import unicodedata
import warnings
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.datasets.client_records import ClientRecords
from client.datasets.records import Records
from client.datasets.registry import load
from client.datasets.sources import did_you_mean, listed
from client.datasets.split import split
from security.errors import UsageError
from shared_models.plan_data import (
    DataPlan,
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    Partition,
    PathologicalPartition,
    SizeSkewedPartition,
    numbered,
)

Rows = npt.NDArray[np.int64]
_NO_TELEMETRY: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
}


def client_records(data: DataPlan, *, seed: int, split_key: bytes) -> ClientRecords:
    """The training records of every virtual client, by client id; loaded and drawn once per process.

    Only the last result is kept. It is drawn anew when the plan's [data], the seed, the key or the file
    `data.path` changes; changes inside a folder are not noticed.

    Raises:
        UsageError: as `registry.load` and `partition`.
    """
    return _client_records(data.model_dump_json(), seed, split_key, data_stamp(data))[0]


def client_parts(
    data: DataPlan, *, seed: int, split_key: bytes, whole: bool = True
) -> Mapping[str, tuple[Records, Records]]:
    """What every virtual client trains on and what it holds out, by client id, where clients judge models.

    Each client splits its own records by their keyed hashes (rule 10). Cached like `client_records`.

    Args:
        data, seed, split_key: as of `client_records`.
        whole: whether all records are the clients'; if not, the server has a test part beside what they hold out.

    Raises:
        UsageError: as `client_records`.
    """
    return _client_parts(data.model_dump_json(), seed, split_key, whole, data_stamp(data))[0]


def held_out_key(split_key: bytes, *, whole: bool) -> bytes:
    """The key by which clients hold records out. After a split for the server it must be another one: all that this has
    left is on one side of the first."""
    return split_key if whole else hmac.digest(split_key, b"veil held out at clients", "sha256")


def test_records(data: DataPlan, *, seed: int, split_key: bytes, whole: bool, parts: bool) -> Records:
    """The set's test part, loaded together with what `client_parts` gives, or `client_records`.

    Args:
        data, seed, split_key, whole: as of `client_parts`.
        parts: whether clients hold something out.

    Raises:
        UsageError: as `client_records`.
    """
    text, stamp = data.model_dump_json(), data_stamp(data)
    if parts:
        return _client_parts(text, seed, split_key, whole, stamp)[1]
    return _client_records(text, seed, split_key, stamp)[1]


def forget_records() -> None:
    """Let go of what was loaded: another process has it."""
    _client_parts.cache_clear()
    _client_records.cache_clear()


def client_ids(data: DataPlan, *, seed: int, split_key: bytes) -> tuple[str, ...]:
    """The ids of the virtual clients, sorted; data is only read where they come from it (natural clients).

    Raises:
        UsageError: as `client_records`, for natural clients.
    """
    if isinstance(data.partition, NaturalPartition):
        return tuple(client_records(data, seed=seed, split_key=split_key))
    return tuple(name for name in numbered(data.partition.clients) if name not in (data.leave_out or ()))


def partition(records: Records, plan: Partition, *, seed: int, leave_out: Collection[str] = ()) -> ClientRecords:
    """Spread records over clients, each record to exactly one.

    Args:
        records: the pool, n of them.
        plan: the plan's [data.partition].
        seed: the plan's; the same seed gives the same clients in every process.
        leave_out: ids of clients that are drawn like the others, and not among the result.

    Returns:
        Records by client id, sorted by id: "0", "1", ... padded with zeros, or, for a natural partition, the
        slug of the group's name ("VA Long Beach" is "va-long-beach"). A Dirichlet client may be empty if
        `min_size` is 0.

    Raises:
        UsageError: the records can't be spread like that, or in a way that needs the extra `simulation`, which is not
            installed.
    """
    if len(records) == 0:
        raise UsageError("data.partition: there are no training records to spread over clients")
    if isinstance(plan, NaturalPartition):
        by, ids = _groups(records, plan.column)
    else:
        # Which class, for the ways that go by it; a language model's records have none.
        by = records.y.numpy() if records.y.ndim == 1 else np.zeros(len(records), dtype=np.int64)
        ids = numbered(plan.clients)
        _check_counts(plan, records)
    order = np.random.default_rng(seed).permutation(len(records))
    rows = _draw(plan, by[order], seed)
    if sum(map(len, rows)) < len(records):
        raise UsageError(
            f"data.partition: {len(ids)} clients with so few classes each leave a class to nobody; give at "
            f"least as many clients as there are classes, or raise classes_per_client"
        )
    strangers = set(leave_out) - set(ids)
    if strangers:
        raise UsageError(
            f"data.leave_out: no client has the id {min(strangers)!r}{did_you_mean(min(strangers), ids)}; "
            f"there are: {listed(ids)}"
        )
    kept = [(name, own) for name, own in zip(ids, rows, strict=True) if name not in leave_out]
    if not kept:
        raise UsageError("data.leave_out names all clients; at least one has to take part")
    # A client's rows in the pool's order: what a client sees then depends on which rows it got, nothing else.
    pool = records.take(np.concatenate([np.sort(order[own]) for _, own in kept]))
    return ClientRecords(pool, {name: len(own) for name, own in kept})


def slug(text: str) -> str:
    """A client id from a group's name: lower-case ASCII letters, digits and hyphens."""
    if not text:
        return "missing"
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "group-" + hashlib.sha256(text.encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def _client_parts(
    data: str, seed: int, split_key: bytes, whole: bool, _stamp: object
) -> tuple[Mapping[str, tuple[Records, Records]], Records]:
    plan = DataPlan.model_validate_json(data)
    loaded = load(plan, split_key=split_key, whole=whole)
    clients = partition(loaded.train, plan.partition, seed=seed, leave_out=plan.leave_out or ())
    key = held_out_key(split_key, whole=whole)
    parts = {name: split(own, key=key, test_fraction=plan.test_fraction) for name, own in clients.items()}
    return MappingProxyType(parts), loaded.test


@lru_cache(maxsize=1)
def _client_records(data: str, seed: int, split_key: bytes, _stamp: object) -> tuple[ClientRecords, Records]:
    plan = DataPlan.model_validate_json(data)
    loaded = load(plan, split_key=split_key)
    return partition(loaded.train, plan.partition, seed=seed, leave_out=plan.leave_out or ()), loaded.test


def data_stamp(data: DataPlan) -> tuple[int, int] | None:
    """When and how large the plan's file was written, so that a changed file is read again."""
    if data.path is None:
        return None
    with contextlib.suppress(OSError):
        found = Path(data.path).expanduser().stat()
        return found.st_mtime_ns, found.st_size
    return None


def _groups(records: Records, column: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """The client id of each record, and all ids, sorted."""
    if column not in records.groups:
        raise UsageError(
            f"data.partition.column: the data has no column {column!r}"
            f"{did_you_mean(column, records.groups)}; columns there: {listed(records.groups)}"
        )
    values, of_record = np.unique(records.groups[column], return_inverse=True)
    slugs = np.array([slug(str(value)) for value in values])
    ids, times = np.unique(slugs, return_counts=True)
    if times.max() > 1:
        raise UsageError(
            f"data.partition.column: {times.max()} values of {column!r} make the same client id "
            f"'{ids[times.argmax()]}'; rename them in the data"
        )
    return slugs[of_record], tuple(str(name) for name in ids)


def _check_counts(plan: Partition, records: Records) -> None:
    """What can be said before drawing, in the plan's own words."""
    clients, examples = getattr(plan, "clients", 1), len(records)
    if clients > examples:
        raise UsageError(f"data.partition.clients = {clients} is more than the {examples} training records; lower it")
    if isinstance(plan, PathologicalPartition):
        classes = len(np.unique(records.y.numpy()))
        if plan.classes_per_client > classes:
            raise UsageError(
                f"data.partition.classes_per_client = {plan.classes_per_client} is more than the {classes} "
                f"classes in the data; lower it"
            )


def _draw(plan: Partition, by: npt.NDArray[Any], seed: int) -> list[Rows]:
    """Positions in `by` for each client, in the order of the client ids."""
    if isinstance(plan, IidPartition):
        # As flwr-datasets would, whose libraries take seconds to import.
        return np.array_split(np.arange(len(by)), plan.clients)
    # Nothing here asks the network for anything; this keeps the libraries from telling it of their use.
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    try:
        from datasets import Dataset

        partitioner = _partitioner(plan, seed)
    except ImportError as error:
        raise UsageError("data.partition: needs flwr-datasets; pip install 'veil-fl[simulation]'") from error
    partitioner.dataset = Dataset.from_dict({"row": np.arange(len(by)), "by": by})
    # Progress bars go to standard error. Warnings tell of draws that failed and are repeated; if none
    # succeeds, that is an error, translated here.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return [
                np.asarray(partitioner.load_partition(client)["row"][:], dtype=np.int64)
                for client in range(partitioner.num_partitions)
            ]
        except ValueError as error:
            raise UsageError(_cannot(plan, len(by))) from error


def _partitioner(
    plan: DirichletPartition | PathologicalPartition | SizeSkewedPartition | NaturalPartition, seed: int
) -> Any:
    from flwr_datasets import partitioner as flower

    match plan:
        case DirichletPartition(clients=clients, alpha=alpha, min_size=min_size):
            return flower.DirichletPartitioner(clients, "by", alpha, min_size, seed=seed)
        case PathologicalPartition(clients=clients, classes_per_client=classes):
            # As in the paper: the first class of each client goes round, so that every class is somebody's.
            return flower.PathologicalPartitioner(clients, "by", classes, "first-deterministic", seed=seed)
        case SizeSkewedPartition(clients=clients, growth=growth):
            kinds = {
                "linear": flower.LinearPartitioner,
                "square": flower.SquarePartitioner,
                "exponential": flower.ExponentialPartitioner,
            }
            return kinds[growth](clients)
        case NaturalPartition():
            return flower.NaturalIdPartitioner("by")


def _cannot(plan: Partition, examples: int) -> str:
    """Why flwr-datasets found no partition, in the plan's words."""
    match plan:
        case DirichletPartition(clients=clients, alpha=alpha, min_size=min_size):
            return (
                f"data.partition: no draw with alpha = {alpha} gave each of {clients} clients min_size = "
                f"{min_size} of {examples} records; raise alpha, or lower min_size or clients"
            )
        case PathologicalPartition(clients=clients, classes_per_client=classes):
            return (
                f"data.partition: a class has fewer records than clients that should share it ({clients} "
                f"clients, {classes} classes each); lower clients or classes_per_client"
            )
        case SizeSkewedPartition(clients=clients, growth=growth):
            return (
                f"data.partition: {examples} records are too few for {clients} clients with {growth} "
                f"growth, the first would get none; lower clients or choose a slower growth"
            )
        case _:
            return f"data.partition: {examples} records can't be spread like that"
