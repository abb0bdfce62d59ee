"""A simulated run from plan to folder: the same ServerApp and ClientApp as anywhere, over a grid on this machine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flwr.app import Context, RecordDict

from client.books import Books, create_simulated
from client.company_trainer import company_size
from client.datasets.features import as_seen, seen_parts, seen_records
from client.datasets.partition import test_records
from client.datasets.registry import load
from client.planting import PLANTED, Planting, to_json
from client.trainer import choose_device
from client.workplace import split_key
from privacy.ledger import Ledger, LedgerError
from security.errors import RunError, UsageError
from server.app import ServerJob, server_app
from server.checkpoint import Checkpoint, load_checkpoint
from server.evaluation import TestData
from server.federation import Outcome
from server.observer import Both, Observer, Silent
from server.run_folder import RunFolder
from server.strategies import make_strategy
from shared_models import own
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.baselines import baselines
from simulations.beside import beside
from simulations.inline_grid import InlineGrid
from simulations.local_grid import Hear, LocalGrid
from simulations.personal import judge_personal
from simulations.worker import DEFAULT_APP, MODELS

if TYPE_CHECKING:  # they bring Ray with them
    from server.tracking import Tracking
    from simulations.ray_workers import RayWorkers

Engine = Literal["ray", "inline"]
_STATES = "clients.json"


@dataclass(frozen=True)
class Settings:
    """How to run a plan, as opposed to what: none of it changes the result.

    Attributes:
        engine: where clients run.
        workers: Ray actors; 0 for one a processor.
        gpus_per_worker: GPU share of an actor.
        ray_address: a running cluster; None for this machine.
        actors: of Ray, started before with the same app and options (`simulations.early_ray`); for one run.
        app: the ClientApp, as `package.module:name`.
        models: networks of the user's own, by the name that the plan gives (`shared_models.own`).
        observer: is told of each round.
        track: trackers that are told of the run, as `KIND=WHERE` (`server.tracking`).
        called: what trackers call the run; None for the folder's last name.
        plantings: canaries of an auditor's; they do change the result.
        hear: the auditor, who is told of all that comes to the server.
        told: what an app that isn't Veil's own is told beside plan and ledger, by name; it does change the result.
    """

    engine: Engine = "ray"
    workers: int = 0
    gpus_per_worker: float = 0.0
    ray_address: str | None = None
    actors: RayWorkers | None = None
    app: str = DEFAULT_APP
    models: Mapping[str, str] = field(default_factory=dict)
    observer: Observer = field(default_factory=Silent)
    track: tuple[str, ...] = ()
    called: str | None = None
    plantings: tuple[Planting, ...] = ()
    hear: Hear | None = None
    told: Mapping[str, str] = field(default_factory=dict)


def start_run(plan: Plan, out: Path | None, settings: Settings) -> tuple[RunFolder, Outcome]:
    """Simulate a plan in a new folder (`runs/NAME-TIMESTAMP` unless named).

    Raises:
        UsageError: the plan, its data or the folder won't do; nothing was run.
        RunError: the run could not go on.
    """
    begun = time.monotonic()
    own.bind(settings.models)
    _check_trackers(settings)
    plan = resolve(plan)
    # What is wrong with strategy, device or data is found out before a folder is made and before anybody is charged.
    make_strategy(plan)
    if settings.ray_address is None:
        choose_device(plan.training.device, plan.training.precision)
    with _stage(plan, settings) as stage:
        folder = RunFolder(out or new_folder(plan.name))
        folder.create(plan)
        with folder.locked():
            create_simulated(folder.ledger)
            return folder, _run(plan, folder, stage, None, settings, begun)


def new_folder(name: str) -> Path:
    """`runs/NAME-TIMESTAMP`, with a number behind it if that is taken."""
    stem = Path("runs") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    candidates = itertools.chain([stem], (stem.with_name(f"{stem.name}-{i}") for i in itertools.count(2)))
    return next(path for path in candidates if not path.exists())


def resume_run(path: Path, settings: Settings) -> tuple[RunFolder, Outcome | None]:
    """Go on with a run from its last checkpoint; an outcome of None says that it was finished already.

    Raises:
        UsageError: no run there, or its files are damaged.
        RunError: the run could not go on.
    """
    begun = time.monotonic()
    folder = RunFolder(path)
    own.bind(settings.models)
    _check_trackers(settings)
    plan = resolve(folder.read_plan())
    with folder.locked():
        checkpoint = load_checkpoint(folder.checkpoints, plan.digest())
        if checkpoint is not None and _finished(folder, plan, checkpoint):
            return folder, None
        with _stage(plan, settings) as stage:
            if not folder.ledger.is_file():
                if checkpoint is not None or folder.read_metrics():
                    raise UsageError(
                        f"{folder.ledger}: is missing, and with it what clients have spent; put it back, or start a "
                        "new run"
                    )
                create_simulated(folder.ledger)  # the run was cut off before anybody was asked
            # One that can't be used is found out before anybody is asked.
            Books.of_simulation(folder.ledger).ledger.close()
            return folder, _run(plan, folder, stage, checkpoint, settings, begun)


def _finished(folder: RunFolder, plan: Plan, checkpoint: Checkpoint) -> bool:
    if not folder.summary.is_file():
        return False
    summary = folder.read_summary()
    stopped = summary.get("stopped")
    if plan.evaluation.baselines and summary.get("baselines") is None:
        return False
    return stopped in ("target", "plateau") or checkpoint.state.round >= plan.federation.rounds


def load_data(plan: Plan) -> tuple[TestData, tuple[str, ...]]:
    """The server's test data and the clients' ids. Loading here also finds out what is wrong before anything starts.

    Raises:
        UsageError: the data can't be read, or can't be spread over the plan's clients.
    """
    key = split_key(plan)
    if plan.features is None:
        kept = test_records(plan.data, seed=plan.seed, split_key=key, whole=plan.spreads_all, parts=plan.holds_out)
    else:
        kept = load(plan.data, split_key=key, whole=plan.spreads_all).test
    if len(kept) == 0 and plan.evaluation.where == "server":
        raise UsageError("evaluation.where = 'server': no test records; raise data.test_fraction, or set it to 'none'")
    spread = seen_parts if plan.holds_out else seen_records
    clients = tuple(spread(plan, split_key=key))  # features are computed here, before workers look for them
    if len(clients) < plan.federation.min_clients:
        raise UsageError(
            f"federation.min_clients = {plan.federation.min_clients} is more than the {len(clients)} clients there are"
        )
    test = as_seen(plan, kept, cached=True)
    return TestData(test.x, test.y), clients


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """What a run is played with.

    Attributes:
        test: the server's data.
        clients: ids, in order.
        workers: Ray's actors; None inline.
    """

    test: TestData
    clients: tuple[str, ...]
    workers: RayWorkers | None = None


@contextmanager
def _stage(plan: Plan, settings: Settings) -> Iterator[_Stage]:
    """Load the data; on Ray, while its workers start.

    Raises:
        UsageError: as `load_data`.
        RunError: Ray can't be started.
    """
    if settings.engine == "inline":
        test, clients = load_data(plan)
        yield _Stage(test=test, clients=clients)
        return
    from simulations.ray_workers import RayOptions, RayWorkers
    from simulations.shared_data import shared_data

    if settings.actors is not None and not settings.actors.actors:
        raise UsageError("these actors have served a run and are gone; start others for the next one")
    if settings.actors is not None and settings.actors.app != settings.app:
        raise UsageError(f"actors that were started for {settings.actors.app} can't run {settings.app}")
    options = RayOptions(
        workers=settings.workers, gpus_per_worker=settings.gpus_per_worker, address=settings.ray_address
    )
    loading = beside(lambda: (*load_data(plan), shared_data(plan)))
    # In this thread, for Ray wants to hear of signals.
    workers = settings.actors or RayWorkers(options, app=settings.app, most=plan.data.clients)
    try:
        test, clients, data = loading.result()
        del loading
        if data is not None:
            workers.share(data)
            del data  # it lies in Ray's store now
        yield _Stage(test=test, clients=clients, workers=workers)
    finally:
        workers.shut_down()


def failure(folder: RunFolder, outcome: Outcome) -> RunError:
    """The error of a failed run, for who calls from Python."""
    return RunError(f"{folder.path}: {outcome.reason}{client_log_hint(folder)}")


def client_log_hint(folder: RunFolder) -> str:
    """Where to read more, if a client that failed could say where."""
    return f"; {folder.client_log.name} says where in the code" if folder.client_log.is_file() else ""


def _run(
    plan: Plan,
    folder: RunFolder,
    stage: _Stage,
    checkpoint: Checkpoint | None,
    settings: Settings,
    begun: float,
) -> Outcome:
    grid = _grid(settings, stage, plan, folder)
    grid.hear = settings.hear
    observer, tracking = _observers(settings, folder)
    try:
        if checkpoint is not None and _STATES in checkpoint.attachments:
            grid.load_states(checkpoint.attachments[_STATES])
        attachments: Callable[[], Mapping[str, bytes]] = lambda: {_STATES: grid.save_states()}  # noqa: E731
        job = ServerJob(
            plan=plan,
            folder=folder,
            test=stage.test,
            observer=observer,
            resume=checkpoint,
            attachments=attachments,
            identities=virtual_identities(plan, folder.ledger, stage.clients),
            judge_personal=lambda outcome: judge_personal(plan, grid, outcome),
            begun=begun,
        )
        server_app(job)(grid, _context(grid))
    finally:
        grid.close()
        if tracking is not None:
            tracking.ended()
        with suppress(LedgerError):  # what is wrong with it has been said
            Ledger.open(folder.ledger, durable=False).close()  # moves SQLite's log, which killed workers leave, into it
    assert job.outcome is not None
    if plan.evaluation.baselines and job.outcome.stopped != "failed":
        table = baselines(plan, stage.test, job.outcome.state.evaluation or {})
        folder.write_summary({**folder.read_summary(), "baselines": table})
    return job.outcome


def _check_trackers(settings: Settings) -> None:
    """Raises UsageError where a tracker can't be had: before anything starts."""
    if settings.track:
        from server.tracking import parse_trackers

        parse_trackers(settings.track)


def _observers(settings: Settings, folder: RunFolder) -> tuple[Observer, Tracking | None]:
    """Who is told of the run; and the trackers, which are told of its end too."""
    if not settings.track:
        return settings.observer, None
    from server.tracking import Tracking, parse_trackers

    trackers = parse_trackers(settings.track)
    tracking = Tracking(trackers, folder=folder, called=settings.called, warn=settings.observer.note)
    return Both(settings.observer, tracking), tracking


def virtual_identities(plan: Plan, ledger: Path, clients: Iterable[str]) -> dict[str, str]:
    """Public keys of the virtual clients, which follow from the secret beside the run's ledger; for secure sums alone.

    Raises:
        LedgerError: ledger or secret can't be read.
    """
    if plan.privacy.trust != "distributed":
        return {}
    books = Books.of_simulation(ledger)
    try:
        return {client: books.owner(client).public_hex for client in clients}
    finally:
        books.ledger.close()


def _grid(settings: Settings, stage: _Stage, plan: Plan, folder: RunFolder) -> LocalGrid:
    # A worker may have another working folder.
    config = {**settings.told, "plan": write_plan(plan), "ledger": str(folder.ledger.resolve())}
    log = folder.client_log.resolve()
    if own.bound():
        config[MODELS] = json.dumps(own.bound())
    if settings.plantings:
        config[PLANTED] = to_json(settings.plantings)
    together = 1 if plan.training.company == 1 else company_size(plan, build_for(plan))
    if stage.workers is None:
        return InlineGrid(stage.clients, config=config, app=settings.app, log=log, together=together)
    from simulations.ray_grid import RayGrid

    return RayGrid(stage.clients, config=config, app=settings.app, log=log, workers=stage.workers, together=together)


def _context(grid: LocalGrid) -> Context:
    return Context(run_id=grid.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
