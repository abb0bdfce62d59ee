"""Ray starts its actors while this process still imports what a run needs: neither waits for the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from simulations.beside import beside

if TYPE_CHECKING:
    from simulations.ray_workers import RayWorkers

_APP = "client.app:app"


@contextmanager
def early_workers(
    *, workers: int = 0, gpus_per_worker: float = 0.0, address: str | None = None, most: int | None = None
) -> Iterator[RayWorkers]:
    """Actors for one run, to be given to it by `Settings.actors`; ended with the block, if not before.

    Args:
        workers, gpus_per_worker, address: as in `RayOptions`.
        most: as in `RayWorkers`.

    Raises:
        RunError, UsageError: as `RayWorkers`.
    """
    importing = beside(lambda: import_module("simulations.run"))
    from simulations.ray_workers import RayOptions, RayWorkers

    options = RayOptions(workers=workers, gpus_per_worker=gpus_per_worker, address=address)
    actors = RayWorkers(options, app=_APP, most=most)  # in this thread, for Ray wants to hear of signals
    try:
        importing.result()
        yield actors
    finally:
        actors.shut_down()
