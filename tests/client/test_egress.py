"""Principle 1: every value in a reply is charged, public, entrusted or unprotected, or the reply is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client import app as app_module
from client.egress import Disclosure, EgressError, check_query, classify, planned_fields, unprotected_fields
from client.policy import ReleasePolicy, SitePolicy, simulated_policy
from shared_models.faults import Fault
from shared_models.parameters import Layout
from shared_models.plan import Plan
from shared_models.protocol import (
    ARRAYS,
    CLIENT_ID,
    CONFIG,
    CORRECT,
    EPSILON,
    EXAMPLES,
    HEAD_HASH,
    HEAD_POSITION,
    IDENTIFY,
    LEDGER,
    MASKED,
    METRICS,
    PLAN_DIGEST,
    SECURE_MESSAGE,
    STATEMENT,
    STATEMENT_TEXT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
    Phase,
)
from tests.client.conftest import AT_CLIENTS, SECRET, Clients, assert_fault, content_of, layout_of, plan_of, question
from tests.client.secure_cohort import secure_plan

UNPROTECTED: list[tuple[Any, ...]] = [(), ("examples",), ("train-loss",), ("examples", "train-loss")]

# What the design lets out, written down once more, by hand: by phase and whether there is privacy.
HEAD = {(LEDGER, HEAD_POSITION): "public", (LEDGER, HEAD_HASH): "public"}
FIELDS: dict[tuple[str, bool], dict[tuple[str, str], str]] = {
    ("train", True): {(METRICS, WEIGHT): "public", (METRICS, EPSILON): "public", **HEAD},
    ("train", False): {(METRICS, WEIGHT): "entrusted", (METRICS, TRAIN_LOSS): "entrusted", **HEAD},
    ("evaluate", True): {
        (METRICS, CORRECT): "charged",
        (METRICS, TOTAL): "charged",
        (METRICS, EPSILON): "public",
        **HEAD,
    },
    ("evaluate", False): {(METRICS, CORRECT): "entrusted", (METRICS, TOTAL): "entrusted", **HEAD},
}


def expected_fields(plan: Plan, phase: str, allowed: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """The class of every field of a good reply in a mode."""
    found = dict(FIELDS[phase, plan.is_private])
    if phase == "train":
        arrays = "charged" if plan.is_private else "entrusted"
        found |= {(ARRAYS, name): arrays for name, _ in layout_of(plan).entries}
        if plan.is_private:
            both = set(plan.privacy.unprotected) & set(allowed)
            found |= {(METRICS, field): "unprotected" for field in both}
    return found


def fields_of(reply: RecordDict) -> set[tuple[str, str]]:
    return {(name, field) for name, record in reply.items() for field in record}


def policy_of(
    plan: Plan, client: str, *, unprotected: Any = (), counts: bool = True, entrust: bool = True
) -> SitePolicy:
    release = ReleasePolicy(
        unprotected=unprotected, counts=counts, entrust=(plan.name,) if entrust and not plan.is_private else ()
    )
    return simulated_policy(plan, client).model_copy(update={"release": release})


MODES = [
    pytest.param(phase, private, asked, allowed, counts, entrust, id="-".join(map(str, (i, phase))))
    for i, (phase, private, asked, allowed, counts, entrust) in enumerate(
        itertools.product(["train", "evaluate"], [True, False], UNPROTECTED, UNPROTECTED, [True, False], [True, False])
    )
    if private or not asked  # a plan without privacy has nothing to leave unprotected
]


@pytest.mark.parametrize(("phase", "private", "asked", "allowed", "counts", "entrust"), MODES)
def test_principle_1_no_value_leaves_unclassified(
    clients: Clients, phase: str, private: bool, asked: Any, allowed: Any, counts: bool, entrust: bool
) -> None:
    """Walks every field of every reply in every mode."""
    privacy = {"unprotected": asked} if private else {}
    plan = plan_of(private, evaluation=AT_CLIENTS, privacy=privacy)
    clients.policy = lambda plan, client: policy_of(plan, client, unprotected=allowed, counts=counts, entrust=entrust)
    reply = clients.ask(plan, content_of(plan), kind=phase)
    if private and not counts:  # the plan asks for counts that the site doesn't let out
        assert_fault(reply, Fault.POLICY_FIELD)
    elif not private and not entrust:
        assert_fault(reply, Fault.POLICY_ENTRUST)
    if reply.has_error():
        assert clients.events == []
        assert "commit" not in clients.kinds()
        return
    expected = expected_fields(plan, phase, allowed)
    assert fields_of(reply.content) == set(expected)
    # The owner's ledger says of every field what it was; all arrays are one line, for they are of one class.
    (commit,) = [entry for entry in clients.entries() if entry.kind == "commit"]
    lines = {ARRAYS if record == ARRAYS else f"{record}.{field}": kind for (record, field), kind in expected.items()}
    assert commit.body["fields"] == lines


@pytest.mark.parametrize("private", [True, False])
def test_principle_1_what_a_query_answers_holds_one_public_field(clients: Clients, private: bool) -> None:
    plan = plan_of(private)
    clients.train(plan)
    for kind, field in ((IDENTIFY, CLIENT_ID), (STATEMENT, STATEMENT_TEXT)):
        reply = clients.ask(plan, question(plan), kind=kind)
        assert fields_of(reply.content) == {(CONFIG, field)}
        assert [type(value) for value in reply.content.config_records[CONFIG].values()] == [str]


# --- the table by itself: what is not in it stops the reply --------------------------------------------------------

LAYOUT = Layout((("w", (2,)), ("b", ())), "float32")
VALUES: dict[tuple[str, str], Any] = {
    (METRICS, WEIGHT): 1,
    (METRICS, EPSILON): 0.5,
    (METRICS, EXAMPLES): 17,
    (METRICS, TRAIN_LOSS): 0.25,
    (METRICS, CORRECT): -3,
    (METRICS, TOTAL): 20,
    (LEDGER, HEAD_POSITION): 4,
    (LEDGER, HEAD_HASH): "a" * 64,
    (CONFIG, CLIENT_ID): "berlin",
    (CONFIG, STATEMENT_TEXT): "{}",
}
RECORDS: dict[str, Any] = {METRICS: MetricRecord, LEDGER: ConfigRecord, CONFIG: ConfigRecord}
CASES: list[tuple[Phase, bool, tuple[Any, ...]]] = [
    ("train", True, ()),
    ("train", True, ("examples", "train-loss")),
    ("evaluate", True, ()),
    ("train", False, ()),
    ("evaluate", False, ()),
]


def plain_or_private(private: bool, asked: Any = ()) -> Plan:
    privacy = {"noise_multiplier": 1.0, "unprotected": asked} if private else {"trust": "none"}
    return Plan.model_validate({"privacy": privacy, "evaluation": {"where": "clients"}})


def site(plan: Plan, allowed: Any = (), counts: bool = True) -> SitePolicy:
    release = ReleasePolicy(unprotected=allowed, counts=counts, entrust=() if plan.is_private else (plan.name,))
    return SitePolicy(site="s", budget_scope="s", release=release)


def arrays(*names: str) -> ArrayRecord:
    return ArrayRecord({name: Array(np.zeros(2, np.float32)) for name in names})


def reply_of(fields: Any, layout: Layout | None) -> RecordDict:
    """A good reply with these fields."""
    reply = RecordDict() if layout is None else RecordDict({ARRAYS: arrays(*(name for name, _ in layout.entries))})
    for record in dict.fromkeys(record for record, _ in fields):
        reply[record] = RECORDS[record]({field: VALUES[record, field] for of, field in fields if of == record})
    return reply


def good(phase: Phase, private: bool, asked: Any = ()) -> RecordDict:
    fields = dict(FIELDS[phase, private]) | {(METRICS, field): "unprotected" for field in asked}
    return reply_of(fields, LAYOUT if phase == "train" else None)


def classes(reply: RecordDict, phase: Phase, private: bool, asked: Any = (), allowed: Any = None) -> dict[str, Any]:
    plan = plain_or_private(private, asked)
    policy = site(plan, asked if allowed is None else allowed)
    return classify(reply, phase=phase, plan=plan, policy=policy, layout=LAYOUT)


def replaced(reply: RecordDict, place: tuple[str, str], value: Any) -> RecordDict:
    """The same reply with one value replaced, added, or (None) removed."""
    record, field = place
    values: Any = {name: old for name, old in reply[record].items() if name != field}
    if value is not None:
        values[field] = value
    return RecordDict({**reply, record: type(reply[record])(values)})


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
def test_a_good_reply_has_a_class_for_each_field(phase: Phase, private: bool, asked: Any) -> None:
    reply = good(phase, private, asked)
    found = classes(reply, phase, private, asked)
    assert {name.split(".", 1)[0] for name in found} == set(reply)
    assert set(found) == {f"{record}.{field}" for record, field in fields_of(reply)}
    assert all(isinstance(kind, Disclosure) for kind in found.values())


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
def test_a_field_more_stops_the_reply(phase: Phase, private: bool, asked: Any) -> None:
    reply = good(phase, private, asked)
    for record in reply:
        for field, value in {
            "more": Array(np.zeros(1)) if record == ARRAYS else 1,
            "accuracy": Array(np.zeros(1)) if record == ARRAYS else 0.5,
            "": Array(np.zeros(1)) if record == ARRAYS else 0.5,
        }.items():
            with pytest.raises(EgressError, match="nothing says"):
                classes(replaced(reply, (record, field), value), phase, private, asked)


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
def test_a_field_of_another_mode_stops_the_reply(phase: Phase, private: bool, asked: Any) -> None:
    reply = good(phase, private, asked)
    for record, field in set(VALUES) - fields_of(reply):
        more = (
            replaced(reply, (record, field), VALUES[record, field])
            if record in reply
            else reply_of({(record, field): ""}, None)
        )
        with pytest.raises(EgressError):
            classes(RecordDict({**reply, **more}), phase, private, asked)


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
def test_a_field_that_is_missing_stops_the_reply_for_its_absence_could_tell_something(
    phase: Phase, private: bool, asked: Any
) -> None:
    reply = good(phase, private, asked)
    for record, field in fields_of(reply):
        less = replaced(reply, (record, field), None)
        if field in asked:  # no claim is left that its absence could break
            assert f"{record}.{field}" not in classes(less, phase, private, asked)
        else:
            with pytest.raises(EgressError, match="nothing says"):
                classes(less, phase, private, asked)
    for record in reply:
        with pytest.raises(EgressError, match="nothing says"):
            classes(RecordDict({name: reply[name] for name in reply if name != record}), phase, private, asked)


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
@pytest.mark.parametrize("record", [MetricRecord(), MetricRecord({"x": 1}), ConfigRecord(), ArrayRecord(), arrays("w")])
def test_a_record_more_stops_the_reply_even_an_empty_one_whose_name_could_be_anything(
    phase: Phase, private: bool, asked: Any, record: Any
) -> None:
    reply = good(phase, private, asked)
    for name in {SECRET, ARRAYS, CONFIG, ""} - set(reply):
        with pytest.raises(EgressError, match="nothing says"):
            classes(RecordDict({**reply, name: record}), phase, private, asked)


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
def test_a_record_of_another_kind_stops_the_reply(phase: Phase, private: bool, asked: Any) -> None:
    reply = good(phase, private, asked)
    for name, record in reply.items():
        others: list[Any] = [
            arrays(*record),
            MetricRecord(dict.fromkeys(record, 1)),
            ConfigRecord(dict.fromkeys(record, SECRET)),
            ConfigRecord({field: VALUES.get((name, field), SECRET) for field in record}),  # the very same values
        ]
        for other in others:
            if type(other) is not type(record):
                with pytest.raises(EgressError, match="this record is of another kind"):
                    classes(RecordDict({**reply, name: other}), phase, private, asked)


@pytest.mark.parametrize(("phase", "private", "asked"), CASES)
def test_a_value_of_another_type_stops_the_reply_a_list_above_all(phase: Phase, private: bool, asked: Any) -> None:
    reply = good(phase, private, asked)
    for record, field in fields_of(reply):
        if record == ARRAYS:
            continue
        value = VALUES[record, field]
        others: list[Any] = [[value], [value, value], True, SECRET, SECRET.encode(), 2.5, 7]
        for other in others:
            if type(other) is type(value):
                continue
            try:
                wrong = replaced(reply, (record, field), other)
            except TypeError:  # Flower itself doesn't let it into such a record
                continue
            with pytest.raises(EgressError, match="of another type"):
                classes(wrong, phase, private, asked)


def test_arrays_leave_in_train_replies_only_and_by_the_layouts_names_only() -> None:
    for private in (True, False):
        reply = good("train", private)
        for wrong in (arrays("w"), arrays("w", "b", "x"), arrays("w", "x"), arrays()):
            with pytest.raises(EgressError, match="nothing says"):
                classes(RecordDict({**reply, ARRAYS: wrong}), "train", private)
        with pytest.raises(EgressError, match="nothing says"):
            classes(RecordDict({**good("evaluate", private), ARRAYS: arrays("w", "b")}), "evaluate", private)


COMPRESSED = [(Layout(LAYOUT.entries, "int8"), ("levels", "scales"))]
COMPRESSED += [(Layout(LAYOUT.entries, "top-k", 0.5), ("indices", "values"))]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(("layout", "names"), COMPRESSED, ids=["int8", "top-k"])
def test_the_arrays_of_a_compressed_update_have_the_class_of_whole_ones(
    layout: Layout, names: tuple[str, str], private: bool
) -> None:
    plan = plain_or_private(private)

    def found(*sent: str) -> dict[str, Any]:
        reply = RecordDict({**good("train", private), ARRAYS: arrays(*sent)})
        return classify(reply, phase="train", plan=plan, policy=site(plan), layout=layout)

    kind = Disclosure.CHARGED if private else Disclosure.ENTRUSTED
    assert {name: one for name, one in found(*names).items() if name.startswith(ARRAYS)} == {
        f"{ARRAYS}.{name}": kind for name in names
    }
    for wrong in (("w", "b"), names[:1], (*names, "w"), ()):
        with pytest.raises(EgressError, match="nothing says"):
            found(*wrong)


@pytest.mark.parametrize("weight", [0, 2, -1, 17, 2**60])
def test_rule_1_under_privacy_a_weight_that_is_not_the_public_constant_stops_the_reply(weight: int) -> None:
    with pytest.raises(EgressError, match="the weight is 1 for everybody"):
        classes(replaced(good("train", True), (METRICS, WEIGHT), weight), "train", True)
    assert classes(replaced(good("train", False), (METRICS, WEIGHT), weight), "train", False)


@pytest.mark.parametrize("asked", UNPROTECTED)
@pytest.mark.parametrize("allowed", UNPROTECTED)
def test_an_unprotected_field_leaves_only_where_both_plan_and_policy_say_so(asked: Any, allowed: Any) -> None:
    plan = plain_or_private(True, asked)
    both = set(asked) & set(allowed)
    assert set(unprotected_fields(plan, site(plan, allowed))) == both
    for field in ("examples", "train-loss"):
        reply = replaced(good("train", True), (METRICS, field), VALUES[METRICS, field])
        if field in both:
            assert classes(reply, "train", True, asked, allowed)[f"{METRICS}.{field}"] is Disclosure.UNPROTECTED
        else:
            with pytest.raises(EgressError, match="nothing says"):
                classes(reply, "train", True, asked, allowed)


def test_without_privacy_nothing_leaves_for_a_federation_that_is_not_entrusted() -> None:
    plan = plain_or_private(False)
    for name in ((), ("another",), (plan.name.upper(),)):
        policy = SitePolicy(site="s", budget_scope="s", release=ReleasePolicy(entrust=name))
        with pytest.raises(EgressError, match="entrusts this federation with nothing"):
            classify(good("train", False), phase="train", plan=plan, policy=policy, layout=LAYOUT)


def test_counts_leave_only_where_the_policy_lets_them_out() -> None:
    plan = plain_or_private(True)
    with pytest.raises(EgressError, match="lets no counts out"):
        classify(good("evaluate", True), phase="evaluate", plan=plan, policy=site(plan, counts=False), layout=LAYOUT)


def test_an_answer_to_a_query_with_anything_more_is_stopped() -> None:
    for query, field in (("identify", CLIENT_ID), ("statement", STATEMENT_TEXT)):
        fine = RecordDict({CONFIG: ConfigRecord({field: "x"})})
        assert check_query(fine, query) == {f"{CONFIG}.{field}": Disclosure.PUBLIC}  # type: ignore[arg-type]
        for wrong in (
            RecordDict(),
            RecordDict({CONFIG: ConfigRecord()}),
            RecordDict({CONFIG: ConfigRecord({field: "x", "more": 1})}),
            RecordDict({CONFIG: ConfigRecord({field: ["x", SECRET]})}),
            RecordDict({CONFIG: ConfigRecord({field: "x"}), METRICS: MetricRecord({TOTAL: 3})}),
            RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: "x"})}),
        ):
            with pytest.raises(EgressError):
                check_query(wrong, query)  # type: ignore[arg-type]


names = st.sampled_from(["", "x", WEIGHT, EPSILON, EXAMPLES, TRAIN_LOSS, CORRECT, TOTAL, HEAD_POSITION, HEAD_HASH, "w"])
numbers = st.integers(-(2**60), 2**60) | st.floats()
lists = st.lists(st.integers(0, 9), min_size=1)
metric_records = st.builds(MetricRecord, st.dictionaries(names, numbers | lists))
config_records = st.builds(ConfigRecord, st.dictionaries(names, numbers | st.text(max_size=3) | st.booleans()))
array_records = st.sets(names, max_size=3).map(lambda found: arrays(*found))
replies = st.dictionaries(
    st.sampled_from([ARRAYS, METRICS, LEDGER, CONFIG, SECRET]), metric_records | config_records | array_records
)


@settings(deadline=None, max_examples=300)
@given(replies, st.sampled_from(CASES), st.booleans())
def test_principle_1_whatever_a_reply_holds_every_field_has_a_class_or_nothing_leaves(
    content: dict[str, Any], case: Any, on_top: bool
) -> None:
    phase, private, asked = case
    reply = RecordDict({**good(phase, private, asked), **content} if on_top else content)
    try:
        found = classes(reply, phase, private, asked)
    except EgressError:
        return
    assert set(found) == {f"{record}.{field}" for record, field in fields_of(reply)}
    assert set(reply) == set(good(phase, private, asked))
    if private and phase == "train":
        assert reply.metric_records[METRICS][WEIGHT] == 1


# --- a secure sum ---------------------------------------------------------------------------------------------------


def masked_reply(plan: Plan) -> RecordDict:
    """A good reply of the masked phase."""
    vector = np.arange(plan.secure.dimension or 0, dtype=f"uint{plan.secure.bits}")
    return RecordDict(
        {
            ARRAYS: ArrayRecord({MASKED: Array(vector)}),
            METRICS: MetricRecord({WEIGHT: 1, EPSILON: 1.0}),
            LEDGER: ConfigRecord({HEAD_POSITION: 2, HEAD_HASH: "0" * 64}),
        }
    )


def classified(plan: Plan, reply: RecordDict) -> dict[str, Disclosure]:
    return classify(reply, phase="train", plan=plan, policy=simulated_policy(plan, "0"), layout=layout_of(plan))


def test_principle_1_of_a_secure_sum_one_masked_vector_leaves_and_is_charged() -> None:
    plan = secure_plan()
    assert classified(plan, masked_reply(plan)) == {
        f"{ARRAYS}.{MASKED}": "charged",
        f"{METRICS}.{WEIGHT}": "public",
        f"{METRICS}.{EPSILON}": "public",
        f"{LEDGER}.{HEAD_POSITION}": "public",
        f"{LEDGER}.{HEAD_HASH}": "public",
    }
    words = RecordDict({CONFIG: ConfigRecord({SECURE_MESSAGE: b"x"})})
    assert check_query(words, "secure-sum") == {f"{CONFIG}.{SECURE_MESSAGE}": "public"}
    # What an owner reads beforehand is the same.
    public = {name for name in classified(plan, masked_reply(plan)) if not name.startswith(ARRAYS)}
    assert planned_fields(plan, simulated_policy(plan, "0")).keys() == {ARRAYS, f"{CONFIG}.{SECURE_MESSAGE}"} | public


NOT_MASKED: dict[str, Any] = {
    "floats": lambda plan: {MASKED: np.zeros(plan.secure.dimension, np.float32)},
    "signed": lambda plan: {MASKED: np.zeros(plan.secure.dimension, np.int32)},
    "another ring": lambda plan: {MASKED: np.zeros(plan.secure.dimension, np.uint64)},
    "longer": lambda plan: {MASKED: np.zeros(plan.secure.dimension + 1, np.uint32)},
    "another shape": lambda plan: {MASKED: np.zeros((1, plan.secure.dimension), np.uint32)},
    "another name": lambda plan: {"sum": np.zeros(plan.secure.dimension, np.uint32)},
    "two": lambda plan: dict.fromkeys((MASKED, "more"), np.zeros(plan.secure.dimension, np.uint32)),
    "none": lambda plan: {},
    "the update": lambda plan: {name: np.zeros(shape, np.float32) for name, shape in layout_of(plan).entries},
}


@pytest.mark.parametrize("case", NOT_MASKED)
def test_principle_1_under_distributed_trust_nothing_leaves_but_a_vector_of_the_ring(case: str) -> None:
    plan = secure_plan()
    reply = masked_reply(plan)
    reply[ARRAYS] = ArrayRecord({name: Array(value) for name, value in NOT_MASKED[case](plan).items()})
    with pytest.raises(EgressError):
        classified(plan, reply)


def test_principle_1_a_loss_never_leaves_beside_a_masked_vector() -> None:
    plan = secure_plan()
    reply = masked_reply(plan)
    reply.metric_records[METRICS][TRAIN_LOSS] = 0.5
    with pytest.raises(EgressError, match="train-loss"):
        classified(plan, reply)


@pytest.mark.parametrize("value", ["text", 1, [b"x"]])
def test_the_words_of_a_secure_sum_are_bytes(value: Any) -> None:
    with pytest.raises(EgressError):
        check_query(RecordDict({CONFIG: ConfigRecord({SECURE_MESSAGE: value})}), "secure-sum")


# --- the way out: what the table stops is not sent and not committed -----------------------------------------------


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {METRICS: MetricRecord({WEIGHT: 1, EPSILON: 0.0, TRAIN_LOSS: 0.0, "rows": 4711})},
        {SECRET: ConfigRecord()},
        {"notes": ConfigRecord({"text": SECRET})},
        {LEDGER: ConfigRecord({HEAD_POSITION: 4711, HEAD_HASH: SECRET})},
    ],
)
def test_what_nothing_lets_out_is_charged_but_neither_sent_nor_committed(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, private: bool, more: Any
) -> None:
    plan, train = plan_of(private), app_module._train
    monkeypatch.setattr(app_module, "_train", lambda *given: RecordDict({**train(*given), **more}))
    reply = clients.train(plan)
    if LEDGER in more:  # the guard writes this record itself, over whatever stood there
        head = reply.content.config_records[LEDGER]
        assert (head[HEAD_POSITION], head[HEAD_HASH]) == (2, clients.entries()[2].hash)
        return
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert clients.kinds() == ["open", "policy", "reserve", "client-failed"]
    assert clients.charged() == ({plan.train_release(): 1} if private else {})
    assert SECRET not in caplog.text
