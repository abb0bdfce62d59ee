"""A plan played with attackers among its clients, and what became of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from security.errors import UsageError
from server.evaluation import TestData, guesses, scores_of
from server.run_folder import RunFolder
from shared_models.cards import card_for
from shared_models.parameters import Parameters, set_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.attacks.poisoning.app import APP
from simulations.attacks.poisoning.attack import (
    BACKDOORS,
    POISONING,
    Kind,
    Poisoning,
    check_attackable,
    some_attackers,
)
from simulations.attacks.poisoning.records import with_trigger
from simulations.run import Settings, load_data, start_run


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """What came of a run with attackers.

    Attributes:
        stopped: as in a run's summary; "failed" where it could not go on.
        accuracy: of the last model, on the server's test data.
        backdoor: share of triggered test pictures of other classes that it takes for the target; None where records
            are no pictures.
        dropped: replies that the server left out, over all rounds.
    """

    stopped: str | None
    accuracy: float
    backdoor: float | None
    dropped: int


def poisoning_of(
    plan: Plan, kind: Kind, share: float, *, strength: float | None = None, keeps_norm: bool = False
) -> Poisoning:
    """An attack on a plan, by a share of its clients; class 0 is a backdoor's target.

    Args:
        plan: resolved.
        kind: of attack.
        share: of the clients who attack.
        strength, keeps_norm: as of `Poisoning`.

    Raises:
        UsageError: the plan can't be attacked here, or its data can't be loaded.
    """
    check_attackable(plan)
    test, clients = load_data(plan)
    if test.y.ndim > 1:
        raise UsageError(
            f"data.name = '{plan.data.name}': attackers know nothing of language models; attack other data"
        )
    found = Poisoning(
        kind=kind,
        attackers=some_attackers(clients, share, seed=plan.seed),
        clients=len(clients),
        classes=len(card_for(plan.data).classes),
        strength=strength,
        keeps_norm=keeps_norm,
        bright=float(test.x.max()) if len(test.x) else 1.0,
    )
    if kind in BACKDOORS:
        with_trigger(test.x, side=found.side, bright=found.bright)  # or attackers would fail one by one
    return found


def play_poisoned(plan: Plan, poisoning: Poisoning, out: Path | None, settings: Settings) -> tuple[RunFolder, Poisoned]:
    """Play a plan; without attackers, as it is.

    Args:
        plan: resolved.
        poisoning: who attacks it, and how.
        out: folder of the run.
        settings: its app and what that is told are the attackers'.

    Raises:
        UsageError, RunError: as for `start_run`; or the model isn't judged, for there is no test data at the server.
    """
    check_attackable(plan)
    if plan.evaluation.where != "server":
        raise UsageError("evaluation.where: an attack is judged on the server's test data; give 'server'")
    settings = replace(settings, app=APP, told={POISONING: poisoning.to_json()})
    folder, outcome = start_run(plan, out, settings)
    test, _ = load_data(plan)
    accuracy = float((_taken_for(plan, outcome.parameters, test.x) == test.y).float().mean())
    dropped = sum(len(line.get("faults", ())) for line in folder.read_metrics())
    backdoor = backdoor_success(plan, outcome.parameters, test, poisoning) if test.x.ndim == 4 else None
    return folder, Poisoned(stopped=outcome.stopped, accuracy=accuracy, backdoor=backdoor, dropped=dropped)


def backdoor_success(plan: Plan, parameters: Parameters, test: TestData, poisoning: Poisoning) -> float:
    """The share of pictures of other classes that a model takes for the target once they bear the trigger.

    Raises:
        UsageError: records are no pictures.
    """
    others = test.x[test.y != poisoning.target]
    marked = with_trigger(others, side=poisoning.side, bright=poisoning.bright)
    return float((_taken_for(plan, parameters, marked) == poisoning.target).float().mean())


def _taken_for(plan: Plan, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    model = build_for(plan)
    set_parameters(model, parameters)
    return guesses(scores_of(model, x, plan.evaluation.batch_size))


def resolved(plan: Plan, seed: int) -> Plan:
    """A plan with another seed, resolved."""
    return resolve(plan.model_copy(update={"seed": seed}))
