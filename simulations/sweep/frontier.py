"""The privacy-utility frontier of a sweep: each trial's metric over its epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from privacy.report.charts import frontier
from privacy.report.charts.frontier import Dot
from server.claim import relation_of
from server.run_folder import write_atomically
from simulations.sweep.book import Row, Terms
from simulations.sweep.trials import Trial


def write_frontier(path: Path, rows: Sequence[Row], trials: Sequence[Trial], terms: Terms) -> bool:
    """Draw it as a file; whether there was something to draw: a trial with both a metric and an epsilon.

    Args:
        path: of the SVG.
        rows: in the order of the table, whose numbers stand beside the marks.
        trials: all of them.
        terms: of the sweep.
    """
    plans = {trial.name: trial.plan for trial in trials}
    kinds = [(plan.balance, relation_of(plan), plan.privacy.delta) for plan in plans.values() if plan.is_private]
    groups = list(dict.fromkeys(kinds))
    dots, plain = [], []
    for number, row in enumerate(rows, start=1):
        plan = plans[row.name]
        if row.value is None:
            continue
        if not plan.is_private:
            plain.append((row.value, f"{number}: without privacy"))
        elif row.epsilon is not None:
            group = groups.index((plan.balance, relation_of(plan), plan.privacy.delta))
            # Hollow: all clients ran in one place, and nothing is claimed.
            dots.append(Dot(number=number, epsilon=row.epsilon, value=row.value, group=group, status="simulated"))
    if not dots:
        path.unlink(missing_ok=True)
        return False
    drawing = frontier.draw_one(
        dots,
        plain,
        x=frontier.epsilon_axis([dot.epsilon for dot in dots], "epsilon of the run alone"),
        y=frontier.value_axis(
            [*(dot.value for dot in dots), *(value for value, _ in plain)], terms.metric, bounded=terms.larger
        ),
        label=f"{terms.metric} over epsilon for {len(dots)} trials, with the line of those that no other beats in both",
        stamp="simulated, not a claim; line: best for their epsilon",
        higher_is_better=terms.larger,
    )
    write_atomically(path, str(drawing).encode())
    return True
