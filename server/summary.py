"""The summary of a run, and what its privacy figures are worth."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy.accountant import epsilon
from server.run_state import ClientTally, RunState
from shared_models.plan import Plan

_PACKAGES = ("veil-fl", "flwr", "torch", "opacus", "dp-accounting", "numpy", "ray")

# Stops that look at the data: a claim then covers every planned round, played or not (rule 4).
_DATA_DEPENDENT_STOPS = ("target", "plateau")


def summarise(
    plan: Plan,
    state: RunState,
    *,
    stopped: str | None,
    reason: str | None,
    clients: list[str],
    startup_seconds: float,
) -> dict[str, Any]:
    """What `summary.json` holds; its schema is docs/schemas/summary.schema.json."""
    first = state.first_round_seconds
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
        "privacy": privacy_summary(plan, state, stopped=stopped, clients=clients),
        "baselines": None,
        "faults": state.faults,
        "versions": versions(),
    }


def privacy_summary(plan: Plan, state: RunState, *, stopped: str | None, clients: list[str]) -> dict[str, Any]:
    """Who is protected from whom, how strongly, and which conditions do not hold."""
    release = plan.round_release()
    privacy = plan.privacy
    rows: list[dict[str, Any]] = []
    for client in clients:
        tally = state.clients.get(client, ClientTally())
        claimed = tally.charged
        if stopped in _DATA_DEPENDENT_STOPS:
            claimed += plan.federation.rounds - state.round
        spent = None if release is None else epsilon({release: claimed}, privacy.delta) if claimed else None
        rows.append(
            {
                "id": client,
                "epsilon": 0.0 if release is not None and spent is None else spent and spent.epsilon,
                "rdp_epsilon": spent and spent.rdp_epsilon,
                "budget": None if release is None else privacy.budget or privacy.epsilon,
                "rounds": tally.rounds,
                "charged_rounds": claimed if release is not None else 0,
                "refused": tally.refused,
                "withdrawn_rounds": tally.withdrawn,
            }
        )
    if release is None:
        return {"unit": None, "trust": "none", "claim": None, "withdrawn": [NO_PRIVACY], "clients": rows}
    return {
        "unit": privacy_unit(plan),
        "trust": privacy.trust,
        "relation": "add or remove one",
        "accountant": "PLD, pessimistic, discretisation 1e-3; RDP beside it",
        "delta": privacy.delta,
        "epsilon_max": max((row["epsilon"] for row in rows), default=0.0),
        "epsilon_planned": privacy.epsilon,
        "noise_multiplier": release.noise_multiplier,
        "clipping_norm": privacy.clipping_norm,
        "sample_rate": release.sample_rate,
        "steps_a_round": release.steps,
        "noise": privacy.noise,
        "selection": privacy.selection,
        "claim": None,
        "withdrawn": withdrawn(plan, state),
        "disclosed": disclosed(plan),
        "clients": rows,
    }


NO_PRIVACY = "no privacy: plain federated learning protects nobody"


def privacy_unit(plan: Plan) -> str:
    """What is protected, in words (rule 6)."""
    bound = plan.data.max_rows_per_person
    return "record, not person" if bound is None else f"person, at most {bound} records each"


def withdrawn(plan: Plan, state: RunState) -> list[str]:
    """Conditions that a claim needs and this run does not meet, in plain words."""
    reasons = ["simulated, not a claim: all clients ran on one machine, their noise is floating-point (rule 9)"]
    if plan.privacy.noise == "reproducible":
        reasons.append("the noise follows from the plan's seed, which others may know")
    failed = sorted(client for client, tally in state.clients.items() if tally.withdrawn)
    if failed:
        reasons.append(f"failed on their data, which tells something of it (rule 5): clients {', '.join(failed)}")
    return reasons


def disclosed(plan: Plan) -> list[str]:
    """What the claim does not cover."""
    found = ["when a client answers is not protected (rule 12)"]
    if plan.evaluation.where == "server":
        found.append("the server's own evaluation data is not protected (rule 11)")
    if plan.privacy.selection == "uncharged":
        found.append("hyper-parameters may have been chosen by looking at the data, uncharged (rule 11)")
    return found


def versions() -> dict[str, str]:
    """Versions of what computed the run."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
