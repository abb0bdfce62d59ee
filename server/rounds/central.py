"""Rounds of a trusted server that adds the noise: client-level privacy (DP-FedAvg; McMahan et al. 2018, 1710.06963).

A round is charged to the whole population before anybody is asked. Updates are clipped again, whatever their senders
did, and added up in whole numbers as they arrive; then the noise is added, the sum divided by a public number, and
what is to be released is committed. Who was asked, who answered and how many there were changes no step of this: a
missing, failing or damaged update counts as zeros, and a round in which nobody takes part releases noise (rules 1, 3,
5). So no round fails for want of updates, and what `play` returns names nobody.

The seam: `SumNoise` turns a round's sum into what is released, with fresh noise or with noise that is correlated over
rounds (`server.correlated_noise`). With a clipping norm that adapts, what is added up is updates and bits together, no
longer than 1; the norm of the next round follows from what was released, and from that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from privacy.central_sum import ClippedSum, IndependentNoise, SumNoise, mean_of
from privacy.ledger import BudgetExhausted
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.release_grid import ReleaseGrid
from security.errors import RunError
from server.correlated_noise import digest_of
from server.population import Population
from server.replies import ClientFault, Update, read_reply
from server.rounds.plain import Contribution, Tally, moved
from server.rounds.playing import Federated, Played, norm_of
from server.run_state import RunState
from server.strategies import StrategyError
from server.streams import answers
from shared_models.parameters import Parameters, from_arrays, in_order, to_arrays, unflat
from shared_models.plan import Plan
from shared_models.plan_adaptive import after_round, summed_values
from shared_models.plan_central import central_grid, expected_cohort
from shared_models.plan_correlated import is_correlated
from shared_models.protocol import ARRAYS, CONFIG, JOINT
from shared_models.secure_context import model_digest
from shared_models.seeds import derive_key

_NOBODY: Final = ""
Noise = Callable[[ReleaseGrid, int, RunState], SumNoise]
"""Makes the noise of a round: of its grid, its number, and the run's books as the round before has left them."""


class CentralRounds:
    """Plays rounds as noisy sums.

    Args:
        federated: what rounds are played with.
        books: the population's.
        population: who is charged for a round, whether it takes part or not.
        noise: of each round; None for independent noise from the plan's own source.
    """

    def __init__(
        self,
        federated: Federated,
        *,
        books: Population,
        population: Callable[[], Sequence[str]],
        noise: Noise | None = None,
    ) -> None:
        self._with = federated
        self._books = books
        self._population = population
        self._noise = independent(federated.plan) if noise is None else noise
        self._grid = central_grid(federated.plan, federated.layout.size)
        self._correlated = is_correlated(federated.plan)

    def needed(self, cohort: int, there: int) -> int:
        """Clients that a round needs: with secret cohorts none, for their number is no business of the outcome."""
        return 0 if self._with.plan.has_secret_cohorts else self._with.fewest(cohort)

    def play(
        self,
        number: int,
        nodes: Mapping[str, int],
        cohort: int,
        parameters: Parameters,
        state: RunState,
        keep: Callable[[], None],
    ) -> Played:
        """Play one round; see `Rounds`. What is released is in the population's ledger when this returns."""
        tally, plan = Tally(), self._with.plan
        arrays = to_arrays(parameters, self._with.layout)
        start, model = from_arrays(arrays, self._with.layout), model_digest(arrays)
        try:
            mean = self._books.reserve(state.run, number, model)
        except BudgetExhausted:
            return Played(tally, exhausted="the plan's epsilon doesn't cover another round of the population")
        for client in self._population():
            state.note_client(number, client, None)
        asked = nodes if mean is None else {}
        # A strategy that remembers things is asked in every round; what it says to nobody is not sent.
        sent, _ = self._with.requests(number, asked or {_NOBODY: 0}, parameters, state)
        if mean is None:
            if self._correlated:
                for client in asked:
                    state.client(client).ask(number)
                keep()  # or a restart could ask others, and these too soon again
            total = ClippedSum(self._grid, summed_values(plan, self._with.layout.size))
            refused = self._take(number, sent if asked else {}, asked, state, total)
            if not plan.has_secret_cohorts and self._too_many(number, refused, cohort, tally, state):
                return Played(tally)
            mean = self._release(number, total, state, model)
        else:
            self._noise(self._grid, number, state).recall(mean)
        update, following, norm = mean, None, norm_of(plan, state)
        if norm is not None:
            update, following = after_round(plan, mean, norm, round_number=number)
        towards = Contribution(moved(start, unflat(update, self._with.layout)), weight=1)
        try:
            return Played(
                tally,
                self._with.strategy.aggregate(number, sent or _unsent(arrays), [towards]),
                clipping_norm=following,
                released=digest_of(mean) if self._correlated else None,
            )
        except StrategyError as error:
            return Played(tally, problem=str(error))

    def _take(
        self, number: int, sent: Mapping[str, Message], nodes: Mapping[str, int], state: RunState, total: ClippedSum
    ) -> list[ClientFault]:
        """Add up what is good of the replies; who refused."""
        plan, layout, refused = self._with.plan, self._with.layout, []
        for message in sent.values():
            message.metadata.group_id = str(number)
        for reply in answers(
            self._with.grid,
            list(sent.values()),
            {node: client for client, node in nodes.items()},
            lambda reply, client: read_reply(reply, client, layout, plan),
            timeout=plan.federation.round_timeout,
        ):
            if isinstance(reply, Update):
                self._with.hear(state, number, reply.client, reply.epsilon, reply.head)
                # At their own pace an update counts no more than 1, so the sum moves by no more for it.
                arrivals = self._with.arrivals
                delta = reply.delta if arrivals is None else arrivals.weigh(number, reply).delta
                joint = delta.get(JOINT)
                total.add(flat(value for _, value in in_order(delta, layout)) if joint is None else joint)
            elif reply.refused:
                refused.append(reply)
        return refused

    def _too_many(
        self, number: int, refused: Sequence[ClientFault], cohort: int, tally: Tally, state: RunState
    ) -> bool:
        """Where everybody takes part and may know it: note who refused, which hangs on no data, and whether that leaves
        too few."""
        for fault in refused:
            state.take_back(number, fault, paid=self._with.plan.is_paid_at_once)
        tally.faults = list(refused)
        return cohort - len(refused) < self.needed(cohort, cohort)

    def _release(self, number: int, total: ClippedSum, state: RunState, model: str) -> npt.NDArray[np.float32]:
        """Add the noise, and commit what may be seen.

        Raises:
            RunError: another process has released this round: the noise that went with that is not here.
        """
        noise = self._noise(self._grid, number, state)
        mean = mean_of(noise.noisy(total.total), self._grid, expected_cohort(self._with.plan))
        noise.settle(mean)
        found = self._books.commit(state.run, number, model, mean)
        if self._correlated and found is not mean:
            raise RunError(f"round {number}: another process has released it; resume the run, and let one play it")
        return found


def independent(plan: Plan) -> Noise:
    """Fresh noise in each round: from the operating system's entropy, or in a simulation that says so, of the seed."""

    def of_round(grid: ReleaseGrid, number: int, _: RunState) -> SumNoise:
        return IndependentNoise(grid, noise_source(plan, number))

    return of_round


def noise_source(plan: Plan, number: int) -> NoiseSource:
    """Where a round's noise comes from."""
    if plan.privacy.noise == "reproducible":
        return ReproducibleNoise(derive_key(plan.seed, "central-noise", number))
    return SecretNoise()


def flat(values: Iterable[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Arrays in one row."""
    return np.concatenate([np.zeros(0, np.float32), *(value.ravel() for value in values)])


def _unsent(arrays: ArrayRecord) -> dict[str, Message]:
    """What a strategy's one reply answers, if the strategy asks nobody."""
    return {_NOBODY: Message(RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({})}), 0, "train")}
