"""Compressed updates through the ClientApp: the same training and charges, and a remainder that goes with its reply."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from client import app as module
from client import private_trainer
from client.books import create_simulated
from privacy.ledger import Ledger, LedgerError
from shared_models.faults import Fault
from shared_models.parameters import Layout, Parameters
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST
from shared_models.seeds import derive_seed
from shared_models.wire import encode_update
from tests.client.conftest import (
    AT_CLIENTS,
    Clients,
    assert_fault,
    changed_by_a_bit,
    content_of,
    layout_of,
    metrics_of,
    plan_of,
    through_the_wire,
    update_of,
    wire,
)

WHOLE: dict[str, Any] = {"wire": "float32"}
INT8: dict[str, Any] = {"wire": "int8"}
TOP: dict[str, Any] = {"wire": "top-k", "top_fraction": 0.1}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Parameters]:
    """What clients trained, in order, before it was encoded."""
    found: list[Parameters] = []
    encode = module.ErrorFeedback.encode

    def spy(self: Any, update: Parameters, **how: Any) -> Any:
        found.append(update)
        return encode(self, update, **how)

    monkeypatch.setattr(module.ErrorFeedback, "encode", spy)
    return found


def kept(plan: Plan, state: RecordDict) -> Parameters:
    """What a client would add to its next update, as its state has it."""
    entries = layout_of(plan).entries
    if len(state) == 0:
        return {name: np.zeros(shape, np.float32) for name, shape in entries}
    values = state.array_records["veil-left-out"]["values"].numpy()
    sizes = np.cumsum([int(np.prod(shape)) for _, shape in entries])[:-1]
    return {name: part.reshape(shape) for (name, shape), part in zip(entries, np.split(values, sizes), strict=True)}


def close(one: Parameters, *others: Parameters) -> bool:
    return all(
        np.allclose(value, np.sum([other[name] for other in others], axis=0), rtol=1e-5, atol=1e-6)
        for name, value in one.items()
    )


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("form", [INT8, TOP], ids=["int8", "top-k"])
def test_the_form_changes_neither_training_nor_what_is_charged(
    clients: Clients, trained: list[Parameters], tmp_path: Path, private: bool, form: dict[str, Any]
) -> None:
    """Post-processing: the same noised update, the same entries in the ledger."""
    books, metrics = [], []
    for federation in (WHOLE, form):
        plan = plan_of(private, federation=federation)
        clients.path = tmp_path / f"{federation['wire']}.sqlite"
        create_simulated(clients.path)
        reply = clients.train(plan, 2, client="1")
        metrics.append(metrics_of(reply))
        entries = clients.entries("1")[-2:]
        books.append([(entry.kind, entry.body.get("charge"), entry.body.get("fields")) for entry in entries])
    assert [kind for kind, _, _ in books[0]] == ["reserve", "commit"]
    assert all(np.array_equal(value, trained[1][name]) for name, value in trained[0].items())
    # Of a compressed update, too, all arrays are one line.
    fields = [[fields for *_, fields in entries] for entries in books]
    assert fields[0] == fields[1]
    charges = [entries[0][1] for entries in books]
    if private:
        assert {**charges[0], "plan": ""} == {**charges[1], "plan": ""}
    else:
        assert charges == [None, None]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("form", [INT8, TOP], ids=["int8", "top-k"])
def test_what_is_sent_follows_from_the_update_the_plans_seed_the_round_and_the_client(
    clients: Clients, trained: list[Parameters], private: bool, form: dict[str, Any]
) -> None:
    plan = plan_of(private, federation=form)
    layout = layout_of(plan)
    for client, number in (("0", 1), ("1", 1), ("1", 2)):
        reply = clients.train(plan, number, client=client)
        seed = derive_seed(plan.seed, "wire", number, client)
        assert reply.content.array_records[ARRAYS] == encode_update(trained[-1], layout, seed=seed)
    if form is INT8:
        assert encode_update(trained[-1], layout, seed=derive_seed(plan.seed, "wire", 1, "0")) != encode_update(
            trained[-1], layout, seed=derive_seed(plan.seed, "wire", 1, "1")
        )


@pytest.mark.parametrize("private", [True, False])
def test_what_top_k_leaves_out_is_added_to_the_next_update(
    clients: Clients, trained: list[Parameters], private: bool
) -> None:
    plan, state, arrived = plan_of(private, federation=TOP), RecordDict(), []
    for number in (1, 2, 3):
        arrived.append(update_of(plan, clients.train(plan, number, state=state)))
        state = through_the_wire(state)
        expected = {name: np.sum([one[name] for one in trained], axis=0) for name in trained[0]}
        assert close(expected, *arrived, kept(plan, state))
    assert sum(np.count_nonzero(value) for one in arrived for value in one.values()) == 3 * 3  # 27 values
    assert any(value.any() for value in kept(plan, state).values())


def test_a_judgement_between_two_rounds_leaves_it_alone(clients: Clients) -> None:
    plan, state = plan_of(federation=TOP, evaluation=AT_CLIENTS), RecordDict()
    clients.train(plan, 1, state=state)
    before = wire(state)
    for _ in range(2):  # the second is a stored reply
        assert not clients.evaluate(plan, 1, state=state).has_error()
    assert wire(state) == before


# --- what goes wrong on the way ------------------------------------------------------------------------------------


def test_a_stored_reply_is_sent_again_and_its_remainder_is_not_added_twice(
    clients: Clients, trained: list[Parameters], caplog: pytest.LogCaptureFixture
) -> None:
    plan, state = plan_of(federation=TOP), RecordDict()
    first = clients.train(plan, 1, state=state)
    before = wire(state)
    again = clients.train(plan, 1, state=state)
    assert wire(again.content) == wire(first.content)
    assert wire(state) == before
    assert caplog.text == ""
    second = clients.train(plan, 2, state=state)
    expected = {name: np.sum([one[name] for one in trained], axis=0) for name in trained[0]}
    assert len(trained) == 2
    assert close(expected, update_of(plan, first), update_of(plan, second), kept(plan, state))


def test_a_reply_that_was_stored_without_its_remainder_uses_up_what_was_kept(
    clients: Clients, trained: list[Parameters], caplog: pytest.LogCaptureFixture
) -> None:
    """The process died between the ledger's commit and whoever keeps the state."""
    plan, state = plan_of(federation=TOP), RecordDict()
    clients.train(plan, 1, state=state)
    lost = through_the_wire(state)
    reply = clients.train(plan, 2, state=lost)
    again = clients.train(plan, 2, state=state)  # as it was before round 2
    assert wire(again.content) == wire(reply.content)
    assert len(state) == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].startswith("what updates before round 2 left out is dropped")
    third = clients.train(plan, 3, state=state)
    assert close(trained[2], update_of(plan, third), kept(plan, state))  # of nothing else


@pytest.mark.parametrize("private", [True, False])
def test_an_answer_that_fails_or_may_not_leave_changes_nothing(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    plan, state = plan_of(private, federation=TOP), RecordDict()
    clients.train(plan, 1, state=state)
    before = wire(state)

    def full(*_: Any, **__: Any) -> bytes:
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit" if private else "commit_unkept", full)
        assert_fault(clients.train(plan, 2, state=state), Fault.CLIENT_FAILED)
    assert wire(state) == before
    assert not clients.train(plan, 2, state=state).has_error()
    assert wire(state) != before


def test_where_another_process_committed_first_its_reply_leaves_and_our_remainder_is_dropped(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(federation=TOP, privacy={"noise": "secret"})
    states = [RecordDict(), RecordDict()]
    for state in states:
        clients.train(plan, 1, state=state)  # the second is the stored reply, whose remainder the second state lacks
    train = private_trainer.train_private
    theirs: list[Message] = []

    def meanwhile(*given: Any, **named: Any) -> Any:
        found = train(*given, **named)
        if not theirs:
            monkeypatch.setattr(private_trainer, "train_private", train)
            theirs.append(clients.train(plan, 2, state=states[1]))
        return found

    monkeypatch.setattr(private_trainer, "train_private", meanwhile)
    ours = clients.train(plan, 2, state=states[0])
    assert wire(ours.content) == wire(theirs[0].content)
    assert len(states[0]) == 0
    assert len(states[1]) == 2


def test_a_round_that_is_asked_for_again_in_other_words_starts_with_nothing(
    clients: Clients, trained: list[Parameters], caplog: pytest.LogCaptureFixture
) -> None:
    plan, state = plan_of(federation=TOP), RecordDict()
    for number in (1, 2):
        clients.train(plan, number, state=state)
    reply = clients.ask(plan, changed_by_a_bit(content_of(plan, 2)), state=state)
    assert close(trained[2], update_of(plan, reply), kept(plan, state))
    assert len(caplog.messages) == 1


def test_who_sends_top_k_for_another_fraction_is_refused(clients: Clients) -> None:
    """The layout's digest says it before anything is charged."""
    plan = plan_of(federation=TOP)
    content = content_of(plan)
    content.config_records[CONFIG][LAYOUT_DIGEST] = Layout(layout_of(plan).entries, "top-k", 0.2).digest
    assert_fault(clients.ask(plan, content), Fault.MODEL_MISMATCH)
    assert clients.entries() == []
