"""A small plan, a model of two arrays, and a grid in memory whose clients do what a test tells them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.checkpoint import Checkpoint
from server.evaluation import Evaluate
from server.federation import Federation, Outcome
from server.observer import RoundRecord
from server.replies import Head
from server.run_folder import RunFolder
from shared_models.faults import Fault
from shared_models.flower_messages import act_as_server, give_id
from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays
from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    CORRECT,
    EPSILON,
    HEAD_HASH,
    HEAD_POSITION,
    IDENTIFY,
    LEDGER,
    METRICS,
    STATEMENT,
    STATEMENT_TEXT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
)
from simulations.local_grid import LocalGrid

LAYOUT = Layout(entries=(("layer.weight", (3, 2)), ("layer.bias", (2,))), wire="float32")
START: Parameters = {
    "layer.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
    "layer.bias": np.array([0.25, -0.5], dtype=np.float32),
}
PRIVATE = {"privacy": {"trust": "local", "noise_multiplier": 4.0, "epsilon": 3.0, "calibrated_from": "epsilon"}}
ROBUST_OPTIONS = {"krum": {"num_malicious_nodes": 1}, "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4}}

Answer = Callable[[str, Message], list[Message]]


@pytest.fixture(autouse=True)
def _server() -> None:
    """Flower asks who makes a message."""
    act_as_server(1)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_plan(*changes: Mapping[str, Any]) -> Plan:
    """A plan without privacy, with the tables of `changes` laid over it, one after another."""
    raw: dict[str, Any] = {"privacy": {"trust": "none"}, "data": {"partition": {"kind": "iid", "clients": 4}}}
    for change in changes:
        for table, keys in change.items():
            raw[table] = {**raw.get(table, {}), **keys} if isinstance(keys, Mapping) else keys
    return plan_from(raw, where="test")


# --- what clients say ---------------------------------------------------------------------------------------------


def change(value: float, layout: Layout = LAYOUT) -> Parameters:
    """An update that moves every parameter by the same value."""
    return {name: np.full(shape, value, dtype=np.float32) for name, shape in layout.entries}


def head(round_number: int, *, evaluated: bool = False) -> Head:
    """The newest entry of an honest client's ledger when it answers in a round: each task adds one."""
    position = 2 * round_number + evaluated
    return Head(position, sha256(str(position).encode()).hexdigest())


def head_record(found: Head) -> ConfigRecord:
    """As a reply tells of it."""
    return ConfigRecord({HEAD_POSITION: found.position, HEAD_HASH: found.hash})


def reply(message: Message, delta: Parameters, *, layout: Layout = LAYOUT, **metrics: Any) -> Message:
    """A reply with an update, metrics and the ledger's head; underscores stand for hyphens."""
    fields = {name.replace("_", "-"): value for name, value in metrics.items()}
    content = RecordDict({ARRAYS: to_arrays(delta, layout), METRICS: MetricRecord(fields)})
    content[LEDGER] = head_record(head(int(message.metadata.group_id)))
    return Message(content, reply_to=message)


def counts(message: Message, correct: int, total: int, *, epsilon: float | None = None) -> Message:
    """A good evaluate reply; with an epsilon where it is private."""
    fields: dict[str, int | float] = {CORRECT: correct, TOTAL: total}
    if epsilon is not None:
        fields[EPSILON] = epsilon
    own = head_record(head(int(message.metadata.group_id.split()[0]), evaluated=True))
    return Message(RecordDict({METRICS: MetricRecord({**fields}), LEDGER: own}), reply_to=message)


def plain(
    message: Message, delta: Parameters, *, weight: int = 1, loss: float = 0.5, layout: Layout = LAYOUT
) -> Message:
    """A good reply without privacy."""
    return reply(message, delta, layout=layout, **{WEIGHT: weight, TRAIN_LOSS: loss})


def private(message: Message, delta: Parameters, *, epsilon: float = 0.5) -> Message:
    """A good reply under privacy."""
    return reply(message, delta, **{WEIGHT: 1, EPSILON: epsilon})


def error(message: Message, code: int) -> Message:
    """A reply that is an error code."""
    return Message(Error(code=code, reason="a text that must go nowhere"), reply_to=message)


def request(node: int = 1, group: str = "1") -> Message:
    """A train message as a client receives it."""
    message = Message(RecordDict({ARRAYS: to_arrays(START, LAYOUT)}), node, "train", group_id=group)
    give_id(message)
    return message


def learns(client: str, message: Message) -> list[Message]:
    """An honest client: its update depends on who it is, on the round and on the model it was sent."""
    model = from_arrays(message.content.array_records[ARRAYS], _layout_of(message))
    number = int(message.content.config_records[CONFIG]["server-round"])
    generator = np.random.default_rng([sum(client.encode()), number])
    delta = {
        name: (0.1 * generator.standard_normal(value.shape) - 0.2 * value).astype(np.float32)
        for name, value in model.items()
    }
    weight = 1 + sum(client.encode()) % 7
    return [reply(message, delta, layout=_layout_of(message), **{WEIGHT: weight, TRAIN_LOSS: 1.0 / number})]


def learns_privately(client: str, message: Message) -> list[Message]:
    """An honest client under privacy."""
    (honest,) = learns(client, message)
    honest.content[METRICS] = MetricRecord({WEIGHT: 1, EPSILON: 0.5})
    return [honest]


def _layout_of(message: Message) -> Layout:
    wire = next(iter(message.content.array_records[ARRAYS].values())).dtype
    return Layout(entries=LAYOUT.entries, wire="float16" if wire == "float16" else "float32")


# --- the grid -----------------------------------------------------------------------------------------------------


class FakeGrid(Grid):
    """Delivers each message to a function, and all replies at once, as Flower's own grids do.

    Args:
        clients: stable ids.
        answer: what a client replies, by client: nothing, one message or several.
        order: puts replies in the order of their arrival.
        first_node: number of the first client's node; the others follow.

    What a client says when it is asked for a statement, the test puts into `statements`: a text or a fault.
    """

    def __init__(
        self,
        clients: Sequence[str],
        answer: Answer | Mapping[str, Answer],
        *,
        order: Callable[[list[Message]], list[Message]] = list,
        first_node: int = 1,
    ) -> None:
        self.nodes = {client: number for number, client in enumerate(clients, start=first_node)}
        self.answer = answer
        self.order = order
        self.sent: list[Message] = []
        self.timeouts: list[float | None] = []
        self.statements: dict[str, str | Fault] = {}
        self._run = Run.create_empty(1)

    @property
    def tasks(self) -> list[Message]:
        """What was sent that touches data."""
        return [message for message in self.sent if message.metadata.message_type in ("train", "evaluate")]

    def replies(self, messages: Iterable[Message], timeout: float | None) -> list[Message]:
        clients = {node: client for client, node in self.nodes.items()}
        self.timeouts.append(timeout)
        found: list[Message] = []
        for message in messages:
            give_id(message)
            self.sent.append(message)
            client = clients[message.metadata.dst_node_id]
            own = copy.deepcopy(message)
            if message.metadata.message_type == IDENTIFY:
                found.append(Message(RecordDict({CONFIG: ConfigRecord({CLIENT_ID: client})}), reply_to=own))
            elif message.metadata.message_type == STATEMENT:
                said = self.statements.get(client, "no statement")
                spoken = RecordDict({CONFIG: ConfigRecord({STATEMENT_TEXT: str(said)})})
                found.append(error(own, said) if isinstance(said, Fault) else Message(spoken, reply_to=own))
            else:
                answer = self.answer if callable(self.answer) else self.answer.get(client, learns)
                found += answer(client, own)
        return self.order(found)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.replies(messages, timeout)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes.values())

    # The rest of Flower's interface is that of any grid in memory.
    set_run, run, create_message = LocalGrid.set_run, LocalGrid.run, LocalGrid.create_message

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


class StreamingFakeGrid(FakeGrid):
    """Knows its clients' ids and hands over replies one at a time, as Veil's own grids do."""

    @property
    def client_nodes(self) -> Mapping[str, int]:
        return self.nodes

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        yield from self.replies(messages, timeout)


# --- a federation -------------------------------------------------------------------------------------------------


class Diary:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any]] = []

    def started(self, plan: Plan, clients: int, done: int) -> None:
        self.entries.append(("started", (clients, done)))

    def note(self, text: str) -> None:
        self.entries.append(("note", text))

    def round_done(self, record: RoundRecord) -> None:
        self.entries.append(("round", record))

    @property
    def rounds(self) -> list[RoundRecord]:
        return [entry for kind, entry in self.entries if kind == "round"]

    @property
    def notes(self) -> list[str]:
        return [entry for kind, entry in self.entries if kind == "note"]


class StoppedOnPurposeError(Exception):
    """Interrupts a run, as a kill would."""


class StopAfter(Diary):
    """Interrupts the run once a round is on disk."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def round_done(self, record: RoundRecord) -> None:
        super().round_done(record)
        if record.round == self.last:
            raise StoppedOnPurposeError


@dataclass
class Played:
    """A federation that was played to its end."""

    outcome: Outcome
    folder: RunFolder
    diary: Diary
    grid: FakeGrid = field(repr=False)


class Player:
    """Plays plans on grids in folders of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def federation(
        self,
        plan: Plan,
        grid: FakeGrid,
        *,
        evaluate: Evaluate | None = None,
        diary: Diary | None = None,
        folder: RunFolder | None = None,
        resume: Checkpoint | None = None,
        attachments: Callable[[], Mapping[str, bytes]] = dict,
    ) -> Federation:
        if folder is None:
            self.count += 1
            folder = RunFolder(self.path / f"run-{self.count}")
            folder.create(plan)
        return Federation(
            plan=plan,
            grid=grid,
            layout=Layout(LAYOUT.entries, plan.federation.wire, plan.federation.top_fraction),
            initial=START,
            evaluate=evaluate,
            folder=folder,
            observer=diary or Diary(),
            resume=resume,
            attachments=attachments,
        )

    def __call__(self, plan: Plan, grid: FakeGrid, **settings: Any) -> Played:
        federation = self.federation(plan, grid, **settings)
        outcome = federation.run()
        assert isinstance(federation.observer, Diary)
        return Played(outcome, federation.folder, federation.observer, grid)


@pytest.fixture
def play(tmp_path: Path) -> Player:
    return Player(tmp_path)


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Whether two models are the same to the last bit, types and shapes included."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as Flower carries them."""
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})
