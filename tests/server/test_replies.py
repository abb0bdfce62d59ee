"""A reply is an update of the right form or a named fault: whatever a client sends, nothing else happens."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from hypothesis import given, settings
from hypothesis import strategies as st

from server.replies import ClientFault, CountsReply, Head, Update, read_counts, read_reply
from shared_models.faults import Fault
from shared_models.parameters import Layout, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    CORRECT,
    EPSILON,
    EXAMPLES,
    HEAD_HASH,
    HEAD_POSITION,
    LEDGER,
    METRICS,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
)
from tests.server.conftest import (
    LAYOUT,
    PRIVATE,
    START,
    counts,
    error,
    head,
    head_record,
    make_plan,
    plain,
    private,
    request,
)

PLAIN_PLAN = make_plan()
UNIFORM_PLAN = make_plan({"federation": {"weighting": "uniform"}})
PRIVATE_PLAN = make_plan(PRIVATE)
OPEN_PLAN = make_plan(PRIVATE, {"privacy": {"unprotected": ["train-loss", "examples"]}})
HEAD = head_record(head(1))


def read(content: RecordDict, plan: Plan = PLAIN_PLAN, layout: Layout = LAYOUT) -> Update | ClientFault:
    return read_reply(Message(content, reply_to=request()), "site", layout, plan)


def content(arrays: ArrayRecord | None = None, **metrics: Any) -> RecordDict:
    fields = {name.replace("_", "-"): value for name, value in metrics.items()}
    sent = to_arrays(START, LAYOUT) if arrays is None else arrays
    return RecordDict({ARRAYS: sent, METRICS: MetricRecord(fields), LEDGER: HEAD})


def fault(of: Update | ClientFault) -> Fault:
    assert isinstance(of, ClientFault)
    assert of.client == "site"
    return of.fault


# --- good replies -------------------------------------------------------------------------------------------------


def test_a_good_reply_without_privacy() -> None:
    found = read_reply(plain(request(), START, weight=60_000, loss=0.25), "site", LAYOUT, PLAIN_PLAN)
    assert isinstance(found, Update)
    assert (found.client, found.weight, found.train_loss, found.epsilon) == ("site", 60_000, 0.25, None)
    assert (found.head, found.unprotected, found.examples) == (head(1), False, None)
    assert {name: value.tolist() for name, value in found.delta.items()} == {
        name: value.tolist() for name, value in START.items()
    }
    assert found.received == wire_bytes(to_arrays(START, LAYOUT)) > 32


def test_a_good_reply_under_privacy() -> None:
    found = read_reply(private(request(), START, epsilon=1.5), "site", LAYOUT, PRIVATE_PLAN)
    assert isinstance(found, Update)
    assert (found.weight, found.epsilon, found.train_loss) == (1, 1.5, None)


def test_a_good_reply_in_sixteen_bits() -> None:
    layout = Layout(entries=LAYOUT.entries, wire="float16")
    found = read(content(to_arrays(START, layout), num_examples=1, train_loss=0.1), layout=layout)
    assert isinstance(found, Update)
    assert {value.dtype for value in found.delta.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e101, -1e300])
def test_a_loss_that_is_no_number_is_no_fault_but_is_not_told_either(loss: float) -> None:
    found = read(content(num_examples=1, train_loss=loss))
    assert isinstance(found, Update)
    assert found.train_loss is None


# --- malformed replies --------------------------------------------------------------------------------------------

GOOD = {WEIGHT: 1, TRAIN_LOSS: 0.5}
GOOD_PRIVATE = {WEIGHT: 1, EPSILON: 0.5}
GOOD_RECORDS = {ARRAYS: to_arrays(START, LAYOUT), METRICS: MetricRecord(GOOD), LEDGER: HEAD}
GOOD_HEAD = {HEAD_POSITION: 7, HEAD_HASH: "0123456789abcdef" * 4}


@pytest.mark.parametrize(
    "records",
    [
        {},
        {LEDGER: HEAD},
        {ARRAYS: to_arrays(START, LAYOUT), LEDGER: HEAD},
        {METRICS: MetricRecord(GOOD), LEDGER: HEAD},
        {ARRAYS: to_arrays(START, LAYOUT), METRICS: MetricRecord(GOOD)},
        {**GOOD_RECORDS, CONFIG: ConfigRecord({"note": "54 years"})},
        {**GOOD_RECORDS, "more": to_arrays(START, LAYOUT)},
        {ARRAYS: MetricRecord(GOOD), METRICS: to_arrays(START, LAYOUT), LEDGER: HEAD},
        {ARRAYS: to_arrays(START, LAYOUT), METRICS: ConfigRecord(GOOD), LEDGER: HEAD},
        {"weights": to_arrays(START, LAYOUT), METRICS: MetricRecord(GOOD), LEDGER: HEAD},
    ],
    ids=[
        "nothing",
        "a head alone",
        "no metrics",
        "no arrays",
        "no head",
        "a config",
        "more arrays",
        "swapped",
        "config as metrics",
        "other name",
    ],
)
def test_any_record_too_many_or_too_few_is_refused(records: dict[str, Any]) -> None:
    assert fault(read(RecordDict(records))) is Fault.MALFORMED_REPLY


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {WEIGHT: 1},
        {TRAIN_LOSS: 0.5},
        {**GOOD, "accuracy": 0.9},
        {**GOOD, EPSILON: 1.0},
        GOOD_PRIVATE,
        {WEIGHT: 1.0, TRAIN_LOSS: 0.5},
        {WEIGHT: [1], TRAIN_LOSS: 0.5},
        {WEIGHT: 1, TRAIN_LOSS: 1},
        {WEIGHT: 1, TRAIN_LOSS: [0.5]},
        {WEIGHT: 0, TRAIN_LOSS: 0.5},
        {WEIGHT: -3, TRAIN_LOSS: 0.5},
        {WEIGHT: 2**29 + 1, TRAIN_LOSS: 0.5},
        {WEIGHT: 10**30, TRAIN_LOSS: 0.5},
    ],
)
def test_metrics_that_are_not_exactly_the_agreed_ones_are_refused(metrics: dict[str, Any]) -> None:
    assert fault(read(content(**metrics))) is Fault.MALFORMED_REPLY


@pytest.mark.parametrize(("key", "value"), [(WEIGHT, True), (WEIGHT, "1"), (WEIGHT, None), (TRAIN_LOSS, None)])
def test_types_that_flower_itself_would_not_carry_are_refused_too(key: str, value: object) -> None:
    """A process on this machine can hand over what no wire would."""
    bad = content(**GOOD)
    bad.metric_records[METRICS].__dict__["_data"][key] = value
    assert fault(read(bad)) is Fault.MALFORMED_REPLY


@pytest.mark.parametrize(
    "metrics",
    [
        {**GOOD_PRIVATE, TRAIN_LOSS: 0.5},
        {**GOOD_PRIVATE, "accuracy": 0.9},
        {WEIGHT: 1, TRAIN_LOSS: 0.5},
        {EPSILON: 0.5},
    ],
    ids=["loss", "accuracy", "loss for epsilon", "no weight"],
)
def test_rule_1_under_privacy_no_loss_nor_any_other_figure_is_taken(metrics: dict[str, Any]) -> None:
    assert fault(read(content(**metrics), PRIVATE_PLAN)) is Fault.MALFORMED_REPLY


@pytest.mark.parametrize("weight", [2, 57, 2**29])
def test_rule_1_where_weights_are_uniform_a_number_of_examples_is_refused(weight: int) -> None:
    """It would tell a private count, and give whoever sends a large one the whole mean."""
    assert fault(read(content(**{**GOOD_PRIVATE, WEIGHT: weight}), PRIVATE_PLAN)) is Fault.MALFORMED_REPLY
    assert fault(read(content(**{**GOOD, WEIGHT: weight}), UNIFORM_PLAN)) is Fault.MALFORMED_REPLY
    assert isinstance(read(content(**{**GOOD, WEIGHT: weight}), PLAIN_PLAN), Update)


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -math.inf, -0.1])
def test_an_epsilon_that_can_be_none_is_refused(epsilon: float) -> None:
    """It would be printed as the run's largest."""
    assert fault(read(content(**{WEIGHT: 1, EPSILON: epsilon}), PRIVATE_PLAN)) is Fault.MALFORMED_REPLY


def test_a_message_without_content_is_refused() -> None:
    good = plain(request(), START)
    empty = make_message(metadata=good.metadata, content=RecordDict())
    empty.__dict__["_content"] = None
    assert fault(read_reply(empty, "site", LAYOUT, PLAIN_PLAN)) is Fault.MALFORMED_REPLY
    assert fault(read_counts(empty, "site", PLAIN_PLAN)) is Fault.MALFORMED_REPLY


# --- the ledger's head --------------------------------------------------------------------------------------------

BAD_HEADS: dict[str, Any] = {
    "nothing": ConfigRecord(),
    "metrics": MetricRecord({HEAD_POSITION: 7}),
    "no hash": ConfigRecord({HEAD_POSITION: 7}),
    "no position": ConfigRecord({HEAD_HASH: "0" * 64}),
    "a field too many": ConfigRecord({**GOOD_HEAD, "age": 54}),
    "negative": ConfigRecord({**GOOD_HEAD, HEAD_POSITION: -1}),
    "too far": ConfigRecord({**GOOD_HEAD, HEAD_POSITION: 2**53}),
    "truth": ConfigRecord({**GOOD_HEAD, HEAD_POSITION: True}),
    "fraction": ConfigRecord({**GOOD_HEAD, HEAD_POSITION: 7.0}),
    "list": ConfigRecord({**GOOD_HEAD, HEAD_POSITION: [7]}),
    "text": ConfigRecord({**GOOD_HEAD, HEAD_POSITION: "7"}),
    "short": ConfigRecord({**GOOD_HEAD, HEAD_HASH: "0" * 63}),
    "long": ConfigRecord({**GOOD_HEAD, HEAD_HASH: "0" * 65}),
    "capitals": ConfigRecord({**GOOD_HEAD, HEAD_HASH: "A" * 64}),
    "a line end": ConfigRecord({**GOOD_HEAD, HEAD_HASH: "0" * 64 + "\n"}),
    "other digits": ConfigRecord({**GOOD_HEAD, HEAD_HASH: "\u0660" * 64}),
    "bytes": ConfigRecord({**GOOD_HEAD, HEAD_HASH: b"0" * 64}),
}


@pytest.mark.parametrize("kind", BAD_HEADS)
def test_a_head_that_is_none_makes_the_reply_malformed(kind: str) -> None:
    """The server will remind the client of it: it must be a place that a chain can have."""
    for record in (content(**GOOD), RecordDict(counts(request(), 1, 2).content)):
        record[LEDGER] = BAD_HEADS[kind]
        message = Message(record, reply_to=request())
        read_it = read_counts(message, "site", PLAIN_PLAN) if ARRAYS not in record else read(record)
        assert fault(read_it) is Fault.MALFORMED_REPLY  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [0, 7, 2**53 - 1])
def test_a_good_head_is_kept_as_it_is(position: int) -> None:
    record = content(**GOOD)
    record[LEDGER] = ConfigRecord({**GOOD_HEAD, HEAD_POSITION: position})
    found = read(record)
    assert isinstance(found, Update)
    assert found.head == Head(position, str(GOOD_HEAD[HEAD_HASH]))


# --- unprotected fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "loss", "examples"),
    [
        ({}, None, None),
        ({TRAIN_LOSS: 0.25}, 0.25, None),
        ({EXAMPLES: 0}, None, 0),
        ({TRAIN_LOSS: math.nan, EXAMPLES: 12}, None, 12),
    ],
)
def test_what_the_plan_asks_for_unprotected_is_taken_and_noted(
    more: dict[str, Any], loss: float | None, examples: int | None
) -> None:
    """A site that doesn't let it out leaves it out: its update is good, and its claim holds."""
    found = read(content(**{**GOOD_PRIVATE, **more}), OPEN_PLAN)
    assert isinstance(found, Update)
    assert (found.train_loss, found.examples, found.unprotected) == (loss, examples, bool(more))


@pytest.mark.parametrize(
    "more", [{TRAIN_LOSS: 1}, {TRAIN_LOSS: [0.5]}, {EXAMPLES: -1}, {EXAMPLES: 1.5}, {EXAMPLES: [3]}, {EXAMPLES: 2**60}]
)
def test_an_unprotected_field_that_is_none_makes_the_reply_malformed(more: dict[str, Any]) -> None:
    assert fault(read(content(**{**GOOD_PRIVATE, **more}), OPEN_PLAN)) is Fault.MALFORMED_REPLY


def test_rule_1_what_the_plan_does_not_ask_for_is_refused() -> None:
    half = make_plan(PRIVATE, {"privacy": {"unprotected": ["examples"]}})
    assert isinstance(read(content(**{**GOOD_PRIVATE, EXAMPLES: 3}), half), Update)
    assert fault(read(content(**{**GOOD_PRIVATE, TRAIN_LOSS: 0.5}), half)) is Fault.MALFORMED_REPLY
    assert fault(read(content(**{**GOOD_PRIVATE, EXAMPLES: 3}), PRIVATE_PLAN)) is Fault.MALFORMED_REPLY


# --- counts -------------------------------------------------------------------------------------------------------


def read_metrics(plan: Plan, **metrics: Any) -> CountsReply | ClientFault:
    record = RecordDict({METRICS: MetricRecord(metrics), LEDGER: HEAD})
    return read_counts(Message(record, reply_to=request()), "site", plan)


def test_good_counts() -> None:
    found = read_counts(counts(request(), 3, 7), "site", PLAIN_PLAN)
    assert found == CountsReply("site", 3, 7, None, head(1, evaluated=True))
    noisy = read_counts(counts(request(), -3, -7, epsilon=0.5), "site", PRIVATE_PLAN)
    assert noisy == CountsReply("site", -3, -7, 0.5, head(1, evaluated=True))


@pytest.mark.parametrize(
    ("plan", "metrics"),
    [
        (PLAIN_PLAN, {}),
        (PLAIN_PLAN, {CORRECT: 3}),
        (PLAIN_PLAN, {CORRECT: 3, TOTAL: 7, EPSILON: 0.5}),
        (PLAIN_PLAN, {CORRECT: 3, TOTAL: 7, TRAIN_LOSS: 0.5}),
        (PLAIN_PLAN, {CORRECT: 8, TOTAL: 7}),
        (PLAIN_PLAN, {CORRECT: -1, TOTAL: 7}),
        (PLAIN_PLAN, {CORRECT: 3.0, TOTAL: 7}),
        (PLAIN_PLAN, {CORRECT: [3], TOTAL: 7}),
        (PLAIN_PLAN, {CORRECT: 3, TOTAL: 2**40 + 1}),
        (PRIVATE_PLAN, {CORRECT: 3, TOTAL: 7}),
        (PRIVATE_PLAN, {CORRECT: 3, TOTAL: 7, EPSILON: math.nan}),
        (PRIVATE_PLAN, {CORRECT: 3, TOTAL: 7, EPSILON: math.inf}),
        (PRIVATE_PLAN, {CORRECT: 3, TOTAL: 7, EPSILON: -0.5}),
        (PRIVATE_PLAN, {CORRECT: 3, TOTAL: 7, EPSILON: 1}),
        (PRIVATE_PLAN, {CORRECT: 3, TOTAL: 7, EPSILON: 0.5, "loss": 0.5}),
        (PRIVATE_PLAN, {CORRECT: -(2**40) - 1, TOTAL: 7, EPSILON: 0.5}),
        (PRIVATE_PLAN, {CORRECT: 3.5, TOTAL: 7, EPSILON: 0.5}),
    ],
)
def test_counts_that_are_not_exactly_the_agreed_ones_are_refused(plan: Plan, metrics: dict[str, Any]) -> None:
    assert read_metrics(plan, **metrics) == ClientFault("site", Fault.MALFORMED_REPLY)


def test_counts_with_another_record_are_refused() -> None:
    more = counts(request(), 3, 7).content
    more[ARRAYS] = to_arrays(START, LAYOUT)
    assert fault(read_counts(Message(more, reply_to=request()), "site", PLAIN_PLAN)) is Fault.MALFORMED_REPLY  # type: ignore[arg-type]


def test_an_evaluation_that_failed_is_that_fault() -> None:
    refused = read_counts(error(request(), Fault.POLICY_FIELD), "site", PRIVATE_PLAN)
    assert refused == ClientFault("site", Fault.POLICY_FIELD, refused=True)


# --- arrays -------------------------------------------------------------------------------------------------------


def arrays(**changed: Any) -> ArrayRecord:
    """The agreed arrays, some of them replaced; underscores stand for dots, None removes."""
    found = dict(to_arrays(START, LAYOUT).items())
    for name, value in changed.items():
        found[name.replace("_", ".")] = value
    return ArrayRecord({name: value for name, value in found.items() if value is not None})


def raw(data: bytes, *, dtype: str = "float32", shape: tuple[int, ...] = (3, 2), stype: str = "numpy.ndarray") -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def npy(shape: str = "(3, 2)", descr: str = "'<f4'", order: str = "False", body: int = 24) -> bytes:
    """A .npy file whose header says what the test wants."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\x00" * body


GOOD_NPY = Array(START["layer.weight"]).data


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord(),
        arrays(layer_bias=None),
        arrays(extra=Array(np.zeros(1, np.float32))),
        ArrayRecord(dict(reversed(list(to_arrays(START, LAYOUT).items())))),
        ArrayRecord({f"module.{name}": array for name, array in to_arrays(START, LAYOUT).items()}),
        arrays(layer_weight=Array(np.zeros((2, 3), np.float32))),
        arrays(layer_weight=Array(np.zeros(6, np.float32))),
        arrays(layer_weight=Array(np.zeros((3, 2), np.float64))),
        arrays(layer_weight=Array(np.zeros((3, 2), np.float16))),
        arrays(layer_weight=Array(np.zeros((3, 2), np.int32))),
        arrays(layer_weight=Array(np.zeros((3, 2), ">f4"))),
        arrays(layer_weight=Array(np.asfortranarray(START["layer.weight"]))),
        arrays(layer_weight=raw(b"")),
        arrays(layer_weight=raw(b"\x93NUM")),
        arrays(layer_weight=raw(b"PK\x03\x04" + b"\x00" * 60)),
        arrays(layer_weight=raw(GOOD_NPY[:-1])),
        arrays(layer_weight=raw(GOOD_NPY + b"\x00")),
        arrays(layer_weight=raw(GOOD_NPY[:40])),
        arrays(layer_weight=raw(GOOD_NPY.replace(b"\x01\x00v", b"\x02\x00v", 1))),
        arrays(layer_weight=raw(npy(shape="(3, 20000000000)"))),
        arrays(layer_weight=raw(npy(shape="(-3, -2)"))),
        arrays(layer_weight=raw(npy(shape="(3, 2, 0)", body=0))),
        arrays(layer_weight=raw(npy(shape="3"))),
        arrays(layer_weight=raw(npy(shape="('a',)"))),
        arrays(layer_weight=raw(npy(shape="(" * 150 + ")" * 150))),
        arrays(layer_weight=raw(npy(descr="'|O'"))),
        arrays(layer_weight=raw(npy(descr="[('a', '<f4')]"))),
        arrays(layer_weight=raw(npy(descr="'nonsense'"))),
        arrays(layer_weight=raw(npy(order="True"))),
        arrays(layer_weight=raw(npy(shape="(3, 2)" + " " * 2000))),
    ],
)
def test_other_names_shapes_or_types_and_damaged_arrays_are_a_mismatch(record: ArrayRecord) -> None:
    """Order is part of the names: nobody has a reason to change it."""
    assert fault(read(content(record, **GOOD))) is Fault.MODEL_MISMATCH


def test_what_flowers_own_fields_say_of_an_array_is_not_believed() -> None:
    honest = START["layer.weight"]
    liar = raw(Array(honest).data, dtype="int8", shape=(10**9,), stype="pickle")
    found = read(content(arrays(layer_weight=liar), **GOOD))
    assert isinstance(found, Update)
    assert found.delta["layer.weight"].tolist() == honest.tolist()


def test_a_header_that_lies_about_its_size_makes_nobody_allocate() -> None:
    record = arrays(layer_weight=raw(npy(shape="(1000000, 1000000)")))
    tracemalloc.start()
    assert fault(read(content(record, **GOOD))) is Fault.MODEL_MISMATCH
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("plan", [PLAIN_PLAN, PRIVATE_PLAN], ids=["plain", "private"])
def test_an_update_that_is_not_finite_is_refused(plan: Plan, bad: float) -> None:
    value = START["layer.bias"].copy()
    value[1] = bad
    metrics = GOOD_PRIVATE if plan.is_private else GOOD
    assert fault(read(content(arrays(layer_bias=Array(value)), **metrics), plan)) is Fault.NON_FINITE


# --- errors -------------------------------------------------------------------------------------------------------


FOUND_BY_THE_SERVER = (
    Fault.MALFORMED_REPLY,
    Fault.NON_FINITE,
    Fault.TIMED_OUT,
    Fault.SECURE_SUM_BROKEN,
    Fault.SECURE_SUM_ABORTED,
)


@pytest.mark.parametrize("code", [code for code in Fault if code not in FOUND_BY_THE_SERVER])
def test_a_known_code_is_that_fault(code: Fault) -> None:
    assert fault(read_reply(error(request(), code), "site", LAYOUT, PLAIN_PLAN)) is code


@pytest.mark.parametrize("code", [0, 1, 2, -1, 1000, 1099, 2**60])
def test_a_foreign_code_is_a_failure(code: int) -> None:
    assert fault(read_reply(error(request(), code), "site", LAYOUT, PLAIN_PLAN)) is Fault.CLIENT_FAILED


@pytest.mark.parametrize("code", FOUND_BY_THE_SERVER)
def test_what_only_the_server_finds_out_no_client_can_say_of_itself(code: Fault) -> None:
    """A failure that called itself a missed deadline would not withdraw the client's claim (rule 5)."""
    assert fault(read_reply(error(request(), code), "site", LAYOUT, PRIVATE_PLAN)) is Fault.CLIENT_FAILED


@pytest.mark.parametrize("code", list(Fault))
def test_rule_5_only_what_a_client_refuses_before_it_touches_data_is_a_refusal(code: Fault) -> None:
    found = read_reply(error(request(), code), "site", LAYOUT, PRIVATE_PLAN)
    assert isinstance(found, ClientFault)
    assert found.refused == code.is_refusal
    mismatch = read(content(ArrayRecord(), **GOOD_PRIVATE), PRIVATE_PLAN)
    assert isinstance(mismatch, ClientFault)
    assert mismatch.fault is Fault.MODEL_MISMATCH
    assert not mismatch.refused


def test_rule_5_the_text_of_an_error_goes_nowhere() -> None:
    secret = Message(Error(code=Fault.CLIENT_FAILED, reason="patient 4711 has it"), reply_to=request())
    assert "4711" not in repr(read_reply(secret, "site", LAYOUT, PLAIN_PLAN))


# --- anything at all ----------------------------------------------------------------------------------------------

names = st.sampled_from([ARRAYS, METRICS, LEDGER, CONFIG, "x", ""])
fields = st.sampled_from([WEIGHT, TRAIN_LOSS, EPSILON, EXAMPLES, CORRECT, TOTAL, HEAD_POSITION, HEAD_HASH, "x", ""])
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.sampled_from([1, 2**29, 0.5]),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.floats(), max_size=3),
)
metric_records = st.dictionaries(fields, numbers, max_size=3).map(MetricRecord)
config_records = st.dictionaries(fields, numbers | st.booleans() | st.text(max_size=5) | st.binary(max_size=5)).map(
    ConfigRecord
)


@st.composite
def hostile_arrays(draw: st.DrawFn) -> Array:
    """A good array with some bytes changed, cut off or added; or bytes of any kind."""
    data = bytearray(draw(st.sampled_from([GOOD_NPY, Array(START["layer.bias"]).data, npy(), b""])))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)):
        if place < len(data):
            data[place] = byte
    data = data[: draw(st.integers(0, 400))] + draw(st.binary(max_size=8))
    shape = tuple(draw(st.lists(st.integers(-2, 9), max_size=3)))
    return raw(
        bytes(data), dtype=draw(st.text(max_size=5)), shape=shape, stype=draw(st.sampled_from(["numpy.ndarray", ""]))
    )


array_records = st.dictionaries(st.sampled_from(["layer.weight", "layer.bias", "x"]), hostile_arrays()).map(ArrayRecord)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(names, metric_records | config_records | array_records, max_size=4),
    st.sampled_from([PLAIN_PLAN, UNIFORM_PLAN, PRIVATE_PLAN, OPEN_PLAN]),
    st.booleans(),
)
def test_no_reply_raises_an_error(records: dict[str, Any], plan: Plan, headed: bool) -> None:
    record = RecordDict({**records, **({LEDGER: HEAD} if headed else {})})
    assert isinstance(read(record, plan), (Update, ClientFault))
    assert isinstance(read_counts(Message(record, reply_to=request()), "site", plan), (CountsReply, ClientFault))


@settings(max_examples=400, deadline=None)
@given(
    hostile_arrays(), hostile_arrays(), st.fixed_dictionaries({WEIGHT: numbers, TRAIN_LOSS: numbers}).map(MetricRecord)
)
def test_what_passes_is_an_update_that_can_be_averaged(weight: Array, bias: Array, metrics: MetricRecord) -> None:
    record = ArrayRecord({"layer.weight": weight, "layer.bias": bias})
    found = read(RecordDict({ARRAYS: record, METRICS: metrics, LEDGER: HEAD}))
    if isinstance(found, Update):
        assert _shapes(found.delta) == _shapes(START)
        assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in found.delta.values())
        assert 1 <= found.weight <= 2**29
        assert found.train_loss is None or math.isfinite(found.train_loss)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD_NPY) - 1), st.integers(1, 255))
def test_a_byte_flipped_on_the_way_is_found_or_is_a_number(place: int, flip: int) -> None:
    """The header is compared field by field; what is left are the values, and any finite one of them is a value."""
    damaged = bytearray(GOOD_NPY)
    damaged[place] ^= flip
    found = read(content(arrays(layer_weight=raw(bytes(damaged))), **GOOD))
    header = len(GOOD_NPY) - 24
    if isinstance(found, Update):
        assert _shapes(found.delta) == _shapes(START)
        if place < header:  # only padding can change unseen
            assert found.delta["layer.weight"].tolist() == START["layer.weight"].tolist()
    else:
        assert found.fault is Fault.NON_FINITE if place >= header else found.fault is Fault.MODEL_MISMATCH


def _shapes(arrays_: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in arrays_.items()}
