"""Rounds of sums without masks: the same numbers as a secure sum's, in a simulation that asks for speed.

Clients put in what they would mask, with the same shares of noise; the server, which is the same process or machine,
adds it up. Every other claim of a secure sum is gone: sites outside of a simulation refuse such plans, and a run says
so. What is left out is the protocol alone, so many steps cost little more than their training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from server.replies import ClientFault
from server.rounds.plain import Contribution, Tally, moved
from server.rounds.playing import Federated, Played, norm_of
from server.rounds.summed import check_cohort, fewest_in_sum, update_of
from server.run_state import RunState
from server.secure_replies import Masked, read_masked
from server.strategies import StrategyError
from server.streams import answers
from shared_models.parameters import Parameters, from_arrays, wire_bytes


class UnmaskedRounds:
    """Plays rounds as sums that the server makes itself."""

    def __init__(self, federated: Federated) -> None:
        self._with = federated

    def needed(self, cohort: int, there: int) -> int:
        """Clients that a sum needs: as many as a secure sum would; see `Rounds`."""
        return max(self._with.fewest(cohort), fewest_in_sum(self._with.plan, there))

    def play(
        self,
        number: int,
        nodes: Mapping[str, int],
        cohort: int,
        parameters: Parameters,
        state: RunState,
        keep: Callable[[], None],
    ) -> Played:
        """Play one round; see `Rounds`.

        Raises:
            RunError: the cohort is larger than the plan's.
        """
        del keep  # a round that is cut off is asked for again in the same words
        check_cohort(self._with.plan, cohort, round_number=number)
        tally = Tally()
        if not nodes:
            return Played(tally)
        plan, layout = self._with.plan, self._with.layout
        assert plan.secure.dimension is not None  # or it were not resolved
        length, kind = plan.secure.dimension, f"uint{plan.secure.bits}"
        sent, arrays = self._with.requests(number, nodes, parameters, state)
        for message in sent.values():
            message.metadata.group_id = str(number)
        total: npt.NDArray[Any] = np.zeros(length, kind)
        for reply in answers(
            self._with.grid,
            list(sent.values()),
            {node: client for client, node in nodes.items()},
            lambda reply, client: read_masked(reply, client, length=length, type_name=kind),
            timeout=plan.federation.round_timeout,
        ):
            if isinstance(reply, Masked):
                total += reply.vector  # modulo the ring's size: in any order the same
                tally.updates.append(reply.client)
                tally.received += reply.received
                self._with.hear(state, number, reply.client, reply.epsilon, reply.head)
            else:
                tally.faults.append(reply)
        self._note(number, nodes, tally, state)
        bytes_sent = wire_bytes(arrays) * len(sent)
        if len(tally.updates) < self.needed(cohort, len(nodes)):
            return Played(tally, sent=bytes_sent)
        survivors = len(tally.updates)
        norm = norm_of(plan, state)
        update, following = update_of(total, plan, layout, survivors=survivors, round_number=number, norm=norm)
        towards = Contribution(moved(from_arrays(arrays, layout), update), weight=1)
        try:
            model = self._with.strategy.aggregate(number, sent, [towards])
            return Played(tally, model, sent=bytes_sent, clipping_norm=following)
        except StrategyError as error:
            return Played(tally, problem=str(error), sent=bytes_sent)

    def _note(self, number: int, nodes: Mapping[str, int], tally: Tally, state: RunState) -> None:
        faults: dict[str, ClientFault] = {fault.client: fault for fault in tally.faults}
        answered = {*faults, *tally.updates}
        for client in nodes:
            if client in answered:
                state.note_client(number, client, faults.get(client))
