"""What Veil's two simulation grids share: clients, their states, and Flower's `Grid` interface over a stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from shared_models.flower_messages import act_as_server, give_id, states_from_bytes, states_to_bytes

Hear = Callable[[str, Message, Message], None]
"""Is told of a client, what it was asked and what it answered, before the server is."""


class LocalGrid(Grid):
    """A grid whose clients live on this machine or Ray cluster.

    Args:
        clients: stable ids, in order; node numbers are given here and mean nothing outside.
        run_id: of the run.
        together: how many clients may train together (`client.company_trainer`).

    Attributes:
        hear: an auditor in the server's place, who sees all that a server does.
    """

    def __init__(self, clients: Sequence[str], *, run_id: int = 1, together: int = 1) -> None:
        act_as_server(run_id)
        self.run_id = run_id
        self._together = together
        self._nodes = {client: number for number, client in enumerate(clients, start=1)}
        self._clients = {number: client for client, number in self._nodes.items()}
        self._states = {client: RecordDict() for client in clients}
        self._companies: dict[int, tuple[str, ...]] = {}  # of each node that is asked
        self._run = Run.create_empty(run_id)
        self._waiting: dict[str, Message] = {}
        self.hear: Hear | None = None

    # --- what Veil's server asks for

    @property
    def client_nodes(self) -> Mapping[str, int]:
        """Node number of each client id."""
        return self._nodes

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Deliver messages and yield the replies as they arrive; ends early after `timeout` seconds."""
        marked = list(messages)
        for message in marked:
            give_id(message)
        self._keep_company(marked)
        replies = self._deliver(marked, timeout)
        return replies if self.hear is None else self._heard(marked, replies, self.hear)

    def _heard(self, messages: Sequence[Message], replies: Iterator[Message], hear: Hear) -> Iterator[Message]:
        asked = {message.metadata.dst_node_id: message for message in messages}
        for reply in replies:
            node = reply.metadata.src_node_id
            hear(self._clients[node], asked[node], reply)
            yield reply

    @abstractmethod
    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        """Deliver messages that have ids, and tell who keeps whom company; keep each client's new state; yield replies
        as they arrive."""

    def _keep_company(self, messages: Sequence[Message]) -> None:
        """Say who may train together: so many clients as they are asked, whenever and wherever each is at work."""
        nodes = [message.metadata.dst_node_id for message in messages]
        for first in range(0, len(nodes), self._together):
            company = tuple(self._clients[node] for node in nodes[first : first + self._together])
            self._companies.update(dict.fromkeys(nodes[first : first + self._together], company))

    @abstractmethod
    def close(self) -> None:
        """Give back what the grid holds."""

    @property
    def states(self) -> Mapping[str, RecordDict]:
        """What each client remembers, by its id."""
        return self._states

    def save_states(self) -> bytes:
        """The clients' states, for a checkpoint; of who remembers something."""
        return states_to_bytes({client: state for client, state in self._states.items() if state})

    def load_states(self, data: bytes) -> None:
        """Go on from saved states.

        Raises:
            ValueError: the bytes hold something else.
        """
        self._states.update(states_from_bytes(data))

    # --- Flower's interface

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; they are delivered when their replies are asked for."""
        ids = []
        for message in messages:
            ids.append(give_id(message))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver queued messages and return all their replies."""
        messages = [self._waiting.pop(message_id) for message_id in message_ids if message_id in self._waiting]
        self._keep_company(messages)
        return list(self._deliver(messages, None))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.stream(messages, timeout=timeout))
