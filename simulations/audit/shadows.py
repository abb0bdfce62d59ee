"""Membership inference by shadow models: whose record did the model see? (`privacy.audit.membership`)

The attacked run and each shadow are runs of the same plan, in which every candidate, a record of some client's, is
there or not by a coin of that run. Each model is asked for its loss on the candidates, as anybody may who can ask it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from client.planting import Planting
from privacy.audit.coin_bounds import Seen
from privacy.audit.membership import Roc, confidence, likelihood_ratios, roc
from security.errors import UsageError
from shared_models.plan import Plan
from simulations.audit.canaries import planting_for, records_of
from simulations.audit.canary_run import losses_of
from simulations.run import Settings, start_run

_FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What shadow models found out.

    Attributes:
        models: how many shadows.
        curve: of the attack.
        seen: scores and coins, which bounds follow from.
    """

    models: int
    curve: Roc
    seen: Seen


def infer_membership(
    plan: Plan,
    *,
    candidates: int,
    models: int,
    clients: tuple[str, ...],
    secret: bytes,
    settings: Settings,
    say: Callable[[str], None],
) -> Inference:
    """Play a run and its shadows, and tell members by likelihood ratios.

    Args:
        plan: resolved.
        candidates: records that are there or not.
        models: shadows, at least 4.
        clients: whose records the candidates are.
        secret: 32 bytes, that coins and candidates follow from.
        settings: of the runs.
        say: is told of each.

    Raises:
        UsageError: too few shadows: a candidate may lack those with it, or without.
        UsageError, RunError: as `start_run`.
    """
    if models < _FEWEST:
        raise UsageError(f"{models} shadow models tell nothing; give at least {_FEWEST}")
    first = planting_for(plan, "records", candidates, clients, secret)
    confidences, coins = [], []
    for number in range(models + 1):
        say(f"shadow model {number} of {models}" if number else "the run that is attacked")
        losses, planted = _played(plan, replace(first, draw=number), settings)
        confidences.append(confidence(losses))
        coins.append(planted)
    shadows, planted = np.stack(confidences[1:]), np.stack(coins[1:])
    both = planted.any(0) & ~planted.all(0)  # by coins alone, so that who is left out tells nothing
    scores = likelihood_ratios(shadows[:, both], planted[:, both], confidences[0][both])
    seen = Seen(looked_for="records", way="shadow", scores=scores, coins=coins[0][both])
    return Inference(models=models, curve=roc(scores, coins[0][both]), seen=seen)


def _played(plan: Plan, planting: Planting, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    canaries = records_of(plan, planting)
    with tempfile.TemporaryDirectory(prefix="veil-shadow-") as folder:
        _, outcome = start_run(plan, Path(folder) / "run", replace(settings, plantings=(planting,)))
    return losses_of(plan, outcome.parameters, canaries), canaries.coins
