"""Finished runs side by side: what their plans differ in, how good their models are, and what they cost.

Whatever makes two runs no fair comparison is said with them, never hidden: other data, other evaluation records,
epsilons about something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from security.errors import UsageError
from server.run_folder import RunFolder

_DATA: Final = ("data.name", "data.path", "data.card", "data.text", "data.person_column", "data.max_rows_per_person")
_HELD_OUT: Final = ("evaluation.where", "data.test_fraction", "seed")
_OF_CLIENTS: Final = ("data.partition", "data.leave_out")
_SAME_EPSILON: Final = ("unit", "trust", "relation", "delta")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A round that was evaluated.

    Attributes:
        round: its number.
        value: of the comparison's metric.
        epsilon: largest epsilon spent by then; None without privacy or without a bound.
    """

    round: int
    value: float
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run.

    Attributes:
        name: its folder.
        plan: the values of the keys in which the plans differ.
        final: metrics of the last model; empty if it never was evaluated.
        unit, trust, relation, delta: what its epsilon is about; None without privacy.
        epsilon: largest of its clients; None without privacy or without a bound.
        claim: "stands", "simulated", "withdrawn" or "none": whether the epsilon is claimed.
        conditions: codes of the conditions that don't hold.
        rounds, stopped, seconds, up, down, faults: as in `summary.json`.
        curve: of the comparison's metric.
    """

    name: str
    plan: Mapping[str, Any]
    final: Mapping[str, float]
    unit: str | None
    trust: str
    relation: str | None
    delta: float | None
    epsilon: float | None
    claim: str
    conditions: tuple[str, ...]
    rounds: int
    stopped: str | None
    seconds: float
    up: int | None
    down: int | None
    faults: int
    curve: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """All of them.

    Attributes:
        metric: that curves are of: the first run's plan's.
        rows: the runs, as they were named.
        differing: keys of the plan that are not the same for all.
        notes: why runs can't be compared, one sentence each; empty if they can.
    """

    metric: str
    rows: tuple[RunRow, ...]
    differing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all final metrics, in order."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.final))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "metrics": list(self.metrics)}


def compare(folders: Sequence[RunFolder]) -> RunComparison:
    """Compare finished runs.

    Raises:
        UsageError: there are fewer than two, one twice, one is not finished, or its files can't be read.
    """
    if len(folders) < 2:
        raise UsageError("give the folders of two runs or more")
    names = [str(folder.path) for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice}: is there twice; name each run once")
    plans = [folder.read_plan() for folder in folders]
    flat = [_flat(plan.model_dump(mode="json")) for plan in plans]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differing = tuple(key for key in keys if key != "name" and len({repr(one.get(key)) for one in flat}) > 1)
    metric = plans[0].evaluation.metric
    rows = tuple(
        _row(folder, {key: one.get(key) for key in differing}, metric)
        for folder, one in zip(folders, flat, strict=True)
    )
    return RunComparison(metric=metric, rows=rows, differing=differing, notes=tuple(_notes(rows, differing, flat)))


def _row(folder: RunFolder, plan: Mapping[str, Any], metric: str) -> RunRow:
    summary = folder.read_summary()
    try:
        privacy, sent = summary["privacy"], summary["bytes"]
        private = privacy["trust"] != "none"
        lacking = tuple(_code(remark) for remark in privacy.get("withdrawn", ())) if private else ()
        simulated = summary["setting"] == "simulation"
        broken = [code for code in lacking if code not in ("deployed", "secret-noise")]
        claim = "none" if not private else "stands" if privacy["claim"] else "simulated"
        if claim == "simulated" and (broken or not simulated):
            claim = "withdrawn"
        return RunRow(
            name=str(folder.path),
            plan=plan,
            final=summary["final"] or {},
            unit=privacy["unit"],
            trust=privacy["trust"],
            relation=privacy.get("relation"),
            delta=privacy.get("delta"),
            epsilon=privacy.get("epsilon_max"),
            claim=claim,
            conditions=lacking,
            rounds=summary["rounds"],
            stopped=summary["stopped"],
            seconds=summary["seconds"]["total"],
            up=sent["up"],
            down=sent["down"],
            faults=len(summary["faults"]),
            curve=tuple(_curve(folder.read_metrics(), metric)),
        )
    except KeyError as error:
        raise UsageError(
            f"{folder.summary}: lacks {error}, which summaries of this version have; play the run again"
        ) from error


def _code(remark: Any) -> str:
    return str(remark["code"]) if isinstance(remark, Mapping) else "other"


def _curve(lines: Sequence[Mapping[str, Any]], metric: str) -> list[Point]:
    return [
        Point(round=line["round"], value=line["evaluation"][metric], epsilon=line.get("epsilon_max"))
        for line in lines
        if line.get("evaluation") and metric in line["evaluation"]
    ]


def _notes(rows: Sequence[RunRow], differing: Sequence[str], flat: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    data = _below(differing, _DATA)
    if data:
        notes.append(f"the runs have other data ({', '.join(data)}): their metrics can't be compared")
    held_out = _below(differing, _HELD_OUT)
    if any(one.get("evaluation.where") == "clients" for one in flat):
        held_out += _below(differing, _OF_CLIENTS)
    if held_out and not data:
        why = ", ".join(held_out)
        notes.append(
            f"the runs were judged on other records ({why}): differences between them may be chance"
            + ("; a set with a test part of its own has the same whatever the seed" if held_out == ["seed"] else "")
        )
    unjudged = [row.name for row in rows if not row.final]
    if unjudged:
        notes.append(f"never evaluated: {', '.join(unjudged)}")
    private = [row for row in rows if row.claim != "none"]
    unlike = [key for key in _SAME_EPSILON if len({getattr(row, key) for row in private}) > 1]
    if unlike:
        notes.append(f"the epsilons are about unlike things ({', '.join(unlike)}): they can't be compared")
    if private and len(private) < len(rows):
        notes.append("some runs have no privacy: " + ", ".join(row.name for row in rows if row.claim == "none"))
    early = [f"{row.name} ({row.stopped})" for row in rows if row.stopped is not None]
    if early:
        notes.append(f"stopped early: {', '.join(early)}")
    return notes


def _below(keys: Sequence[str], tables: Sequence[str]) -> list[str]:
    return [key for key in keys if any(key == table or key.startswith(f"{table}.") for table in tables)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
