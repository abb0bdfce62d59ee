"""Rounds in which the server sees every client's update: plain ones, and those under local privacy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import ArrayRecord, Message

from server.replies import ClientFault, read_reply
from server.rounds.plain import EveryReplyRound, MeanRound, Round, Tally
from server.rounds.playing import Federated, Played
from server.run_state import RunState
from server.strategies import StrategyError
from server.streams import answers
from shared_models.parameters import Parameters, from_arrays, wire_bytes


class OpenRounds:
    """Sends the model, takes the updates, takes a step. What is asked again in the same words is paid for once."""

    def __init__(self, federated: Federated) -> None:
        self._with = federated

    def needed(self, cohort: int, there: int) -> int:
        """Good updates that a round needs; see `Rounds`."""
        return self._with.fewest(cohort)

    def play(
        self,
        number: int,
        nodes: Mapping[str, int],
        cohort: int,
        parameters: Parameters,
        state: RunState,
        keep: Callable[[], None],
    ) -> Played:
        """Play one round; see `Rounds`."""
        del keep  # a round that is cut off is asked for again in the same words
        tally = Tally()
        if not nodes:
            return Played(tally)
        plan, layout, strategy = self._with.plan, self._with.layout, self._with.strategy
        sent, arrays = self._with.requests(number, nodes, parameters, state)
        for message in sent.values():
            message.metadata.group_id = str(number)
        # What the clients train from: under float16 it is not quite the server's own model.
        start = from_arrays(arrays, layout)
        kind: Round = EveryReplyRound(nodes, self._with.folder) if strategy.every_reply else MeanRound()
        model: Parameters | None = None
        problem: str | None = None
        replies = answers(
            self._with.grid,
            list(sent.values()),
            {node: client for client, node in nodes.items()},
            lambda reply, client: read_reply(reply, client, layout, plan),
            timeout=plan.federation.round_timeout,
        )
        if self._with.arrivals is not None:
            replies = self._with.arrivals.weighted(number, replies)
        for contributions in kind.steps(start, replies, tally):
            if len(tally.updates) >= self._with.fewest(cohort):
                try:
                    model = strategy.aggregate(number, sent, contributions)
                except StrategyError as error:
                    problem = str(error)
        self._note(number, nodes, tally, state)
        return Played(tally, model, problem, bytes_of(sent))

    def _note(self, number: int, nodes: Mapping[str, int], tally: Tally, state: RunState) -> None:
        """Enter a round's answers into the books."""
        for client in tally.updates:
            self._with.hear(state, number, client, tally.epsilons.get(client), tally.heads[client])
        for client in tally.unprotected:
            state.client(client).note_unprotected(number)
        faults: dict[str, ClientFault] = {fault.client: fault for fault in tally.faults}
        answered = {*faults, *tally.updates}  # a user's own strategy may ask fewer than the cohort
        for client in nodes:
            if client in answered:
                state.note_client(number, client, faults.get(client))


def bytes_of(sent: Mapping[str, Message]) -> int:
    """Bytes on the wire of all arrays in these messages."""
    # Not `content.array_records`: Flower's view and its content hold each other, and with them a model, until a
    # collection of garbage.
    records = (record for message in sent.values() for record in message.content.values())
    return sum(wire_bytes(record) for record in records if isinstance(record, ArrayRecord))
