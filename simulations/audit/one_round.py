"""One round's release, made many times with a canary and without: the audit with the most power.

Nothing of the way that a release takes is left out but the messages: sampling, clipping, the grid, the noise of each
client and, for a secure sum, encoding and decoding. Clients have no records, so nothing else moves the coordinate that
is looked at; the canary, of one client, moves it as far as anything can. Where the unit is a person, it is as many
records as one person may have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from client.contribution import contribution
from client.datasets.records import Records
from client.noise import noise_of
from client.workplace import Workplace, workplace
from privacy.audit.many_runs import Trials, best_threshold
from privacy.dpsgd.planted import PlantedGradients
from security.errors import UsageError
from server.rounds.summed import update_of
from shared_models.features.apply import model_form
from shared_models.parameters import Parameters, get_parameters, in_order
from shared_models.plan import Plan
from shared_models.plan_central import is_central
from shared_models.plan_file import write_plan

Floats = npt.NDArray[np.float64]

_LENGTH = 10.0  # of the canary, in clipping norms


@dataclass(frozen=True)
class _Owner:
    """As much of a site as a release asks for."""

    client: str
    records: Records

    def training_records(self, place: Workplace) -> Records:
        return self.records


class OneRound:
    """Makes releases of a plan's first round.

    Args:
        plan: resolved, private, and not one whose noise is the server's.

    Raises:
        UsageError: no client of the plan releases anything by itself or in a sum.
    """

    def __init__(self, plan: Plan) -> None:
        if not plan.is_private or is_central(plan) or plan.statistics is not None:
            raise UsageError(
                "one round can be audited of plans that train with privacy.trust = 'local' or 'distributed'"
            )
        self._place = workplace(write_plan(plan))
        self._start = get_parameters(self._place.model)
        self._layout = self._place.layout
        form = model_form(plan)
        labels = (0, *form.shape) if form.at_each_place else (0,)
        self._none = Records(x=torch.zeros(0, *form.shape), y=torch.zeros(labels, dtype=torch.int64))
        together = plan.secure_parameters().cohort if plan.privacy.trust == "distributed" else 1
        self._clients = tuple(f"client-{i}" for i in range(together))

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self._layout.size

    def moved(self, *, planted: bool, coordinate: int, seed: int) -> float:
        """By how much a release moves the model towards where the canary would have it.

        Args:
            planted: whether the first client has the canary.
            coordinate: of the canary, in the layout's order.
            seed: that the release's noise follows from, in a plan that asks for reproducible noise; else it is fresh.
        """
        place = replace(self._place, plan=self._place.plan.model_copy(update={"seed": seed}))
        plan = place.plan
        towards = -1.0 if plan.privacy.unit == "example" else 1.0  # a step goes against its gradient
        of_one = plan.records_per_unit if plan.privacy.unit == "example" else 1
        canary = PlantedGradients(
            torch.full((of_one,), coordinate), torch.full((of_one,), _LENGTH * plan.privacy.clipping_norm)
        )
        own = replace(self._none, planted=canary) if planted else self._none
        update = self._alone(place, own) if plan.privacy.trust == "local" else self._together(place, own)
        row = np.concatenate([value.ravel() for _, value in in_order(update, self._layout)])
        return towards * float(row[coordinate])

    def _alone(self, place: Workplace, own: Records) -> Parameters:
        from client.private_trainer import train_private

        noise = noise_of(place.plan, "noise", self._clients[0], 1)
        return train_private(place.model, self._start, own, place.plan, round_number=1, noise=noise)

    def _together(self, place: Workplace, own: Records) -> Parameters:
        owners = [_Owner(client, own if client == self._clients[0] else self._none) for client in self._clients]
        parts = [
            contribution(place, owner, self._start, round_number=1, attempt=b"")  # type: ignore[arg-type]
            for owner in owners
        ]
        total = np.zeros_like(parts[0])
        for part in parts:
            total += part  # modulo the ring's size
        return update_of(total, place.plan, self._layout, survivors=len(parts), round_number=1)[0]


def play_releases(plan: Plan, *, runs: int, seed: int) -> tuple[Floats, Floats]:
    """How far releases with the canary and without moved towards it.

    Args:
        plan: as for `OneRound`.
        runs: releases of either kind, at least 2.
        seed: of all noise; 0 or above.

    Raises:
        UsageError: as for `OneRound`.
    """
    releases = OneRound(plan)
    coordinate = int(np.random.default_rng(seed).integers(releases.size))
    planted, without = (
        np.array(
            [
                releases.moved(planted=there, coordinate=coordinate, seed=2 * (seed * runs + i) + there)
                for i in range(runs)
            ]
        )
        for there in (True, False)
    )
    return planted, without


def count_trials(planted: Floats, without: Floats, bound: Callable[[Trials], float]) -> Trials:
    """Find on half of the releases which threshold tells most, and count on the other half.

    Args:
        planted, without: as `play_releases` gives them.
        bound: what trials tell.
    """
    half = len(planted) // 2
    threshold = best_threshold(planted[:half], without[:half], bound=bound)
    return Trials(
        with_unit=len(planted) - half,
        detected=int(np.sum(planted[half:] > threshold)),
        without_unit=len(without) - half,
        false_alarms=int(np.sum(without[half:] > threshold)),
    )
