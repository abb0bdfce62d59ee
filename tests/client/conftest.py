"""Three clients with a ledger of their own, asked by real Flower messages; everything they do is noted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from client import app as app_module
from client import books as books_module
from client import private_trainer
from client import simulated_site as simulated_site_module
from client import workplace as workplace_module
from client.app import app
from client.books import Books, books, create_simulated
from client.datasets.records import Records
from client.policy import SitePolicy, simulated_policy
from client.workplace import made_workplace, workplace
from privacy.ledger import Entry, Ledger
from privacy.mechanisms import Release
from privacy.noise import ReproducibleNoise
from shared_models.example_form import ExampleForm
from shared_models.faults import Fault
from shared_models.flower_messages import act_as_server, client_context, rebuild
from shared_models.parameters import Layout, Parameters, get_parameters, to_arrays
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST, LEDGER, METRICS, PLAN_DIGEST, ROUND, RUN
from shared_models.registry import build
from shared_models.resolve import resolve
from shared_models.wire import decode_update

SECRET = "patient-4711"
CARD = {
    "classes": ["a", "b", "c"],
    "target": "y",
    "columns": {
        "v": {"kind": "numeric", "low": -1.0, "high": 1.0},
        "w": {"kind": "numeric", "low": -1.0, "high": 1.0},
    },
}
AT_CLIENTS: dict[str, Any] = {"where": "clients", "count_noise": 10.0}


def plan_of(private: bool = True, **changes: Any) -> Plan:
    """A resolved plan of three rounds on a table of two columns; keys that are given come on top, table by table."""
    privacy = {"noise_multiplier": 3.0, "noise": "reproducible"} if private else {"trust": "none"}
    sections: dict[str, Any] = {
        "data": {"name": "csv", "path": "x.csv", "card": CARD, "partition": {"kind": "iid", "clients": 3}},
        "model": {"name": "mlp", "options": {"hidden": [3]}},
        "training": {"steps": 2, "sample_rate": 1.0, "expected_batch_size": 4, "device": "cpu"},
        "privacy": privacy,
        "federation": {"rounds": 3},
    }
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
    return resolve(Plan.model_validate(sections))


def some_records(n: int, seed: int = 0, size: float = 1.0) -> Records:
    generator = np.random.default_rng(seed)
    return Records(
        x=torch.from_numpy(generator.uniform(-size, size, (n, 4)).astype(np.float32)),
        y=torch.from_numpy(generator.integers(3, size=n)),
    )


class Silence(ReproducibleNoise):
    """Samples as ever, but no noise: what is left in a reply is what the data put there."""

    __slots__ = ()

    def grid_normal(
        self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def model_of(plan: Plan) -> Parameters:
    """The model a run begins with. (The workplace's own is overwritten by each training.)"""
    return get_parameters(build(plan.model.name, plan.model.options, form=ExampleForm((4,), 3), seed=plan.seed))


def layout_of(plan: Plan) -> Layout:
    return workplace(write_plan(plan)).layout


def content_of(plan: Plan, number: Any = 1, model: Parameters | None = None, run: Any = "run-1") -> RecordDict:
    """A good request to train or to evaluate."""
    layout = layout_of(plan)
    config = {ROUND: number, PLAN_DIGEST: plan.digest(), LAYOUT_DIGEST: layout.digest, RUN: run}
    return RecordDict({ARRAYS: to_arrays(model or model_of(plan), layout), CONFIG: ConfigRecord(config)})


def question(plan: Plan, **more: Any) -> RecordDict:
    """A good query."""
    return RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: plan.digest(), **more})})


def changed_by_a_bit(content: RecordDict) -> RecordDict:
    """The same request but for one bit of one number of the model."""
    arrays = content.array_records[ARRAYS]
    name = next(iter(arrays))
    array = arrays[name]
    data = bytearray(array.data)
    data[-1] ^= 1
    arrays[name] = Array(array.dtype, array.shape, array.stype, bytes(data))
    return content


def wire(record: RecordDict) -> bytes:
    """The bytes that a content is on the wire."""
    text: bytes = recorddict_to_proto(record).SerializeToString(deterministic=True)
    return text


def through_the_wire(record: RecordDict) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(wire(record)))


def update_of(plan: Plan, reply: Message) -> Parameters:
    return decode_update(reply.content.array_records[ARRAYS], layout_of(plan))


def metrics_of(reply: Message) -> dict[str, Any]:
    return dict(reply.content.metric_records[METRICS])


def head_of(reply: Message) -> dict[str, Any]:
    """The ledger's newest entry, as a reply tells it."""
    return dict(reply.content.config_records[LEDGER])


def assert_fault(reply: Message, fault: Fault) -> None:
    """Rule 5: a fixed number, and not a letter beside it."""
    assert reply.has_error(), "the reply is a good one"
    assert (Fault(reply.error.code), reply.error.reason or "") == (fault, "")
    assert not reply.has_content()


class Clients:
    """Clients "0", "1" and "2", their data and their ledger. `events` tells what they did, in order.

    Attributes:
        data: what each trains on.
        held: what each holds out.
        error: is raised where data is read, if it is set.
        policy: makes a client's policy.
        path: of the ledger.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.data = {name: some_records(6 + i, seed=i) for i, name in enumerate(("0", "1", "2"))}
        self.held = {name: some_records(5 + i, seed=10 + i) for i, name in enumerate(("0", "1", "2"))}
        self.events: list[str] = []
        self.error: BaseException | None = None
        self.policy: Callable[[Plan, str], SitePolicy] = simulated_policy
        self.path = folder / "ledger.sqlite"
        create_simulated(self.path)
        monkeypatch.setattr(workplace_module, "seen_records", lambda *_, **__: self._read(self.data))
        monkeypatch.setattr(
            workplace_module,
            "seen_parts",
            lambda *_, **__: self._read({name: (own, self.held[name]) for name, own in self.data.items()}),
        )
        monkeypatch.setattr(simulated_site_module, "simulated_policy", self._policy_of)
        monkeypatch.setattr(Ledger, "reserve", self._watched("reserve", Ledger.reserve))
        for module, event, name in (
            (app_module, "train", "train_in_company"),
            (private_trainer, "train", "train_private"),
            (app_module, "evaluate", "count_correct"),
        ):
            monkeypatch.setattr(module, name, self._watched(event, getattr(module, name)))

    def _policy_of(self, plan: Plan, client: str) -> SitePolicy:
        return self.policy(plan, client)

    def _read(self, data: Any) -> Any:
        self.events.append("read")
        if self.error is not None:
            raise self.error
        return data

    def _watched(self, event: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.events.append(event)
            return work(*arguments, **options)

        return watched

    def ask(
        self,
        plan: Plan,
        content: RecordDict,
        *,
        client: str = "0",
        kind: str = "train",
        config: dict[str, str] | None = None,
        state: RecordDict | None = None,
    ) -> Message:
        """Send one message to one client and bring back its reply, both as the wire carries them.

        `state` is the client's own, changed in place; without it the client remembers nothing.
        """
        request = Message(through_the_wire(content), 7, kind, group_id="1")
        context = client_context(
            run_id=1,
            node_id=7,
            client=client,
            config={"plan": write_plan(plan), "ledger": str(self.path)} if config is None else config,
            state=RecordDict() if state is None else state,
        )
        reply = app(rebuild(request.metadata, request.content), context)
        if plan.federation.wire != "top-k" and plan.privacy.trust != "distributed":
            assert len(context.state) == 0  # what was spent is in the ledger, and nowhere else
        if not reply.has_error():
            reply = rebuild(reply.metadata, through_the_wire(reply.content))
        return reply

    def train(self, plan: Plan, number: int = 1, **how: Any) -> Message:
        """Ask for a round of training."""
        return self.ask(plan, content_of(plan, number), **how)

    def evaluate(self, plan: Plan, number: int = 1, **how: Any) -> Message:
        """Ask for an evaluation."""
        return self.ask(plan, content_of(plan, number), kind="evaluate", **how)

    def forget(self) -> None:
        """Let data be read anew, and what was noted be forgotten."""
        made_workplace.cache_clear()
        self.events.clear()

    def restart(self) -> None:
        """As if the process had ended and begun again."""
        self.forget()
        found = books_module._open.pop((str(self.path), os.getpid()), None)
        if found is not None:
            found.ledger.close()

    @property
    def books(self) -> Books:
        return books(str(self.path))

    def entries(self, client: str = "0") -> list[Entry]:
        """The ledger as somebody else reads it."""
        with Ledger.open(self.path, durable=False) as ledger:
            return list(ledger.entries(client)) if client in ledger.scopes() else []

    def kinds(self, client: str = "0") -> list[str]:
        """Kinds of the entries; of a refusal its reason."""
        return [str(entry.body.get("reason", entry.kind)) for entry in self.entries(client)]

    def charged(self, client: str = "0") -> Counter[Release]:
        """All that was ever charged to a client."""
        total: Counter[Release] = Counter()
        with Ledger.open(self.path, durable=False) as ledger:
            for balance in ledger.balances(client) if client in ledger.scopes() else ():
                for plan in ledger.account(client, balance).plans:
                    total.update(dict(plan.charged))
        return total


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clients]:
    made_workplace.cache_clear()
    act_as_server(1)
    found = Clients(monkeypatch, tmp_path)
    yield found
    found.restart()
