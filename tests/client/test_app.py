"""The ClientApp, asked by real Flower messages: what is refused, what is charged, and what never leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from client import app as module
from client import private_trainer
from client import workplace as workplace_module
from client.app import app
from client.asking import digest_of
from client.books import create_simulated
from client.datasets.records import Records
from client.evaluator import count_correct
from client.guard import Guard
from client.policy import SitePolicy, simulated_policy
from client.private_trainer import train_private
from client.trainer import train_plain
from client.workplace import made_workplace, workplace
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from security.errors import UsageError
from shared_models.faults import Fault
from shared_models.flower_messages import act_as_server, rebuild
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
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
    LAYOUT_DIGEST,
    LEDGER,
    METRICS,
    PLAN_DIGEST,
    ROUND,
    RUN,
    STATEMENT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
)
from shared_models.seeds import derive_key
from simulations.inline_grid import InlineGrid
from simulations.worker import Worker
from tests.client.conftest import (
    AT_CLIENTS,
    SECRET,
    Clients,
    Silence,
    assert_fault,
    changed_by_a_bit,
    content_of,
    head_of,
    metrics_of,
    model_of,
    plan_of,
    question,
    some_records,
    update_of,
    wire,
)

# --- a good round --------------------------------------------------------------------------------------------------


def test_a_private_reply_holds_the_update_and_public_numbers(clients: Clients) -> None:
    plan = plan_of()
    for number in (1, 2, 3):
        reply = clients.train(plan, number)
        assert set(reply.content) == {ARRAYS, METRICS, LEDGER}
        metrics = metrics_of(reply)
        assert dict(metrics) == {WEIGHT: 1, EPSILON: pytest.approx(metrics[EPSILON])}
        # The ledger's newest entry when training began: for the server to keep.
        head = head_of(reply)
        entry = clients.entries()[2 * number]
        assert entry.kind == "reserve"
        assert head == {HEAD_POSITION: entry.position, HEAD_HASH: entry.hash}
        assert clients.charged() == {plan.train_release(): number}
    assert metrics[EPSILON] == pytest.approx(plan.privacy.epsilon, abs=1e-6)
    assert clients.events == ["reserve", "read", "train", "reserve", "train", "reserve", "train"]
    assert clients.kinds() == ["open", "policy", *("reserve", "commit") * 3]


def test_a_private_update_is_the_private_trainers(clients: Clients) -> None:
    plan = plan_of()
    start = {name: value + 0.1 for name, value in model_of(plan).items()}
    reply = clients.ask(plan, content_of(plan, 2, start), client="1")
    noise = ReproducibleNoise(derive_key(plan.seed, "noise", "1", 2))
    expected = train_private(
        workplace(write_plan(plan)).model, start, clients.data["1"], plan, round_number=2, noise=noise
    )
    found = update_of(plan, reply)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_plain_reply_holds_weight_and_loss(clients: Clients) -> None:
    plan = plan_of(private=False)
    reply = clients.train(plan, 2, client="2")
    start = model_of(plan)
    expected, loss = train_plain(
        workplace(write_plan(plan)).model, start, clients.data["2"], plan, round_number=2, client="2"
    )
    found = update_of(plan, reply)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert metrics_of(reply) == {WEIGHT: 8, TRAIN_LOSS: loss}
    assert set(reply.content) == {ARRAYS, METRICS, LEDGER}
    # It is listed, and nothing is charged for it.
    assert clients.kinds("2") == ["open", "policy", "reserve", "commit"]
    assert clients.charged("2") == {}


@pytest.mark.parametrize(("weighting", "weight"), [("examples", 6), ("uniform", 1)])
def test_without_privacy_the_weight_is_what_the_plan_says(clients: Clients, weighting: str, weight: int) -> None:
    plan = plan_of(private=False, federation={"weighting": weighting})
    assert metrics_of(clients.train(plan))[WEIGHT] == weight


def test_without_privacy_a_client_judges_the_model_on_what_it_holds_out(clients: Clients) -> None:
    plan = plan_of(private=False, evaluation=AT_CLIENTS)
    reply = clients.evaluate(plan, client="1")
    expected = count_correct(workplace(write_plan(plan)).model, model_of(plan), clients.held["1"], batch_size=512)
    assert metrics_of(reply) == {CORRECT: expected[0], TOTAL: 6}
    assert set(reply.content) == {METRICS, LEDGER}
    assert clients.charged("1") == {}


def test_rule_10_under_privacy_both_counts_leave_with_whole_noise_of_their_own_and_are_charged(
    clients: Clients,
) -> None:
    plan = plan_of(evaluation={**AT_CLIENTS, "count_noise": 50.0})
    reply = clients.evaluate(plan, 2, client="1")
    correct, total = count_correct(workplace(write_plan(plan)).model, model_of(plan), clients.held["1"], batch_size=512)
    noise = ReproducibleNoise(derive_key(plan.seed, "counts", "1", 2)).grid_normal((2,), 50.0)
    metrics = metrics_of(reply)
    assert metrics.pop(EPSILON) > 0
    assert metrics == {CORRECT: correct + int(noise[0]), TOTAL: total + int(noise[1])}
    assert [type(value) for value in metrics.values()] == [int, int]
    assert clients.charged("1") == {plan.evaluate_release(): 1}
    assert clients.events == ["reserve", "read", "evaluate"]


def test_a_round_of_training_and_one_of_judging_have_noise_of_their_own(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    used: list[Any] = []
    noise = module.noise_of

    def spy(*asked: Any) -> NoiseSource:
        used.append(asked[1:])
        return noise(*asked)

    monkeypatch.setattr(module, "noise_of", spy)
    clients.train(plan)
    clients.evaluate(plan)
    assert used == [("noise", "0", 1), ("counts", "0", 1)]


def test_noise_follows_client_and_round_where_the_plan_gives_up_its_claim(clients: Clients) -> None:
    plan = plan_of()
    clients.data = dict.fromkeys(("0", "1"), some_records(0))

    def noise(client: str, number: int, run: str = "run-1") -> bytes:
        reply = clients.ask(plan, content_of(plan, number, run=run), client=client)
        return b"".join(value.tobytes() for value in update_of(plan, reply).values())

    first = {noise(client, number) for client in ("0", "1") for number in (1, 2)}
    assert len(first) == 4
    assert noise("0", 1, "run-2") in first


def test_secret_noise_is_never_the_same(clients: Clients) -> None:
    plan = plan_of(privacy={"noise": "secret"})
    clients.data = {"0": some_records(0)}
    torch.manual_seed(1)
    first = update_of(plan, clients.train(plan))
    torch.manual_seed(1)
    again = update_of(plan, clients.ask(plan, content_of(plan, run="run-2")))
    assert all(not np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(("noise", "kind"), [("secret", SecretNoise), ("reproducible", ReproducibleNoise)])
def test_the_source_is_the_one_the_plan_names(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, noise: str, kind: type
) -> None:
    used: list[NoiseSource] = []

    def spy(*arguments: Any, noise: NoiseSource, **options: Any) -> Parameters:
        used.append(noise)
        return train_private(*arguments, noise=noise, **options)

    monkeypatch.setattr(private_trainer, "train_private", spy)
    plan = plan_of(privacy={"noise": noise})
    for number in (1, 2):
        clients.train(plan, number)
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

    monkeypatch.setattr(private_trainer, "train_private", spy)
    clients.train(plan)
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


def seen_of(reply: Message) -> Any:
    """All that an observer of the wire sees of a reply, but for the values of arrays and counts."""
    content = reply.content
    arrays: Any = content.array_records.get(ARRAYS, {})
    metrics = metrics_of(reply)
    return (
        [(name, type(record)) for name, record in content.items()],
        [(name, type(value), None if name in (CORRECT, TOTAL) else value) for name, value in metrics.items()],
        head_of(reply)[HEAD_POSITION],
        [(name, a.dtype, tuple(a.shape), a.stype, len(a.data)) for name, a in arrays.items()],
        None if metrics.keys() & {CORRECT, TOTAL} else len(wire(content)),  # a larger number takes more bytes
        reply.metadata.message_type,
        reply.metadata.ttl > 0,
    )


FORMS: dict[str, dict[str, Any]] = {
    "float32": {"wire": "float32"},
    "float16": {"wire": "float16"},
    "int8": {"wire": "int8"},
    "top-k": {"wire": "top-k", "top_fraction": 0.2},
}


@pytest.mark.parametrize("form", FORMS)
def test_principle_1_no_field_of_a_private_reply_depends_on_the_data(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    monkeypatch.setattr(module, "noise_of", lambda *_: Silence(b"zeros"))
    plan = plan_of(federation=FORMS[form], privacy={"clipping_norm": 100.0})
    seen, updates, ledgers = [], [], []
    for number, data in enumerate(DATA.values()):
        clients.path = tmp_path / f"{number}.sqlite"
        create_simulated(clients.path)
        clients.data = {"0": data}
        clients.forget()
        reply = clients.train(plan)
        updates.append(update_of(plan, reply))
        seen.append(seen_of(reply))
        ledgers.append(
            [(entry.kind, entry.body.get("charge"), entry.body.get("fields")) for entry in clients.entries()]
        )
    assert all(one == seen[0] for one in seen)
    assert all(one == ledgers[0] for one in ledgers)
    assert all(np.isfinite(value).all() for update in updates for value in update.values())
    silent = dict(zip(DATA, updates, strict=True))
    assert all(not value.any() for value in silent["none"].values())
    assert any(value.any() for value in silent["few"].values())  # else the test sees nothing
    assert any(not np.array_equal(silent["few"][name], silent["many"][name]) for name in silent["few"])


def test_rule_5_no_field_of_a_private_judgement_but_its_counts_depends_on_the_data(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "noise_of", lambda *_: Silence(b"zeros"))
    plan = plan_of(evaluation=AT_CLIENTS)
    seen, counts = [], []
    for number, data in enumerate(DATA.values()):
        clients.path = tmp_path / f"{number}.sqlite"
        create_simulated(clients.path)
        clients.held = {"0": data}
        clients.data = {"0": some_records(3)}
        clients.forget()
        reply = clients.evaluate(plan)
        metrics = metrics_of(reply)
        seen.append(seen_of(reply))
        counts.append((metrics[CORRECT], metrics[TOTAL]))
    assert all(one == seen[0] for one in seen)
    assert [total for _, total in counts] == [3, 300, 0, 5, 4]  # else the test sees nothing
    assert all(0 <= correct <= total for correct, total in counts)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_rule_5_a_model_made_to_overflow_changes_no_replys_form(clients: Clients, value: float, kind: str) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    model = {name: np.full_like(old, value) for name, old in model_of(plan).items()}
    bad = clients.ask(plan, content_of(plan, 1, model), kind=kind)
    usual = clients.ask(plan, content_of(plan, 1), kind=kind)
    assert not bad.has_error()
    keys = [[(name, tuple(record)) for name, record in reply.content.items()] for reply in (bad, usual)]
    assert keys[0] == keys[1]


def test_without_privacy_what_diverges_is_sent_as_it_is(clients: Clients) -> None:
    for form, federation in FORMS.items():
        plan = plan_of(private=False, training={"learning_rate": 1e30, "steps": 4}, federation=federation)
        reply = clients.train(plan)
        update = update_of(plan, reply)
        assert not all(np.isfinite(value).all() for value in update.values()), form
        assert set(metrics_of(reply)) == {WEIGHT, TRAIN_LOSS}


def test_without_privacy_a_client_without_records_fails(clients: Clients) -> None:
    clients.data["0"] = some_records(0)
    assert_fault(clients.train(plan_of(private=False)), Fault.CLIENT_FAILED)


def test_what_a_site_lets_out_unprotected_is_true_and_changes_nothing_else(clients: Clients) -> None:
    asked = plan_of(privacy={"unprotected": ["examples", "train-loss"]})
    metrics = metrics_of(clients.train(asked))
    assert metrics[EXAMPLES] == 6
    own, model = clients.data["0"], workplace(write_plan(asked)).model
    from shared_models.parameters import set_parameters

    set_parameters(model, model_of(asked))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(own.x), own.y)
    assert metrics[TRAIN_LOSS] == pytest.approx(float(loss), rel=1e-5)
    assert metrics[WEIGHT] == 1  # the update counts as much as anybody's all the same (rule 1)


# --- requests that are refused -------------------------------------------------------------------------------------


def with_config(content: RecordDict, **fields: Any) -> RecordDict:
    config = dict(content.config_records[CONFIG].items())
    for name, value in fields.items():
        key = {"round": ROUND, "plan": PLAN_DIGEST, "layout": LAYOUT_DIGEST, "run": RUN}[name]
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


def plan_digest(content: RecordDict) -> str:
    return str(content.config_records[CONFIG][PLAN_DIGEST])


def first_replaced(value: Any) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda arrays: {**arrays, next(iter(arrays)): value}


PLAN, MODEL = Fault.PLAN_MISMATCH, Fault.MODEL_MISMATCH
REFUSED: dict[str, tuple[Callable[[RecordDict], RecordDict], Fault]] = {
    "another plan": (lambda c: with_config(c, plan=Plan().digest()), PLAN),
    "a plan in capitals": (lambda c: with_config(c, plan=plan_digest(c).upper()), PLAN),
    "no plan": (lambda c: with_config(c, plan=None), PLAN),
    "a plan of bytes": (lambda c: with_config(c, plan=plan_digest(c).encode()), PLAN),
    "a list of plans": (lambda c: with_config(c, plan=[plan_digest(c)]), PLAN),
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
    "round NaN": (lambda c: with_config(c, round=float("nan")), PLAN),
    "a list of rounds": (lambda c: with_config(c, round=[1]), PLAN),
    "no round": (lambda c: with_config(c, round=None), PLAN),
    "no run": (lambda c: with_config(c, run=None), PLAN),
    "a run without a name": (lambda c: with_config(c, run=""), PLAN),
    "a run of a long name": (lambda c: with_config(c, run="x" * 65), PLAN),
    "a run that is a number": (lambda c: with_config(c, run=1), PLAN),
    "a run of bytes": (lambda c: with_config(c, run=b"run-1"), PLAN),
    "a list of runs": (lambda c: with_config(c, run=["run-1"]), PLAN),
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


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_rule_5_a_wrong_request_is_refused_before_anything_is_charged_or_read(
    clients: Clients, caplog: pytest.LogCaptureFixture, case: str, private: bool, kind: str
) -> None:
    change, fault = REFUSED[case]
    plan = plan_of(private, evaluation=AT_CLIENTS)
    assert_fault(clients.ask(plan, change(content_of(plan)), kind=kind), fault)
    assert clients.events == []
    assert clients.entries() == []
    assert caplog.text == ""


@pytest.mark.parametrize("private", [True, False])
def test_a_judgement_that_the_plan_does_not_know_is_refused(clients: Clients, private: bool) -> None:
    elsewhere = plan_of(private)
    assert_fault(clients.evaluate(elsewhere), Fault.PLAN_MISMATCH)
    seldom = plan_of(private, evaluation={**AT_CLIENTS, "every": 2})
    assert_fault(clients.evaluate(seldom, 1), Fault.PLAN_MISMATCH)
    assert clients.events == []
    assert clients.entries() == []
    assert not clients.evaluate(seldom, 2).has_error()
    assert not clients.evaluate(seldom, 3).has_error()  # the last round is always judged


@pytest.mark.parametrize("run", ["x", "x" * 64, "\x00", "\U0001f984", "a\nb", "'; DROP TABLE entries --", "\u202e"])
def test_a_run_may_have_any_short_name(clients: Clients, run: str) -> None:
    plan = plan_of()
    assert not clients.ask(plan, content_of(plan, run=run)).has_error()
    assert clients.entries()[2].body["task"]["run"] == run
    clients.restart()
    assert not clients.ask(plan, content_of(plan, 2, run=run)).has_error()  # and the chain is still sound


def test_what_a_request_holds_beside_is_neither_used_nor_sent_back_but_makes_another_request(clients: Clients) -> None:
    plan = plan_of()
    content = content_of(plan)
    expected = clients.ask(plan, content)
    content["more"] = ConfigRecord({"x": SECRET, "nan": float("nan"), "huge": 2**62, "many": [1, 2]})
    content["arrays2"] = ArrayRecord({"a": Array(np.zeros(3))})
    content.config_records[CONFIG]["proximal-mu"] = 0.5  # Flower's FedProx adds this
    content.config_records[CONFIG][EPSILON] = 0.0
    found = clients.ask(plan, content)
    assert wire(RecordDict({ARRAYS: found.content[ARRAYS]})) == wire(RecordDict({ARRAYS: expected.content[ARRAYS]}))
    assert set(found.content) == set(expected.content)
    assert metrics_of(found)[EPSILON] > metrics_of(expected)[EPSILON]
    assert clients.charged() == {plan.train_release(): 2}


@pytest.mark.parametrize("kind", ["train.other", "evaluate.other", "query", "query.other"])
def test_a_kind_of_message_that_veil_does_not_know_gets_a_code_from_the_grid(clients: Clients, kind: str) -> None:
    plan = plan_of()
    grid = InlineGrid(["0"], config={"plan": write_plan(plan), "ledger": str(clients.path)})
    (reply,) = grid.stream([Message(content_of(plan), grid.client_nodes["0"], kind, group_id="1")])
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert clients.events == []


DIGESTS: dict[str, Callable[[RecordDict], object]] = {
    "a bit of the model": changed_by_a_bit,
    "another round": lambda c: with_config(c, round=2),
    "another run": lambda c: with_config(c, run="run-2"),
    "a field more": lambda c: c.config_records[CONFIG].__setitem__("x", 1),
    "a record more": lambda c: c.__setitem__("x", ConfigRecord()),
    "an array more": lambda c: c.array_records[ARRAYS].__setitem__("x", Array(np.zeros(1))),
}


@pytest.mark.parametrize("change", DIGESTS)
def test_a_requests_digest_is_of_all_that_it_holds(clients: Clients, change: str) -> None:
    plan = plan_of()
    content = content_of(plan)
    before = digest_of(content)
    assert digest_of(content_of(plan)) == before
    DIGESTS[change](content)
    assert digest_of(content) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": {"b\0c": 1}}, {"a\0b": {"c": 1}}),
        ({"a": {"b": "1"}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": {"b": 1.0}}),
        ({"a": {"b": True}}, {"a": {"b": 1}}),
        ({"a": {"b": [1, 2]}}, {"a": {"b": "[1, 2]"}}),
        ({"a": {"b": b"x"}}, {"a": {"b": "x"}}),
        ({"a": {"b": "x", "c": "y"}}, {"a": {"b": "x"}, "c": {"": "y"}}),
    ],
)
def test_requests_made_to_look_alike_have_unlike_digests(one: Any, other: Any) -> None:
    digests = {
        digest_of(RecordDict({name: ConfigRecord(fields) for name, fields in content.items()}))
        for content in (one, other)
    }
    assert len(digests) == 2


# --- the budget ----------------------------------------------------------------------------------------------------


def test_a_round_that_the_budget_does_not_cover_is_refused_before_data_is_read(clients: Clients) -> None:
    plan = plan_of()
    for number in (1, 2, 3):
        clients.train(plan, number)
    clients.forget()
    again = clients.ask(plan, changed_by_a_bit(content_of(plan, 3)))
    assert_fault(again, Fault.BUDGET_EXHAUSTED)
    assert clients.events == ["reserve"]
    assert clients.charged() == {plan.train_release(): 3}
    assert clients.kinds()[-1] == "budget-exhausted"


@pytest.mark.parametrize("private", [True, False])
def test_the_same_request_twice_is_one_task(clients: Clients, private: bool) -> None:
    plan = plan_of(private)
    first, again = clients.train(plan), clients.train(plan)
    assert update_of(plan, first).keys() == update_of(plan, again).keys()
    assert clients.kinds() == ["open", "policy", "reserve", "commit"]
    assert clients.charged() == ({plan.train_release(): 1} if private else {})


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
@pytest.mark.parametrize("where", ["read", "train", "evaluate"])
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
    kind = "evaluate" if where == "evaluate" else "train"
    if where == "read":
        clients.error = error
    else:

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(private_trainer, "train_private", fail)
        for name in ("train_in_company", "count_correct"):
            monkeypatch.setattr(module, name, fail)
    plan = plan_of(private, evaluation=AT_CLIENTS)
    reply = clients.ask(plan, content_of(plan), kind=kind)
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert_silent(caplog, capfd, reply)
    assert clients.events[:2] == ["reserve", "read"]
    # The ledger has the charge, and that its claim is withdrawn.
    assert clients.kinds() == ["open", "policy", "reserve", "client-failed"]
    release = plan.train_release() if kind == "train" else plan.evaluate_release()
    assert clients.charged() == ({release: 1} if private else {})
    # The owner's log says enough to look for the cause: kind and place.
    (entry,) = [record for record in caplog.records if record.name == "veil.client"]
    assert entry.levelno == logging.WARNING
    assert f"a {kind} failed: {type(error).__name__} at {Path(__file__).parent}" in entry.getMessage()
    assert SECRET.encode() not in clients.path.read_bytes()


def test_rule_5_after_a_failure_the_same_request_runs_under_what_it_has_paid_for(clients: Clients) -> None:
    plan = plan_of()
    clients.error = RuntimeError(SECRET)
    assert_fault(clients.train(plan), Fault.CLIENT_FAILED)
    clients.error = None
    assert not clients.train(plan).has_error()
    assert clients.charged() == {plan.train_release(): 1}
    for number in (2, 3):
        assert not clients.train(plan, number).has_error()
    assert clients.charged() == {plan.train_release(): 3}
    assert_fault(clients.ask(plan, changed_by_a_bit(content_of(plan))), Fault.BUDGET_EXHAUSTED)


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    table: str,
) -> None:
    with monkeypatch.context() as unread:
        clients = Clients(unread, tmp_path)
    made_workplace.cache_clear()
    act_as_server(1)
    path = tmp_path / "table.csv"
    path.write_text(table)
    plan = plan_of(data={"path": str(path)})
    caplog.set_level(logging.DEBUG)
    reply = clients.train(plan)
    assert_fault(reply, Fault.CLIENT_FAILED)
    assert_silent(caplog, capfd, reply)
    assert clients.charged() == {plan.train_release(): 1}
    assert "UsageError" in caplog.text
    clients.restart()


@pytest.mark.parametrize("config", [{}, {"plan": "no toml"}, {"plan": 3}, {"plan": "[privacy]\ntrust = 'central'\n"}])
def test_a_client_without_a_plan_fails(clients: Clients, config: dict[str, Any]) -> None:
    plan = plan_of()
    assert_fault(
        clients.ask(plan, content_of(plan), config={**config, "ledger": str(clients.path)}), Fault.CLIENT_FAILED
    )
    assert clients.events == []
    assert clients.entries() == []


def test_rule_7_a_client_checks_the_network_itself(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    content = content_of(plan)
    made_workplace.cache_clear()

    def refuse(*_: Any) -> None:
        raise UsageError("it mixes examples")

    monkeypatch.setattr("shared_models.private_trainable.check_private_trainable", refuse)
    assert_fault(clients.ask(plan, content), Fault.CLIENT_FAILED)
    assert clients.events == []
    assert clients.entries() == []


def test_an_unknown_client_fails_after_its_charge(clients: Clients) -> None:
    plan = plan_of()
    assert_fault(clients.train(plan, client="nobody"), Fault.CLIENT_FAILED)
    assert clients.charged("nobody") == {plan.train_release(): 1}


@pytest.mark.parametrize("client", ["", "a b", "x" * 300, "../x", "\u00e9"])
def test_an_id_that_can_not_name_books_is_a_failure_and_nothing_is_read(clients: Clients, client: str) -> None:
    assert_fault(clients.train(plan_of(), client=client), Fault.CLIENT_FAILED)
    assert clients.events == []


# --- who is there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("node", "expected"), [({"client-id": "berlin"}, "berlin"), ({"partition-id": 2}, "2")])
def test_a_client_tells_its_id_and_nothing_else(clients: Clients, node: dict[str, Any], expected: str) -> None:
    plan = plan_of()
    request = Message(question(plan), 7, IDENTIFY, group_id="1")
    context = Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={"plan": write_plan(plan)})
    reply = app(rebuild(request.metadata, request.content), context)
    assert reply.content == RecordDict({CONFIG: ConfigRecord({CLIENT_ID: expected})})
    assert clients.events == []
    assert clients.entries() == []
    assert len(context.state) == 0


@pytest.mark.parametrize("kind", [IDENTIFY, STATEMENT])
def test_a_client_tells_nothing_to_nobody_with_another_plan(clients: Clients, kind: str) -> None:
    plan = plan_of()
    assert_fault(clients.ask(plan, question(Plan()), kind=kind), Fault.PLAN_MISMATCH)
    assert_fault(clients.ask(plan, RecordDict(), kind=kind), Fault.PLAN_MISMATCH)
    assert clients.entries() == []


def test_a_partition_that_is_not_there_is_a_failure(clients: Clients) -> None:
    plan = plan_of()
    request = Message(question(plan), 7, IDENTIFY, group_id="1")
    nodes: Sequence[dict[str, Any]] = ({"partition-id": -1}, {"partition-id": 3}, {})
    for node in nodes:
        context = Context(
            run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={"plan": write_plan(plan)}
        )
        assert_fault(app(rebuild(request.metadata, request.content), context), Fault.CLIENT_FAILED)


def test_a_client_known_by_its_partition_alone_is_charged_before_its_name_is_looked_up(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under Flower's own engine, where the clients' names are in the data.
    plan = plan_of(data={"partition": {"kind": "natural", "column": "site"}})
    order: list[str] = []
    admit = Guard.admit

    def noted(what: str, then: Callable[..., Any]) -> Callable[..., Any]:
        def work(*asked: Any, **named: Any) -> Any:
            order.append(what)
            return then(*asked, **named)

        return work

    monkeypatch.setattr(workplace_module, "client_ids", noted("names", lambda *_, **__: ("0", "1", "2")))
    monkeypatch.setattr(Guard, "admit", noted("charge", admit))
    request = Message(content_of(plan), 7, "train", group_id="1")
    context = Context(
        run_id=1,
        node_id=7,
        node_config={"partition-id": 1, "num-partitions": 3},
        state=RecordDict(),
        run_config={"plan": write_plan(plan), "ledger": str(clients.path)},
    )
    reply = app(rebuild(request.metadata, request.content), context)
    assert not reply.has_error()
    assert order == ["charge", "names"]
    assert clients.charged("partition-1") == {plan.train_release(): 1}
    assert clients.charged("1") == {}


# --- over a grid ---------------------------------------------------------------------------------------------------


def test_grids_and_workers_come_and_go_and_the_account_stays(clients: Clients) -> None:
    plan = plan_of()
    config = {"plan": write_plan(plan), "ledger": str(clients.path)}
    grid = InlineGrid(["0", "1"], config=config)

    def play(number: int, changed: bool = False) -> list[Message]:
        content = changed_by_a_bit(content_of(plan, number)) if changed else content_of(plan, number)
        return list(grid.stream([Message(content, node, "train", group_id="1") for node in grid.get_node_ids()]))

    assert [reply.has_error() for reply in play(1)] == [False, False]
    clients.data.pop("1")
    made_workplace.cache_clear()
    good, bad = play(2)
    assert not good.has_error()
    assert_fault(bad, Fault.CLIENT_FAILED)
    play(3)
    for reply in play(3, changed=True):  # what failed was paid for all the same
        assert_fault(reply, Fault.BUDGET_EXHAUSTED)
    clients.restart()
    worker = Worker("client.app:app", 1, config)
    request = Message(changed_by_a_bit(content_of(plan, 2)), grid.client_nodes["0"], "train", group_id="1")
    reply, state = worker.handle(request.metadata, request.content, "0", RecordDict())
    assert_fault(reply, Fault.BUDGET_EXHAUSTED)
    assert len(state) == 0


def test_principle_2_the_policy_is_asked_for_every_message(clients: Clients) -> None:
    plan, asked = plan_of(evaluation=AT_CLIENTS), []

    def policy(plan: Plan, client: str) -> SitePolicy:
        asked.append(client)
        return simulated_policy(plan, client)

    clients.policy = policy
    clients.train(plan)
    clients.evaluate(plan, client="1")
    clients.train(plan, 2)
    assert asked == ["0", "1", "0"]
