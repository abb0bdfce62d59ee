"""Compressed updates at the server: counted as they travelled, checked to the byte, for every strategy."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from server.checkpoint import load_checkpoint
from shared_models.faults import Fault
from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST, LEDGER, METRICS, TRAIN_LOSS, WEIGHT
from shared_models.wire import decode_update, encode_update
from tests.server.conftest import (
    LAYOUT,
    START,
    Answer,
    FakeGrid,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    StreamingFakeGrid,
    head,
    head_record,
    make_plan,
    same_bits,
)

CLIENTS = [f"site-{i}" for i in range(7)]
SEVEN = {"data": {"partition": {"kind": "iid", "clients": 7}}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"server_momentum": 0.6},
    "fedadam": {"eta": 0.05},
    "fedprox": {},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 1},
    "bulyan": {"num_malicious_nodes": 1},
}
INT8 = {"wire": "int8"}
TOP = {"wire": "top-k", "top_fraction": 0.4}  # 3 of 8 values
FORMS = pytest.mark.parametrize("form", [INT8, TOP], ids=["int8", "top-k"])


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.supercore.logger.FLOWER_LOGGER.disabled", True)


def plan_of(form: dict[str, Any], rounds: int = 3, strategy: str = "fedavg") -> Plan:
    federation = {"rounds": rounds, "strategy": strategy, "strategy_options": STRATEGIES[strategy], **form}
    training = {"training": {"proximal_mu": 0.1}} if strategy == "fedprox" else {}
    return make_plan({"federation": federation}, training, SEVEN)


def layout_of(form: dict[str, Any]) -> Layout:
    return Layout(LAYOUT.entries, form["wire"], form.get("top_fraction"))


def change_of(client: str, number: int, model: Parameters) -> Parameters:
    generator = np.random.default_rng([sum(client.encode()), number])
    return {
        name: (0.1 * generator.standard_normal(value.shape) - 0.2 * value).astype(np.float32)
        for name, value in model.items()
    }


def answered(message: Message, arrays: ArrayRecord) -> list[Message]:
    content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: 1, TRAIN_LOSS: 0.5})})
    content[LEDGER] = head_record(head(int(message.metadata.group_id)))
    return [Message(content, reply_to=message)]


def honest(form: dict[str, Any]) -> Answer:
    """Trains, and sends its update in the plan's form."""
    layout = layout_of(form)

    def answer(client: str, message: Message) -> list[Message]:
        model = from_arrays(message.content.array_records[ARRAYS], layout)
        number = int(message.metadata.group_id)
        return answered(message, encode_update(change_of(client, number, model), layout, seed=number))

    return answer


# --- good replies --------------------------------------------------------------------------------------------------


@FORMS
def test_metrics_count_what_travelled(play: Player, form: dict[str, Any]) -> None:
    grid = FakeGrid(CLIENTS, honest(form))
    played = play(plan_of(form, 2), grid)
    up = {"int8": 8 + 2 * 4 + 2 * 128, "top-k": 3 * 8 + 2 * 128}[form["wire"]]
    down = wire_bytes(to_arrays(START, LAYOUT))
    for line in played.folder.read_metrics():
        assert (line["bytes_up"], line["bytes_down"]) == (7 * up, 7 * down)
    assert (played.outcome.state.bytes_up, played.outcome.state.bytes_down) == (14 * up, 14 * down)


@FORMS
def test_the_model_goes_down_as_float32(play: Player, form: dict[str, Any]) -> None:
    grid = FakeGrid(CLIENTS, honest(form))
    play(plan_of(form, 1), grid)
    (*_, message) = grid.tasks
    assert same_bits(from_arrays(message.content.array_records[ARRAYS], LAYOUT), START)
    assert message.content.config_records[CONFIG][LAYOUT_DIGEST] == layout_of(form).digest


@FORMS
def test_the_step_is_the_mean_of_what_arrived(play: Player, form: dict[str, Any]) -> None:
    played, layout = play(plan_of(form, 1), FakeGrid(CLIENTS, honest(form))), layout_of(form)
    arrived = [decode_update(encode_update(change_of(client, 1, START), layout, seed=1), layout) for client in CLIENTS]
    for name, value in START.items():
        mean = np.mean([one[name].astype(np.float64) for one in arrived], axis=0)
        np.testing.assert_allclose(played.outcome.parameters[name], value + mean, rtol=1e-6, atol=1e-7)


@FORMS
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_takes_them_in_any_order_and_after_a_restart(
    play: Player, strategy: str, form: dict[str, Any]
) -> None:
    plan = plan_of(form, strategy=strategy)
    expected = play(plan, FakeGrid(CLIENTS, honest(form))).outcome.parameters
    assert not same_bits(expected, START)
    shuffler = random.Random(0)
    other = StreamingFakeGrid(CLIENTS[::-1], honest(form), order=lambda found: shuffler.sample(found, len(found)))
    assert same_bits(play(plan, other).outcome.parameters, expected)
    federation = play.federation(plan, FakeGrid(CLIENTS, honest(form)), diary=StopAfter(2))
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    checkpoint = load_checkpoint(federation.folder.checkpoints, plan.digest())
    again = play(plan, FakeGrid(CLIENTS, honest(form)), folder=federation.folder, resume=checkpoint)
    assert same_bits(again.outcome.parameters, expected)


# --- replies that are not what was agreed --------------------------------------------------------------------------


def arrays(**given: Any) -> Callable[[Parameters], ArrayRecord]:
    return lambda _: ArrayRecord({name: Array(np.asarray(value)) for name, value in given.items()})


def floats(*values: float) -> Any:
    return np.float32(values)


def places(*values: int) -> Any:
    return np.uint32(values)


LEVELS = np.ones(8, np.int8)
BAD: dict[str, tuple[dict[str, Any], Callable[[Parameters], ArrayRecord], Fault]] = {
    "int8, whole": (INT8, lambda change: to_arrays(change, LAYOUT), Fault.MODEL_MISMATCH),
    "int8, as top-k": (INT8, lambda change: encode_update(change, layout_of(TOP), seed=1), Fault.MODEL_MISMATCH),
    "int8, other levels": (INT8, arrays(levels=np.ones(9, np.int8), scales=floats(1, 1)), Fault.MODEL_MISMATCH),
    "int8, other type": (INT8, arrays(levels=np.ones(8, np.uint8), scales=floats(1, 1)), Fault.MODEL_MISMATCH),
    "int8, below zero": (INT8, arrays(levels=LEVELS, scales=floats(1, -1)), Fault.MALFORMED_REPLY),
    "int8, level -128": (INT8, arrays(levels=LEVELS * -128, scales=floats(1, 1)), Fault.MALFORMED_REPLY),
    "int8, no number": (INT8, arrays(levels=LEVELS, scales=floats(1, np.nan)), Fault.NON_FINITE),
    "int8, infinite": (INT8, arrays(levels=LEVELS, scales=floats(np.inf, 1)), Fault.NON_FINITE),
    "int8, huge": (INT8, arrays(levels=LEVELS * 127, scales=floats(3e38, 1)), Fault.NON_FINITE),
    "top-k, whole": (TOP, lambda change: to_arrays(change, LAYOUT), Fault.MODEL_MISMATCH),
    "top-k, fewer": (TOP, arrays(indices=places(0, 1), values=floats(1, 1)), Fault.MODEL_MISMATCH),
    "top-k, signed": (TOP, arrays(indices=np.int32([0, 1, 2]), values=floats(1, 1, 1)), Fault.MODEL_MISMATCH),
    "top-k, beyond": (TOP, arrays(indices=places(0, 1, 8), values=floats(1, 1, 1)), Fault.MALFORMED_REPLY),
    "top-k, twice": (TOP, arrays(indices=places(0, 1, 1), values=floats(1, 1, 1)), Fault.MALFORMED_REPLY),
    "top-k, unsorted": (TOP, arrays(indices=places(1, 0, 2), values=floats(1, 1, 1)), Fault.MALFORMED_REPLY),
    "top-k, no number": (TOP, arrays(indices=places(0, 1, 2), values=floats(1, np.nan, 1)), Fault.NON_FINITE),
    "top-k, huge": (TOP, arrays(indices=places(0, 1, 2), values=floats(1, 2**41, 1)), Fault.NON_FINITE),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_update_is_left_out_by_name_and_code(play: Player, case: str) -> None:
    form, made, fault = BAD[case]

    def bad(client: str, message: Message) -> list[Message]:
        return answered(message, made(change_of(client, 1, START)))

    def answer(client: str, message: Message) -> list[Message]:
        return bad(client, message) if client == "site-3" else honest(form)(client, message)

    plan = plan_of(form, 1)
    played = play(plan, StreamingFakeGrid(CLIENTS, answer))
    assert played.outcome.state.faults == [{"round": 1, "client": "site-3", "reason": fault.reason}]
    without = [client for client in CLIENTS if client != "site-3"]
    expected = play(plan, StreamingFakeGrid(without, honest(form))).outcome.parameters
    assert same_bits(played.outcome.parameters, expected)
