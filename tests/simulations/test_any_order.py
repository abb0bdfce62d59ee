"""Whoever trains first, on however many actors: the same model and the same metrics, to the last bit."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from server.run_folder import RunFolder
from shared_models.plan import Plan
from simulations.inline_grid import InlineGrid
from simulations.run import Settings, start_run
from tests.simulations.conftest import PlanMaker
from tests.simulations.shuffled_app import FIRST, order_of, pipe_of

ROUNDS = 3
PRIVATE = ("privacy.trust=local", "privacy.noise=reproducible", "training.steps=1")
KRUM = ("federation.strategy=krum", "federation.strategy_options.num_malicious_nodes=1")
IN_COMPANIES = ("data.partition.clients=25", "training.company=10")  # `client.company_trainer`: 10, 10 and 5
PLANS = {
    "plain, mean": IN_COMPANIES,
    "plain, median": ("federation.strategy=fedmedian",),
    "private, mean": PRIVATE,
    "private, krum": (*PRIVATE, *KRUM),
}


class ShuffledGrid(InlineGrid):
    """Clients train in an order by chance, and their replies arrive in another."""

    orders: list[list[str]]

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        chance = random.Random(f"{len(self.orders)}")
        replies = list(super()._deliver(chance.sample(messages, len(messages)), timeout))
        chance.shuffle(replies)
        self.orders.append([self._clients[reply.metadata.src_node_id] for reply in replies])
        yield from replies


def outcome(folder: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """The model's bits, and what the run tells of its rounds but for how long they took."""
    found = RunFolder(folder)
    model = {name: value.tobytes() for name, value in load_file(found.model).items()}
    return model, [{**line, "seconds": None} for line in found.read_metrics()]


@pytest.fixture(params=PLANS.values(), ids=PLANS.keys())
def plan(request: pytest.FixtureRequest, small_plan: PlanMaker) -> Plan:
    return small_plan(f"federation.rounds={ROUNDS}", *request.param)


def test_replies_in_any_order_give_the_same_model(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_order, _ = start_run(plan, tmp_path / "in order", Settings(engine="inline"))
    orders: list[list[str]] = []
    monkeypatch.setattr(ShuffledGrid, "orders", orders, raising=False)
    monkeypatch.setattr("simulations.run.InlineGrid", ShuffledGrid)
    shuffled, _ = start_run(plan, tmp_path / "shuffled", Settings(engine="inline"))
    assert len({tuple(order) for order in orders[:ROUNDS]}) == ROUNDS
    assert outcome(shuffled.path) == outcome(in_order.path)


@contextmanager
def out_of_step(folder: Path) -> Iterator[None]:
    """While this lasts, the first client of a round waits in that run until another is done."""
    folder.mkdir()
    pipes = [pipe_of(folder, number) for number in range(1, ROUNDS + 1)]
    for pipe in pipes:
        os.mkfifo(pipe)
    held = [os.open(pipe, os.O_RDWR) for pipe in pipes]  # what is written stays until it is read
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.ray
@pytest.mark.parametrize("plan", [IN_COMPANIES, (*PRIVATE, *KRUM)], ids=["plain, mean", "private, krum"], indirect=True)
def test_one_two_and_four_actors_give_the_same_model(ray_cluster: Path, plan: Plan, tmp_path: Path) -> None:
    inline, _ = start_run(plan, tmp_path / "inline", Settings(engine="inline"))
    for actors in (1, 2, 4):
        folder = tmp_path / f"{actors}"
        settings = Settings(engine="ray", workers=actors, app="tests.simulations.shuffled_app:app")
        if actors == 1:  # it has nobody to wait for
            start_run(plan, folder, settings)
        else:
            with out_of_step(folder):
                start_run(plan, folder, settings)
            assert FIRST not in {int(order[0]) for order in order_of(folder).values()}
        assert outcome(folder) == outcome(inline.path)
