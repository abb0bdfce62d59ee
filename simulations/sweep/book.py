"""A sweep's folder: what was fixed before it began, what became of each trial, and the figures at the end.

```
sweep.json        what is searched, each trial with its result, what the search costs; written anew after each trial
plans/            the resolved plan of each trial
trials/           a run's folder each
frontier.svg      the metric over epsilon
tune/             Ray Tune's own
```

A run's own folder says whether it has ended; `sweep.json` says beside that what no run can say of itself: that it was
stopped early, or broke before it had a summary.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from security.errors import UsageError
from server.run_folder import RunFolder, reason_of, write_atomically
from shared_models.plan_file import read_plan, write_plan
from shared_models.resolve import resolve
from simulations.sweep.cost import search_costs
from simulations.sweep.trials import Trial

TrialState = Literal["waiting", "done", "stopped-early", "broken"]

JUDGED: Final = {
    "server": "the server's own test records, which chose the best trial too: its figure is better than it will be on "
    "new records; they are unprotected, disjoint from training, and no part of any epsilon (rule 11)",
    "clients": "what clients hold out, as noisy counts that are charged like the training",
}
"""What the metric looks at, by `evaluation.where`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial as far as it is known.

    Attributes:
        name: of the trial.
        settings: what it tries.
        digest: of its plan.
        state: what became of it.
        reason: why it broke, in one line; else None.
        stopped: as of its summary; None where it has none, or played all rounds.
        rounds: that were played.
        value: of the metric, of the last model that was judged; None where there is none.
        epsilon: of this run alone, over all planned rounds where its end may depend on data; None without privacy, or
            where none can be claimed.
    """

    name: str
    settings: dict[str, str]
    digest: str
    state: TrialState = "waiting"
    reason: str | None = None
    stopped: str | None = None
    rounds: int = 0
    value: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a sweep was begun with; it goes on with the same.

    Attributes:
        metric: trials are ordered by.
        larger: whether more of it is better.
        charge: whether the plan's epsilon is for the whole search.
        early_stop: whether trials that fall behind are stopped.
        judged: what the metric looks at, in words.
    """

    metric: str
    larger: bool
    charge: bool
    early_stop: bool
    judged: str


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep."""

    path: Path

    @property
    def book(self) -> Path:
        return self.path / "sweep.json"

    @property
    def frontier(self) -> Path:
        return self.path / "frontier.svg"

    @property
    def tune(self) -> Path:
        return self.path / "tune"

    def plan(self, trial: str) -> Path:
        """A trial's resolved plan."""
        return self.path / "plans" / f"{trial}.toml"

    def run(self, trial: str) -> RunFolder:
        """A trial's run."""
        return RunFolder(self.path / "trials" / trial)

    def create(self, trials: Sequence[Trial], terms: Terms) -> None:
        """Make the folder. The book comes last: without it there is no sweep.

        Raises:
            UsageError: it can't be written, or holds a sweep or a run already.
        """
        try:
            if self.book.exists() or RunFolder(self.path).plan.exists():
                raise UsageError(
                    f"{self.path}: holds a sweep or a run already; name another folder with --out, or go on with "
                    "--resume"
                )
            (self.path / "plans").mkdir(parents=True, exist_ok=True)
            (self.path / "trials").mkdir(exist_ok=True)
            for trial in trials:
                write_atomically(self.plan(trial.name), write_plan(trial.plan).encode())
        except OSError as error:
            raise UsageError(
                f"{self.path}: can't write the sweep's folder ({reason_of(error)}); choose another --out"
            ) from error
        self.write(trials, [_row(trial) for trial in trials], terms)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time may play a sweep.

        Raises:
            UsageError: another one does.
        """
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"{self.path}: another process is playing this sweep; wait for it or stop it"
                ) from None
            yield

    def read(self) -> dict[str, Any]:
        """The book.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            found = json.loads(self.book.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no sweep here (sweep.json is missing)") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.book}: can't be read") from error
        if not isinstance(found, dict) or not isinstance(found.get("trials"), list):
            raise UsageError(f"{self.book}: is not a sweep's")
        return found

    def load(self) -> tuple[list[Trial], list[Row], Terms]:
        """The sweep as it was left.

        Raises:
            UsageError: it is damaged, or a plan isn't the one it was begun with.
        """
        found = self.read()
        try:
            rows = [Row(**{key: row[key] for key in Row.__dataclass_fields__}) for row in found["trials"]]
            terms = Terms(**{key: found[key] for key in Terms.__dataclass_fields__})
        except (KeyError, TypeError):
            raise UsageError(f"{self.book}: is not a sweep's") from None
        rows.sort(key=lambda row: row.name)
        trials = []
        for row in rows:
            plan = resolve(read_plan(self.plan(row.name)))
            if plan.digest() != row.digest:
                raise UsageError(f"{self.plan(row.name)}: is not the plan that the sweep began with; put that back")
            trials.append(Trial(name=row.name, point=tuple(row.settings.items()), plan=plan))
        return trials, rows, terms

    def write(self, trials: Sequence[Trial], rows: Sequence[Row], terms: Terms) -> dict[str, Any]:
        """Write the book, and return it."""
        kept = in_order(rows, larger=terms.larger)
        costs = search_costs(trials, {row.name: self.summary(row) for row in rows})
        first = next((row for row in kept if row.state == "done" and row.value is not None), None)
        book = {
            "state": "over" if all(row.state != "waiting" for row in rows) else "unfinished",
            **asdict(terms),
            "best": None if first is None else first.name,
            "search": [asdict(cost) for cost in costs],
            "without_privacy": [trial.name for trial in trials if not trial.plan.is_private],
            "trials": [asdict(row) for row in kept],
        }
        text = json.dumps(book, indent=2, allow_nan=False) + "\n"
        write_atomically(self.book, text.encode())
        found: dict[str, Any] = json.loads(text)
        return found

    def summary(self, row: Row) -> Mapping[str, Any] | None:
        """The summary of a run that has ended by itself."""
        if row.state not in ("done", "broken"):
            return None
        with suppress(UsageError):
            return self.run(row.name).read_summary()
        return None

    def look(self, trial: Trial, terms: Terms, before: Row) -> Row:
        """What a trial's own folder says of it; `before` is what the book says."""
        folder = self.run(trial.name)
        lines = folder.read_metrics()
        row = replace(before, state="waiting", reason=None, rounds=len(lines))
        try:
            summary = folder.read_summary()
        except UsageError:
            return row if before.state == "waiting" else before
        stopped = summary["stopped"]
        state: TrialState = "broken" if stopped == "failed" else "done"
        value = (summary["final"] or {}).get(terms.metric)
        return replace(
            row,
            state=state,
            reason=summary["reason"] if state == "broken" else None,
            stopped=stopped,
            rounds=len(lines),
            value=value if value is not None and math.isfinite(value) else None,
            epsilon=summary["privacy"].get("epsilon_max"),
        )


def _row(trial: Trial) -> Row:
    return Row(
        name=trial.name,
        settings=dict(trial.point),
        digest=trial.plan.digest(),
        epsilon=trial.plan.privacy.epsilon if trial.plan.is_private else None,
    )


def in_order(rows: Sequence[Row], *, larger: bool) -> list[Row]:
    """The best first; those that were not played to their end after those that were, and without a value last."""
    places = {"done": 0, "stopped-early": 1, "broken": 2, "waiting": 3}

    def place(row: Row) -> tuple[int, bool, float, str]:
        value = 0.0 if row.value is None else row.value
        return places[row.state], row.value is None, -value if larger else value, row.name

    return sorted(rows, key=place)
