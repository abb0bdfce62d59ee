"""What a search costs those whose records it trains on: all its trials together, not the best alone.

Every trial trains on the same records, so an owner has paid for all of them. Which trials there are is fixed before the
first begins, and a trial whose end may depend on data (stopped early, broken, never begun) counts with all that it
planned (rule 4). So the trials are one history fixed beforehand, and the accountant composes it like any other. Only
trials about the same unit and the same trust add up; a record in a trial without privacy is protected by nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privacy import accountant
from privacy.accountant import Spent
from privacy.lifetime import Releases, multiset
from privacy.mechanisms import Release
from server.claim import privacy_unit, relation_of
from shared_models.plan import Plan
from simulations.sweep.trials import Trial, clients_of, planned_of

_SLACK = 1e-6  # of an epsilon, which plans round up


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """What the trials of one kind cost together.

    Attributes:
        trials: their names.
        unit, trust, relation, accountant: what the epsilon is about, in words.
        delta: at which it holds: the smallest of the trials'.
        epsilon: largest of all clients; None where none can be claimed.
        rdp_epsilon: the same by RDP, as a cross-check.
        planned: epsilon of who takes part in every round of every trial; None likewise.
        problem: why there is none, in one line; None where there is.
    """

    trials: tuple[str, ...]
    unit: str
    trust: str
    relation: str
    accountant: str
    delta: float
    epsilon: float | None
    rdp_epsilon: float | None
    planned: float | None
    problem: str | None = None


def charged_of(plan: Plan, summary: Mapping[str, Any] | None) -> dict[str, Counter[Release]] | None:
    """What a run claims to have released of each client; None where that is all that was planned of anybody.

    Args:
        plan: resolved.
        summary: of the run that has ended; None where it has none.
    """
    if summary is None or summary["stopped"] in ("target", "plateau", "failed"):
        return None
    train, counts = plan.train_release(), plan.evaluate_release()
    assert train is not None
    found: dict[str, Counter[Release]] = {}
    for row in summary["privacy"]["clients"]:
        rounds = min(1, row["charged_rounds"]) if plan.is_one_release else row["charged_rounds"]
        charged: Counter[Release] = Counter({train: rounds})
        if counts is not None:
            charged[counts] = row["charged_evaluations"]
        told = math.inf if row["epsilon"] is None else row["epsilon"]
        if told > accountant.epsilon(charged, plan.privacy.delta).epsilon + _SLACK:
            charged = planned_of(plan)  # the client's own books say more than the rounds that were counted
        found[row["id"]] = +charged
    return found


def search_costs(trials: Sequence[Trial], summaries: Mapping[str, Mapping[str, Any] | None]) -> list[SearchCost]:
    """What all trials cost together, for each kind of epsilon; nothing for trials without privacy.

    Args:
        trials: all that were planned, played or not.
        summaries: of those that have ended, by name.
    """
    kinds: dict[tuple[Any, str], list[Trial]] = {}
    for trial in trials:
        if trial.plan.is_private:
            kinds.setdefault((trial.plan.balance, relation_of(trial.plan)), []).append(trial)
    return [_cost(group, summaries) for group in kinds.values()]


def _cost(trials: Sequence[Trial], summaries: Mapping[str, Mapping[str, Any] | None]) -> SearchCost:
    plans = [trial.plan for trial in trials]
    delta = min(plan.privacy.delta for plan in plans)
    planned: Counter[Release] = Counter()
    for plan in plans:
        planned.update(planned_of(plan))
    alike = len({clients_of(plan) for plan in plans}) == 1
    histories = {multiset(planned)}
    if alike:
        charged = [charged_of(trial.plan, summaries.get(trial.name)) for trial in trials]
        histories = _by_client(charged, plans, planned)
    problem = None
    if not alike and plans[0].privacy.unit == "client":
        problem = "the trials spread the records over the clients in unlike ways: no client's costs add up"
    spent = [accountant.epsilon(dict(history), delta) for history in histories]
    whole = accountant.epsilon(planned, delta)
    return SearchCost(
        trials=tuple(trial.name for trial in trials),
        unit=privacy_unit(plans[0]),
        trust=plans[0].privacy.trust,
        relation=whole.relation,
        accountant=whole.accountant,
        delta=delta,
        epsilon=None if problem else _largest(one.epsilon for one in spent),
        rdp_epsilon=None if problem else _largest(one.rdp_epsilon for one in spent),
        planned=None if problem else _known(whole),
        problem=problem,
    )


def _by_client(
    charged: Sequence[Mapping[str, Counter[Release]] | None], plans: Sequence[Plan], planned: Counter[Release]
) -> set[Releases]:
    """The histories that clients have, each once: many cost the same.

    Who is missing from a summary was never asked there. Where no trial names its clients, somebody took part in all.
    """
    clients = sorted({client for one in charged if one is not None for client in one})
    if not clients:
        return {multiset(planned)}
    found = set()
    for client in clients:
        total: Counter[Release] = Counter()
        for one, plan in zip(charged, plans, strict=True):
            total.update(planned_of(plan) if one is None else one.get(client, Counter()))
        found.add(multiset(total))
    return found


def _known(spent: Spent) -> float | None:
    return spent.epsilon if math.isfinite(spent.epsilon) else None


def _largest(epsilons: Iterable[float]) -> float | None:
    largest = max(epsilons)
    return largest if math.isfinite(largest) else None
