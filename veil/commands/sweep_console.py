"""What a person sees of a sweep. On a terminal: a live table. Piped: one plain line for each trial that begins or ends.
With `--json`: sweep.json and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

from privacy.report.catalogue import upper
from simulations.sweep.book import Row, SweepFolder, Terms, in_order
from simulations.sweep.trials import Trial

_SHOWN = 20
_PIPED = 200  # columns, where a line of a table is one line


class SweepConsole:
    """Shows a sweep to a person."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._out = sys.stdout
        self._rich = RichConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPED)
        self._live: Live | None = None
        self._folder: SweepFolder | None = None
        self._rows: dict[str, Row] = {}
        self._playing: dict[str, int] = {}
        self._rounds: dict[str, int] = {}
        self._terms: Terms | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show the sweep inside; on Ctrl-C say how to go on."""
        if not self._json and self._rich.is_terminal:
            self._live = Live(Text("checking all trials ..."), console=self._rich, refresh_per_second=4, transient=True)
            self._live.start()
        # Where a program may read what is printed nothing of Ray's own stands between: it tells of processes' deaths.
        aside = redirect_stdout(sys.stderr) if self._live is None else nullcontext()
        try:
            with aside:
                yield
        except KeyboardInterrupt:
            self._stop()
            if self._folder is not None:
                print(f"interrupted; go on with: veil sweep --resume {self._folder.path}", file=sys.stderr)
            raise
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- observer

    def begins(self, folder: SweepFolder, trials: Sequence[Trial], rows: Sequence[Row], terms: Terms) -> None:
        """All is checked."""
        self._folder, self._terms = folder, terms
        self._rows = {row.name: row for row in rows}
        self._rounds = {trial.name: trial.plan.federation.rounds for trial in trials}
        over = sum(row.state != "waiting" for row in rows)
        before = f", {over} of them over already" if over else ""
        self._say(f"{len(trials)} trials{before}; compared by {terms.metric}; folder: {folder.path}")

    def trial_began(self, row: Row) -> None:
        """A trial plays."""
        self._playing[row.name] = row.rounds
        self._show(f"{row.name}  begins  {_settings(row.settings)}" if row.rounds == 0 else f"{row.name}  goes on")

    def trial_round(self, row: Row) -> None:
        """A trial's model was judged."""
        self._rows[row.name] = row
        self._playing[row.name] = row.rounds
        self._show(None)

    def trial_ended(self, row: Row) -> None:
        """A trial is over, or broken."""
        self._rows[row.name] = row
        self._playing.pop(row.name, None)
        over = sum(one.state != "waiting" for one in self._rows.values())
        self._show(f"{row.name}  {self._what(row)}  ({over}/{len(self._rows)})")

    def _what(self, row: Row) -> str:
        assert self._terms is not None
        metric = f"{self._terms.metric} {_number(row.value)}"
        if row.state == "broken":
            return f"broken: {row.reason}"
        if row.state == "stopped-early":
            return f"stopped early after round {row.rounds}: {metric}"
        return f"done: {metric}"

    def _say(self, text: str) -> None:
        if self._json:
            return
        if self._live is None:
            print(text, file=self._out, flush=True)
        else:
            self._live.console.print(text)

    def _show(self, line: str | None) -> None:
        if self._json:
            return
        if self._live is None:
            if line is not None:
                print(line, file=self._out, flush=True)
            return
        assert self._terms is not None
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("trial", "settings", "round", self._terms.metric, "state"):
            table.add_column(title, justify="right" if title in ("round", self._terms.metric) else "left")
        rows = in_order(list(self._rows.values()), larger=self._terms.larger)
        rows.sort(key=lambda row: row.name not in self._playing)  # what plays stands on top
        for row in rows[:_SHOWN]:
            state = "plays" if row.name in self._playing else row.state.replace("-", " ")
            rounds = f"{row.rounds}/{self._rounds[row.name]}"
            table.add_row(row.name, _settings(row.settings), rounds, _number(row.value), state)
        self._live.update(table)

    # --- closing

    def closing(self, book: Mapping[str, Any]) -> None:
        """Table, cost and where to look."""
        if self._json:
            print(json.dumps({"folder": None if self._folder is None else str(self._folder.path), **book}, indent=2))
            return
        assert self._folder is not None
        table = Table(box=None, pad_edge=False, header_style="bold")
        titles = ("", "trial", "settings", book["metric"], "epsilon", "rounds", "state")
        for title in titles:
            table.add_column(title, justify="left" if title in ("trial", "settings", "state") else "right")
        for number, row in enumerate(book["trials"], start=1):
            state = row["stopped"] or row["state"].replace("-", " ")
            if row["state"] == "broken":
                state = f"broken: {row['reason']}"
            epsilon = "none" if row["name"] in book["without_privacy"] else _short(row["epsilon"])
            table.add_row(
                str(number),
                row["name"],
                _settings(row["settings"]),
                _number(row["value"]),
                epsilon,
                str(row["rounds"]),
                state,
            )
        self._rich.print()
        self._rich.print(table)
        self._rich.print()
        for line in cost_lines(book):
            self._rich.print(line, soft_wrap=True)
        self._rich.print(f"\nfolder: {self._folder.path}", soft_wrap=True)
        if self._folder.frontier.is_file():
            self._rich.print(f"frontier: {self._folder.frontier}", soft_wrap=True)


def cost_lines(book: Mapping[str, Any]) -> Iterator[str]:
    """What the search looked at, and what it costs, in sentences."""
    best = next((row for row in book["trials"] if row["name"] == book["best"]), None)
    if best is not None:
        alone = "" if best["epsilon"] is None else f"; epsilon {_short(best['epsilon'])} alone"
        yield f"best: {best['name']} ({_settings(best['settings'])}), {book['metric']} {_number(best['value'])}{alone}"
    yield f"{book['metric']} is of {book['judged']}"
    for cost in book["search"]:
        what = f"{len(cost['trials'])} trials trained on the same records"
        if cost["epsilon"] is None:
            why = cost["problem"] or "too much was spent for an epsilon to be computed"
            yield f"epsilon of the search: none; {what}; {why}"
            continue
        yield (
            f"epsilon of the search: {_short(cost['epsilon'])} at delta {cost['delta']:g} for all {what} "
            f"(unit: {cost['unit']}; trust: {cost['trust']}; {cost['relation']}; {cost['accountant']}); this is what "
            "the owners have paid, whichever trial is kept; simulated, not a claim"
        )
    if len(book["search"]) > 1:
        yield "epsilons of unlike units or trust are never added: each is said by itself"
    if book["without_privacy"]:
        yield (
            f"{', '.join(book['without_privacy'])}: without privacy; records that such a trial trains on are protected "
            "by no epsilon"
        )
    if book["search"]:
        chosen = "charged: all trials together stay within the plan's epsilon" if book["charge"] else "uncharged"
        yield f"selection: {chosen}"


def _settings(settings: Mapping[str, str]) -> str:
    """Keys by their last part, where that tells them apart."""
    last = [key.rpartition(".")[2] for key in settings]
    names = last if len(set(last)) == len(last) else list(settings)
    return " ".join(f"{name}={value}" for name, value in zip(names, settings.values(), strict=True))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(value: float | None) -> str:
    return "unknown" if value is None else upper(value)
