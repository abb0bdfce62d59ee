"""A client's control variate: of updates that left and were counted, of this plan's run, and of nothing else."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import nn

from client.guard import Request
from client.private_trainer import train_private
from client.variate import Control, Variate
from shared_models.parameters import Layout, Parameters, get_parameters
from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.protocol import ARRAYS
from shared_models.resolve import resolve
from shared_models.wire import encode_update
from tests.client.local_training import Scripted, network, records

ENTRIES = (("weight", (2, 3)), ("bias", (2,)))
LAYOUT = Layout(entries=ENTRIES, wire="float32")
STEPS, RATE = 4, 0.5


def plan(name: str = "a", **training: Any) -> Plan:
    raw: dict[str, Any] = {
        "name": name,
        "privacy": {"trust": "none"},
        "training": {"steps": STEPS, "learning_rate": RATE, **training},
        "federation": {"strategy": "scaffold", "rounds": 9},
    }
    return plan_from(raw, where="test")


def filled(value: float) -> Parameters:
    return {name: np.full(shape, value, np.float32) for name, shape in ENTRIES}


def variate(
    state: RecordDict, number: int, c: float, counted: int, *, of: Plan | None = None, run: str = "run"
) -> Variate:
    request = Request(run=run, round=number, phase="train", digest=f"digest-{number}")
    return Variate(state, LAYOUT, request, plan=of or plan(), control=Control(values=filled(c), counted=counted))


def value(found: Parameters | None) -> float:
    """What all values are."""
    assert found is not None
    assert list(found) == [name for name, _ in ENTRIES]
    (one,) = {float(v) for part in found.values() for v in part.ravel()}
    return one


def reply(update: float) -> RecordDict:
    return RecordDict({ARRAYS: encode_update(filled(update), LAYOUT, seed=0)})


def test_without_variates_nothing_is_corrected_or_kept() -> None:
    state = RecordDict()
    request = Request(run="run", round=1, phase="train", digest="d")
    found = Variate(state, LAYOUT, request, plan=plan(), control=None)
    assert found.correction() is None
    found.answered(reply(1.0))
    assert not state


def test_it_is_the_papers_option_two() -> None:
    """c_i+ = c_i - c + (x - y) / (K r)."""
    state = RecordDict()
    first = variate(state, 1, 0.25, 0)
    assert value(first.correction()) == 0.25  # c_i is nothing yet
    first.answered(reply(-3.0))
    own = 0 - 0.25 + 3.0 / (STEPS * RATE)
    second = variate(state, 2, 0.5, 1)
    assert value(second.correction()) == 0.5 - own
    second.answered(reply(1.0))
    own = own - 0.5 - 1.0 / (STEPS * RATE)
    assert value(variate(state, 3, 0.0, 2).correction()) == -own


def test_an_update_that_was_not_counted_is_as_if_it_had_not_been() -> None:
    state = RecordDict()
    variate(state, 1, 0.0, 0).answered(reply(-2.0))
    after_first = value(variate(state, 2, 0.0, 1).correction())
    variate(state, 2, 0.0, 1).answered(reply(-8.0))  # lost on its way
    assert value(variate(state, 3, 0.0, 1).correction()) == after_first
    variate(state, 3, 0.0, 1).answered(reply(-4.0))
    assert value(variate(state, 4, 0.0, 3).correction()) == after_first - 4.0 / (STEPS * RATE)


def test_a_reply_that_was_stored_brings_back_what_a_crash_took() -> None:
    """The reply is in the ledger, the state after it was never written: it follows from the reply."""
    kept, lost = RecordDict(), RecordDict()
    for state in (kept, lost):
        variate(state, 1, 0.1, 0).answered(reply(-2.0))
    variate(kept, 2, 0.2, 1).answered(reply(5.0))
    variate(lost, 2, 0.2, 1).answered(reply(5.0))  # the same task, asked again: answered by what was stored
    variate(kept, 2, 0.2, 1).answered(reply(5.0))  # and where the state was there, nothing counts twice
    assert kept == lost


@pytest.mark.parametrize("other", [{"run": "another"}, {"of": plan("b")}, {"of": plan(label_smoothing=0.1)}])
def test_of_another_plan_or_run_nothing_is_used(other: dict[str, Any]) -> None:
    state = RecordDict()
    variate(state, 1, 0.0, 0).answered(reply(-2.0))
    assert value(variate(state, 2, 0.5, 1, **other).correction()) == 0.5


def test_what_is_lost_is_said_and_the_nearest_is_used(caplog: pytest.LogCaptureFixture) -> None:
    state = RecordDict()
    variate(state, 5, 0.0, 4).answered(reply(-2.0))
    with caplog.at_level(logging.WARNING, "veil.client"):
        found = variate(state, 6, 0.0, 2)
        found.answered(reply(1.0))
    assert value(variate(state, 9, 0.0, 6).correction()) == 1.0 / (STEPS * RATE)
    assert "round 4 isn't kept" in caplog.text
    assert "round 2 isn't kept" in caplog.text


def test_an_update_that_is_not_finite_leaves_the_variate_as_it_was() -> None:
    state = RecordDict()
    variate(state, 1, 0.0, 0).answered(reply(-2.0))
    before = value(variate(state, 2, 0.0, 1).correction())
    variate(state, 2, 0.0, 1).answered(reply(float("nan")))
    assert value(variate(state, 3, 0.0, 1).correction()) == before


@pytest.mark.parametrize(
    "damage",
    [
        {"veil-variates": ArrayRecord({"after": Array(np.zeros(3, np.float32))})},
        {"veil-variates": ConfigRecord({"a": 1})},
        {"veil-variates-of": ConfigRecord({"plan": 1})},
    ],
)
def test_a_damaged_state_is_not_used(damage: dict[str, Any]) -> None:
    state = RecordDict()
    variate(state, 1, 0.0, 0).answered(reply(-2.0))
    for name, record in damage.items():
        state[name] = record
    assert value(variate(state, 2, 0.5, 1).correction()) == 0.5


# --- under privacy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_correction_joins_after_clipping_and_noise(kind: str) -> None:
    """Whatever a server sends: in a step from the same model the private gradient is the same to the bit."""
    raw = {
        "model": {"name": "mlp", "options": {"hidden": [5] if kind == "mlp" else []}},
        "training": {"steps": 1, "learning_rate": 0.5, "expected_batch_size": 4, "sample_rate": 0.5},
        "privacy": {"noise_multiplier": 1.0, "clipping_norm": 0.1},
    }
    found = resolve(plan_from(raw, where="test"))
    model: nn.Module = network("mlp", hidden=[5] if kind == "mlp" else [])
    start, own = get_parameters(model), records(8)
    changes = []
    for scale in (0.0, 1e3):
        correction = {name: np.full_like(v, scale) for name, v in start.items()}
        noise = Scripted([0, 3, 5], noise=1.0)
        changes.append(train_private(model, start, own, found, round_number=1, noise=noise, correction=correction))
        plain = train_private(model, start, own, found, round_number=1, noise=Scripted([0, 3, 5], noise=1.0))
    for name, without in changes[0].items():
        assert np.array_equal(without, plain[name])
        moved = torch.from_numpy(changes[1][name] - without) / -500.0
        assert torch.allclose(moved, torch.ones_like(moved), atol=1e-6)
