"""The summary of a run, and what its privacy figures are worth."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy.accountant import ACCOUNTANT, RELATION, Spent, epsilon
from privacy.mechanisms import DpSgd
from server.run_state import ClientTally, RunState
from shared_models.plan import Plan
from shared_models.plan_data import NaturalPartition

_PACKAGES = ("veil-fl", "flwr", "torch", "opacus", "dp-accounting", "numpy", "ray")

# Stops that may depend on the data: a claim then covers every planned round, played or not (rule 4). A stop for want
# of budget depends on plan and ledger alone.
_DATA_DEPENDENT_STOPS = ("target", "plateau", "failed")


def summarise(
    plan: Plan,
    state: RunState,
    *,
    stopped: str | None,
    reason: str | None,
    clients: list[str],
    startup_seconds: float,
    also_withdrawn: Sequence[str] = (),
) -> dict[str, Any]:
    """What `summary.json` holds; its schema is docs/schemas/summary.schema.json.

    `also_withdrawn` are conditions of a claim that the grid does not meet.
    """
    first = state.first_round_seconds
    privacy = privacy_summary(plan, state, stopped=stopped, clients=clients)
    if plan.is_private:
        privacy["withdrawn"] += also_withdrawn
    return {
        "name": plan.name,
        "plan_digest": plan.digest(),
        "rounds": state.round,
        "stopped": stopped,
        "reason": reason,
        "final": state.evaluation,
        "best": None
        if state.progress.best is None
        else {
            "round": state.progress.best_round,
            "metric": plan.evaluation.metric,
            "value": state.progress.best,
        },
        "seconds": {
            "startup": round(startup_seconds, 3),
            "first_round": None if first is None else round(first, 3),
            "rounds": round(state.seconds, 3),
            "total": round(startup_seconds + state.seconds, 3),
        },
        "bytes": {"up": state.bytes_up, "down": state.bytes_down},
        "privacy": privacy,
        "baselines": None,
        "faults": state.faults,
        "versions": versions(),
    }


def privacy_summary(plan: Plan, state: RunState, *, stopped: str | None, clients: list[str]) -> dict[str, Any]:
    """Who is protected from whom, how strongly, and which conditions do not hold."""
    release = plan.round_release()
    privacy = plan.privacy
    rows = [_row(plan, state, client, stopped=stopped) for client in clients]
    if release is None:
        return {"unit": None, "trust": "none", "claim": None, "withdrawn": [NO_PRIVACY], "clients": rows}
    return {
        "unit": privacy_unit(plan),
        "trust": privacy.trust,
        "relation": RELATION,
        "accountant": f"{ACCOUNTANT}; RDP beside it",
        "delta": privacy.delta,
        "epsilon_max": _largest([row["epsilon"] for row in rows]),
        "epsilon_planned": privacy.epsilon,
        "noise_multiplier": release.noise_multiplier,
        "clipping_norm": privacy.clipping_norm,
        "sample_rate": release.sample_rate,
        "steps_a_round": release.steps,
        "noise": privacy.noise,
        "selection": privacy.selection,
        "claim": None,
        "withdrawn": withdrawn(plan, state, unpriced=[row["id"] for row in rows if row["epsilon"] is None]),
        "disclosed": disclosed(plan),
        "clients": rows,
    }


NO_PRIVACY = "no privacy: plain federated learning protects nobody"


def privacy_unit(plan: Plan) -> str:
    """What the epsilon protects, in words (rule 6): a person only where all of a person's records are priced."""
    bound, release = plan.data.max_rows_per_person, plan.round_release()
    if bound is None or release is None or release.records_per_unit < bound:
        return "record, not person"
    return f"person, at most {bound} record{'s' if bound > 1 else ''} each"


def _row(plan: Plan, state: RunState, client: str, *, stopped: str | None) -> dict[str, Any]:
    """One client's part of the summary, with the epsilon of a record and of a person side by side (rule 6)."""
    release, bound = plan.round_release(), plan.data.max_rows_per_person
    tally = state.clients.get(client, ClientTally())
    row: dict[str, Any] = {
        "id": client,
        "epsilon": None,
        "rdp_epsilon": None,
        "record_epsilon": None,
        "person_epsilon": None,
        "budget": None,
        "rounds": tally.rounds,
        "charged_rounds": 0,
        "refused": tally.refused,
        "withdrawn_rounds": tally.withdrawn,
    }
    if release is None:
        return row
    limit = min(value for value in (plan.privacy.budget, plan.privacy.epsilon, math.inf) if value is not None)
    claimed = _claimed_rounds(plan, release, tally.charged, _rounds_to_come(plan, state, stopped), limit)

    def spent(records: int) -> Spent:
        return epsilon({replace(release, records_per_unit=records): claimed}, plan.privacy.delta)

    own = spent(release.records_per_unit)
    return row | {
        # Both books: what the server asked for, and what the client says it has paid for.
        "epsilon": _finite(max(own.epsilon, tally.reported)),
        "rdp_epsilon": _finite(own.rdp_epsilon),
        "record_epsilon": _finite(spent(1).epsilon),
        "person_epsilon": None if bound is None else _finite(spent(bound).epsilon),
        "budget": _finite(limit),
        "charged_rounds": claimed,
    }


def _rounds_to_come(plan: Plan, state: RunState, stopped: str | None) -> int:
    """Rounds that a claim covers beside those charged: the ones that a stop which may depend on the data left out."""
    if stopped not in _DATA_DEPENDENT_STOPS:
        return 0
    begun = state.round + (stopped == "failed")  # a failed round is charged, but not done
    return max(0, plan.federation.rounds - begun)


def _claimed_rounds(plan: Plan, release: DpSgd, charged: int, to_come: int, limit: float) -> int:
    """What was charged, and of the rounds to come as many as the client would not have refused."""
    low, high = charged, charged + to_come
    while low < high:
        middle = (low + high + 1) // 2
        if epsilon({release: middle}, plan.privacy.delta).epsilon <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _largest(epsilons: list[float | None]) -> float | None:
    """None where no epsilon can be claimed for one of the clients."""
    known = [value for value in epsilons if value is not None]
    return max(known, default=0.0) if len(known) == len(epsilons) else None


def withdrawn(plan: Plan, state: RunState, *, unpriced: Sequence[str] = ()) -> list[str]:
    """Conditions that a claim needs and this run does not meet, in plain words; `unpriced` clients have no epsilon."""
    reasons = ["simulated, not a claim: all clients ran in one place, their noise is floating-point (rule 9)"]
    if plan.privacy.noise == "reproducible":
        reasons.append("the noise follows from the plan's seed, which others may know")
    if state.replayed:
        rounds = ", ".join(map(str, state.replayed))
        reasons.append(f"cut off after it had begun, and played again: round {rounds}; both times are charged")
    failed = sorted(client for client, tally in state.clients.items() if tally.withdrawn)
    if failed:
        reasons.append(f"failed, which may tell something of their data (rule 5): clients {', '.join(failed)}")
    if unpriced:
        reasons.append(f"spent too much for an epsilon to be computed: clients {', '.join(unpriced)}")
    return reasons


def disclosed(plan: Plan) -> list[str]:
    """What the claim does not cover."""
    found = []
    if plan.evaluation.baselines:
        found.append("the figures of each client alone and of all data pooled are not protected")
    found += ["when a client answers is not protected (rule 12)"]
    if isinstance(plan.data.partition, NaturalPartition):
        found.append(
            f"the names of the clients are values of the column {plan.data.partition.column} and are not protected"
        )
    if plan.data.max_rows_per_person is not None:
        found.append(
            "somebody with records at several clients spends at each of them, and the epsilons add up (rule 6)"
        )
    if plan.evaluation.where == "server":
        found.append("the server's own evaluation data is not protected (rule 11)")
        found += _chosen_on_test_records(plan)
    if plan.privacy.selection == "uncharged":
        found.append("hyper-parameters may have been chosen by looking at the data, uncharged (rule 11)")
    return found


def _chosen_on_test_records(plan: Plan) -> list[str]:
    """Says so where the records that the figures are of have chosen among models first."""
    evaluation = plan.evaluation
    if plan.federation.rounds <= evaluation.every:  # evaluated once, after the last round: there is nothing to choose
        return []
    stops = evaluation.target is not None or evaluation.patience is not None
    chosen = "the best model and when to stop" if stops else "the best model"
    return [f"the reported figures are of the test records that also chose {chosen}"]


def versions() -> dict[str, str]:
    """Versions of what computed the run."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
