"""An audit of a plan: its claims, each held against what an adversary found in simulations of it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from client.datasets.partition import client_ids
from client.planting import Planting
from client.workplace import split_key
from privacy import accountant
from privacy.audit import coin_bounds, many_runs
from privacy.audit.coin_bounds import Claim
from privacy.audit.finding import FALSE_ALARMS, Finding, Method
from privacy.audit.trade_off import of_releases
from privacy.report.audited import SCHEMA
from security.errors import UsageError
from server.run_folder import RunFolder, writable, write_atomically
from shared_models.plan import Plan
from shared_models.plan_central import is_central
from shared_models.resolve import resolve
from simulations.audit.canaries import layout_of_plan, planting_for
from simulations.audit.canary_run import play_with_canaries
from simulations.audit.one_round import count_trials, play_releases
from simulations.audit.shadows import Inference, check_shadows, infer_membership
from simulations.run import Settings
from simulations.scenarios import find_plan

MOST_CANARIES: Final = 20_000
"""That are planted unasked: of more, guesses tell little more."""

ROUND_BOUNDS: Final = 2
"""That are drawn from one round played many times."""

_FEWEST_CANARIES: Final = 500
_CALLED: Final = {"gradients": "planted gradients", "clients": "planted clients", "mislabelled": "mislabelled records"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How thorough an audit is.

    Attributes:
        canaries: planted gradients, or planted clients; 0 for none; None for as many as can contradict the claim, at
            most `MOST_CANARIES`.
        mislabelled: records of clients' own with wrong labels; 0 for none.
        rounds: releases of one round with a canary, and as many without; 0 for none.
        shadows: models of membership inference; 0 for none.
        candidates: of it, records that are there or not.
        secret: what coins and places follow from; None for fresh randomness.
    """

    canaries: int | None = None
    mislabelled: int = 200
    rounds: int = 1000
    shadows: int = 0
    candidates: int = 200
    secret: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found.

    Attributes:
        plan: digest of the plan that was played.
        findings: bounds and estimates.
        folder: of the run with the canaries, and of `audit.json`.
        inference: what shadow models found out; None where there were none.
    """

    plan: str
    findings: list[Finding]
    folder: RunFolder
    inference: Inference | None = None


def audit(plan: Plan, out: Path, settings: Settings, options: Options, say: Callable[[str], None]) -> Audit:
    """Audit a resolved plan.

    Args:
        plan: resolved; private.
        out: folder of the run with canaries, and of what was found.
        settings: of that run.
        options: how thorough.
        say: is told what is being done.

    Raises:
        UsageError: the plan claims nothing that can be audited, or too little was asked for.
        RunError: the run could not be played, or failed, or its model diverged.
    """
    check_auditable(plan)
    secret = options.secret or secrets.token_bytes(32)
    one_round = options.rounds if not is_central(plan) else 0
    if options.shadows and plan.privacy.unit == "client":
        raise UsageError(
            "shadow models tell whether a record was there; this plan's claim is of clients: leave them out"
        )
    # What was asked for wrongly is found out before hours are spent on the rest.
    if options.shadows:
        check_shadows(options.shadows, options.candidates)
    if one_round == 1:
        raise UsageError("1 release of one round tells nothing; give at least 2 rounds, or 0 for none")
    bounds = _number_of_bounds(plan, options, one_round)
    if not bounds:
        raise UsageError("nothing was asked for: give canaries, mislabelled records, rounds or shadows")
    alpha, findings, folder = FALSE_ALARMS / bounds, list[Finding](), RunFolder(out)
    claim = claim_of(plan)
    if options.canaries is None:
        options = replace(options, canaries=enough(claim, alpha=alpha))
    plantings = plantings_of(plan, options, secret)
    if not plantings and folder.plan.is_file():
        raise UsageError(f"--out: {out} holds a run, whose report would take this for its own; choose another folder")
    if plantings:
        say(f"a run with {' and '.join(f'{one.count} {_CALLED[one.kind]}' for one in plantings)}")
        folder, seen = play_with_canaries(plan, plantings, out, settings)
        for one in seen:
            findings += coin_bounds.findings(one, claim, alpha=alpha * coin_bounds.WAYS)
            findings += coin_bounds.estimates(one, claim)
    if one_round:
        say(f"one round, {one_round} times with a canary and {one_round} times without")
        findings += of_one_round(plan, one_round, secret, alpha=ROUND_BOUNDS * alpha)
    inference = None
    if options.shadows:
        inference = infer_membership(
            plan,
            candidates=options.candidates,
            models=options.shadows,
            clients=client_ids(plan.data, seed=plan.seed, split_key=split_key(plan)),
            secret=secret,
            settings=settings,
            say=say,
        )
        findings += coin_bounds.findings(inference.seen, claim, alpha=alpha * coin_bounds.WAYS)
    found = Audit(plan=plan.digest(), findings=findings, folder=folder, inference=inference)
    with writable(folder.path):
        write_atomically(folder.audit, _text(found))
    return found


def check_auditable(plan: Plan) -> None:
    """Raises UsageError where a plan claims nothing, or what canaries would not be in."""
    if not plan.is_private:
        raise UsageError("privacy.trust = 'none' claims nothing, so there is nothing to audit")
    for key, there in (
        ("statistics", plan.statistics is not None),
        ("personal", plan.personal is not None),
        ("federation.asynchronous", plan.federation.asynchronous is not None),
    ):
        if there:
            raise UsageError(f"[{key}]: plans with it can't be audited yet; audit one without")


def _number_of_bounds(plan: Plan, options: Options, rounds: int) -> int:
    """How many share the false alarms."""
    wrong_labels = 2 if options.mislabelled and plan.privacy.unit != "client" else 0
    ways = (options.canaries != 0) + wrong_labels + (options.shadows > 0)
    return coin_bounds.WAYS * ways + ROUND_BOUNDS * (rounds > 0)


def enough(claim: Claim, *, alpha: float) -> int:
    """How many canaries could contradict a claim, were each of their coins guessed; at most `MOST_CANARIES`.

    Args:
        claim: what is claimed.
        alpha: false alarms of each bound.
    """
    count = _FEWEST_CANARIES
    while count < MOST_CANARIES and not coin_bounds.can_contradict(count, claim, alpha=alpha):
        count = min(MOST_CANARIES, round(count * 1.5))
    return count


def plantings_of(plan: Plan, options: Options, secret: bytes) -> tuple[Planting, ...]:
    """What is planted: as much as was asked for, and fits."""
    clients = client_ids(plan.data, seed=plan.seed, split_key=split_key(plan))
    found = []
    if plan.privacy.unit == "client":
        count = min(options.canaries or 0, len(clients) // 2, layout_of_plan(plan).size)
        if count:
            found.append(planting_for(plan, "clients", count, clients[len(clients) - count :], secret))
        return tuple(found)
    if options.mislabelled:
        found.append(planting_for(plan, "mislabelled", options.mislabelled, clients, secret))
    if options.canaries:
        count = min(options.canaries, layout_of_plan(plan).size)
        found.append(planting_for(plan, "gradients", count, clients, secret))
    return tuple(found)


def claim_of(plan: Plan) -> Claim:
    """What the accountant claims of all that a client of the plan releases."""
    releases, delta = plan.planned_trainings() + plan.planned_counts(), plan.privacy.delta
    return Claim(
        trust=plan.privacy.trust,
        epsilon=accountant.epsilon(releases, delta).epsilon,
        delta=delta,
        curve=of_releases(releases),
    )


def of_one_round(plan: Plan, runs: int, secret: bytes, *, alpha: float) -> list[Finding]:
    """Hold one round's claim against what many releases of it show.

    Args:
        plan: as for `one_round.OneRound`.
        runs: releases with a canary, and as many without.
        secret: what noise and place follow from.
        alpha: false alarms of both bounds together.

    Raises:
        UsageError: as for `OneRound`.
    """
    release, delta, each = plan.train_release(), plan.privacy.delta, alpha / ROUND_BOUNDS
    assert release is not None
    planted, without = play_releases(plan, runs=runs, seed=int.from_bytes(secret[:4], "big"))
    claimed, curve = accountant.epsilon([release], delta).epsilon, of_releases([release])
    ways: dict[Method, Callable[..., float]] = {
        "many-runs": many_runs.lower_bound,
        "trade-off": many_runs.gaussian_lower_bound,
    }
    found = []
    for method, way in ways.items():
        bound = partial(way, delta=delta, alpha=each)
        trials = count_trials(planted, without, bound)
        found.append(
            Finding(
                looked_for="round",
                way="round",
                method=method,
                trust=plan.privacy.trust,
                claim="round",
                epsilon=bound(trials),
                claimed=claimed,
                delta=delta,
                alpha=each,
                power=bound(replace(trials, detected=trials.with_unit, false_alarms=0)),
                trials=trials.with_unit + trials.without_unit,
                guesses=trials.with_unit + trials.without_unit,
                correct=trials.detected + trials.without_unit - trials.false_alarms,
                contradicted=method == "trade-off" and many_runs.contradicts(curve, trials, alpha=each),
            )
        )
    return found


def as_json_of(found: Audit) -> dict[str, Any]:
    """For `audit.json`."""
    return {
        "schema": SCHEMA,
        "plan_digest": found.plan,
        "false_alarms": FALSE_ALARMS,
        "findings": [{**asdict(finding), "verdict": finding.verdict} for finding in found.findings],
        "membership": None if found.inference is None else _membership(found.inference),
    }


def _membership(found: Inference) -> dict[str, float]:
    return {
        "shadow_models": found.models,
        "records": len(found.seen.scores),
        "area": found.curve.area,
        "found_at_1_percent": found.curve.detected_at(0.01),
        "found_at_0_1_percent": found.curve.detected_at(0.001),
    }


def audited_plan(what: str, overrides: Sequence[str]) -> tuple[Plan, RunFolder | None]:
    """The resolved plan to audit, and the run that it is the plan of.

    Args:
        what: name of a scenario, plan file, or folder of a run.
        overrides: `KEY=VALUE` texts, for plans alone.

    Raises:
        UsageError: there is no such plan or run, it can't be audited, or its folder not be written.
    """
    run = RunFolder(Path(what)) if (Path(what) / "plan.toml").is_file() else None
    if run is not None and overrides:
        raise UsageError("--set: a run has the plan that it was played with; leave it out")
    plan = resolve(find_plan(what, overrides) if run is None else run.read_plan())
    check_auditable(plan)
    if run is not None:
        with writable(run.path):
            pass
    return plan, run


def keep_beside(run: RunFolder, found: Audit) -> None:
    """Put an audit of a run's plan into that run's folder, for its report."""
    write_atomically(run.audit, _text(found))


def _text(found: Audit) -> bytes:
    return json.dumps(as_json_of(found), indent=2).encode() + b"\n"
