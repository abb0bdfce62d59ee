"""What a person sees while a run goes on and when it is over.

On a terminal: a live table. Piped: one plain line a round. With `--json`: the summary and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from server.claim import accountant_of, privacy_unit, relation_of
from server.observer import RoundRecord
from server.run_folder import RunFolder
from shared_models.plan import Plan
from simulations.repeat import Repeated
from simulations.run import client_log_hint
from veil.commands.statistics_view import statistics_tables

_SHOWN_ROUNDS = 12
_SHOWN_CLIENTS = 20


class Console:
    """An observer of a run that shows it to a person."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._rich = RichConsole(highlight=False, markup=False)
        self._live: Live | None = None
        self._plan: Plan | None = None
        self._clients = 0
        self._records: deque[RoundRecord] = deque(maxlen=_SHOWN_ROUNDS)
        self._played = 0
        self._seconds = 0.0
        self._done = 0

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Show the run inside, or the runs in folders inside that one; on Ctrl-C say how to go on."""
        if not self._json and self._rich.is_terminal:
            self._live = Live(Text("starting ..."), console=self._rich, refresh_per_second=4, transient=True)
            self._live.start()
        try:
            yield
        except KeyboardInterrupt:
            self._stop()
            print(_interrupted(folder), file=sys.stderr)
            raise
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- observer

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """The clients are there."""
        self._plan, self._clients, self._done = plan, clients, done
        self._records.clear()
        self._played, self._seconds = 0, 0.0
        if self._json:
            return
        line = f"{plan.name}: {clients} clients, {plan.federation.rounds} rounds, {describe_privacy(plan)}"
        if done:
            line += f"; going on after round {done}"
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(line)

    def note(self, text: str) -> None:
        """Something to know; never on the standard output, which may be read by a program."""
        if self._live is None:
            print(f"note: {text}", file=sys.stderr, flush=True)
        else:
            self._live.console.print(f"note: {text}")

    def round_done(self, record: RoundRecord) -> None:
        """A round is over."""
        self._records.append(record)
        self._played += 1
        self._seconds += record.seconds or 0.0
        if self._json or self._plan is None:
            return
        if self._live is None:
            print(self._line(record), flush=True)
        else:
            self._live.update(Group(self._table(), self._bar()))

    def _left(self, record: RoundRecord) -> str:
        assert self._plan is not None
        if record.seconds is None:
            return "-"
        seconds = self._seconds / self._played * (self._plan.federation.rounds - record.round)
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

    def _line(self, record: RoundRecord) -> str:
        assert self._plan is not None
        parts = [f"round {record.round}/{self._plan.federation.rounds}"]
        if record.updates is not None:
            parts.append(f"clients {record.updates}/{record.cohort}")
        if record.secure_sum is not None and record.secure_sum.survivors == 0:
            parts.append("no sum: the model is as before")
        if record.evaluation is not None:
            metric = self._plan.evaluation.metric
            parts.append(f"{metric} {_number(record.evaluation.get(metric))}")
        if record.epsilon_max is not None:
            parts.append(f"epsilon so far {record.epsilon_max:.3f} a {_short_unit(record.unit)}")
        parts += [f"client {fault['client']}: {fault['reason']}" for fault in record.faults]
        if record.seconds is not None:
            parts.append(f"{self._left(record)} left")
        return "  ".join(parts)

    def _table(self) -> Table:
        assert self._plan is not None
        table = Table(box=None, pad_edge=False, header_style="bold")
        epsilon = f"epsilon a {_short_unit(privacy_unit(self._plan))} so far"
        for title in ("round", "clients", self._plan.evaluation.metric, epsilon, "time left", "faults"):
            table.add_column(title, justify="left" if title == "faults" else "right")
        for record in self._records:
            evaluation = record.evaluation or {}
            table.add_row(
                str(record.round),
                "-" if record.updates is None else f"{record.updates}/{record.cohort}",
                _number(evaluation.get(self._plan.evaluation.metric)),
                "-" if record.epsilon_max is None else f"{record.epsilon_max:.3f}",
                self._left(record),
                ", ".join(f"{fault['client']} {fault['reason']}" for fault in record.faults[:3]),
            )
        return table

    def _bar(self) -> Progress:
        assert self._plan is not None
        bar = Progress(TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), auto_refresh=False)
        bar.add_task("rounds", total=self._plan.federation.rounds, completed=self._done + self._played)
        return bar

    # --- closing

    def closing(self, folder: RunFolder, *, already_done: bool = False) -> None:
        """The summary of a finished run."""
        summary = folder.read_summary()
        if self._json:
            print(json.dumps({"folder": str(folder.path), **summary}, indent=2))
            return
        self._rich.print()
        if already_done:
            self._rich.print(f"{folder.path}: the run was finished already")
        self._rich.print(_outcome(summary))
        self._rich.print()
        self._rich.print(_result_table(summary, client_log_hint(folder)))
        if folder.statistics.is_file():
            self._rich.print()
            for table in statistics_tables(folder.read_statistics()):
                self._rich.print(table)
        if summary.get("personal"):
            self._rich.print(_personal_line(summary["personal"]))
        if summary.get("baselines"):
            self._rich.print()
            if summary["privacy"]["trust"] != "none":
                self._rich.print("the federation is private; alone and pooled train without privacy")
            self._rich.print(_baseline_table(summary))
        self._rich.print()
        self._print_privacy(summary["privacy"])
        self._rich.print(f"\nfolder: {folder.path}", soft_wrap=True)
        self._rich.print(f"report: {folder.report}", soft_wrap=True)

    def _print_privacy(self, privacy: dict[str, Any]) -> None:
        if privacy["trust"] == "none":
            self._rich.print("privacy: none; plain federated learning protects nobody")
            return
        self._rich.print(
            f"privacy: {privacy['unit']}; trust {privacy['trust']}; epsilon at most "
            f"{_epsilon(privacy['epsilon_max'])} at delta {privacy['delta']:g} ({privacy['relation']}; "
            f"{privacy['accountant']}); selection {privacy['selection']}"
        )
        if privacy["claim"] is not None:
            self._rich.print(f"  claim: {privacy['claim']}")
        for title, remarks in (("no claim", "withdrawn"), ("assumed", "assumptions"), ("not covered", "disclosed")):
            for remark in privacy.get(remarks, ()):  # a summary of an early version has fewer, and plain sentences
                self._rich.print(f"  {title}: {remark if isinstance(remark, str) else remark['text']}")
        self._rich.print(_client_table(privacy))
        if len(privacy["clients"]) > _SHOWN_CLIENTS:
            self._rich.print(f"... and {len(privacy['clients']) - _SHOWN_CLIENTS} more in summary.json")

    def closing_repeats(self, repeated: Repeated) -> None:
        """Mean and deviation over the seeds."""
        if self._json:
            print((repeated.path / "repeat.json").read_text(encoding="utf-8"), end="")
            return
        table = Table(box=None, pad_edge=False, header_style="bold", title=None)
        for title in ("metric", "mean", "deviation"):
            table.add_column(title, justify="left" if title == "metric" else "right")
        for metric in repeated.values:
            table.add_row(metric, f"{repeated.mean(metric):.4f}", f"{repeated.deviation(metric):.4f}")
        self._rich.print()
        self._rich.print(f"{len(repeated.seeds)} runs, seeds {repeated.seeds[0]} to {repeated.seeds[-1]}")
        self._rich.print(table)
        if repeated.epsilons[0] is not None:
            figures = ", ".join(_epsilon(value) for value in repeated.epsilons)
            self._rich.print(f"epsilon of each run: {figures}; all runs used the same data, so together they cost more")
        for seed, stopped in zip(repeated.seeds, repeated.stopped, strict=True):
            if stopped is not None:
                self._rich.print(f"seed {seed} stopped early: {stopped}")
        self._rich.print(f"\nfolder: {repeated.path}", soft_wrap=True)


def describe_privacy(plan: Plan) -> str:
    """A plan's privacy in half a line."""
    if not plan.is_private:
        return "no privacy"
    return (
        f"epsilon {plan.privacy.epsilon:.4g} a {_short_unit(privacy_unit(plan))} at delta {plan.privacy.delta:g} "
        f"({plan.privacy.trust}; {relation_of(plan).removesuffix(' unit')}, {accountant_of(plan).partition(',')[0]})"
    )


def _short_unit(unit: str | None) -> str:
    return "record" if unit is None else unit.partition(",")[0]


def _personal_line(personal: dict[str, Any]) -> str:
    shared = personal["shared_accuracy"]
    beside = "" if shared is None else f", of the shared one {_number(shared)}"
    return (
        f"personal models ({personal['kind']}): mean accuracy {_number(personal['accuracy'])}{beside}, on what each "
        "client holds out; the simulation looked, nobody released it"
    )


def _interrupted(folder: Path) -> str:
    """How to go on: with this run or, where several are repeated in the folder, with the one that was cut off."""
    go_on = "go on with: veil simulate --resume"
    if RunFolder(folder).plan.is_file():
        return f"interrupted; {go_on} {folder}"
    cut_off = [run for run in sorted(folder.glob("seed-*")) if not RunFolder(run).summary.is_file()]
    if cut_off:
        return f"interrupted; the seeds before are done; {go_on} {cut_off[-1]}"
    return "interrupted; no run was cut off"


def _outcome(summary: dict[str, Any]) -> str:
    texts = {
        None: f"done: all {summary['rounds']} rounds",
        "target": f"stopped after round {summary['rounds']}: the target is reached",
        "plateau": f"stopped after round {summary['rounds']}: no more progress",
        "budget": f"stopped after round {summary['rounds']}: a privacy budget is exhausted",
        "failed": f"failed after round {summary['rounds']}",
    }
    text = texts[summary["stopped"]]
    return text if summary["reason"] is None else f"{text} ({summary['reason']})"


def _result_table(summary: dict[str, Any], more_of_faults: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in (summary["final"] or {}).items():
        table.add_row(name.replace("_", " "), _number(value))
    seconds, sent = summary["seconds"], summary["bytes"]
    table.add_row("time", f"{seconds['total']:.1f} s ({seconds['startup']:.1f} s to start)")
    if sent["up"] is not None:
        table.add_row("sent", f"{_bytes(sent['down'])} to clients, {_bytes(sent['up'])} from them")
    if summary["faults"]:
        table.add_row("faults", f"{len(summary['faults'])}{more_of_faults}")
    return table


def _client_table(privacy: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("client", "epsilon", "budget", "rounds", "refused"):
        table.add_column(title, justify="left" if title == "client" else "right")
    for row in privacy["clients"][:_SHOWN_CLIENTS]:
        table.add_row(
            row["id"], _number(row["epsilon"]), f"{row['budget']:.4g}", _count(row["rounds"]), str(row["refused"])
        )
    return table


def _baseline_table(summary: dict[str, Any]) -> Table:
    baselines = summary["baselines"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trained on")
    for metric in baselines["metrics"]:
        table.add_column(metric.replace("_", " "), justify="right")
    for row in baselines["rows"]:
        table.add_row(row["name"], *(_number(row["metrics"].get(metric)) for metric in baselines["metrics"]))
    return table


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _epsilon(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
