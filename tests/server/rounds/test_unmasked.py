"""Sums without masks: the numbers of a secure sum, and what a joint step makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from security.errors import RunError
from server.rounds.summed import check_cohort, fewest_in_sum, update_of
from server.summary import summarise
from shared_models.faults import Fault
from shared_models.parameters import Parameters, unflat
from shared_models.plan import Plan
from shared_models.schedule import learning_rate
from tests.server.conftest import (
    LAYOUT,
    START,
    Answer,
    Diary,
    FakeGrid,
    Played,
    Player,
    StreamingFakeGrid,
    error,
    same_bits,
)
from tests.server.rounds.test_secure import SIX, after
from tests.server.rounds.test_secure import play as play_masked
from tests.server.secure_sites import Sites, masked, names, secure_plan, whole
from tests.server.test_summary import validator

JOINT: dict[str, Any] = {
    "privacy": {
        "unit": "example",
        "trust": "distributed",
        "noise_multiplier": 4.0,
        "epsilon": 9.0,
        "calibrated_from": "epsilon",
    },
    "training": {"sample_rate": 1.0, "steps": 1, "learning_rate": 0.5, "expected_batch_size": 20},
}


def unmasked(number: int = 1, **tables: Any) -> Plan:
    secure = {"masks": False, **tables.pop("secure_sum", {})}
    return secure_plan(federation={"rounds": number, **tables.pop("federation", {})}, secure_sum=secure, **tables)


def adds(client: str, message: Message) -> list[Message]:
    """An honest client."""
    return [masked(message, whole(client, int(message.metadata.group_id)).astype(np.uint32))]


def play(player: Player, plan: Plan, answer: Answer | Mapping[str, Answer] = adds, **given: Any) -> Played:
    grid = given.pop("grid", None) or StreamingFakeGrid(
        SIX, answer if callable(answer) else {name: answer.get(name, adds) for name in SIX}
    )
    federation = player.federation(plan, grid, **given)
    outcome = federation.run()
    assert isinstance(federation.observer, Diary)
    return Played(outcome, federation.folder, federation.observer, grid)


def fails(fault: Fault) -> Answer:
    return lambda _, message: [error(message, fault)]


def silent(_: str, message: Message) -> list[Message]:
    return []


def stepped(plan: Plan, *rounds: list[str]) -> Parameters:
    """The model after joint steps: against the mean of what these clients added, in the update's unit, over N."""
    model = {name: value.astype(np.float64) for name, value in START.items()}
    for number, clients in enumerate(rounds, start=1):
        total = np.sum([whole(client, number) for client in clients], axis=0) * plan.sum_grid().step
        scale = learning_rate(plan, number) / (len(clients) * plan.training.expected_batch_size)
        model = {name: model[name] - delta for name, delta in unflat(total * scale, LAYOUT).items()}
    return {name: value.astype(np.float32) for name, value in model.items()}


def close(found: Parameters, expected: Parameters) -> bool:
    return all(np.allclose(found[name], expected[name], rtol=1e-6, atol=1e-7) for name in expected)


@pytest.fixture
def player(tmp_path: Path) -> Player:
    return Player(tmp_path)


# --- of clients' updates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [FakeGrid, StreamingFakeGrid])
def test_the_model_is_that_of_a_secure_sum_bit_for_bit(player: Player, grid: type[FakeGrid]) -> None:
    plan = unmasked(2)
    played = play(player, plan, grid=grid(SIX, adds))
    assert played.outcome.stopped is None
    assert same_bits(played.outcome.parameters, after(plan, SIX, SIX))
    with_masks = secure_plan(federation={"rounds": 2})
    of_masks = play_masked(player, with_masks, Sites(with_masks, SIX))
    assert same_bits(played.outcome.parameters, of_masks.outcome.parameters)


def test_the_order_of_replies_changes_nothing(player: Player) -> None:
    plan = unmasked()
    backwards = FakeGrid(SIX, adds, order=lambda replies: replies[::-1])
    assert same_bits(play(player, plan, grid=backwards).outcome.parameters, after(plan, SIX))


def test_who_drops_out_is_not_in_the_mean_and_has_paid(player: Player) -> None:
    """Rule 2: a charge stays, whatever became of the reply."""
    plan = unmasked()
    played = play(player, plan, {"site-2": silent})
    left = [name for name in SIX if name != "site-2"]
    assert same_bits(played.outcome.parameters, after(plan, left))
    assert {name: tally.trainings for name, tally in played.outcome.state.clients.items()} == dict.fromkeys(SIX, 1)
    assert {name: tally.rounds for name, tally in played.outcome.state.clients.items()} == {
        name: int(name != "site-2") for name in SIX
    }


def test_who_refuses_has_paid_nothing(player: Player) -> None:
    plan = unmasked()
    played = play(player, plan, {"site-2": fails(Fault.POLICY_SECURE_SUM)})
    assert played.outcome.state.client("site-2").trainings == 0
    assert played.outcome.state.client("site-2").refused == [1]


def test_rule_5_who_fails_otherwise_has_no_claim(player: Player) -> None:
    played = play(player, unmasked(), {"site-2": fails(Fault.CLIENT_FAILED)})
    assert played.outcome.state.client("site-2").withdrawn == [1]


@pytest.mark.parametrize(
    ("vector", "fault"),
    [
        (np.zeros(LAYOUT.size + 1, np.uint32), Fault.MODEL_MISMATCH),
        (np.zeros(LAYOUT.size, np.uint64), Fault.MODEL_MISMATCH),
        (np.zeros(LAYOUT.size, np.float32), Fault.MODEL_MISMATCH),
    ],
)
def test_what_is_no_vector_of_the_ring_is_not_added(player: Player, vector: Any, fault: Fault) -> None:
    plan = unmasked()
    played = play(player, plan, {"site-0": lambda _, message: [masked(message, vector)]})
    assert played.outcome.state.faults == [{"round": 1, "client": "site-0", "reason": fault.reason}]
    assert same_bits(played.outcome.parameters, after(plan, SIX[1:]))


def test_a_sum_of_too_few_ends_the_run_and_the_model_stays(player: Player) -> None:
    """As many as a secure sum over six, three of them honest, would need."""
    plan = unmasked()
    assert plan.secure_parameters().least == 4
    played = play(player, plan, dict.fromkeys(SIX[:3], silent))
    assert played.outcome.stopped == "failed"
    assert same_bits(played.outcome.parameters, START)
    enough = play(player, plan, dict.fromkeys(SIX[:2], silent))
    assert enough.outcome.stopped is None


def test_rule_9_a_cohort_beyond_the_plans_is_refused_for_its_sum_could_wrap(player: Player) -> None:
    eight = names(8)
    with pytest.raises(RunError, match="round 1: 8 clients are more than the 6 of a cohort"):
        play(player, unmasked(), grid=StreamingFakeGrid(eight, adds))
    check_cohort(unmasked(), 6, round_number=1)


def test_how_many_a_sum_needs_is_known_for_smaller_cohorts_too() -> None:
    plan = unmasked()
    assert [fewest_in_sum(plan, clients) for clients in (6, 5, 4)] == [4, 3, 3]
    assert fewest_in_sum(plan, 2) == 4  # where no sum is safe, what the whole cohort needs: more than are there


def test_summary_and_metrics_are_as_their_schemas_say_and_nothing_is_claimed(player: Player) -> None:
    plan = unmasked(2, **JOINT)
    played = play(player, plan)
    found = summarise(
        plan,
        played.outcome.state,
        stopped=None,
        reason=None,
        clients=SIX,
        startup_seconds=0.1,
        statements=dict.fromkeys(SIX, "verified"),
        simulated=False,
    )
    validator("summary").validate(found)
    assert found["privacy"]["claim"] is None
    assert [remark["code"] for remark in found["privacy"]["withdrawn"]] == ["masked"]
    for line in played.folder.read_metrics():
        validator("metrics").validate(line)


# --- of clipped gradients ------------------------------------------------------------------------------------------


def test_rule_1_a_joint_step_goes_against_the_sum_over_the_public_number_of_records(player: Player) -> None:
    plan = unmasked(2, **JOINT)
    played = play(player, plan)
    assert close(played.outcome.parameters, stepped(plan, SIX, SIX))


def test_a_joint_step_without_one_client_divides_by_those_there(player: Player) -> None:
    plan = unmasked(1, **JOINT)
    played = play(player, plan, {"site-5": silent})
    assert close(played.outcome.parameters, stepped(plan, SIX[:5]))


def test_a_joint_step_follows_the_schedule(player: Player) -> None:
    training = {**JOINT["training"], "schedule": {"kind": "step", "every": 1, "factor": 0.25}}
    plan = unmasked(3, **{**JOINT, "training": training})
    assert [learning_rate(plan, number) for number in (1, 2, 3)] == [0.5, 0.125, 0.03125]
    assert close(play(player, plan).outcome.parameters, stepped(plan, SIX, SIX, SIX))


def test_the_server_keeps_momentum_over_joint_steps(player: Player) -> None:
    """Flower's FedAvgM: v = m v + step, and the model moves by v."""
    federation = {"strategy": "fedavgm", "strategy_options": {"server_momentum": 0.9, "server_learning_rate": 1.0}}
    plan = unmasked(3, federation=federation, **JOINT)
    model = {name: value.astype(np.float64) for name, value in START.items()}
    velocity = {name: np.zeros_like(value) for name, value in model.items()}
    for number in (1, 2, 3):
        total = np.sum([whole(client, number) for client in SIX], axis=0) * plan.sum_grid().step
        for name, gradient in unflat(total / (6 * 20), LAYOUT).items():
            velocity[name] = 0.9 * velocity[name] + gradient
            model[name] = model[name] - 0.5 * velocity[name]
    assert close(play(player, plan).outcome.parameters, model)


def test_under_masks_a_joint_step_is_the_same(player: Player) -> None:
    with_masks = secure_plan(federation={"rounds": 2}, **JOINT)
    of_masks = play_masked(player, with_masks, Sites(with_masks, SIX))
    assert same_bits(of_masks.outcome.parameters, play(player, unmasked(2, **JOINT)).outcome.parameters)


def test_the_update_of_a_sum_has_the_layouts_form() -> None:
    plan = unmasked(**JOINT)
    total = whole("site-0", 1).astype(np.uint32)
    update, norm = update_of(total, plan, LAYOUT, survivors=1, round_number=1)
    assert norm is None  # it doesn't adapt
    assert {name: value.shape for name, value in update.items()} == dict(LAYOUT.entries)
    assert all(value.dtype == np.float32 for value in update.values())
    with pytest.raises(ValueError, match="over nobody"):
        update_of(total, plan, LAYOUT, survivors=0, round_number=1)
