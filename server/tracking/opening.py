"""Which trackers a person asks for: `KIND=WHERE`, checked before a run begins; libraries are imported only if asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from security.errors import UsageError, did_you_mean
from server.tracking.facts import Tracker

KINDS: Final = {
    "tensorboard": "tensorboard=DIR",
    "mlflow": "mlflow=DIR, or mlflow=URI of a tracking server or database",
    "wandb": "wandb=offline:DIR, or wandb=online:PROJECT",
}
"""How each is asked for."""


def parse_trackers(given: Iterable[str], folder: Path | None = None) -> dict[str, Callable[[], Tracker]]:
    """What makes the trackers asked for, by kind. Nothing is imported or written yet.

    Args:
        given: `KIND=WHERE` texts.
        folder: where relative paths begin; None for the working folder.

    Raises:
        UsageError: a text is none of them, a kind is there twice, or its library isn't installed.
    """
    found: dict[str, Callable[[], Tracker]] = {}
    for text in given:
        kind, _, where = text.partition("=")
        if kind not in KINDS or not where:
            hint = did_you_mean(kind, tuple(KINDS)) if kind not in KINDS else ""
            raise UsageError(f"tracker {kind!r}: {hint}give {'; '.join(KINDS.values())}")
        if kind in found:
            raise UsageError(f"tracker {kind}: is there twice; keep one")
        if importlib.util.find_spec(kind) is None:
            raise UsageError(f"tracker {kind}: is not installed; install it with: pip install 'veil-fl[tracking]'")
        found[kind] = _maker(kind, where, (folder or Path()).absolute())
    return found


def _maker(kind: str, where: str, folder: Path) -> Callable[[], Tracker]:
    if kind == "tensorboard":
        return partial(_tensorboard, _at(where, folder))
    if kind == "mlflow":
        return partial(_mlflow, where if "://" in where or where == "databricks" else _at(where, folder))
    mode, colon, what = where.partition(":")
    if mode not in ("offline", "online") or not colon or not what:
        raise UsageError(f"tracker wandb: give {KINDS['wandb']}")
    return partial(_wandb, _at(what, folder) if mode == "offline" else what)


def _at(path: str, folder: Path) -> Path:
    return folder / Path(path).expanduser()


def _tensorboard(where: Path) -> Tracker:
    from server.tracking.tensorboard_files import TensorBoardFiles

    return TensorBoardFiles(where)


def _mlflow(where: str | Path) -> Tracker:
    from server.tracking.mlflow_runs import MlflowRuns

    return MlflowRuns(where)


def _wandb(where: str | Path) -> Tracker:
    from server.tracking.wandb_runs import WandbRuns

    return WandbRuns(where)
