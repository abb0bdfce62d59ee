"""The average of the rounds' models: what is judged and kept, while the last model is what is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from security.errors import UsageError
from server.checkpoint import load_checkpoint
from server.model_average import averaged
from server.run_folder import read_parameters
from shared_models.parameters import Parameters
from tests.server.conftest import (
    FakeGrid,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    learns,
    make_plan,
    same_bits,
)

CLIENTS = [f"site-{i}" for i in range(3)]


def plan(average: float | None, *, n: int = 4, **evaluation: Any) -> Any:
    sites = {"data": {"partition": {"kind": "iid", "clients": 3}}}
    return make_plan({"federation": {"rounds": n, "model_average": average}, "evaluation": evaluation}, sites)


def far(parameters: Parameters) -> dict[str, float]:
    return {"accuracy": float(sum(np.abs(value).sum() for value in parameters.values())), "loss": 1.0}


def models(play: Player, n: int) -> list[Parameters]:
    """What each round of a run without an average ends with."""
    return [play(plan(None, n=k), FakeGrid(CLIENTS, learns)).outcome.parameters for k in range(1, n + 1)]


def by_hand(rounds: list[Parameters], decay: float) -> Parameters:
    """The definition, summed up: weight (1 - d_t) times all later d's."""
    weights = np.ones(len(rounds))
    for t in range(2, len(rounds) + 1):
        kept = min(decay, (1 + t) / (10 + t))
        weights[: t - 1] *= kept
        weights[t - 1] = 1 - kept
    assert weights.sum() == pytest.approx(1)
    return {
        name: sum(w * one[name].astype(np.float64) for w, one in zip(weights, rounds, strict=True)).astype(np.float32)
        for name in rounds[0]
    }


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.9])
def test_the_average_is_the_weighted_sum_of_all_rounds_models(play: Player, decay: float) -> None:
    found = play(plan(decay), FakeGrid(CLIENTS, learns), evaluate=far)
    wanted = by_hand(models(play, 4), decay)
    for name, value in found.outcome.parameters.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-7)


def test_it_is_what_is_judged_and_kept_and_not_what_is_trained(play: Player) -> None:
    rounds = models(play, 4)
    found = play(plan(0.9, metric="accuracy"), FakeGrid(CLIENTS, learns), evaluate=far)
    judged = [record.evaluation["accuracy"] for record in found.diary.rounds if record.evaluation]
    assert judged == pytest.approx([far(by_hand(rounds[:t], 0.9))["accuracy"] for t in (1, 2, 3, 4)], rel=1e-5)
    checkpoint = load_checkpoint(found.folder.checkpoints, plan(0.9, metric="accuracy").digest())
    assert checkpoint is not None
    assert same_bits(checkpoint.parameters, rounds[3])
    best = int(np.argmax(judged))
    kept = read_parameters(found.folder.best_model)
    for name, value in by_hand(rounds[: best + 1], 0.9).items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_resumed_run_ends_with_the_same_average_to_the_bit(play: Player, stopped_after: int) -> None:
    whole = play(plan(0.7), FakeGrid(CLIENTS, learns), evaluate=far)
    broken = play.federation(plan(0.7), FakeGrid(CLIENTS, learns), evaluate=far, diary=StopAfter(stopped_after))
    with pytest.raises(StoppedOnPurposeError):
        broken.run()
    checkpoint = load_checkpoint(broken.folder.checkpoints, plan(0.7).digest())
    again = play(plan(0.7), FakeGrid(CLIENTS, learns), folder=broken.folder, resume=checkpoint, evaluate=far)
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)


def test_the_first_models_are_soon_forgotten() -> None:
    """After t rounds at most (1 + t) / (10 + t) of the average stays, however large the decay."""
    zero, one = ({"w": np.full(2, value, np.float32)} for value in (0, 1))
    assert averaged(zero, one, decay=0.999, rounds=2)["w"][0] == pytest.approx(1 - 3 / 12)
    assert averaged(zero, one, decay=0.5, rounds=100)["w"][0] == pytest.approx(0.5)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_forgets_nothing_or_turns_around_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match=r"federation\.model_average"):
        plan(decay)
