"""The summary of a run, and what its privacy figures are worth."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy.accountant import ACCOUNTANT, RELATION, Spent, epsilon
from privacy.lifetime import Account, Limit, Releases, multiset
from privacy.mechanisms import DpSgd, NoisyCounts, Release
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
    statements: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds; its schema is docs/schemas/summary.schema.json.

    `also_withdrawn` are conditions of a claim that the grid does not meet; `statements` say of each client whether
    its signed statement holds.
    """
    first = state.first_round_seconds
    privacy = privacy_summary(plan, state, stopped=stopped, clients=clients)
    if plan.is_private:
        privacy["withdrawn"] += also_withdrawn
    for row in privacy["clients"]:
        row["statement"] = (statements or {}).get(row["id"])
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
    release = plan.train_release()
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
    bound, release = plan.data.max_rows_per_person, plan.train_release()
    if bound is None or release is None or release.records_per_unit < bound:
        return "record, not person"
    return f"person, at most {bound} record{'s' if bound > 1 else ''} each"


def _row(plan: Plan, state: RunState, client: str, *, stopped: str | None) -> dict[str, Any]:
    """One client's part of the summary, with the epsilon of a record and of a person side by side (rule 6)."""
    release, bound = plan.train_release(), plan.data.max_rows_per_person
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
        "charged_evaluations": 0,
        "refused": len(tally.refused),
        "withdrawn_rounds": tally.withdrawn,
        "unprotected_rounds": tally.unprotected,
        "head": None if tally.head is None else asdict(tally.head),
        "statement": None,
    }
    if release is None:
        return row
    limit = plan.client_budget(client)
    claimed = _claimed(plan, tally, _to_come(plan, state, tally, stopped), limit)

    def spent(records: int) -> Spent:
        return epsilon(_for_units_of(claimed, records), plan.privacy.delta)

    own = spent(release.records_per_unit)
    return row | {
        # Both books: what the server asked for, and what the client says it has paid for.
        "epsilon": _finite(max(own.epsilon, tally.reported)),
        "rdp_epsilon": _finite(own.rdp_epsilon),
        "record_epsilon": _finite(spent(1).epsilon),
        "person_epsilon": None if bound is None else _finite(spent(bound).epsilon),
        "budget": _finite(limit),
        "charged_rounds": claimed[release],
        "charged_evaluations": sum(claimed.values()) - claimed[release],
    }


def releases_of(plan: Plan, tally: ClientTally) -> Releases:
    """What a client was charged in this run, by the server's own books."""
    train, counts = plan.train_release(), plan.evaluate_release()
    charged: Counter[Release] = Counter()
    if train is not None:
        charged[train] = len(tally.charged)
    if counts is not None:
        charged[counts] = len(tally.evaluated)
    return multiset(charged)


def _for_units_of(releases: Mapping[DpSgd | NoisyCounts, int], records: int) -> dict[Release, int]:
    """The same releases, for units of so many records."""
    return {replace(release, records_per_unit=records): times for release, times in releases.items()}


def _to_come(plan: Plan, state: RunState, tally: ClientTally, stopped: str | None) -> Counter[Release]:
    """What a claim covers beside the charges: releases that a stop which may depend on the data left out (rule 4)."""
    found: Counter[Release] = Counter()
    train, counts = plan.train_release(), plan.evaluate_release()
    if stopped not in _DATA_DEPENDENT_STOPS or train is None:
        return found
    for number in range(state.round + 1, plan.federation.rounds + 1):
        begun = number == state.round + 1 and stopped == "failed"
        if begun and number not in tally.charged:
            continue  # it was not asked, or refused
        found[train] += number not in tally.charged
        if counts is not None:
            found[counts] += plan.is_evaluated(number) and number not in tally.evaluated
    return found


def _claimed(plan: Plan, tally: ClientTally, to_come: Counter[Release], limit: float) -> Counter[Any]:
    """What was charged, and of what was to come as much as the client's own ledger would have admitted."""
    charged: Counter[Release] = Counter(dict(releases_of(plan, tally)))
    if not to_come:
        return charged
    terms = plan.terms()
    admission = Limit(epsilon=limit, delta=plan.privacy.delta).admit(Account(), terms, terms.rounds[0])
    if admission is None:
        return charged
    if admission.envelope is not None:
        to_come &= Counter(dict(admission.envelope)) - charged
    return charged + to_come


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _largest(epsilons: list[float | None]) -> float | None:
    """None where no epsilon can be claimed for one of the clients."""
    known = [value for value in epsilons if value is not None]
    return max(known, default=0.0) if len(known) == len(epsilons) else None


def withdrawn(plan: Plan, state: RunState, *, unpriced: Sequence[str] = ()) -> list[str]:
    """Conditions that a claim needs and this run does not meet, in plain words; `unpriced` clients have no epsilon."""
    reasons = ["simulated, not a claim: all clients ran in one place"]
    if plan.privacy.noise == "reproducible":
        reasons.append("the noise follows from the plan's seed, which others may know")
    failed = sorted(client for client, tally in state.clients.items() if tally.withdrawn)
    if failed:
        reasons.append(f"failed, which may tell something of their data (rule 5): clients {', '.join(failed)}")
    open_books = sorted(client for client, tally in state.clients.items() if tally.unprotected)
    if open_books:
        fields = ", ".join(plan.privacy.unprotected)
        reasons.append(f"sent unprotected beside private updates ({fields}): clients {', '.join(open_books)}")
    contradicted = sorted(client for client, tally in state.clients.items() if tally.contradicted)
    if contradicted:
        reasons.append(f"told of ledgers that lack what they had told of before: clients {', '.join(contradicted)}")
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
    if plan.evaluation.where != "none":
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
