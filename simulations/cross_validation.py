"""Cross-validation over clients: how good a model is at a site that had no part in training it.

Each fold leaves some clients out, trains on all records of the others by the plan, and judges the model on all records
of those left out. The plan's own evaluation is switched off meanwhile: it would look at, and stop by, records that the
fold is about. Each fold is a run of its own; a client takes part in all folds but one, and its releases add up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.datasets.features import as_seen
from client.datasets.partition import client_ids, partition
from client.datasets.records import Records
from client.datasets.registry import load
from client.workplace import split_key
from privacy.accountant import epsilon as epsilon_of
from privacy.mechanisms import Release
from security.errors import UsageError
from server.assessment.intervals import share
from server.claim import privacy_unit, relation_of
from server.evaluation import LARGER_IS_BETTER, Metrics, TestData, evaluator
from server.run_folder import RunFolder, read_parameters, write_atomically
from shared_models import own
from shared_models.plan import Plan
from shared_models.plan_file import read_plan, write_plan
from shared_models.plan_personal import check_whole
from shared_models.registry import build_for
from shared_models.resolve import resolve
from shared_models.seeds import derive_seed
from shared_models.toml_errors import checked
from simulations.kept import keep, read_kept
from simulations.run import Settings, failure, resume_run, start_run

MOST_FOLDS: Final = 20
"""More single clients than that are not left out one by one unless `--folds` says so."""


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What came of a fold.

    Attributes:
        fold: number, from 0.
        digest: of its resolved plan, which names who was left out.
        left_out: their ids.
        clients: metrics on the records of each of them; with `examples`, how many those are.
        epsilon: largest of those that took part; None without privacy.
        stopped: why its run ended early; None if it didn't.
        seconds: wall time.
    """

    fold: int
    digest: str
    left_out: list[str]
    clients: dict[str, dict[str, float]]
    epsilon: float | None
    stopped: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """All folds of a plan.

    Attributes:
        path: the folder.
        name: of the plan.
        folds: in order.
        privacy: what one fold and all of them cost; None without privacy.
    """

    path: Path
    name: str
    folds: list[FoldResult]
    privacy: dict[str, Any] | None = field(default=None)

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """Metrics by client that was left out."""
        return {client: metrics for fold in self.folds for client, metrics in fold.clients.items()}

    def spread(self, metric: str) -> dict[str, Any] | None:
        """Mean, least and most over clients, each counting once; None unless every client has that metric."""
        values = {client: row[metric] for client, row in self.rows.items() if metric in row}
        if len(values) < len(self.rows) or not values:
            return None
        worst = (min if LARGER_IS_BETTER.get(metric, True) else max)(values, key=values.__getitem__)
        found = np.array(list(values.values()))
        deviation = float(found.std(ddof=1)) if len(found) > 1 else None
        return {"mean": float(found.mean()), "deviation": deviation, "worst": worst, "at_worst": values[worst]}

    def to_json(self) -> dict[str, Any]:
        """As cross-validation.json."""
        metrics = dict.fromkeys(name for row in self.rows.values() for name in row if name != "examples")
        spread = {name: found for name in metrics if (found := self.spread(name)) is not None}
        return {
            "name": self.name,
            "folds": [vars(fold) for fold in self.folds],
            "over_clients": spread,
            "privacy": self.privacy,
        }


def cross_validate(
    plan: Plan,
    folds: int | None,
    out: Path,
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> CrossValidation:
    """Play the folds that are not played yet, and write cross-validation.json and .html into `out`.

    Args:
        plan: as a person would write it.
        folds: how many; None to leave out one client at a time.
        out: the folder; finished folds in it are kept, one that was cut off is gone on with.
        settings: of every run.
        say: is told of each fold that is done.

    Raises:
        UsageError: there can't be so many folds, a fold can't be played, or the folder is another plan's.
        RunError: a fold's run failed; those before it are kept.
    """
    from simulations.cross_validation_page import html

    if plan.statistics is not None:
        raise UsageError(f"{plan.name}: the plan has [statistics], so there is no model to validate")
    check_whole(plan)
    own.bind(settings.models)
    _begin(plan, out)
    parts = fold_clients(plan, folds)
    plans = [fold_plan(plan, left_out) for left_out in parts]
    known = {one.digest: one for one in read_kept(out / "folds.jsonl", FoldResult)}
    found = []
    for number, (one, left_out) in enumerate(zip(plans, parts, strict=True)):
        digest = one.digest()
        if digest not in known:
            known[digest] = _play(one, number, left_out, out / f"fold-{number}", settings)
            keep(out / "folds.jsonl", known[digest])
            say(f"fold {number + 1} of {len(parts)}: without {', '.join(left_out)}")
        found.append(known[digest])
    result = CrossValidation(path=out, name=plan.name, folds=found, privacy=_privacy(plans))
    write_atomically(out / "cross-validation.json", (json.dumps(result.to_json(), indent=2) + "\n").encode())
    write_atomically(out / "cross-validation.html", html(result).encode())
    return result


def fold_clients(plan: Plan, folds: int | None) -> list[tuple[str, ...]]:
    """Who is left out in each fold: each client in exactly one. Which ones go together is drawn from the plan's seed.

    Raises:
        UsageError: there can't be so many folds.
    """
    clients = client_ids(plan.data, seed=plan.seed, split_key=split_key(plan))
    if len(clients) < 2:
        raise UsageError(f"{plan.name}: one client can't be left out: nobody would train")
    if folds is None and len(clients) > MOST_FOLDS:
        raise UsageError(
            f"{plan.name}: {len(clients)} clients would make as many runs; give --folds K, or --folds {len(clients)}"
        )
    if folds is not None and not 2 <= folds <= len(clients):
        raise UsageError(f"--folds {folds}: give 2 to {len(clients)}, the number of clients")
    if folds is None or folds == len(clients):
        return [(client,) for client in clients]
    order = np.random.default_rng(derive_seed(plan.seed, "folds")).permutation(len(clients))
    return [tuple(sorted(clients[int(index)] for index in part)) for part in np.array_split(order, folds)]


def fold_plan(plan: Plan, left_out: Sequence[str]) -> Plan:
    """The resolved plan of a fold; the fewest updates that a round needs are no more than the clients there are.

    Raises:
        UsageError: it can't be played with the others alone.
    """
    ids = client_ids(plan.data, seed=plan.seed, split_key=split_key(plan))
    before, there = plan.data.leave_out or (), len(ids) - len(left_out)
    data = {"leave_out": (*before, *left_out), "test_fraction": 0.0}
    off = {"where": "none", "target": None, "patience": None, "baselines": False, "per_class": False}
    changed = plan.model_copy(
        update={
            "personal": None,  # what is judged is the shared model
            "data": plan.data.model_copy(update=data),
            "evaluation": plan.evaluation.model_copy(update=off),
            "federation": plan.federation.model_copy(update={"min_clients": min(plan.federation.min_clients, there)}),
        }
    )
    planned = None if plan.secure_sum is None else plan.secure_sum.clients
    if planned is not None and planned > there and plan.federation.cohort.sampling == "all":
        raise UsageError(
            f"secure_sum.clients = {planned}: a fold has {there} clients; give --set secure_sum.clients={there}"
        )
    return resolve(checked(Plan, changed.model_dump(), where=f"{plan.name}, a fold of {there} clients"))


def _begin(plan: Plan, out: Path) -> None:
    """Have the folder, and the plan in it that it is for."""
    path = out / "plan.toml"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: can't be written ({error.strerror}); choose another --out") from error
    if path.is_file():
        if read_plan(path).digest() != plan.digest():
            raise UsageError(f"{out}: holds the folds of another plan; choose another --out")
        return
    if any(out.iterdir()):
        raise UsageError(f"{out}: is not empty, and holds no folds; choose another --out")
    write_atomically(path, write_plan(plan).encode())


def _play(plan: Plan, number: int, left_out: tuple[str, ...], place: Path, settings: Settings) -> FoldResult:
    folder = RunFolder(place)
    outcome = None
    if folder.plan.is_file():
        _, outcome = resume_run(place, settings)
    else:
        _, outcome = start_run(plan, place, settings)
    if outcome is not None and outcome.stopped == "failed":
        raise failure(folder, outcome)
    summary = folder.read_summary()
    judge = _judge(plan, folder)
    return FoldResult(
        fold=number,
        digest=plan.digest(),
        left_out=list(left_out),
        clients={client: judge(records) for client, records in _left_out_records(plan, left_out).items()},
        epsilon=summary["privacy"].get("epsilon_max"),
        stopped=summary["stopped"],
        seconds=summary["seconds"]["total"],
    )


def _judge(plan: Plan, folder: RunFolder) -> Callable[[Records], dict[str, float]]:
    model, parameters = build_for(plan), read_parameters(folder.model)

    def judge(records: Records) -> dict[str, float]:
        found: Metrics = {"examples": float(len(records))}
        if len(records) == 0:
            return found
        found |= evaluator(plan, model, TestData(records.x, records.y))(parameters)
        if records.y.ndim == 1:
            interval = share(round(found["accuracy"] * len(records)), len(records))
            found |= {"accuracy_low": interval.low, "accuracy_high": interval.high}
        return found

    return judge


def _left_out_records(plan: Plan, left_out: Sequence[str]) -> dict[str, Records]:
    """All records of the clients that a fold left out, as its network sees them."""
    pool = load(plan.data, split_key=split_key(plan)).train
    everybody = partition(pool, plan.data.partition, seed=plan.seed)
    return {client: as_seen(plan, everybody[client], cached=False) for client in left_out}


def _all_but(plans: Sequence[Plan], left: int) -> Counter[Release]:
    total: Counter[Release] = Counter()
    for place, one in enumerate(plans):
        if place != left:
            total.update(one.planned_trainings())
    return total


def _privacy(plans: Sequence[Plan]) -> dict[str, Any] | None:
    """What a fold costs, and what a client would have paid over all those that it takes part in: all but one.

    The folds are fixed before the first, so their releases compose like those of one plan. A site's own ledger doesn't
    know that, and charges each fold as a plan of its own.
    """
    first = plans[0]
    if not first.is_private:
        return None
    # Folds may differ in price (a central sum's goes by how many clients there are): the dearest of all choices.
    totals = {frozenset(_all_but(plans, left).items()) for left in range(len(plans))}
    spent = max((epsilon_of(dict(total), first.privacy.delta) for total in totals), key=lambda one: one.epsilon)
    return {
        "unit": privacy_unit(first),
        "trust": first.privacy.trust,
        "relation": relation_of(first),
        "delta": first.privacy.delta,
        "epsilon_a_fold": first.privacy.epsilon,
        "folds_a_client": len(plans) - 1,
        "epsilon_all_folds": spent.epsilon if np.isfinite(spent.epsilon) else None,
        "accountant": spent.accountant,
        "selection": first.privacy.selection,
    }
