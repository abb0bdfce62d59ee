"""The ledger from afar: on a cluster the process that leads the run keeps the books, and workers ask it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from flwr.app import ConfigRecord, Message, RecordDict

from client.books import books
from privacy.ledger import Anchor, BudgetExhausted, Ledger, LedgerError, Reserved, Stored, Task
from privacy.lifetime import Limit, multiset
from privacy.mechanisms import DpSgd
from privacy.statement import make_statement, verify_statement
from security.identity import Identity
from server.replies import Update, read_reply
from shared_models.faults import Fault
from shared_models.parameters import layout_of
from shared_models.plan import Plan
from shared_models.protocol import CONFIG, PLAN_DIGEST, STATEMENT, STATEMENT_TEXT
from shared_models.registry import build_for
from simulations import ray_grid as grid_module
from simulations.ray_grid import RayGrid
from simulations.ray_workers import RayOptions, _ledger_actor, _spans_machines
from simulations.remote_ledger import LedgerService, RemoteLedger, use_remote
from tests.simulations.conftest import PlanMaker, config_of, train_messages
from tests.simulations.ledger_reading import committed, reserved

pytestmark = pytest.mark.ray
CLIENTS = [str(i) for i in range(10)]


@pytest.fixture
def plan(small_plan: PlanMaker) -> Plan:
    return small_plan("privacy.trust=local", "training.steps=1")


@pytest.fixture
def service(ray_cluster: Path, plan: Plan, tmp_path: Path) -> Iterator[Any]:
    actor = _ledger_actor(config_of(plan, tmp_path)["ledger"])
    yield actor
    ray.kill(actor)


def reserve(ledger: Any, plan: Plan, number: int, *, limit: float | None = None) -> Any:
    release = plan.train_release()
    assert isinstance(release, DpSgd)
    assert plan.privacy.epsilon is not None
    return ledger.reserve(
        "people",
        Task(federation="f", run="r", round=number, phase="train", client="a", request=f"{number:064x}"),
        balance=plan.balance,
        terms=plan.terms(),
        releases=multiset([release]),
        limit=Limit(epsilon=limit or plan.privacy.epsilon, delta=plan.privacy.delta),
    )


# --- one call after another ---------------------------------------------------------------------------------------


def test_every_call_of_a_client_works_from_afar(service: Any, plan: Plan, tmp_path: Path) -> None:
    """Arguments and answers travel: what the guard uses, and what a statement is made of."""
    ledger, owner = RemoteLedger(service), Identity.create()
    opened = ledger.open_scope("people", owner=owner.public_hex)
    assert opened.position == 0
    ledger.set_policy("people", {"site": "a"}, "f" * 64)
    first = reserve(ledger, plan, 1)
    assert isinstance(first, Reserved)
    task = Task(federation="f", run="r", round=1, phase="train", client="a", request=f"{1:064x}")
    assert ledger.commit("people", task.id, b"reply", fields={"arrays": "charged"}) == b"reply"
    again = reserve(ledger, plan, 1)
    assert isinstance(again, Stored)
    assert again.reply == b"reply"
    ledger.refuse("people", task, "client-failed")
    assert ledger.holds(opened)
    assert not ledger.holds(Anchor(scope="people", position=0, hash="0" * 64))
    assert ledger.tasks_within("people", timedelta(days=1)) == {task.id: ("f", "r", "train", 1)}
    assert ledger.account("people", plan.balance).plans[0].plan == plan.digest()
    assert [entry.kind for entry in ledger.entries("people")] == ["open", "policy", "reserve", "commit", "refuse"]
    limits = {plan.balance: Limit(epsilon=8.0, delta=plan.privacy.delta)}
    statement = verify_statement(make_statement(ledger, "people", owner, limits, detail="full").text)
    assert statement.balances[0].totals == {"dp-sgd": 1}
    with Ledger.open(tmp_path / "ledger.sqlite", read_only=True) as own:
        assert own.head("people") == statement.anchor


def test_what_the_ledger_raises_is_raised_at_the_worker_and_is_of_its_kind(service: Any, plan: Plan) -> None:
    """The guard tells a budget that is exhausted from a ledger that is damaged."""
    ledger = RemoteLedger(service)
    ledger.open_scope("people", owner="")
    with pytest.raises(BudgetExhausted):
        reserve(ledger, plan, 1, limit=1e-3)
    with pytest.raises(LedgerError, match="has no scope 'others'"):
        ledger.head("others")
    with pytest.raises(ValueError, match="never reserved"):
        ledger.commit("people", "f" * 64, b"", fields={})


def test_a_service_that_has_died_is_a_ledger_that_can_not_be_relied_on(
    ray_cluster: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may be trained then: the guard closes on this error."""
    monkeypatch.setattr("client.books._open", {})  # this process' own: its other tests put away what is open
    actor = _ledger_actor(config_of(plan, tmp_path)["ledger"])
    use_remote("afar", actor)
    assert len(books("afar").secret) == 32
    ray.kill(actor)
    with pytest.raises(LedgerError, match=r"^[^\n]*can't be reached; start the run again$"):
        books("afar").ledger.head("people")


def test_a_stand_in_has_no_private_attributes_and_can_travel_itself() -> None:
    """Ray and pickle ask an object for those; they are not the ledger's."""
    ledger = RemoteLedger("a service")
    assert pickle.loads(pickle.dumps(ledger))._service == "a service"
    with pytest.raises(AttributeError):
        ledger._store  # noqa: B018


def test_a_service_answers_iterators_as_lists(plan: Plan, tmp_path: Path) -> None:
    service = LedgerService(config_of(plan, tmp_path)["ledger"])
    service.call("open_scope", "people", owner="")
    assert [entry.kind for entry in service.call("entries", "people")] == ["open"]
    assert len(service.secret()) == 32


# --- a round ------------------------------------------------------------------------------------------------------


def test_clients_of_a_cluster_keep_their_books_with_the_leader(ray_cluster: Path, plan: Plan, tmp_path: Path) -> None:
    """Workers that don't see the file: the address of a cluster is enough to have them ask."""
    config = config_of(plan, tmp_path)
    grid = RayGrid(CLIENTS, config=config, options=RayOptions(workers=2, address="auto"))
    layout = layout_of(build_for(plan), plan.federation.wire)
    replies = list(grid.stream(train_messages(plan, grid, CLIENTS)))
    assert all(isinstance(read_reply(reply, "a", layout, plan), Update) for reply in replies)
    again = {reply.metadata.src_node_id: reply for reply in grid.stream(train_messages(plan, grid, CLIENTS))}
    assert {reply.metadata.src_node_id: reply.content for reply in replies} == {
        node: reply.content for node, reply in again.items()
    }
    question = RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: plan.digest()})})
    stated = list(grid.stream([Message(question, node, STATEMENT) for node in grid.get_node_ids()]))
    for reply in stated:
        verify_statement(str(reply.content.config_records[CONFIG][STATEMENT_TEXT]))
    ledger = Path(config["ledger"])
    grid.close()
    assert reserved(ledger) == committed(ledger) == {(client, "train", 1): 1 for client in CLIENTS}


def test_workers_whose_leader_is_gone_train_nothing(ray_cluster: Path, plan: Plan, tmp_path: Path) -> None:
    grid = RayGrid(["0", "1"], config=config_of(plan, tmp_path), options=RayOptions(workers=1, address="auto"))
    ray.kill(grid._workers._ledger)
    replies = list(grid.stream(train_messages(plan, grid, ["0", "1"])))
    grid.close()
    assert {reply.error.code for reply in replies} == {Fault.LEDGER_CLOSED}


def test_the_books_stay_with_the_leader_wherever_workers_may_be_elsewhere(
    ray_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not _spans_machines(RayOptions())
    assert _spans_machines(RayOptions(address="auto"))
    monkeypatch.setattr(grid_module.ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    assert _spans_machines(RayOptions())
