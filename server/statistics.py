"""The statistics of a run that trains nothing: from the mean of clients' counts to `statistics.json`."""

from __future__ import annotations

import json
import math

import numpy as np

from server.run_folder import RunFolder, write_atomically
from server.run_state import RunState
from shared_models.histograms import COUNTS, histograms_of
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.plan_statistics import count_noise
from shared_models.summary_statistics import Statistics, summarised

_OF_A_ROUNDED_DRAW = 1 / 12  # variance that rounding adds, nearly


def statistics_of_run(plan: Plan, parameters: Parameters, state: RunState) -> Statistics | None:
    """What a run has released; None if its one round didn't come about.

    Args:
        plan: resolved, with [statistics].
        parameters: the mean of clients' counts.
        state: the server's books.
    """
    clients = sum(tally.rounds for tally in state.clients.values())
    if state.round < 1 or clients < 1:
        return None
    sums = np.rint(parameters[COUNTS].astype(np.float64) * clients).astype(np.int64)
    noise = math.sqrt(clients * (count_noise(plan) ** 2 + _OF_A_ROUNDED_DRAW))
    return summarised(histograms_of(plan), sums, noise=noise, plan=plan.digest(), clients=clients)


def write_statistics(folder: RunFolder, found: Statistics) -> None:
    """Write `statistics.json`, whose schema is docs/schemas/statistics.schema.json, and a picture of it.

    Raises:
        RunError: it can't be written.
    """
    text = json.dumps(found.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder.statistics, (text + "\n").encode())
    from privacy.report.charts.histograms import Counted, draw_histograms  # brings a template engine

    columns = [
        Counted(name=one.column, counts=one.counts, names=one.names, edges=one.edges, noise=found.noise)
        for one in found.columns
    ]
    title = f"Released counts of {found.clients} clients; the band is what noise alone reaches (95 %)"
    write_atomically(folder.statistics.with_suffix(".svg"), draw_histograms(columns, title=title).encode())
