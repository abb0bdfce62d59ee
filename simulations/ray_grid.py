"""A grid on Ray: one persistent actor for each processor slot, on this machine or a cluster.

A model that is sent to many clients goes into Ray's object store once, whatever each of them is told beside it. Each
actor works off a batch of clients and streams the replies back; batches shrink towards the end of a round, so that no
actor is left with a long queue while others idle. A dead actor is replaced and its unanswered clients are tried once
more, one at a time.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.metadata import Metadata

from security.errors import RunError, UsageError
from shared_models.faults import Fault
from shared_models.flower_messages import error_reply
from simulations.local_grid import LocalGrid
from simulations.worker import DEFAULT_APP

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


_READY_SECONDS = 180.0
_REST_SECONDS = 5.0
_PLACE = ConfigRecord()  # keeps an array record's place while it travels by itself: clients digest a request in order
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


@dataclass(frozen=True, slots=True)
class _Task:
    """One message on its way to one client."""

    metadata: Metadata
    arrays: Any  # reference to its arrays in the object store, which others share
    content: RecordDict  # all of it but the arrays, whose places are kept
    client: str
    state: RecordDict
    retried: bool = False


def _actor_class() -> type:
    """The actor's class, made here so that it travels to the worker by value, not as the name of a module.

    Ray puts the driver's working folder in front of a worker's path; a user's own `client/` or `simulations/` there
    would be imported for ours. So the worker puts our home in front before it imports anything of ours.
    """

    class ClientActor:
        """Runs in a process of its own: a worker that answers batches."""

        def __init__(self, home: str, app: str, run_id: int, config: Any, log: Path | None, ledger: Any) -> None:
            import logging
            import sys

            sys.path.insert(0, home)
            logging.getLogger("flwr").setLevel(logging.ERROR)
            from simulations.remote_ledger import use_remote
            from simulations.worker import Worker

            if ledger is not None:
                use_remote(config["ledger"], ledger)
            self._worker = Worker(app, run_id, config, log)

        def ready(self) -> bool:
            """Answers once the worker stands."""
            return True

        def work(self, arrays: Any, batch: list[Any]) -> Iterator[Any]:
            """Answer a batch of messages with the same arrays: lists of replies and new states, in order."""
            wholes: dict[int, Any] = {}  # one content may be many clients'
            asked = []
            for metadata, content, client, state in batch:
                if id(content) not in wholes:
                    records = {name: arrays.get(name, record) for name, record in content.items()}
                    wholes[id(content)] = type(content)(records)
                asked.append((metadata, wholes[id(content)], client, state))
            yield from self._worker.answer(asked)

        def rest(self) -> None:
            """Puts the ledgers of this process away; the last call."""
            from client.books import put_away

            put_away()

    return ClientActor


@dataclass
class _Slot:
    """An actor and what it is doing."""

    actor: Any
    replies: Any = None  # its stream, while it works
    queue: deque[_Task] | None = None  # tasks of the batch not yet answered, in order


class RayGrid(LocalGrid):
    """Virtual clients on Ray actors.

    Args:
        clients: stable ids, in order.
        options: how to use Ray.
        run_id, app, config, log: as in `InlineGrid`; workers on machines without the log's folder use their stderr.

    Raises:
        RunError: Ray can't be started, or the cluster can't be reached.
    """

    def __init__(
        self,
        clients: Sequence[str],
        *,
        config: Mapping[str, str],
        options: RayOptions | None = None,
        app: str = DEFAULT_APP,
        run_id: int = 1,
        log: Path | None = None,
    ) -> None:
        super().__init__(clients, run_id=run_id)
        options = options or RayOptions()
        self._owns_ray = _start_ray(options)
        remote: Any = ray.remote(_actor_class()).options(
            num_cpus=1, num_gpus=options.gpus_per_worker, max_concurrency=1
        )
        # Machines of a cluster may share no disk: there the books stay here, and workers ask for them.
        self._ledger = _ledger_actor(config["ledger"]) if "ledger" in config and _spans_machines(options) else None
        self._make_actor: Callable[[], Any] = lambda: remote.remote(_HOME, app, run_id, dict(config), log, self._ledger)
        self._slots = [_Slot(self._make_actor()) for _ in range(min(_workers(options), len(clients)))]
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        """Before a round's clock starts. An actor that Ray has no processor for would be waited for for ever."""
        try:
            ray.get([slot.actor.ready.remote() for slot in self._slots], timeout=_READY_SECONDS)
        except GetTimeoutError:
            count = len(self._slots)
            self.close()
            raise RunError(
                f"Ray gave fewer than {count} workers a processor within {_READY_SECONDS:.0f} s; lower --workers, or "
                "free the cluster"
            ) from None
        except RayError as error:
            self.close()
            raise RunError(
                f"a Ray worker can't start: {str(error).splitlines()[-1]}; or use --engine inline"
            ) from error

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = deque(self._tasks(messages))
        try:
            while waiting or any(slot.replies is not None for slot in self._slots):
                for slot in self._slots:
                    if waiting and slot.replies is None:
                        self._give(slot, waiting)
                busy = {slot.replies: slot for slot in self._slots if slot.replies is not None}
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=left, fetch_local=False)
                if not ready:
                    return
                yield from self._next(busy[ready[0]], waiting)
        finally:
            self._abandon()

    def _tasks(self, messages: Sequence[Message]) -> Iterator[_Task]:
        """One task a message; messages that hold the same arrays share one copy of them in the object store."""
        stored: dict[tuple[tuple[str, int], ...], Any] = {}
        parts: dict[int, tuple[Any, RecordDict]] = {}
        for message in messages:
            content = message.content
            if id(content) not in parts:
                arrays = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
                key = tuple((name, id(record)) for name, record in arrays.items())
                if key not in stored:
                    stored[key] = ray.put(arrays)
                rest = RecordDict({name: _PLACE if name in arrays else record for name, record in content.items()})
                parts[id(content)] = stored[key], rest
            client = self._clients[message.metadata.dst_node_id]
            yield _Task(message.metadata, *parts[id(content)], client, self._states[client])

    def _give(self, slot: _Slot, waiting: deque[_Task]) -> None:
        """Give an idle actor its next batch: half of its fair share of what is left, so the end is even."""
        size = 1 if waiting[0].retried else max(1, len(waiting) // (2 * len(self._slots)))
        batch = [waiting.popleft()]
        while waiting and len(batch) < size and waiting[0].arrays is batch[0].arrays and not waiting[0].retried:
            batch.append(waiting.popleft())
        slot.queue = deque(batch)
        slot.replies = slot.actor.work.options(num_returns="streaming").remote(
            batch[0].arrays, [(task.metadata, task.content, task.client, task.state) for task in batch]
        )

    def _next(self, slot: _Slot, waiting: deque[_Task]) -> list[Message]:
        """The next replies of a working actor; none at the end of its batch, or when its clients are to be retried."""
        assert slot.queue is not None
        try:
            answers = ray.get(next(slot.replies))
        except StopIteration:
            slot.replies = slot.queue = None
            return []
        except RayError:  # the actor died, or Ray lost what it had sent
            return self._replace(slot, waiting)
        for _, state in answers:
            self._states[slot.queue.popleft().client] = state
        return [reply for reply, _ in answers]

    def _replace(self, slot: _Slot, waiting: deque[_Task]) -> list[Message]:
        """Put a new actor in a dead one's place. Its clients are tried once more; nothing of them had left it."""
        tasks, slot.queue, slot.replies = list(slot.queue or ()), None, None
        with suppress(RayError):
            ray.kill(slot.actor)
        slot.actor = self._make_actor()
        waiting.extend(replace(task, retried=True) for task in tasks if not task.retried)
        lost = [task for task in tasks if task.retried]  # at most one: retried tasks travel alone
        return [error_reply(task.metadata, Fault.UNREACHABLE) for task in lost]

    def _abandon(self) -> None:
        """Stop what still runs (a deadline passed, or the caller left): its replies would be late."""
        for slot in self._slots:
            if slot.replies is not None:
                ray.kill(slot.actor)
                slot.actor, slot.replies, slot.queue = self._make_actor(), None, None

    def close(self) -> None:
        if self._ledger is None:  # a process that is killed first leaves SQLite's log beside the ledger
            resting = [slot.actor.rest.remote() for slot in self._slots if slot.replies is None]
            if resting:
                ray.wait(resting, num_returns=len(resting), timeout=_REST_SECONDS)
        for slot in self._slots:
            with suppress(RayError):
                ray.kill(slot.actor)
        self._slots = []
        if self._ledger is not None:
            with suppress(RayError):
                ray.kill(self._ledger)
            self._ledger = None
        if self._owns_ray:
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


def _start_ray(options: RayOptions) -> bool:
    """Start or join Ray; whether it is ours to shut down."""
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
        raise RunError(f"Ray can't be started {where}: {str(error).splitlines()[0]}; or use --engine inline") from error
    return True


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
