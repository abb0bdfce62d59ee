"""The ClientApp, asked by real Flower messages: what is refused, what is charged, and what never leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from client import app as module
from client import workplace as workplace_module
from client.app import app
from client.datasets.records import Records
from client.guard import Guard
from client.trainer import train_plain, train_private
from client.workplace import workplace
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from security.errors import UsageError
from shared_models.faults import Fault
from shared_models.parameters import Parameters, from_arrays, get_parameters, to_arrays
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    EPSILON,
    IDENTIFY,
    LAYOUT_DIGEST,
    METRICS,
    PLAN_DIGEST,
    ROUND,
    TRAIN_LOSS,
    WEIGHT,
)
from shared_models.registry import build
from shared_models.resolve import resolve
from shared_models.seeds import derive_key
from simulations.flower_messages import act_as_server, client_context, rebuild
from simulations.inline_grid import InlineGrid
from simulations.worker import Worker

SECRET = "patient-4711"
CARD = {
    "classes": ["a", "b", "c"],
    "target": "y",
    "columns": {
        "v": {"kind": "numeric", "low": -1.0, "high": 1.0},
        "w": {"kind": "numeric", "low": -1.0, "high": 1.0},
    },
}
Events = list[str]


def plan_of(private: bool = True, **changes: Any) -> Plan:
    """A resolved plan of three rounds on a table of two columns."""
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

    def standard_normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)


class Clients:
    """Three clients and their data, for as long as a test lasts. `events` tells who did what, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data = {name: some_records(6 + i, seed=i) for i, name in enumerate(("0", "1", "2"))}
        self.events: Events = []
        self.error: Exception | None = None
        monkeypatch.setattr(workplace_module, "client_records", self._read)
        monkeypatch.setattr(Guard, "reserve", self._watched("reserve", Guard.reserve))
        for name in ("train_plain", "train_private"):
            monkeypatch.setattr(module, name, self._watched("train", getattr(module, name)))

    def _read(self, *_: Any, **__: Any) -> dict[str, Records]:
        self.events.append("read")
        if self.error is not None:
            raise self.error
        return self.data

    def _watched(self, event: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.events.append(event)
            return work(*arguments, **options)

        return watched


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    workplace.cache_clear()
    act_as_server(1)
    yield Clients(monkeypatch)
    workplace.cache_clear()


def model_of(plan: Plan) -> Parameters:
    """The model a run begins with. (The workplace's own is overwritten by each training.)"""
    return get_parameters(build(plan.model.name, plan.model.options, input_shape=(4,), classes=3, seed=plan.seed))


def train_content(plan: Plan, number: Any = 1, model: Parameters | None = None) -> RecordDict:
    """A good train request."""
    layout = workplace(write_plan(plan)).layout
    return RecordDict(
        {
            ARRAYS: to_arrays(model or model_of(plan), layout),
            CONFIG: ConfigRecord({ROUND: number, PLAN_DIGEST: plan.digest(), LAYOUT_DIGEST: layout.digest}),
        }
    )


def through_the_wire(record: RecordDict) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(recorddict_to_proto(record).SerializeToString()))


def ask(
    plan: Plan, content: RecordDict, *, client: str = "0", state: RecordDict | None = None, kind: str = "train"
) -> tuple[Message, RecordDict]:
    """Send one message to one client and bring back its reply and new state, both as the wire carries them."""
    request = Message(through_the_wire(content), 7, kind, group_id="1")
    context = client_context(
        run_id=1, node_id=7, client=client, plan_text=write_plan(plan), state=through_the_wire(state or RecordDict())
    )
    reply = app(rebuild(request.metadata, request.content), context)
    if not reply.has_error():
        reply = rebuild(reply.metadata, through_the_wire(reply.content))
    return reply, through_the_wire(context.state)


def update_of(plan: Plan, reply: Message) -> Parameters:
    return from_arrays(reply.content.array_records[ARRAYS], workplace(write_plan(plan)).layout)


def assert_fault(reply: Message, fault: Fault) -> None:
    """Rule 5: a fixed number, and not a letter beside it."""
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (int(fault), "")
    assert not reply.has_content()


def charged(plan: Plan, state: RecordDict) -> int:
    return Guard(plan, state).spent.total()


# --- a good round --------------------------------------------------------------------------------------------------


def test_a_private_reply_holds_the_update_and_two_public_numbers(clients: Clients) -> None:
    plan = plan_of()
    state = RecordDict()
    for number in (1, 2, 3):
        reply, state = ask(plan, train_content(plan, number), state=state)
        assert set(reply.content) == {ARRAYS, METRICS}
        metrics = reply.content.metric_records[METRICS]
        assert dict(metrics) == {WEIGHT: 1, EPSILON: pytest.approx(metrics[EPSILON])}
        assert charged(plan, state) == number
    assert metrics[EPSILON] == pytest.approx(plan.privacy.epsilon, abs=1e-6)
    assert clients.events == ["reserve", "read", "train", "reserve", "train", "reserve", "train"]


def test_a_private_update_is_the_private_trainers(clients: Clients) -> None:
    plan = plan_of()
    start = {name: value + 0.1 for name, value in model_of(plan).items()}
    reply, _ = ask(plan, train_content(plan, 2, start), client="1")
    noise = ReproducibleNoise(derive_key(plan.seed, "noise", "1", 2))
    expected = train_private(
        workplace(write_plan(plan)).model, start, clients.data["1"], plan, round_number=2, noise=noise
    )
    found = update_of(plan, reply)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_plain_reply_holds_weight_and_loss(clients: Clients) -> None:
    plan = plan_of(private=False)
    reply, state = ask(plan, train_content(plan, 2), client="2")
    start = model_of(plan)
    expected, loss = train_plain(
        workplace(write_plan(plan)).model, start, clients.data["2"], plan, round_number=2, client="2"
    )
    found = update_of(plan, reply)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert dict(reply.content.metric_records[METRICS]) == {WEIGHT: 8, TRAIN_LOSS: loss}
    assert set(reply.content) == {ARRAYS, METRICS}
    assert len(state) == 0


def test_noise_follows_client_and_round_where_the_plan_gives_up_its_claim(clients: Clients) -> None:
    plan = plan_of()
    clients.data = dict.fromkeys(("0", "1"), some_records(0))

    def noise(client: str, number: int) -> bytes:
        reply, _ = ask(plan, train_content(plan, number), client=client)
        return b"".join(value.tobytes() for value in update_of(plan, reply).values())

    assert noise("0", 1) == noise("0", 1)
    assert len({noise(client, number) for client in ("0", "1") for number in (1, 2)}) == 4


def test_secret_noise_is_never_the_same(clients: Clients) -> None:
    plan = plan_of(privacy={"noise": "secret"})
    clients.data = {"0": some_records(0)}
    torch.manual_seed(1)
    first = update_of(plan, ask(plan, train_content(plan))[0])
    torch.manual_seed(1)
    again = update_of(plan, ask(plan, train_content(plan))[0])
    assert all(not np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(("noise", "kind"), [("secret", SecretNoise), ("reproducible", ReproducibleNoise)])
def test_the_source_is_the_one_the_plan_names(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, noise: str, kind: type
) -> None:
    used: list[NoiseSource] = []

    def spy(*arguments: Any, noise: NoiseSource, **options: Any) -> Parameters:
        used.append(noise)
        return train_private(*arguments, noise=noise, **options)

    monkeypatch.setattr(module, "train_private", spy)
    plan = plan_of(privacy={"noise": noise})
    for _ in range(2):
        ask(plan, train_content(plan))
    assert [type(source) for source in used] == [kind, kind]
    assert used[0] is not used[1]


def test_the_threads_are_the_plans_while_training_and_as_before_afterwards(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    plan, seen = plan_of(training={"threads": before + 2}), []

    def spy(*_: Any, **__: Any) -> Parameters:
        seen.append(torch.get_num_threads())
        raise RuntimeError

    monkeypatch.setattr(module, "train_private", spy)
    ask(plan, train_content(plan))
    assert seen == [before + 2]
    assert torch.get_num_threads() == before


# --- Principle 1, rules 1 and 5: nothing but the noised arrays depends on the data ---------------------------------

DATA = {
    "few": some_records(3),
    "many": some_records(300, seed=1),
    "none": some_records(0),
    "huge": some_records(5, size=3e38),
    "one class": Records(x=torch.ones(4, 4), y=torch.zeros(4, dtype=torch.int64)),
}


@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_principle_1_no_field_of_a_private_reply_depends_on_the_data(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    monkeypatch.setattr(module, "_noise", lambda *_: Silence(b"zeros"))
    plan = plan_of(federation={"wire": wire}, privacy={"clipping_norm": 100.0})
    seen, updates, states = [], [], []
    for data in DATA.values():
        clients.data = {"0": data}
        workplace.cache_clear()
        reply, state = ask(plan, train_content(plan))
        updates.append(update_of(plan, reply))
        states.append(recorddict_to_proto(state).SerializeToString(deterministic=True))
        content = reply.content
        arrays = content.array_records[ARRAYS]
        seen.append(
            (
                [(name, type(record)) for name, record in content.items()],
                [(name, type(value), value) for name, value in content.metric_records[METRICS].items()],
                [(name, a.dtype, tuple(a.shape), a.stype, len(a.data)) for name, a in arrays.items()],
                len(recorddict_to_proto(content).SerializeToString()),
                reply.metadata.message_type,
                reply.metadata.ttl > 0,
            )
        )
    assert all(one == seen[0] for one in seen)
    assert all(one == states[0] for one in states)
    assert all(np.isfinite(value).all() for update in updates for value in update.values())
    silent = dict(zip(DATA, updates, strict=True))
    assert all(not value.any() for value in silent["none"].values())
    assert any(value.any() for value in silent["few"].values())  # else the test sees nothing
    assert any(not np.array_equal(silent["few"][name], silent["many"][name]) for name in silent["few"])


def test_without_privacy_what_diverges_is_sent_as_it_is(clients: Clients) -> None:
    for wire in ("float32", "float16"):
        plan = plan_of(private=False, training={"learning_rate": 1e30, "steps": 4}, federation={"wire": wire})
        reply, _ = ask(plan, train_content(plan))
        update = update_of(plan, reply)
        assert not all(np.isfinite(value).all() for value in update.values()), wire
        assert set(reply.content.metric_records[METRICS]) == {WEIGHT, TRAIN_LOSS}


def test_without_privacy_a_client_without_records_fails(clients: Clients) -> None:
    clients.data["0"] = some_records(0)
    plan = plan_of(private=False)
    assert_fault(ask(plan, train_content(plan))[0], Fault.CLIENT_FAILED)


# --- requests that are refused -------------------------------------------------------------------------------------


def with_config(content: RecordDict, **fields: Any) -> RecordDict:
    config = dict(content.config_records[CONFIG].items())
    for name, value in fields.items():
        key = {"round": ROUND, "plan": PLAN_DIGEST, "layout": LAYOUT_DIGEST}[name]
        config.pop(key)
        if value is not None:
            config[key] = value
    content[CONFIG] = ConfigRecord(config)
    return content


def with_record(content: RecordDict, name: str, record: Any) -> RecordDict:
    if name in content:
        del content[name]
    if record is not None:
        content[name] = record
    return content


def with_arrays(content: RecordDict, change: Callable[[dict[str, Array]], dict[str, Array]]) -> RecordDict:
    return with_record(content, ARRAYS, ArrayRecord(change(dict(content.array_records[ARRAYS]))))


def first_replaced(value: Any) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda arrays: {**arrays, next(iter(arrays)): value}


PLAN, MODEL = Fault.PLAN_MISMATCH, Fault.MODEL_MISMATCH
REFUSED: dict[str, tuple[Callable[[RecordDict], RecordDict], Fault]] = {
    "another plan": (lambda c: with_config(c, plan=Plan().digest()), PLAN),
    "a plan in capitals": (lambda c: with_config(c, plan=c.config_records[CONFIG][PLAN_DIGEST].upper()), PLAN),
    "no plan": (lambda c: with_config(c, plan=None), PLAN),
    "a plan of bytes": (lambda c: with_config(c, plan=c.config_records[CONFIG][PLAN_DIGEST].encode()), PLAN),
    "a list of plans": (lambda c: with_config(c, plan=[c.config_records[CONFIG][PLAN_DIGEST]]), PLAN),
    "no config": (lambda c: with_record(c, CONFIG, None), PLAN),
    "a config of another kind": (lambda c: with_record(c, CONFIG, MetricRecord({ROUND: 1})), PLAN),
    "an empty config": (lambda c: with_record(c, CONFIG, ConfigRecord()), PLAN),
    "nothing at all": (lambda c: RecordDict(), PLAN),
    "round 0": (lambda c: with_config(c, round=0), PLAN),
    "round -1": (lambda c: with_config(c, round=-1), PLAN),
    "a round beyond the plan": (lambda c: with_config(c, round=4), PLAN),
    "a huge round": (lambda c: with_config(c, round=2**62), PLAN),
    "round True": (lambda c: with_config(c, round=True), PLAN),
    "round as text": (lambda c: with_config(c, round="1"), PLAN),
    "round with a fraction": (lambda c: with_config(c, round=1.0), PLAN),
    "a list of rounds": (lambda c: with_config(c, round=[1]), PLAN),
    "no round": (lambda c: with_config(c, round=None), PLAN),
    "another layout": (lambda c: with_config(c, layout="0" * 64), MODEL),
    "no layout": (lambda c: with_config(c, layout=None), MODEL),
    "no arrays": (lambda c: with_record(c, ARRAYS, None), MODEL),
    "arrays of another kind": (lambda c: with_record(c, ARRAYS, ConfigRecord({"a": 1})), MODEL),
    "empty arrays": (lambda c: with_record(c, ARRAYS, ArrayRecord()), MODEL),
    "arrays in another order": (lambda c: with_arrays(c, lambda a: dict(reversed(a.items()))), MODEL),
    "an array more": (lambda c: with_arrays(c, lambda a: {**a, "more": Array(np.zeros(1))}), MODEL),
    "an array of another shape": (lambda c: with_arrays(c, first_replaced(Array(np.zeros((3, 3), np.float32)))), MODEL),
    "an array of another type": (lambda c: with_arrays(c, first_replaced(Array(np.zeros((3, 4))))), MODEL),
    "a damaged array": (
        lambda c: with_arrays(c, first_replaced(Array("float32", (3, 4), "numpy.ndarray", b"\x93NUMPY"))),
        MODEL,
    ),
}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_rule_5_a_wrong_request_is_refused_before_anything_is_charged_or_read(
    clients: Clients, caplog: pytest.LogCaptureFixture, case: str, private: bool
) -> None:
    change, fault = REFUSED[case]
    plan = plan_of(private)
    reply, state = ask(plan, change(train_content(plan)))
    assert_fault(reply, fault)
    assert clients.events == []
    assert len(state) == 0
    assert caplog.text == ""


def test_what_a_request_holds_beside_is_neither_used_nor_sent_back(clients: Clients) -> None:
    plan = plan_of()
    content = train_content(plan)
    expected, _ = ask(plan, content)
    content["more"] = ConfigRecord({"x": SECRET})
    content["arrays2"] = ArrayRecord({"a": Array(np.zeros(3))})
    content.config_records[CONFIG]["proximal-mu"] = 0.5  # Flower's FedProx adds this
    content.config_records[CONFIG][EPSILON] = 0.0
    found, _ = ask(plan, content)
    assert found.content == expected.content


@pytest.mark.parametrize("kind", ["evaluate", "train.other", "query", "query.other"])
def test_a_kind_of_message_that_veil_does_not_know_gets_a_code_from_the_grid(clients: Clients, kind: str) -> None:
    plan = plan_of()
    grid = InlineGrid(["0"], plan_text=write_plan(plan))
    (reply,) = grid.stream([Message(train_content(plan), grid.client_nodes["0"], kind, group_id="1")])
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert clients.events == []


# --- the budget ----------------------------------------------------------------------------------------------------


def test_a_round_that_the_budget_does_not_cover_is_refused_before_data_is_read(clients: Clients) -> None:
    plan = plan_of()
    state = RecordDict()
    for number in (1, 2, 3):
        _, state = ask(plan, train_content(plan, number), state=state)
    workplace.cache_clear()
    clients.events.clear()
    again, after = ask(plan, train_content(plan, 3), state=state)
    assert_fault(again, Fault.BUDGET_EXHAUSTED)
    assert clients.events == ["reserve"]
    assert recorddict_to_proto(after) == recorddict_to_proto(state)


def test_a_round_asked_for_twice_is_charged_twice(clients: Clients) -> None:
    plan = plan_of()
    _, state = ask(plan, train_content(plan))
    reply, state = ask(plan, train_content(plan), state=state)
    assert not reply.has_error()
    assert charged(plan, state) == 2


def test_a_damaged_account_stops_the_client(clients: Clients) -> None:
    plan = plan_of()
    _, state = ask(plan, train_content(plan))
    workplace.cache_clear()
    clients.events.clear()
    state.config_records["veil-account"]["counts"] = [-1]
    reply, after = ask(plan, train_content(plan), state=state)
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert clients.events == ["reserve"]
    assert recorddict_to_proto(after) == recorddict_to_proto(state)


# --- failures: rule 5, one code and no text ------------------------------------------------------------------------


class Marked(Exception):
    """Text in every place an exception has for it."""

    def __init__(self) -> None:
        super().__init__(SECRET, {"row": SECRET})
        self.add_note(SECRET)
        self.__cause__ = ValueError(SECRET)

    def __str__(self) -> str:
        return SECRET

    __repr__ = __str__


def assert_silent(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], reply: Message) -> None:
    """The marker is nowhere: not in the reply, the log and its arguments, nor on the terminal."""
    output = capfd.readouterr()
    for text in (str(vars(reply)), str(reply.error), caplog.text, output.out, output.err):
        assert SECRET not in text
    for entry in caplog.records:
        assert SECRET not in str(vars(entry))
        assert entry.exc_info is None


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    "error", [Marked(), RuntimeError(SECRET), KeyError(SECRET), UsageError(SECRET), MemoryError(SECRET)]
)
@pytest.mark.parametrize("where", ["read", "train"])
def test_rule_5_a_failure_sends_and_logs_no_text_and_stays_charged(
    clients: Clients,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    private: bool,
    error: Exception,
    where: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    if where == "read":
        clients.error = error
    else:

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(module, "train_private", fail)
        monkeypatch.setattr(module, "train_plain", fail)
    plan = plan_of(private)
    reply, state = ask(plan, train_content(plan))
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert_silent(caplog, capfd, reply)
    assert clients.events[:2] == ["reserve", "read"]
    if private:
        assert charged(plan, state) == 1
    # The owner's log says enough to look for the cause: kind and place.
    (entry,) = [record for record in caplog.records if record.name == "veil.client"]
    assert entry.levelno == logging.WARNING
    assert f"a train failed: {type(error).__name__} at {__file__}:" in entry.getMessage()


def test_rule_5_after_a_failure_the_client_goes_on_under_what_is_left(clients: Clients) -> None:
    plan = plan_of()
    clients.error = RuntimeError(SECRET)
    _, state = ask(plan, train_content(plan))
    clients.error = None
    for number in (2, 3):
        reply, state = ask(plan, train_content(plan, number), state=state)
        assert not reply.has_error()
    assert charged(plan, state) == 3
    assert_fault(ask(plan, train_content(plan, 3), state=state)[0], Fault.BUDGET_EXHAUSTED)


@pytest.mark.parametrize(
    "table",
    [
        f"v,w,y\n0.1,0.2,a\n0.1,{SECRET},b\n",
        f"v,w,y\n0.1,0.2,{SECRET}\n",
        f"v,{SECRET}\n0.1,a\n",
        f"v,w,y\n0.1,0.2,a,{SECRET}\n",
    ],
)
def test_rule_5_data_that_can_not_be_read_is_charged_and_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], table: str
) -> None:
    workplace.cache_clear()
    act_as_server(1)
    path = tmp_path / "table.csv"
    path.write_text(table)
    plan = plan_of(data={"path": str(path)})
    caplog.set_level(logging.DEBUG)
    reply, state = ask(plan, train_content(plan))
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert_silent(caplog, capfd, reply)
    assert charged(plan, state) == 1
    assert "UsageError" in caplog.text
    workplace.cache_clear()


@pytest.mark.parametrize("config", [{}, {"plan": "no toml"}, {"plan": 3}, {"plan": "[privacy]\ntrust = 'central'\n"}])
def test_a_client_without_a_plan_fails(clients: Clients, config: dict[str, Any]) -> None:
    plan = plan_of()
    request = Message(train_content(plan), 7, "train", group_id="1")
    clients.events.clear()
    context = Context(run_id=1, node_id=7, node_config={"client-id": "0"}, state=RecordDict(), run_config=config)
    assert_fault(app(rebuild(request.metadata, request.content), context), Fault.CLIENT_FAILED)
    assert clients.events == []
    assert len(context.state) == 0


def test_rule_7_a_client_checks_the_network_itself(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    content = train_content(plan)
    workplace.cache_clear()

    def refuse(*_: Any) -> None:
        raise UsageError("it mixes examples")

    monkeypatch.setattr(workplace_module, "check_private_trainable", refuse)
    reply, state = ask(plan, content)
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert clients.events == []
    assert len(state) == 0


def test_an_unknown_client_fails_after_its_charge(clients: Clients) -> None:
    plan = plan_of()
    reply, state = ask(plan, train_content(plan), client="nobody")
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert charged(plan, state) == 1


# --- who is there --------------------------------------------------------------------------------------------------


def question(plan: Plan) -> RecordDict:
    return RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: plan.digest()})})


@pytest.mark.parametrize(("node", "expected"), [({"client-id": "berlin"}, "berlin"), ({"partition-id": 2}, "2")])
def test_a_client_tells_its_id_and_nothing_else(clients: Clients, node: dict[str, Any], expected: str) -> None:
    plan = plan_of()
    request = Message(question(plan), 7, IDENTIFY, group_id="1")
    context = Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={"plan": write_plan(plan)})
    reply = app(rebuild(request.metadata, request.content), context)
    assert reply.content == RecordDict({CONFIG: ConfigRecord({CLIENT_ID: expected})})
    assert clients.events == []
    assert len(context.state) == 0


def test_a_client_tells_its_id_to_nobody_with_another_plan(clients: Clients) -> None:
    plan = plan_of()
    assert_fault(ask(plan, question(Plan()), kind=IDENTIFY)[0], Fault.PLAN_MISMATCH)
    assert_fault(ask(plan, RecordDict(), kind=IDENTIFY)[0], Fault.PLAN_MISMATCH)


def test_a_partition_that_is_not_there_is_a_failure(clients: Clients) -> None:
    plan = plan_of()
    request = Message(question(plan), 7, IDENTIFY, group_id="1")
    for node in ({"partition-id": -1}, {"partition-id": 3}, {}):
        context = Context(
            run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={"plan": write_plan(plan)}
        )
        assert_fault(app(rebuild(request.metadata, request.content), context), Fault.CLIENT_FAILED)


# --- over a grid ---------------------------------------------------------------------------------------------------


def test_a_grid_carries_the_account_from_round_to_round_and_through_failures(clients: Clients) -> None:
    plan = plan_of()
    grid = InlineGrid(["0", "1"], plan_text=write_plan(plan))

    def play(number: int) -> list[Message]:
        content = train_content(plan, number)
        return list(grid.stream([Message(content, node, "train", group_id="1") for node in grid.get_node_ids()]))

    assert [reply.has_error() for reply in play(1)] == [False, False]
    saved = grid.save_states()
    clients.data.pop("1")
    workplace.cache_clear()
    good, bad = play(2)
    assert not good.has_error()
    assert_fault(bad, Fault.CLIENT_FAILED)
    play(3)
    for reply in play(3):  # what failed was paid for all the same
        assert_fault(reply, Fault.BUDGET_EXHAUSTED)
    other = InlineGrid(["0", "1"], plan_text=write_plan(plan))
    other.load_states(saved)
    worker = Worker("client.app:app", 1, write_plan(plan))
    request = Message(train_content(plan, 2), other.client_nodes["0"], "train", group_id="1")
    reply, state = worker.handle(request.metadata, request.content, "0", other._states["0"])
    assert not reply.has_error()
    assert charged(plan, state) == 2
