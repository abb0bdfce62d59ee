"""Ray and its actors: one for each processor slot, on this machine or a cluster.

They are started before the data is loaded, so that they import what they need meanwhile, and are told later what they
work for. Records that the leading process has read lie in Ray's object store, where all of a machine's actors read
them: none of them loads data, or holds it twice.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.errors import RunError, UsageError

# Ray sends usage statistics unless told not to before it is imported.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Actors without a GPU share shall not see a GPU; a later Ray would let them unless told so.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
# Ray forks to start its services, and gRPC's handlers, where other threads use gRPC, then abort some of them at times.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
except ImportError as error:  # the extra is not installed
    raise UsageError(
        "the Ray engine needs the extra 'simulation' (pip install 'veil-fl[simulation]'); or use --engine inline"
    ) from error


__all__ = ["RayError", "RayOptions", "RayWorkers", "ray", "start_ray"]

_READY_SECONDS = 180.0
_REST_SECONDS = 5.0
_HOME = str(Path(__file__).resolve().parent.parent)  # the folder that holds our packages


@dataclass(frozen=True)
class RayOptions:
    """How a simulation uses Ray.

    Attributes:
        workers: number of actors; 0 for one a processor (or one a GPU share, where there are GPUs).
        gpus_per_worker: GPU share of an actor; 0 computes on the CPU.
        address: a running cluster's address; None starts Ray on this machine.
    """

    workers: int = 0
    gpus_per_worker: float = 0.0
    address: str | None = None


def _actor_class() -> type:
    """The actor's class, made here so that it travels to the worker by value, not as the name of a module.

    Ray puts the driver's working folder in front of a worker's path; a user's own `client/` or `simulations/` there
    would be imported for ours. So the worker puts our home in front before it imports anything of ours.
    """

    class ClientActor:
        """Runs in a process of its own: a worker that answers batches."""

        def __init__(self, home: str, app: str) -> None:
            import importlib
            import logging
            import sys

            sys.path.insert(0, home)
            logging.getLogger("flwr").setLevel(logging.ERROR)
            importlib.import_module("simulations.worker")
            importlib.import_module(app.partition(":")[0])
            self._app = app

        def begin(self, run_id: int, config: Any, log: Path | None, ledger: Any, data: Any) -> bool:
            """Say what run it works for; answers once the worker stands."""
            from simulations.worker import Worker

            if ledger is not None:
                from simulations.remote_ledger import use_remote

                use_remote(config["ledger"], ledger)
            if data is not None:
                from simulations.shared_data import use_shared

                use_shared(data)
            self._worker = Worker(self._app, run_id, config, log)
            return True

        def work(self, arrays: Any, batch: list[Any]) -> Iterator[Any]:
            """Answer a batch of messages with the same arrays: lists of replies and new states, in order."""
            wholes: dict[int, Any] = {}  # one content may be many clients'
            asked = []
            for metadata, content, client, state, company in batch:
                if id(content) not in wholes:
                    records = {name: arrays.get(name, record) for name, record in content.items()}
                    wholes[id(content)] = type(content)(records)
                asked.append((metadata, wholes[id(content)], client, state, company))
            from shared_models.flower_messages import to_buffers

            for answers in self._worker.answer(asked):
                for reply, _state in answers:
                    to_buffers(reply)
                yield answers
                del answers, reply, _state  # or they would be held while the next clients train

        def rest(self) -> None:
            """Puts the ledgers of this process away; the last call."""
            from client.books import put_away

            put_away()

    return ClientActor


class RayWorkers:
    """Ray, and as many actors as it has slots for.

    Args:
        options: how to use Ray.
        app: of the clients.
        most: no more actors than this.

    Raises:
        RunError: Ray can't be started, or the cluster can't be reached.
        UsageError: there is no such share of a GPU.
    """

    def __init__(self, options: RayOptions, *, app: str, most: int | None = None) -> None:
        self._owns_ray = start_ray(options)
        self._ledger: Any = None
        self._data: Any = None
        self._begun: tuple[Any, ...] | None = None
        self.options = options
        self.app = app
        try:
            count = _workers(options)
            remote: Any = ray.remote(_actor_class()).options(
                num_cpus=1, num_gpus=options.gpus_per_worker, max_concurrency=1
            )
            self._make: Callable[[], Any] = lambda: remote.remote(_HOME, app)
            self.actors: list[Any] = [self._make() for _ in range(count if most is None else min(count, most))]
        except BaseException:
            self.shut_down()
            raise

    def share(self, data: Any) -> None:
        """Put records where all actors read them: before `begin`; else each actor reads the data itself.

        Args:
            data: `simulations.shared_data.Shared`.

        Raises:
            RunError: there is no room for them.
        """
        try:
            self._data = ray.put(data)
        except RayError as error:
            raise RunError(f"Ray can't hold the clients' records: {_first(error)}; or use --engine inline") from error

    def begin(self, *, run_id: int, config: Mapping[str, str], log: Path | None, most: int) -> None:
        """Tell the actors what run they work for, and wait until they stand: before a round's clock starts.

        Args:
            run_id, config, log: as in `simulations.worker.Worker`.
            most: no more actors than this are kept.

        Raises:
            RunError: an actor can't start; nothing is left running.
        """
        for actor in self.actors[most:]:
            ray.kill(actor)
        del self.actors[most:]
        try:
            # Machines of a cluster may share no disk: there the books stay here, and workers ask for them.
            if "ledger" in config and _spans_machines(self.options):
                self._ledger = _ledger_actor(config["ledger"])
            self._begun = (run_id, dict(config), log, self._ledger, self._data)
            ray.get([actor.begin.remote(*self._begun) for actor in self.actors], timeout=_READY_SECONDS)
        except GetTimeoutError:  # an actor that Ray has no processor for would be waited for for ever
            count = len(self.actors)
            self.shut_down()
            raise RunError(
                f"Ray gave fewer than {count} workers a processor within {_READY_SECONDS:.0f} s; lower --workers, or "
                "free the cluster"
            ) from None
        except RayError as error:
            self.shut_down()
            raise RunError(
                f"a Ray worker can't start: {str(error).splitlines()[-1]}; or use --engine inline"
            ) from error

    def another(self, instead: Any) -> tuple[Any, Any]:
        """A new actor in another's place, who is killed if he lives; and a reference that is there once it stands."""
        with suppress(RayError):
            ray.kill(instead)
        assert self._begun is not None
        place = self.actors.index(instead)
        self.actors[place] = actor = self._make()
        return actor, actor.begin.remote(*self._begun)

    def rest(self, actors: list[Any]) -> None:
        """Have idle actors put their ledgers away: one that is killed first leaves SQLite's log beside the file."""
        if self._ledger is None and actors:
            ray.wait([actor.rest.remote() for actor in actors], num_returns=len(actors), timeout=_REST_SECONDS)

    def shut_down(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in (*getattr(self, "actors", ()), self._ledger):
            if actor is not None:
                with suppress(RayError):
                    ray.kill(actor)
        self.actors, self._ledger, self._data, self._begun = [], None, None, None
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()


def _ledger_actor(path: str) -> Any:
    """An actor on this machine that has the run's books."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Service:
        def __init__(self, home: str, path: str) -> None:
            import sys

            sys.path.insert(0, home)
            from simulations.remote_ledger import LedgerService

            self._service = LedgerService(path)

        def secret(self) -> bytes:
            return self._service.secret()

        def call(self, name: str, *args: Any, **named: Any) -> Any:
            return self._service.call(name, *args, **named)

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(Service).options(num_cpus=0, scheduling_strategy=here)
    return remote.remote(_HOME, path)


def _spans_machines(options: RayOptions) -> bool:
    """Whether workers may be on other machines: now, or later where a cluster grows."""
    return options.address is not None or sum(node["Alive"] for node in ray.nodes()) > 1  # type: ignore[no-untyped-call]


def start_ray(options: RayOptions) -> bool:
    """Start or join Ray; whether it is the caller's to shut down.

    Raises:
        RunError: it can't be started, or reached.
    """
    if ray.is_initialized():
        return False
    # The warning is about the choice made above, by RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO.
    warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
    try:
        if options.address is not None:
            ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",  # not a cluster that somebody else left running here
                num_cpus=options.workers or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # a node that isn't there in time is just that to Ray
        where = "on this machine" if options.address is None else f"at {options.address}"
        raise RunError(f"Ray can't be started {where}: {_first(error)}; or use --engine inline") from error
    return True


def _first(error: Exception) -> str:
    """The first line of what Ray has to say."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _workers(options: RayOptions) -> int:
    if options.workers:
        return options.workers
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    slots = int(resources.get("CPU", 1))
    if options.gpus_per_worker > 0:
        slots = min(slots, int(resources.get("GPU", 0) / options.gpus_per_worker))
        if slots < 1:
            raise UsageError(f"--gpus-per-worker {options.gpus_per_worker}: Ray sees no such share of a GPU")
    return max(1, slots)
