"""What loaders share: where the plan says the data is, which columns it asks for, and hints in errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from security.errors import UsageError
from shared_models.plan_data import DataPlan, NaturalPartition

_SHOWN = 20  # names an error lists before it says "and N more": it has to stay one readable line


def data_path(data: DataPlan) -> Path:
    """The file or folder the plan names, with `~` expanded.

    Raises:
        UsageError: the plan names none, or there is nothing there.
    """
    if data.path is None:
        raise UsageError(f"data.path: data.name = '{data.name}' needs the path of the data (--set data.path=PATH)")
    path = Path(data.path).expanduser()
    if not path.exists():
        raise UsageError(f"data.path: {path} does not exist; give the path of the data (--set data.path=PATH)")
    return path


def refuse_path(data: DataPlan) -> None:
    """For sets that come with Veil: a path in the plan would be ignored, so it is refused.

    Raises:
        UsageError: the plan names a path.
    """
    if data.path is not None:
        raise UsageError(f"data.path: data.name = '{data.name}' brings its own data; remove data.path from the plan")


def partition_column(data: DataPlan) -> str | None:
    """The column whose values are the clients, where the partition is natural."""
    return data.partition.column if isinstance(data.partition, NaturalPartition) else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'X'?)`, or nothing if no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names of columns for an error, on one line.

    If one is a number, none is shown: the file likely lacks a header, the names are then the first record's
    values, and an error never shows a record.
    """
    names = list(names)
    if any(is_number(name) for name in names):
        return f"{len(names)}, some named by numbers, so none is shown (is the header line missing?)"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(repr(name) for name in names[:_SHOWN]) or "none") + more


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
