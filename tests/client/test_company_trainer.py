"""Clients that train together: what each would have trained alone, up to rounding, and once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client import company_trainer
from client.company_trainer import company_size, in_company, train_company, train_in_company
from client.datasets.records import Records
from client.trainer import torch_threads, train_plain
from shared_models.example_form import ExampleForm
from shared_models.parameters import Parameters, get_parameters
from shared_models.plan import Plan
from shared_models.registry import build
from tests.client.local_training import OPTIMISERS, assert_close, network, plain, private, records


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def company(*sizes: int) -> dict[str, Records]:
    return {str(number): records(size, seed=number) for number, size in enumerate(sizes)}


def each_alone(model: nn.Module, start: Parameters, members: Mapping[str, Records], plan: Plan) -> dict[str, Any]:
    return {
        client: train_plain(model, start, own, plan, round_number=2, client=client)
        for client, own in members.items()
        if len(own) > 0
    }


def assert_as_alone(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for client, (change, loss) in expected.items():
        assert_close(found[client][0], change)
        assert found[client][1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("options", OPTIMISERS, ids=str)
@pytest.mark.parametrize("proximal_mu", [0.0, 0.3])
def test_each_member_s_update_is_the_one_it_makes_alone(options: dict[str, Any], proximal_mu: float) -> None:
    plan, model = plain(epochs=3, proximal_mu=proximal_mu, **options), network(activation="tanh")
    start, members = get_parameters(model), company(10, 10, 10, 10)
    found = train_company(model, start, members, plan, round_number=2)
    assert_as_alone(found, each_alone(model, start, members, plan))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    hidden=st.lists(st.integers(1, 6), max_size=2),
    steps=st.integers(1, 4),
)
def test_members_may_have_as_many_records_as_they_like(sizes: list[int], hidden: list[int], steps: int) -> None:
    plan, model = plain(steps=steps), network(hidden=hidden)
    start, members = get_parameters(model), company(*sizes)
    with torch_threads(1):
        found = train_company(model, start, members, plan, round_number=2)
        assert_as_alone(found, each_alone(model, start, members, plan))


def test_what_a_member_trains_is_its_own_copy() -> None:
    plan, model = plain(steps=2), network()
    start = get_parameters(model)
    found = train_company(model, start, company(8, 8), plan, round_number=2)
    before = {name: value.copy() for name, value in found["1"][0].items()}
    for value in found["0"][0].values():
        value[...] = np.nan
    assert_close(found["1"][0], before)


def wanting(**training: Any) -> Plan:
    return plain(company=5, **training)


@pytest.mark.parametrize(
    ("plan", "model", "size"),
    [
        (wanting(), network(), 5),
        (wanting(epochs=2, optimizer="adam"), network(hidden=[]), 5),
        (wanting(), build("linear", {}, form=ExampleForm((4,), 3), seed=1), 5),
        (plain(), network(), 1),
        (wanting(), network(dropout=0.1), 1),
        (wanting(), network("cnn"), 1),
        (wanting(), network(hidden=[2048, 8]), 1),
        (wanting(expected_batch_size=1024), network(), 1),
        (wanting(precision="bfloat16"), network(), 1),
        (wanting(max_physical_batch=2), network(), 1),
        (private(company=5), network(), 1),
    ],
    ids=[
        *("mlp", "softmax", "linear", "by default", "chance", "convolutions"),
        *("large", "large batches", "bfloat16", "parts of a batch", "private"),
    ],
)
def test_who_trains_together_follows_from_the_plan(plan: Plan, model: nn.Module, size: int) -> None:
    assert company_size(plan, model) == size


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_the_linear_model_trains_in_company_too(name: str) -> None:
    plan, model = plain(steps=5), build(name, {}, form=ExampleForm((2, 2), 3), seed=1)
    start, members = get_parameters(model), {str(number): records(9, (2, 2), seed=number) for number in range(3)}
    found = train_company(model, start, members, plan, round_number=2)
    assert_as_alone(found, each_alone(model, start, members, plan))


class Counted:
    """Records of a company, and how often the whole of it was trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
        self.members = company(*sizes)
        self.model = network()
        self.start = get_parameters(self.model)
        self.times = 0
        monkeypatch.setattr(company_trainer, "train_company", self._train)
        monkeypatch.setattr(company_trainer, "_here", company_trainer._Process())

    def _train(self, *arguments: Any, **named: Any) -> Any:
        self.times += 1
        return train_company(*arguments, **named)

    def train(self, client: str, plan: Plan, *, round_number: int = 2, start: Parameters | None = None) -> Any:
        given = self.start if start is None else start
        return train_in_company(
            self.model, dict(given), self.members.__getitem__, plan, round_number=round_number, client=client
        )


def test_a_company_is_trained_once_and_each_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counted = plain(steps=3), Counted(monkeypatch, 8, 8, 5)
    with in_company(("0", "1", "2")):
        found = {client: counted.train(client, plan) for client in ("2", "0", "1")}
    assert counted.times == 1
    assert_as_alone(found, each_alone(counted.model, counted.start, counted.members, plan))


def test_another_round_plan_company_or_model_is_trained_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counted = plain(steps=3), Counted(monkeypatch, 8, 8, 8)
    other = {name: value + 1 for name, value in counted.start.items()}
    hotter = plain(steps=3, learning_rate=0.7)
    with in_company(("0", "1")):
        for times, (used, number, start) in enumerate(
            [(plan, 2, None), (plan, 3, None), (hotter, 3, None), (plan, 3, other), (plan, 3, None)], start=1
        ):
            change, loss = counted.train("0", used, round_number=number, start=start)
            assert counted.times == times
            expected, expected_loss = train_plain(
                counted.model, start or counted.start, counted.members["0"], used, round_number=number, client="0"
            )
            assert_close(change, expected)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
    with in_company(("0", "2")):
        counted.train("0", plan, round_number=3)
    assert counted.times == 6


def test_who_is_asked_again_is_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was handed out isn't kept; the same comes out, to the last bit."""
    plan, counted = plain(steps=3), Counted(monkeypatch, 8, 8)
    with in_company(("0", "1")):
        first, again = counted.train("0", plan), counted.train("0", plan)
    assert counted.times == 2
    assert {name: value.tobytes() for name, value in first[0].items()} == {
        name: value.tobytes() for name, value in again[0].items()
    }


def test_a_client_without_company_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counted = plain(steps=3), Counted(monkeypatch, 8, 8)
    counted.train("0", plan)
    with in_company(("0",)):
        counted.train("0", plan)
    with in_company(("1", "2")):
        counted.train("0", plan)
    assert counted.times == 0


def test_who_has_no_records_can_t_train_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, counted = plain(steps=3), Counted(monkeypatch, 8, 0, 8)
    with in_company(("0", "1", "2")):
        with pytest.raises(ValueError, match="without records"):
            counted.train("1", plan)
        found = {client: counted.train(client, plan) for client in ("0", "2")}
    assert counted.times == 1
    assert_as_alone(found, each_alone(counted.model, counted.start, counted.members, plan))
