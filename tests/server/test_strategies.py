"""Flower's strategies do through `ServerStrategy` what they do by themselves, and their memory survives a crash."""

from __future__ import annotations

import gc
import logging
import random
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from security.errors import RunError, UsageError
from server.replies import Update
from server.rounds.plain import Contribution, EveryReplyRound, MeanRound, Tally, moved
from server.strategies import _CLASSES, ServerStrategy, StrategyError, make_strategy
from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays
from shared_models.plan_federation import MEAN_STRATEGIES, ROBUST_STRATEGIES
from shared_models.protocol import ARRAYS, METRICS, WEIGHT
from tests.server.conftest import (
    LAYOUT,
    ROBUST_OPTIONS,
    START,
    FakeGrid,
    head,
    learns,
    make_plan,
    record_of,
    same_bits,
)

CLIENTS = [f"site-{i}" for i in range(9)]
GRID = FakeGrid(CLIENTS, learns)
OPTIONS: dict[str, dict[str, Any]] = {
    "fedavgm": {"server_momentum": 0.7, "server_learning_rate": 0.9},
    "fedadam": {"eta": 0.05, "tau": 1e-2},
    "fedyogi": {"eta": 0.05, "beta_1": 0.8},
    "fedadagrad": {"eta": 0.05},
    "bulyan": {"num_malicious_nodes": 1},
    "fedtrimmedavg": {"beta": 0.2},
    **ROBUST_OPTIONS,
}
ALL = (*MEAN_STRATEGIES, *ROBUST_STRATEGIES)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def make(name: str, **options: Any) -> ServerStrategy:
    training = {"proximal_mu": 0.1} if name == "fedprox" else {}
    federation = {"strategy": name, "strategy_options": options or OPTIONS.get(name, {})}
    return make_strategy(make_plan({"training": training, "federation": federation}))


def deltas(number: int, model: Parameters) -> dict[str, tuple[Parameters, int]]:
    """Update and weight of each client: they depend on the model, so that an error would grow from round to round."""
    generator = np.random.default_rng(number)
    return {
        client: (
            {
                name: (0.1 * generator.standard_normal(value.shape) - 0.3 * value).astype(np.float32)
                for name, value in model.items()
            },
            1 + i,
        )
        for i, client in enumerate(CLIENTS)
    }


def step(
    strategy: ServerStrategy, number: int, model: Parameters, *, arrival: random.Random | None = None
) -> Parameters:
    """One round, as the federation plays it."""
    messages = strategy.configure(number, to_arrays(model, LAYOUT), ConfigRecord(), GRID)
    sent = {CLIENTS[message.metadata.dst_node_id - 1]: message for message in messages}
    updates = [
        Update(client=client, delta=delta, weight=weight, epsilon=None, train_loss=None, received=0, head=head(number))
        for client, (delta, weight) in deltas(number, model).items()
    ]
    if arrival is not None:
        arrival.shuffle(updates)
    kind = EveryReplyRound(CLIENTS) if strategy.every_reply else MeanRound()
    (contributions,) = kind.steps(model, updates, Tally())
    return strategy.aggregate(number, sent, contributions)


def flowers_own_step(strategy: Strategy, number: int, model: Parameters) -> Parameters:
    """One round as Flower plays it: every reply goes to the strategy."""
    messages = {
        message.metadata.dst_node_id: message
        for message in strategy.configure_train(number, record_of(model), ConfigRecord(), GRID)
    }
    replies = [
        Message(
            RecordDict(
                {
                    ARRAYS: record_of({name: model[name] + delta[name] for name in model}),
                    METRICS: MetricRecord({WEIGHT: weight}),
                }
            ),
            reply_to=messages[node],
        )
        for node, (delta, weight) in enumerate(deltas(number, model).values(), start=1)
    ]
    arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's Bulyan collects garbage after each array; here that would be most of the time."""
    monkeypatch.setattr("flwr.app.message.arrayrecord.gc", types.SimpleNamespace(collect=lambda: 0))


def own(name: str) -> Strategy:
    """Flower's strategy of that name, made without Veil."""
    options = {**OPTIONS.get(name, {}), **({"proximal_mu": 0.1} if name == "fedprox" else {})}
    return _CLASSES[name](**options, fraction_evaluate=0.0)  # type: ignore[call-arg]


# --- the same as Flower's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_each_strategy_does_what_flowers_own_does(name: str) -> None:
    """One synthetic reply that holds the mean stands for all replies, where the strategy averages."""
    ours, flowers = make(name), own(name)
    here, there = dict(START), dict(START)
    for number in range(1, 5):
        here, there = step(ours, number, here), flowers_own_step(flowers, number, there)
        for key in START:
            np.testing.assert_allclose(here[key], there[key], rtol=0, atol=1e-6)
            assert here[key].dtype == np.float32


def test_fedavg_is_the_weighted_average() -> None:
    expected = {
        name: sum(weight * (START[name].astype(float) + delta[name]) for delta, weight in deltas(1, START).values())
        / sum(range(1, 10))
        for name in START
    }
    for name, value in step(make("fedavg"), 1, START).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_average_of_one_is_that_one_bit_for_bit(name: str) -> None:
    """Veil does not ask Flower for it, to spare its copies."""
    ours, values = make(name), np.float32([0.0, -0.0, 1e-45, -3e38, 0.1, 1e-30])
    sent = ours.configure(1, record_of({"w": values}), ConfigRecord(), GRID)
    reply = Message(
        RecordDict({ARRAYS: record_of({"w": values}), METRICS: MetricRecord({WEIGHT: 1})}), reply_to=sent[0]
    )
    flowers, _ = own(name).aggregate_train(1, [reply])
    assert flowers is not None
    found = ours.aggregate(1, {"a": sent[0]}, [Contribution({"w": values}, weight=1)])
    assert found["w"].tobytes() == flowers["w"].numpy().tobytes() == values.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([("fedmedian", {}), ("fedtrimmedavg", {"beta": 0.2}), ("fedtrimmedavg", {"beta": 0.45})]),
    st.lists(st.lists(st.integers(0, 6), max_size=3).map(tuple), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(4, 40),
    st.sampled_from([0, 150, 2**30]),
    st.integers(0, 2**32 - 1),
)
def test_some_coordinates_at_a_time_give_the_bits_of_all_at_once(
    which: tuple[str, dict[str, float]],
    shapes: list[tuple[int, ...]],
    clients: int,
    at_once: int,
    in_memory: int,
    seed: int,
) -> None:
    """Flower's own class, given whole models in memory, says what is right."""
    name, options = which
    generator = np.random.default_rng(seed)
    values = np.float32([0.0, -0.0, 1e-45, 1.0, 3e38, -3e38, np.inf]) if seed % 3 == 0 else None

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        if values is not None:  # many are equal
            return np.asarray(generator.choice(values[: 4 + seed % 4], shape), np.float32)
        return np.asarray(generator.standard_normal(shape), np.float32)

    names = [f"site-{i}" for i in range(clients)]
    start = {str(i): np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}
    deltas = {client: {key: draw(value.shape) for key, value in start.items()} for client in names}
    ours = make(name, **options)
    message = Message(RecordDict(), 1, "train")
    replies = [
        Message(
            RecordDict({ARRAYS: record_of(moved(start, delta)), METRICS: MetricRecord({WEIGHT: 1})}), reply_to=message
        )
        for delta in deltas.values()
    ]
    flowers, _ = type(ours.flower)(fraction_evaluate=0.0, **options, weighted_by_key=WEIGHT).aggregate_train(1, replies)  # type: ignore[call-arg]
    assert flowers is not None
    updates = [Update(client, delta, 1, None, None, 0, head(1)) for client, delta in deltas.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.strategies._AT_ONCE", at_once * clients)
        patch.setattr("server.strategies._FEWEST", 4)
        patch.setattr("server.kept_models.IN_MEMORY", in_memory)
        (contributions,) = EveryReplyRound(names).steps(start, updates, Tally())
        expected = {key: array.numpy() for key, array in flowers.items()}
        sent = dict.fromkeys(names, message)
        if all(np.isfinite(value).all() for value in expected.values()):
            assert same_bits(ours.aggregate(1, sent, contributions), expected)
        else:
            with pytest.raises(StrategyError, match="NaN or infinity"):
                ours.aggregate(1, sent, contributions)


@pytest.mark.parametrize("name", ROBUST_STRATEGIES)
def test_updates_in_a_file_give_the_same_model(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = step(make(name), 1, START)
    monkeypatch.setattr("server.kept_models.IN_MEMORY", 100)
    assert same_bits(step(make(name), 1, START), expected)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_arrival_changes_nothing(name: str) -> None:
    """To the last bit, for robust strategies too: they get all replies in the cohort's order."""
    expected = step(make(name), 1, START)
    for seed in range(5):
        assert same_bits(step(make(name), 1, START, arrival=random.Random(seed)), expected)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("outlier", [1e4, -1e4, 3.4e38])
@pytest.mark.parametrize("name", ROBUST_STRATEGIES)
def test_robust_strategies_refuse_a_planted_outlier(name: str, outlier: float) -> None:
    """The plain mean is moved by more than a thousand; a robust strategy stays where the honest clients are."""
    honest = 0.1

    def attacked(strategy: ServerStrategy) -> float:
        messages = strategy.configure(1, to_arrays(START, LAYOUT), ConfigRecord(), GRID)
        sent = {CLIENTS[message.metadata.dst_node_id - 1]: message for message in messages}
        generator = np.random.default_rng(0)
        updates = []
        for client in CLIENTS:
            scale = outlier if client == "site-4" else honest * generator.uniform(0.5, 1)
            delta = {key: np.full_like(value, scale) for key, value in START.items()}
            updates.append(Update(client, delta, 1, None, None, 0, head(1)))
        kind = EveryReplyRound(CLIENTS) if strategy.every_reply else MeanRound()
        (contributions,) = kind.steps(START, updates, Tally())
        moved = strategy.aggregate(1, sent, contributions)
        return max(float(np.abs(moved[key] - START[key]).max()) for key in START)

    if abs(outlier) < 1e9:  # a larger one is no update to be averaged
        assert attacked(make("fedavg")) > 1000
    assert attacked(make(name)) <= honest + 1e-6


@pytest.mark.parametrize("name", ALL)
def test_only_robust_strategies_get_every_reply(name: str) -> None:
    assert make(name).every_reply == (name in ROBUST_STRATEGIES)


def test_each_reply_belongs_to_its_clients_message() -> None:
    """A user's own strategy may keep something for each node; a missing client must not shift the others."""
    strategy = make(f"{__name__}:Notes")
    assert isinstance(strategy.flower, Notes)
    messages = strategy.configure(1, to_arrays(START, LAYOUT), ConfigRecord(), GRID)
    sent = {CLIENTS[message.metadata.dst_node_id - 1]: message for message in messages}
    updates = [
        Update(client, START, 1 + i, None, None, 0, head(1)) for i, client in enumerate(CLIENTS) if client != "site-0"
    ]
    (contributions,) = EveryReplyRound(CLIENTS).steps(START, updates, Tally())
    strategy.aggregate(1, sent, contributions)
    assert strategy.flower.seen == [(node, node) for node in range(2, 10)]


def test_every_client_of_the_cohort_is_asked_once_with_the_round_and_the_digests() -> None:
    for name in ALL:
        messages = make(name).configure(3, to_arrays(START, LAYOUT), ConfigRecord({"plan-digest": "abc"}), GRID)
        assert sorted(message.metadata.dst_node_id for message in messages) == list(range(1, 10))
        config = messages[0].content.config_records["config"]
        assert config["server-round"] == 3
        assert config["plan-digest"] == "abc"
        assert same_bits(from_arrays(messages[0].content.array_records[ARRAYS], LAYOUT), START)


def test_a_cohort_of_one_is_enough_for_every_strategy_to_begin() -> None:
    """Flower's would wait in a loop until two are connected."""
    for name in (*ALL, f"{__name__}:Stubborn"):
        messages = make(name).configure(1, to_arrays(START, LAYOUT), ConfigRecord(), FakeGrid(["only"], learns))
        assert [message.metadata.dst_node_id for message in messages] == [1]


# --- options ------------------------------------------------------------------------------------------------------


def test_options_reach_the_strategy() -> None:
    assert make("fedadam", eta=0.3, beta_1=0.5, beta_2=0.6, tau=1e-4).flower.__dict__.items() >= {
        ("eta", 0.3),
        ("beta_1", 0.5),
        ("beta_2", 0.6),
        ("tau", 1e-4),
    }
    assert make("fedavgm", server_momentum=1).flower.server_momentum == 1  # type: ignore[attr-defined]


def test_fedproxs_mu_is_the_plans_training_proximal_mu() -> None:
    strategy = make("fedprox")
    config = strategy.configure(1, to_arrays(START, LAYOUT), ConfigRecord(), GRID)[0].content.config_records["config"]
    assert config["proximal-mu"] == 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedadam", {"eta_": 1.0}, r"strategy_options\.eta_: fedadam has no such option; allowed: eta, eta_l, beta_1"),
        ("fedavg", {"eta": 1.0}, r"eta: fedavg has no such option; allowed: none"),
        ("krum", {"num_nodes_to_select": 2}, "allowed: num_malicious_nodes"),
        ("fedprox", {"proximal_mu": 0.5}, "proximal_mu: fedprox has no such option"),
        ("fedavg", {"fraction_train": 0.5}, "fraction_train: fedavg has no such option"),
        ("fedavg", {"min_available_nodes": 5}, "no such option"),
        ("fedavg", {"weighted_by_key": "age"}, "no such option"),
        ("fedavg", {"arrayrecord_key": "other"}, "no such option"),
        ("fedtrimmedavg", {"beta": 0.5}, r"fedtrimmedavg refuses them: .*beta"),
        ("fedtrimmedavg", {"beta": -0.1}, "refuses them"),
        ("fedadam", {"eta": "fast"}, r"strategy_options\.eta = 'fast': give a float"),
        ("fedadam", {"eta": True}, "give a float"),
        ("krum", {"num_malicious_nodes": 1.5}, "give a int"),
        ("krum", {"num_malicious_nodes": False}, "give a int"),
    ],
)
def test_a_wrong_option_is_refused_by_its_key(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(name, **options)


# --- strategies of the user's own ---------------------------------------------------------------------------------


class Notes(FedAvg):
    """Remembers who answered; keeps no state."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.factor = factor
        self.seen: list[tuple[int, int]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.seen = [
            (reply.metadata.src_node_id, int(reply.content.metric_records[METRICS][WEIGHT])) for reply in replies
        ]
        return super().aggregate_train(server_round, replies)


class Counting(Notes):
    """Keeps a count of rounds, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.count = np.zeros(1, dtype=np.int64)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.count += 1
        return super().aggregate_train(server_round, replies)

    def get_state(self) -> Mapping[str, np.ndarray]:
        return {"count": self.count}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.count = state["count"]


class Stubborn(FedAvg):
    """Wants more clients than there may be in a cohort."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=50, min_available_nodes=50)


class Half(Notes):
    """Has a state that can be read but not be put back."""

    def get_state(self) -> dict[str, np.ndarray]:
        return {}


class NoArrays(Counting):
    """Its state is no arrays."""

    def get_state(self) -> Any:
        return {"count": 3}


class Misbehaving(Notes):
    """Does what a test asks."""

    made: Callable[[ArrayRecord], Any] = staticmethod(lambda arrays: arrays)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return type(self).made(arrays), metrics


class Elsewhere(Notes):
    """Asks a node that is not of the cohort."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        return [Message(RecordDict({ARRAYS: arrays}), 77, "train")]


class Broken(Notes):
    """Raises an error before anything is sent."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        raise KeyError("oops\nsecond line")


class NotAStrategy:
    """Just a class."""


class Unfinished(Strategy):
    """Lacks the hooks."""


def test_a_strategy_of_ones_own_is_found_takes_its_options_and_gets_every_reply() -> None:
    strategy = make(f"{__name__}:Notes", factor=2.5)
    assert isinstance(strategy.flower, Notes)
    assert strategy.flower.factor == 2.5
    assert strategy.every_reply
    assert strategy.adapter is None
    assert strategy.memory() is None
    expected = step(make("fedavg"), 1, START)
    for name, value in step(strategy, 1, START).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6)


def test_its_state_is_kept_where_it_can_be_read_and_put_back() -> None:
    strategy = make(f"{__name__}:Counting")
    assert strategy.adapter is not None
    step(strategy, 1, START)
    saved = strategy.memory()
    assert saved is not None
    step(strategy, 2, START)  # changes the count in place; what was saved stays
    assert saved["count"].tolist() == [1]
    fresh = make(f"{__name__}:Counting")
    assert fresh.adapter is not None
    fresh.adapter.load(fresh.flower, saved)
    step(fresh, 2, START)
    assert fresh.flower.count.tolist() == [2]  # type: ignore[attr-defined]
    assert saved["count"].tolist() == [1]
    assert make(f"{__name__}:Half").adapter is None


def test_a_state_that_is_no_arrays_is_refused() -> None:
    with pytest.raises(RunError, match=r"get_state\(\) of NoArrays must return NumPy arrays by name"):
        make(f"{__name__}:NoArrays").memory()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at_all:Strategy", "can't import it: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{__name__}:Missing", "can't import it: AttributeError"),
        (f"{__name__}:NotAStrategy", "is not a Flower Strategy class"),
        (f"{__name__}:make", "is not a Flower Strategy class"),
        (f"{__name__}:Unfinished", "refuses them: Can't instantiate abstract class"),
    ],
)
def test_a_class_that_wont_do_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(name)


def test_an_option_its_constructor_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match=r"federation\.strategy_options: .*Notes refuses them: .*speed"):
        make(f"{__name__}:Notes", speed=1)


def test_a_module_that_breaks_on_import_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_strategy.py").write_text("raise RuntimeError('no licence\\nfor this')\n")
    (tmp_path / "misspelt_strategy.py").write_text("class :\n")
    for module, reason in (("broken_strategy", "RuntimeError: no licence$"), ("misspelt_strategy", "SyntaxError: .*$")):
        with pytest.raises(UsageError, match=f"can't import it: {reason}"):
            make(f"{module}:Own")
        sys.modules.pop(module, None)


# --- strategies that fail -----------------------------------------------------------------------------------------


def test_bulyan_says_that_it_makes_no_model_of_too_few() -> None:
    with pytest.raises(StrategyError, match=r"federation\.strategy = 'bulyan': makes no model of 9 updates"):
        step(make("bulyan", num_malicious_nodes=2), 1, START)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda arrays: record_of({"other": START["layer.bias"]}), "other names or shapes"),
        (lambda arrays: record_of({**START, "more": START["layer.bias"]}), "other names or shapes"),
        (lambda arrays: record_of({**START, "layer.bias": np.zeros(3, np.float32)}), "other names or shapes"),
        (lambda arrays: record_of({**START, "layer.bias": np.array([np.nan, 0], np.float32)}), "NaN or infinity"),
        (lambda arrays: record_of({**START, "layer.bias": np.array([1e300, 0])}), "NaN or infinity"),
        (lambda arrays: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda arrays: "a text", "AttributeError"),
        (lambda arrays: ArrayRecord(), "other names or shapes"),
        (lambda arrays: None, "makes no model of 9 updates"),
    ],
)
def test_a_model_that_can_not_be_used_is_refused(
    monkeypatch: pytest.MonkeyPatch, made: Callable[[ArrayRecord], Any], message: str
) -> None:
    monkeypatch.setattr(Misbehaving, "made", staticmethod(made))
    with pytest.raises(StrategyError, match=message) as caught:
        step(make(f"{__name__}:Misbehaving"), 1, START)
    assert "\n" not in str(caught.value)


def test_names_in_another_order_and_other_float_types_are_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = {name: START[name].astype(np.float64) for name in reversed(list(START))}
    monkeypatch.setattr(Misbehaving, "made", staticmethod(lambda _: record_of(turned)))
    found = step(make(f"{__name__}:Misbehaving"), 1, START)
    assert list(found) == list(START)
    assert same_bits(found, START)


def test_a_strategy_that_diverges_is_stopped() -> None:
    """beta_1 = 1 divides by zero in FedAdam; the model must not become NaN without a word."""
    with pytest.raises(StrategyError, match="NaN or infinity"), np.errstate(all="ignore"):
        step(make("fedadam", beta_1=1.0), 1, START)


def test_an_error_before_anything_is_sent_names_the_strategy_in_one_line() -> None:
    with pytest.raises(StrategyError, match=r"Broken': KeyError: 'oops\\nsecond line'$"):
        make(f"{__name__}:Broken").configure(1, to_arrays(START, LAYOUT), ConfigRecord(), GRID)


def test_a_strategy_that_asks_outside_the_cohort_is_stopped() -> None:
    with pytest.raises(StrategyError, match="asks clients outside the round's cohort"):
        make(f"{__name__}:Elsewhere").configure(1, to_arrays(START, LAYOUT), ConfigRecord(), GRID)


def test_what_was_there_before_is_not_looked_through_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulyan collects after each array: with torch loaded that takes seconds a round (principle 6)."""
    frozen: list[int] = []
    monkeypatch.setattr(
        Misbehaving, "made", staticmethod(lambda arrays: frozen.append(gc.get_freeze_count()) or arrays)
    )
    step(make(f"{__name__}:Misbehaving"), 1, START)
    monkeypatch.setattr(Misbehaving, "made", staticmethod(lambda arrays: 1 / 0))
    with pytest.raises(StrategyError):
        step(make(f"{__name__}:Misbehaving"), 1, START)
    assert frozen[0] > 100_000
    assert gc.get_freeze_count() == 0


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedavg", {}),
        ("fedavgm", {"server_momentum": 0.7, "server_learning_rate": 0.9}),
        ("fedavgm", {"server_learning_rate": 0.5}),
        ("fedavgm", {"server_momentum": 0.5}),
        ("fedavgm", {}),
        ("fedadam", {"eta": 0.05}),
        ("fedyogi", {"eta": 0.05}),
        ("fedadagrad", {"eta": 0.05}),
        ("krum", {"num_malicious_nodes": 1}),
        ("fedmedian", {}),
    ],
)
@pytest.mark.parametrize("saved_after", [0, 1, 3])
def test_a_fresh_strategy_with_saved_memory_goes_on_to_the_last_bit(
    tmp_path: Path, name: str, options: dict[str, Any], saved_after: int
) -> None:
    def play(strategy: ServerStrategy, first: int, last: int, model: Parameters) -> Parameters:
        for number in range(first, last + 1):
            model = step(strategy, number, model)
        return model

    whole = play(make(name, **options), 1, 6, START)
    first = make(name, **options)
    model = play(first, 1, saved_after, START)
    memory = first.memory()
    assert memory is not None
    save_file(memory, tmp_path / "memory")
    second = make(name, **options)
    assert second.adapter is not None
    second.adapter.load(second.flower, load_file(tmp_path / "memory"))
    assert same_bits(play(second, saved_after + 1, 6, model), whole)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_without_its_memory_it_would_go_elsewhere(name: str) -> None:
    """What the test above compares does depend on the memory."""
    whole, forgetful, model = make(name), make(name), dict(START)
    for number in range(1, 4):
        model = step(whole, number, model)
    assert not same_bits(step(whole, 4, model), step(forgetful, 4, model))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_memory_of_parameters_without_axes_can_be_saved(name: str, tmp_path: Path) -> None:
    """NumPy makes scalars of arrays without axes, which safetensors does not take."""
    strategy = make(name)
    model = {"scale": np.array(1.0, dtype=np.float32)}
    for number in (1, 2):
        layout = Layout(entries=(("scale", ()),), wire="float32")
        messages = strategy.configure(number, to_arrays(model, layout), ConfigRecord(), GRID)
        update = Update("site-0", {"scale": np.array(0.5, dtype=np.float32)}, 1, None, None, 0, head(1))
        (contributions,) = MeanRound().steps(model, [update], Tally())
        model = strategy.aggregate(number, {"site-0": messages[0]}, contributions)
    memory = strategy.memory()
    assert memory
    save_file(memory, tmp_path / "memory")
    assert {value.shape for value in load_file(tmp_path / "memory").values()} == {()}
