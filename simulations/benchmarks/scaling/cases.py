"""What is played: clients with 20 rows of 64 and a small network, in federations of several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from simulations.benchmarks.engines.data import made
from simulations.benchmarks.engines.measure import Figures, run
from simulations.benchmarks.engines.playing import Task
from simulations.benchmarks.engines.works import CLASSES, WORKS, Work
from simulations.benchmarks.scaling.cost_model import Load

ENGINES: Final = ("inline", "ray")
_HIDDEN, _WIDE = 32, 512
_BYTES: Final = 4  # of a parameter on the wire


@dataclass(frozen=True, kw_only=True)
class Case:
    """One federation.

    Attributes:
        engine: where clients run.
        clients: how many there are.
        cohort: how many of them take part in a round.
        private: whether clients train by DP-SGD, and are charged for it in a ledger.
        wide: whether the network is a larger one, to tell bytes from clients.
    """

    engine: str
    clients: int
    cohort: int
    private: bool = False
    wide: bool = False

    @property
    def work(self) -> Work:
        """As the engines' benchmark knows it: its work B in another size."""
        hidden = _WIDE if self.wide else _HIDDEN
        return replace(
            WORKS["B"], users=self.clients, cohort=self.cohort, private=self.private, options={"hidden": [hidden]}
        )

    @property
    def parameters(self) -> int:
        """Of the network."""
        (inputs,), hidden = self.work.shape, _WIDE if self.wide else _HIDDEN
        return (inputs + 1) * hidden + (hidden + 1) * CLASSES

    @property
    def round_bytes(self) -> float:
        """Of parameters, to the cohort and back."""
        return 2.0 * _BYTES * self.parameters * self.cohort


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of a case.

    Attributes:
        case: which.
        figures: of its process.
    """

    case: Case
    figures: Figures

    @property
    def round(self) -> float | None:
        """Median seconds of a warm round."""
        return median(self.figures.later) if self.figures.later else None

    @property
    def client(self) -> float | None:
        """Seconds of a warm round for each client in it."""
        return None if self.round is None else self.round / self.case.cohort

    def observations(self) -> list[tuple[Load, float]]:
        """What a cost model learns from: a start with a first round, and a warm round; in seconds."""
        if self.round is None or self.figures.first is None:
            return []
        warm = Load(rounds=1, client_rounds=self.case.cohort, bytes=self.case.round_bytes)
        first = replace(warm, starts=1, clients=self.case.clients)
        return [(first, self.figures.first), (warm, self.round)]


def cases(sizes: Sequence[int], engines: Iterable[str], *, cohort: int) -> list[Case]:
    """All of them: for each engine, with and without privacy, each size with everybody in each round.

    Beside those, without privacy, each size with a cohort that stays the same; and the smallest size with a larger
    network.

    Args:
        sizes: numbers of clients.
        engines: where they run.
        cohort: the one that stays the same; sizes that have no more clients leave it out.
    """
    found = []
    for engine in engines:
        for private in (False, True):
            found += [Case(engine=engine, clients=size, cohort=size, private=private) for size in sizes]
            least = min(sizes)
            found.append(Case(engine=engine, clients=least, cohort=least, private=private, wide=True))
        found += [Case(engine=engine, clients=size, cohort=cohort) for size in sizes if size > cohort]
    return found


def measure(wanted: Iterable[Case], *, rounds: int, processes: int, folder: Path) -> Iterator[Measured]:
    """Play each case in a process of its own, one after the other.

    Args:
        wanted: what is played.
        rounds: of each, at least 2: the first is told apart.
        processes: actors, where there are any.
        folder: for the arrays.
    """
    for case in wanted:
        data = made(case.work, folder / "data").absolute()
        task = Task(contender=case.engine, work=case.work, data=str(data), rounds=rounds, processes=processes)
        yield Measured(case=case, figures=run(task, case.engine, folder=folder))
