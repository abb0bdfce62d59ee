"""What follows from `federation.strategy = "scaffold"`, and control variates as both sides compute them.

SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II): a client's step is corrected by c - c_i,
the mean of all clients' variates less its own, and after K steps at rate r from x to y its own one becomes
c_i - c + (x - y) / (K r). So what a variate gains follows from the update that leaves, and from what the server said:
nothing else has to be sent, and under local privacy it is post-processing of a release that was charged
(DP-SCAFFOLD: Noble, Bellet & Dieuleveut 2022, arXiv 2111.09278).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from shared_models.parameters import Parameters
    from shared_models.plan import Plan

SCAFFOLD: Final = "scaffold"


def is_scaffold(plan: Plan) -> bool:
    """Whether clients correct their steps by control variates."""
    return plan.federation.strategy == SCAFFOLD


def variate_gain(control: Parameters, update: Parameters, *, steps: int, rate: float) -> Parameters:
    """What a client's variate gains by an update: c_i+ - c_i = -c - (y - x) / (K r). The same of a mean of updates.

    Args:
        control: c, as the client was sent it.
        update: y - x, as it was released.
        steps: K, of the round.
        rate: r, the learning rate of the round.
    """
    pace = np.float32(steps * rate)
    with np.errstate(over="ignore", invalid="ignore"):  # who keeps it looks whether it is finite
        return {name: np.asarray(-control[name] - value / pace, np.float32) for name, value in update.items()}


def check_scaffold(plan: Plan) -> None:
    """Refuse what variates aren't defined for.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    if not is_scaffold(plan):
        return
    training, privacy, federation = plan.training, plan.privacy, plan.federation
    what = "federation.strategy = 'scaffold'"
    if privacy.trust in ("distributed", "central"):
        raise ValueError(
            f"{what} computes each client's variate of its own update, which privacy.trust = '{privacy.trust}' hides; "
            "allowed: none, local"
        )
    wrong = {
        "training.optimizer": (training.optimizer, "sgd"),
        "training.momentum": (training.momentum, 0.0),
        "training.proximal_mu": (training.proximal_mu, 0.0),
        "training.epochs": (training.epochs, None),
        "federation.wire": (federation.wire, "float32"),
        "federation.weighting": (plan.weighting, "uniform"),
    }
    for key, (given, allowed) in wrong.items():
        if given != allowed:
            instead = "training.steps" if allowed is None else f"{allowed!r}"
            raise ValueError(
                f"{key} = {given!r}: with {what} a variate is the mean gradient of a number of equal steps of sgd, "
                f"each client's counting the same; allowed: {instead}"
            )
