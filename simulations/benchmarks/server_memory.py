"""How much memory a server needs for a round, by the number of updates.

    python -m simulations.benchmarks.server_memory
    python -m simulations.benchmarks.server_memory --updates 5 50 --values 1000000 --contenders veil flower

Each case is a new process that plays one round: the model goes out, updates of the model's size come in one after the
other, made on the spot, and the next model is made. Quoted is the most memory that the process had at once above what
it held before there was a model, as a multiple of the model's own size (float32). So all is counted: the model, the
model as it is sent, the update that is just there, sums, and the next model.

`veil` is the server's own way with fedavg, `veil run` two whole rounds of it with checkpoints and metrics; names of
robust strategies stand for the same way with these. `flower` is Flower's FedAvg, given all replies as its `start` does
it, and `flower fedmedian` the same with FedMedian.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from rich.console import Console
from rich.table import Table

from security.errors import RunError
from server.federation import Federation
from server.observer import RoundRecord
from server.rounds.open import OpenRounds
from server.rounds.playing import Federated
from server.run_folder import RunFolder
from server.run_state import RunState
from server.strategies import make_strategy
from shared_models.parameters import Layout, Parameters, as_sent, to_arrays
from shared_models.plan import Plan
from shared_models.plan_federation import ROBUST_STRATEGIES
from shared_models.plan_file import plan_from
from shared_models.protocol import ARRAYS, HEAD_HASH, HEAD_POSITION, LEDGER, METRICS, TRAIN_LOSS, WEIGHT
from simulations.local_grid import LocalGrid

CONTENDERS: Final = ("veil", "veil run", "fedmedian", "fedtrimmedavg", "krum", "flower", "flower fedmedian")
_HUNGRY: Final = ("krum", "flower fedmedian")
"""Take several times the memory of all updates, so they are asked for the smallest number of updates alone."""

_HOME: Final = Path(__file__).resolve().parents[2]  # the folder that holds our packages
_BLOCK: Final = 1 << 14  # values that an update repeats
_ROUNDS: Final = 2


@dataclass(frozen=True)
class Figure:
    """What one case took.

    Attributes:
        contender: one of `CONTENDERS`.
        updates: in a round.
        model: bytes of the model, as float32.
        peak: most bytes at once above what was there before the model.
    """

    contender: str
    updates: int
    model: int
    peak: int

    @property
    def times(self) -> float:
        """The peak as a multiple of the model."""
        return self.peak / self.model


class Clients(LocalGrid):
    """Clients that answer with updates of the model's size; nothing of a reply is kept here."""

    def __init__(self, number: int, layout: Layout) -> None:
        super().__init__([f"client-{i:04}" for i in range(number)])
        self._layout = layout

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        for message in messages:
            yield Message(self._reply(message.metadata.dst_node_id), reply_to=message)

    def _reply(self, node: int) -> RecordDict:
        arrays = {name: _array(shape, seed=node) for name, shape in self._layout.entries}
        return RecordDict(
            {
                ARRAYS: ArrayRecord(arrays),
                METRICS: MetricRecord({WEIGHT: 100 + node, TRAIN_LOSS: 1.0}),
                LEDGER: ConfigRecord({HEAD_POSITION: 1, HEAD_HASH: "0" * 64}),
            }
        )

    def close(self) -> None:
        return None


def _array(shape: tuple[int, ...], seed: int) -> Array:
    """Normal values of scale 0.01, a block again and again, in bytes that are written once."""
    values = int(np.prod(shape))
    block = (0.01 * np.random.default_rng(seed).standard_normal(_BLOCK)).astype(np.float32).tobytes()
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    whole, rest = divmod(4 * values, len(block))
    return Array("float32", shape, "numpy.ndarray", b"".join([head.getvalue(), *([block] * whole), block[:rest]]))


def layout(values: int, arrays: int) -> Layout:
    """A model of so many values, in arrays of about the same size."""
    sizes = [values // arrays + (i < values % arrays) for i in range(arrays)]
    return Layout(entries=tuple((f"layer-{i}.weight", (size,)) for i, size in enumerate(sizes)), wire="float32")


def _plan(name: str, clients: int) -> Plan:
    return plan_from(
        {
            "privacy": {"trust": "none"},
            "data": {"partition": {"kind": "iid", "clients": clients}},
            "federation": {"strategy": name, "rounds": _ROUNDS},
            "evaluation": {"every": _ROUNDS + 1},
        },
        where="benchmark",
    )


def _zeros(of: Layout) -> Parameters:
    return {name: np.zeros(shape, np.float32) for name, shape in of.entries}


def _veil(name: str, updates: int, of: Layout, folder: Path) -> None:
    """One round of Veil's server, as the federation plays it."""
    plan, grid = _plan(name, updates), Clients(updates, of)
    rounds = OpenRounds(
        Federated(
            plan=plan,
            grid=grid,
            layout=of,
            strategy=make_strategy(plan),
            hear=lambda *_: None,
            tell=lambda _: None,
            folder=folder,
        )
    )
    played = rounds.play(1, grid.client_nodes, updates, as_sent(_zeros(of), of), RunState(), lambda: None)
    if played.model is None or len(played.tally.updates) != updates:
        raise RunError(f"{name}: the round made no model of {updates} updates")


class _Silent:
    """Watches a run and says nothing."""

    def started(self, plan: Plan, clients: int, done: int) -> None: ...

    def note(self, text: str) -> None: ...

    def round_done(self, record: RoundRecord) -> None: ...


def _whole_run(updates: int, of: Layout, folder: Path) -> None:
    """Whole rounds, with all that is written."""
    plan, run = _plan("fedavg", updates), RunFolder(folder / "run")
    run.create(plan)
    outcome = Federation(
        plan=plan,
        grid=Clients(updates, of),
        layout=of,
        initial=_zeros(of),
        evaluate=None,
        folder=run,
        observer=_Silent(),
    ).run()
    if outcome.state.round != _ROUNDS:
        raise RunError(f"the run ended early: {outcome.reason}")


def _flower(kind: type[strategy.FedAvg], updates: int, of: Layout, _: Path) -> None:
    """One round as `Strategy.start` plays it: all replies of a phase are there before the first is looked at."""
    grid, model = Clients(updates, of), to_arrays(_zeros(of), of)
    own = kind(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0, weighted_by_key=WEIGHT)
    replies = grid.send_and_receive(own.configure_train(1, model, ConfigRecord(), grid))
    arrays = own.aggregate_train(1, replies)[0]
    if arrays is None:
        raise RunError("flower: the round made no model")


Play = Callable[[int, Layout, Path], None]
_PLAYS: Final[Mapping[str, Play]] = {
    "veil": partial(_veil, "fedavg"),
    "veil run": _whole_run,
    **{name: partial(_veil, name) for name in ROBUST_STRATEGIES},
    "flower": partial(_flower, strategy.FedAvg),
    "flower fedmedian": partial(_flower, strategy.FedMedian),
}


def play(contender: str, updates: int, of: Layout) -> None:
    """Play one case in this process.

    Raises:
        RunError: no model came of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        _PLAYS[contender](updates, of, Path(folder))


def measure(contender: str, updates: int, values: int, arrays: int) -> Figure:
    """Play one case in a new process.

    Raises:
        RunError: it failed; the text is its last line.
    """
    case = ["--case", contender, "--updates", str(updates), "--values", str(values), "--arrays", str(arrays)]
    found = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-m", "simulations.benchmarks.server_memory", *case],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(_HOME)},
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or [f"ended with {found.returncode}"])[-1]
        raise RunError(f"{contender}, {updates} updates: {last}")
    return Figure(contender, updates, model=4 * values, peak=int(found.stdout))


def _case(contender: str, updates: int, values: int, arrays: int) -> int:
    """Peak of one case in this process, which should be a new one."""
    play(contender, 7, layout(1000, arrays))  # what is imported on the way
    gc.collect()
    before = psutil.Process().memory_info().rss
    with suppress(OSError):  # only Linux can forget an earlier peak, which imports have made
        Path("/proc/self/clear_refs").write_text("5")
    play(contender, updates, layout(values, arrays))
    return _peak() - before


def _peak() -> int:
    """Most resident bytes of this process."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def table(found: Sequence[Figure]) -> Table:
    """Multiples of the model, by contender and number of updates."""
    numbers = sorted({figure.updates for figure in found})
    shown = Table(title="Peak memory of a server, as multiples of the model", title_justify="left")
    shown.add_column("contender")
    for number in numbers:
        shown.add_column(f"{number} updates", justify="right")
    for contender in dict.fromkeys(figure.contender for figure in found):
        own = {figure.updates: f"{figure.times:.2f}" for figure in found if figure.contender == contender}
        shown.add_row(contender, *(own.get(number, "") for number in numbers))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--values", type=int, default=25_000_000, help="of the model, four bytes each")
    parser.add_argument("--arrays", type=int, default=10, help="that the values are in")
    parser.add_argument("--contenders", nargs="+", choices=sorted(_PLAYS), default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--case", choices=sorted(_PLAYS), help=argparse.SUPPRESS)  # a process of `measure`
    given = parser.parse_args(arguments)
    if given.case:
        print(_case(given.case, given.updates[0], given.values, given.arrays))
        return
    found = []
    for contender in given.contenders:
        for updates in [min(given.updates)] if contender in _HUNGRY else given.updates:
            found.append(measure(contender, updates, given.values, given.arrays))
    Console(width=120).print(table(found))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(figure) | {"times": figure.times} for figure in found], indent=2))


if __name__ == "__main__":
    main()
