"""A run of a plan with canaries among its clients, and how much of each was found in what the server got."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.planting import Planting
from privacy.audit.coin_bounds import Seen
from privacy.audit.finding import Way
from privacy.dpsgd.precision import outputs
from security.errors import RunError
from server.run_folder import RunFolder
from shared_models.loss import loss_of
from shared_models.parameters import Parameters, set_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for
from simulations.audit.canaries import CanaryRecords, layout_of_plan, records_of
from simulations.audit.listening import AlongGradients, Ear, Listener, OnCoordinates
from simulations.run import Settings, failure, start_run

Floats = npt.NDArray[np.float64]


def play_with_canaries(
    plan: Plan, plantings: tuple[Planting, ...], out: Path, settings: Settings
) -> tuple[RunFolder, list[Seen]]:
    """Play a plan with all plantings at once, and look for each of them in each way there is.

    Raises:
        UsageError, RunError: as for `play_through`; or the model diverged, so that nothing is told by it.
    """
    layout = layout_of_plan(plan)
    listeners: list[Listener] = []
    records: dict[int, CanaryRecords] = {}
    for number, planting in enumerate(plantings):
        if planting.kind in ("gradients", "clients"):
            listeners.append(OnCoordinates(planting, layout))
        else:
            records[number] = records_of(plan, planting)
            listeners.append(AlongGradients(plan, records[number], layout))
    ear = Ear(plan, layout, tuple(listeners))
    folder, parameters = play_through(plan, out, replace(settings, plantings=plantings, hear=ear))
    ear.became(parameters, "")
    found = []
    for number, (planting, listener) in enumerate(zip(plantings, listeners, strict=True)):
        if planting.kind in ("gradients", "clients"):
            assert isinstance(listener, OnCoordinates)
            one = _seen(planting, "coordinate", listener.scores(), planting.coins())
            cosines = listener.cosines() if planting.kind == "clients" else None
            found.append(replace(one, cosines=cosines))
        else:
            losses = losses_of(plan, parameters, records[number])
            found.append(_seen(planting, "gradient", listener.scores(), records[number].coins))
            found.append(_seen(planting, "loss", -losses, records[number].coins))
    return folder, found


def play_through(plan: Plan, out: Path, settings: Settings) -> tuple[RunFolder, Parameters]:
    """Play a run that is to be audited; its folder, and what became of the model.

    Raises:
        UsageError: as for `start_run`.
        RunError: the same; or the run failed, or no round of it was played: of what was not released nothing is found,
            which would look like a claim that holds.
    """
    folder, outcome = start_run(plan, out, settings)
    if outcome.stopped == "failed":
        raise failure(folder, outcome)
    if outcome.state.round < 1:
        raise RunError(f"{folder.path}: no round was played (stopped: {outcome.stopped}), so there is nothing to audit")
    return folder, outcome.parameters


def finite(scores: Floats) -> Floats:
    """Scores, if they say anything.

    Raises:
        RunError: one isn't finite.
    """
    if not np.isfinite(scores).all():
        raise RunError("the model has diverged, so nothing can be found in it; give a lower training.learning_rate")
    return scores


def _seen(planting: Planting, way: Way, scores: Floats, coins: npt.NDArray[np.bool_]) -> Seen:
    return Seen(looked_for=planting.kind, way=way, scores=finite(scores), coins=coins)


def losses_of(plan: Plan, parameters: Parameters, canaries: CanaryRecords) -> Floats:
    """Loss of a model on each canary, as anybody who can ask the model may see it."""
    model, loss = build_for(plan).eval(), loss_of(plan)
    set_parameters(model, parameters)
    with torch.no_grad():
        found = [
            loss(outputs(model, x, plan.training.precision), y)
            for x, y in zip(torch.split(canaries.records.x, 1), torch.split(canaries.records.y, 1), strict=True)
        ]
    return torch.stack(found).double().numpy().reshape(-1)
