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
from simulations.audit.canary_run import finite, losses_of, play_through
from simulations.run import Settings

_FEWEST = 4
_FEWEST_CANDIDATES = 20


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
        models: shadows.
        clients: whose records the candidates are.
        secret: 32 bytes, that coins and candidates follow from.
        settings: of the runs.
        say: is told of each.

    Raises:
        UsageError: as `check_shadows`.
        UsageError, RunError: as `play_through`.
    """
    check_shadows(models, candidates)
    # Noise of the plan's seed would be the same in every run: shadows would know that of the one that is attacked.
    plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"noise": "secret"})})
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


def check_shadows(models: int, candidates: int) -> None:
    """Raises UsageError where a candidate may lack shadows with it, or without, or all candidates be there or none."""
    if models < _FEWEST:
        raise UsageError(f"{models} shadow models tell nothing; give at least {_FEWEST}")
    if candidates < _FEWEST_CANDIDATES:
        raise UsageError(f"{candidates} candidates tell nothing; give at least {_FEWEST_CANDIDATES}")


def _played(plan: Plan, planting: Planting, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    canaries = records_of(plan, planting)
    with tempfile.TemporaryDirectory(prefix="veil-shadow-") as folder:
        _, parameters = play_through(plan, Path(folder) / "run", replace(settings, plantings=(planting,)))
    return finite(losses_of(plan, parameters, canaries)), canaries.coins
