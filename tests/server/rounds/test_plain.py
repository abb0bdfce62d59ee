"""A synchronous round: replies in, contributions to one step out."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.replies import ClientFault, Update
from server.rounds.plain import Contribution, EveryReplyRound, MeanRound, Round, Tally
from shared_models.faults import Fault
from shared_models.parameters import Parameters
from tests.server.conftest import START, change, head, same_bits


def update(client: str, delta: Parameters, weight: int = 1, **fields: float) -> Update:
    return Update(
        client=client,
        delta=delta,
        weight=weight,
        epsilon=fields.get("epsilon"),
        train_loss=fields.get("loss"),
        received=100,
        head=head(1),
        unprotected=bool(fields.get("unprotected")),
    )


def noise(client: str) -> Parameters:
    generator = np.random.default_rng(sum(client.encode()))
    return {name: generator.standard_normal(value.shape).astype(np.float32) for name, value in START.items()}


def one_step(kind: Round, replies: list[Update | ClientFault], tally: Tally | None = None) -> list[Contribution]:
    (step,) = kind.steps(START, replies, tally or Tally())
    return step


def test_the_mean_is_one_contribution_of_weight_one_moved_from_the_start() -> None:
    (contribution,) = one_step(MeanRound(), [update("a", change(1.0), 3), update("b", change(5.0))])
    assert contribution.weight == 1
    assert contribution.client is None
    assert same_bits(contribution.parameters, {name: value + np.float32(2.0) for name, value in START.items()})


@settings(max_examples=50, deadline=None)
@given(st.permutations("abcdefgh"))
def test_the_order_of_arrival_changes_neither_kind_of_round(order: list[str]) -> None:
    in_order = [update(client, noise(client), 1 + ord(client) % 3, loss=ord(client) / 7) for client in "abcdefgh"]
    shuffled = [in_order["abcdefgh".index(client)] for client in order]
    for make in (MeanRound, lambda: EveryReplyRound("abcdefgh")):
        first, second = Tally(), Tally()
        expected, found = one_step(make(), list(in_order), first), one_step(make(), list(shuffled), second)
        assert [(c.client, c.weight) for c in found] == [(c.client, c.weight) for c in expected]
        assert all(same_bits(f.parameters, e.parameters) for f, e in zip(found, expected, strict=True))
        assert first.train_loss == second.train_loss
        assert first.received == second.received == 800


def test_every_reply_is_a_contribution_in_the_cohorts_order_under_its_clients_name() -> None:
    replies = [update(client, change(ord(client)), ord(client)) for client in "cab"]
    replies.insert(1, ClientFault("d", Fault.CLIENT_FAILED))
    tally = Tally()
    step = one_step(EveryReplyRound("dabc"), replies, tally)
    assert [(c.client, c.weight) for c in step] == [("a", 97), ("b", 98), ("c", 99)]
    assert step[1].parameters["layer.bias"].tolist() == (START["layer.bias"] + 98).tolist()
    assert tally.updates == ["a", "b", "c"]
    assert [fault.client for fault in tally.faults] == ["d"]


@pytest.mark.parametrize("kind", [MeanRound(), EveryReplyRound("ab")])
@pytest.mark.parametrize("replies", [[], [ClientFault("a", Fault.TIMED_OUT), ClientFault("b", Fault.TIMED_OUT)]])
def test_a_round_without_updates_takes_no_step(kind: Round, replies: list[Update | ClientFault]) -> None:
    tally = Tally()
    assert list(kind.steps(START, replies, tally)) == []
    assert len(tally.faults) == len(replies)
    assert tally.train_loss is None


def test_an_update_that_cant_be_averaged_is_left_out_and_named() -> None:
    tally = Tally()
    replies = [update("a", change(1.0)), update("b", change(2.0**41)), update("c", change(3.0))]
    (contribution,) = one_step(MeanRound(), replies, tally)
    assert same_bits(contribution.parameters, {name: value + np.float32(2.0) for name, value in START.items()})
    assert tally.updates == ["a", "c"]
    assert tally.faults == [ClientFault("b", Fault.NON_FINITE)]


def test_the_tally_holds_what_clients_may_tell() -> None:
    tally = Tally()
    told = [update("a", change(0.0), epsilon=1.5), update("b", change(0.0), epsilon=0.5, unprotected=True)]
    one_step(MeanRound(), told, tally)
    assert tally.epsilons == {"a": 1.5, "b": 0.5}
    assert tally.heads == {"a": head(1), "b": head(1)}
    assert tally.unprotected == ["b"]
    assert tally.train_loss is None


def test_the_training_loss_is_weighted_and_exact_in_any_order() -> None:
    losses = [(2**29, 1e100), (1, 1e-9), (2**29, -1e100), (7, 0.1), (3, 5.0)]
    expected = (7 * 0.1 + 1e-9 + 15.0) / sum(weight for weight, _ in losses)
    shuffler = random.Random(0)
    for _ in range(10):
        shuffler.shuffle(losses)
        tally = Tally()
        for i, (weight, loss) in enumerate(losses):
            tally.note(update(str(i), change(0.0), weight, loss=loss))
        assert tally.train_loss == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_client_with_more_examples_counts_more() -> None:
    tally = Tally()
    one_step(MeanRound(), [update("a", change(0.0), 3, loss=1.0), update("b", change(0.0), 1, loss=5.0)], tally)
    assert tally.train_loss == 2.0


def test_updates_are_folded_in_as_they_arrive_and_let_go() -> None:
    """Server memory does not grow with the cohort: when a reply is drawn, no earlier one is held any more."""
    held: list[int] = []
    alive: list[Update] = []

    def replies() -> Iterator[Update]:
        for i in range(20):
            if alive:
                held.append(sys.getrefcount(alive.pop()))
            fresh = update(str(i), change(float(i)))
            alive.append(fresh)
            yield fresh
            del fresh

    one_step(MeanRound(), replies())  # type: ignore[arg-type]
    # The argument of getrefcount alone: not one more, however many came before.
    assert len(held) == 19
    assert set(held) == {1}


def test_a_mean_holds_two_models_beside_an_update_and_the_model_it_starts_from() -> None:
    """However many updates there are: eight bytes a value for the sum, then four more for the next model."""
    start = {"w": np.ones(1_000_000, np.float32)}  # 4 MB

    def replies(number: int) -> Iterator[Update]:
        for i in range(number):
            yield update(str(i), {"w": np.full(1_000_000, i, np.float32)}, weight=1 + i)

    most = []
    for number in (2, 10):
        tracemalloc.start()
        (step,) = MeanRound().steps(start, replies(number), Tally())
        most.append(tracemalloc.get_traced_memory()[1] / 4e6)
        tracemalloc.stop()
        assert step[0].parameters["w"].shape == (1_000_000,)
    assert max(most) < 3.3
    assert most[1] < most[0] + 0.1


def test_robust_updates_beyond_the_bound_take_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("server.kept_models.IN_MEMORY", 8_000_000)
    start = {"w": np.ones(1_000_000, np.float32)}  # 4 MB

    def replies() -> Iterator[Update]:
        for client in "hgfedcba":
            yield update(client, {"w": np.full(1_000_000, ord(client), np.float32)})

    tracemalloc.start()
    (step,) = EveryReplyRound("abcdefgh", tmp_path).steps(start, replies(), Tally())
    most = tracemalloc.get_traced_memory()[1] / 4e6
    tracemalloc.stop()
    assert [int(contribution.parameters["w"][7]) for contribution in step] == [1 + ord(client) for client in "abcdefgh"]
    assert 2 < most < 4.5  # two models, an update, and the model that it makes
    assert list(tmp_path.iterdir()) == []
