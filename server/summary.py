"""The summary of a run: its figures, and beside them what they are worth."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, cast

from privacy.accountant import ACCOUNTANT, Spent, epsilon
from privacy.lifetime import Account, Limit, Releases, multiset
from privacy.mechanisms import BandedFactorisation, DpSgd, Release, RoundedGaussianSum
from server.claim import (
    NO_PRIVACY,
    Remark,
    accountant_of,
    assumptions,
    claim,
    disclosed,
    privacy_unit,
    relation_of,
    withdrawn,
)
from server.rounds.playing import norm_of
from server.run_state import ClientTally, RunState
from shared_models.plan import Plan
from shared_models.plan_adaptive import clipping_of, is_adaptive, update_noise
from shared_models.plan_asynchronous import is_asynchronous, participations_of
from shared_models.plan_central import expected_cohort, is_central, population_of
from shared_models.plan_secure_sum import sum_release

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
    also_withdrawn: Sequence[Remark] = (),
    statements: Mapping[str, str] | None = None,
    gaps: Sequence[str] = (),
    simulated: bool = True,
    personal: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds; its schema is docs/schemas/summary.schema.json.

    Args:
        plan: the resolved plan.
        state: the server's books.
        stopped: why the run ended early, or None.
        reason: one line that says why it failed, or None.
        clients: everybody who was ever asked, by stable id.
        startup_seconds: up to the first round.
        also_withdrawn: conditions of a claim that the grid does not meet.
        statements: of each client, whether its signed statement holds ("verified"), and if not, why.
        gaps: clients whose statement says that a gap in their ledger was written off.
        simulated: whether all clients were in one place, so that nothing is claimed.
        personal: in a simulation, how good the clients' own models are.
    """
    first = state.first_round_seconds
    privacy = privacy_summary(
        plan,
        state,
        stopped=stopped,
        clients=clients,
        also_withdrawn=also_withdrawn,
        statements=statements or {},
        gaps=gaps,
        simulated=simulated,
    )
    return {
        "name": plan.name,
        "plan_digest": plan.digest(),
        "setting": "simulation" if simulated else "deployment",
        "rounds": state.round,
        "stopped": stopped,
        "reason": reason,
        "final": state.evaluation,
        "by_class": state.by_class,
        "best": None
        if state.progress.best is None
        else {
            "round": state.progress.best_round,
            "metric": plan.evaluation.metric,
            "value": state.progress.best,
        },
        "seconds": {
            "startup": round(startup_seconds, 3),
            "first_round": None if first is None or plan.has_secret_cohorts else round(first, 3),
            "rounds": round(state.seconds, 3),
            "total": round(startup_seconds + state.seconds, 3),
        },
        "bytes": {"up": None, "down": None} if is_central(plan) else {"up": state.bytes_up, "down": state.bytes_down},
        "privacy": privacy,
        "baselines": None,
        "personal": personal,
        "faults": state.faults,
        "versions": versions(),
    }


def privacy_summary(
    plan: Plan,
    state: RunState,
    *,
    stopped: str | None,
    clients: list[str],
    also_withdrawn: Sequence[Remark] = (),
    statements: Mapping[str, str] = MappingProxyType({}),
    gaps: Sequence[str] = (),
    simulated: bool = True,
) -> dict[str, Any]:
    """Who is protected from whom, how strongly, and which conditions do not hold. Arguments as for `summarise`."""
    release = plan.train_release()
    privacy = plan.privacy
    rows = [{**_row(plan, state, client, stopped=stopped), "statement": statements.get(client)} for client in clients]
    if release is None:
        return {
            "unit": None,
            "trust": "none",
            "claim": None,
            "withdrawn": [NO_PRIVACY.to_json()],
            "clients": rows,
        }
    epsilons = {row["id"]: row["epsilon"] for row in rows}
    # Of who was charged nothing there is nothing to testify.
    charged = [client for client, value in epsilons.items() if value != 0]
    lacking = [
        *withdrawn(
            plan,
            state,
            simulated=simulated,
            unpriced=[client for client, value in epsilons.items() if value is None],
            unstated=[] if simulated else [client for client in charged if statements.get(client) != "verified"],
            gaps=gaps,
        ),
        *also_withdrawn,
    ]
    return {
        "unit": privacy_unit(plan),
        "trust": privacy.trust,
        "relation": relation_of(plan),
        "accountant": f"{ACCOUNTANT}; RDP beside it" if accountant_of(plan) == ACCOUNTANT else accountant_of(plan),
        "delta": privacy.delta,
        "epsilon_max": _largest(list(epsilons.values())),
        "epsilon_planned": privacy.epsilon,
        # Of joint steps the plan's own: over what a record moves, whoever the unit is, as for other steps.
        "noise_multiplier": privacy.noise_multiplier if plan.is_joint else release.noise_multiplier,
        "clipping_norm": privacy.clipping_norm,
        "sample_rate": 1.0 if isinstance(release, BandedFactorisation) else release.sample_rate,
        "steps_a_round": release.steps if isinstance(release, DpSgd) else 1,  # a secure sum is one release
        "noise": privacy.noise,
        "selection": privacy.selection,
        "secure_sum": _secure_sum(plan, state),
        "central": _central(plan),
        "adaptive": _adaptive(plan, state),
        "claim": None if lacking else claim(plan, epsilons),
        "withdrawn": [remark.to_json() for remark in lacking],
        "assumptions": [remark.to_json() for remark in assumptions(plan)],
        "disclosed": [remark.to_json() for remark in disclosed(plan, simulated=simulated)],
        "clients": rows,
    }


def _secure_sum(plan: Plan, state: RunState) -> dict[str, Any] | None:
    """What the figures of secure sums rest on, and what was asked; None where there were none."""
    if plan.privacy.trust != "distributed":
        return None
    found, release = plan.secure_parameters(), plan.train_release()
    assert release is not None
    return {
        "clients": found.cohort,
        "honest": found.honest,
        "corrupt": found.corrupt,
        "holders": found.holders,
        "threshold": found.threshold,
        "least": found.least,
        "attempts": len(state.begun),
        "repeated": state.repeated,
        "release": release.to_json(),
    }


def _central(plan: Plan) -> dict[str, Any] | None:
    """What the figures of a trusted server's sums rest on; None where there were none."""
    release = plan.train_release()
    if not is_central(plan) or release is None:
        return None
    return {
        "population": population_of(plan),
        "expected_cohort": expected_cohort(plan),
        "secret_cohorts": plan.has_secret_cohorts,
        "release": release.to_json(),
    }


def _adaptive(plan: Plan, state: RunState) -> dict[str, Any] | None:
    """Public constants of a clipping norm that adapts, and where it went; None where it was fixed."""
    if not is_adaptive(plan):
        return None
    clipping = clipping_of(plan)
    return {
        "quantile": clipping.quantile,
        "rate": clipping.rate,
        "count_noise": clipping.count_noise,
        "least_norm": clipping.least_norm,
        "most_norm": clipping.most_norm,
        "update_noise": update_noise(plan),
        "last_norm": norm_of(plan, state),
    }


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
        "rounds": None if is_central(plan) else tally.rounds,
        "charged_rounds": 0,
        "charged_evaluations": 0,
        "refused": len(tally.refused),
        "withdrawn_rounds": tally.withdrawn,
        "unprotected_rounds": tally.unprotected,
        # How long a ledger has become tells how often its client was drawn.
        "head": None if tally.head is None or plan.has_secret_cohorts else asdict(tally.head),
    }
    if release is None:
        return row
    limit = plan.client_budget(client)
    claimed = _claimed(plan, tally, _to_come(plan, state, tally, stopped), limit)

    def spent(records: int) -> Spent:
        return epsilon(_for_units_of(plan, claimed, records), plan.privacy.delta)

    by_record = plan.privacy.unit == "example"
    own = epsilon(claimed, plan.privacy.delta)
    return row | {
        # Both books: what the server asked for, and what the client says it has paid for.
        "epsilon": _finite(max(own.epsilon, tally.reported)),
        "rdp_epsilon": _finite(own.rdp_epsilon),
        "record_epsilon": _finite(spent(1).epsilon) if by_record else None,
        "person_epsilon": None if bound is None or not by_record else _finite(spent(bound).epsilon),
        "budget": _finite(limit),
        # A run that is one release is paid for whole, whichever rounds are played.
        "charged_rounds": participations_of(plan) if plan.is_one_release and claimed[release] else claimed[release],
        "charged_evaluations": sum(claimed.values()) - claimed[release],
    }


def releases_of(plan: Plan, tally: ClientTally) -> Releases:
    """What a client was charged in this run, by the server's own books."""
    train, counts = plan.train_release(), plan.evaluate_release()
    charged: Counter[Release] = Counter()
    if train is not None:
        charged[train] = min(1, tally.trainings) if plan.is_one_release else tally.trainings
    if counts is not None:
        charged[counts] = len(tally.evaluated)
    return multiset(charged)


def _for_units_of(plan: Plan, releases: Mapping[Any, int], records: int) -> dict[Release, int]:
    """The same releases of records, for units of so many of them."""

    def of(release: Any) -> Release:
        if isinstance(release, RoundedGaussianSum):
            return sum_release(plan, records=records)
        return cast("Release", replace(release, records_per_unit=records))

    return {of(release): times for release, times in releases.items()}


def _to_come(plan: Plan, state: RunState, tally: ClientTally, stopped: str | None) -> Counter[Release]:
    """What a claim covers beside the charges: releases that a stop which may depend on the data left out (rule 4)."""
    found: Counter[Release] = Counter()
    train, counts = plan.train_release(), plan.evaluate_release()
    if stopped not in _DATA_DEPENDENT_STOPS or train is None or plan.is_one_release:
        return found
    if is_asynchronous(plan):  # whichever rounds a client would have been in
        found[train] = max(0, participations_of(plan) - tally.trainings)
        return found
    for number in range(state.round + 1, plan.federation.rounds + 1):
        # A round of secure sums that was given up is over; others fail in the midst.
        begun = number == state.round + 1 and stopped == "failed" and plan.privacy.trust != "distributed"
        if begun and number not in tally.charged:
            continue  # it was not asked, or refused
        found[train] += number not in tally.charged
        if counts is not None:
            found[counts] += plan.is_evaluated(number) and number not in tally.evaluated
    found[train] += max(0, plan.spare_rounds - state.repeated)  # whether a sum is repeated could depend on data too
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


def versions() -> dict[str, str]:
    """Versions of what computed the run."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
