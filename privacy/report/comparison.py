"""Several runs side by side: utility over epsilon. Only like epsilons are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privacy.report.accounts import BalanceFacts, Basis, Status
from privacy.report.catalogue import Catalogue, power
from privacy.report.charts import frontier, svg
from privacy.report.charts.frontier import Dot
from privacy.report.facts import Facts
from privacy.report.wording import Wording, basis_key
from security.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run.

    Attributes:
        number: its mark's.
        name: its own.
        facts: all of it.
        balance: its main kind of epsilon; None without privacy.
        group: number of the runs it may be compared with; None without privacy.
        value: of the metric; None if it was never evaluated.
        best: whether it is on its group's frontier.
    """

    number: int
    name: str
    facts: Facts
    balance: BalanceFacts | None
    group: int | None
    value: float | None
    best: bool


class Comparison:
    """What the page of a comparison shows.

    Raises:
        UsageError: there are no runs.
    """

    def __init__(self, runs: Sequence[tuple[str, Facts]], t: Catalogue) -> None:
        if not runs:
            raise UsageError("no runs to compare; name at least one")
        self._t = t
        used = next((facts.utility for _, facts in runs if facts.utility is not None), None)
        self.metric = used.metric if used else "accuracy"
        self._higher = used.higher_is_better if used else True
        keys = list(dict.fromkeys(basis_key(facts.balances[0].basis) for _, facts in runs if facts.balances))
        self.bases = [
            next(
                facts.balances[0].basis
                for _, facts in runs
                if facts.balances and basis_key(facts.balances[0].basis) == key
            )
            for key in keys
        ]
        dots, rows = [], []
        for number, (name, facts) in enumerate(runs, start=1):
            balance = facts.balances[0] if facts.balances else None
            group = keys.index(basis_key(balance.basis)) if balance else None
            value = facts.utility.final.get(self.metric) if facts.utility else None
            rows.append((number, name, facts, balance, group, value))
            epsilon = balance.verdict.epsilon if balance else None
            if balance and group is not None and epsilon is not None and value is not None:
                known = balance.verdict
                dots.append(Dot(number=number, epsilon=epsilon, value=value, group=group, status=known.status))
        self._dots = dots
        best = {
            dot.number
            for group in range(len(keys))
            for dot in frontier.frontier([one for one in dots if one.group == group], higher_is_better=self._higher)
        }
        self.rows = [
            Row(number=number, name=name, facts=facts, balance=balance, group=group, value=value, best=number in best)
            for number, name, facts, balance, group, value in rows
        ]
        self.stand = sum(1 for _, facts in runs if facts.status == "stands")

    def metric_name(self) -> Markup:
        """What utility is measured by."""
        return self._t.name("metric", self.metric)

    def group_name(self, basis: Basis) -> Markup:
        """What the runs of a group have in common."""
        words = Wording(self.rows[0].facts, self._t)
        return self._t(
            "compare.group",
            unit=words.unit(basis.unit, "unit_short"),
            trust=words.trust(basis.trust, "trust"),
            delta=power(basis.delta),
        )

    def words(self, row: Row) -> Wording:
        """One run's own sentences."""
        return Wording(row.facts, self._t)

    def mark(self, group: int, status: Status = "stands") -> Markup:
        """A group's mark, for the legend."""
        return frontier.mark(group, status)

    def statuses(self) -> list[tuple[Markup, Markup]]:
        """What filled, hollow and crossed marks mean, of those on the chart."""
        names: dict[Status, str] = {"stands": "filled", "simulated": "hollow", "withdrawn": "crossed"}
        there = {dot.status for dot in self._dots}
        return [(self.mark(0, status), self._t(f"compare.{name}")) for status, name in names.items() if status in there]

    def claim(self, row: Row) -> Markup:
        """Whether its claim stands, and for how many."""
        verdict = row.balance.verdict if row.balance else None
        if verdict and verdict.status == "stands" and verdict.clients_withdrawn:
            return self._t("compare.partly", n=verdict.clients - verdict.clients_withdrawn, clients=verdict.clients)
        short = f"budgets.{row.facts.status}"
        return self._t(short if self._t.has(short) else f"status.{row.facts.status}")

    def line(self) -> Markup:
        """A piece of the frontier's line, for the legend."""
        return svg.swatch("second")

    def chart(self) -> Markup | None:
        """Utility over epsilon."""
        if not self._dots:
            return None
        plain = [(row.value, row.name) for row in self.rows if row.balance is None and row.value is not None]
        values = [dot.value for dot in self._dots] + [value for value, _ in plain]
        x = frontier.epsilon_axis([dot.epsilon for dot in self._dots], self._t.plain("compare.x"))
        y = frontier.value_axis(values, str(self.metric_name()), bounded=self._higher)
        return frontier.draw(
            self._dots,
            [(value, self._t.plain("compare.none_line", name=name)) for value, name in plain],
            x=x,
            y=y,
            label=self._t.plain("compare.aria", metric=self.metric_name(), n=len(self._dots)),
            higher_is_better=self._higher,
        )

    def epsilon(self, row: Row) -> Markup:
        """Its largest, struck out where its claim is withdrawn."""
        if row.balance is None:
            return Markup("–")
        struck = row.balance.verdict.status == "withdrawn"
        return self.words(row).epsilon(row.balance.verdict.epsilon, struck=struck)

    def sort_value(self, row: Row) -> str:
        """For the table's order by epsilon, as a script reads it: without a bound it is the largest."""
        known = row.balance.verdict.epsilon if row.balance else None
        return "Infinity" if known is None else str(known)
