"""What is a client's own: kept with a reply that left, of this plan's run, and at a deployed site in its own files."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import load_file

from client.guard import Request, _decode, _encode
from client.notes import Notes
from client.personal import Personal, keep, kept_of, personal_model
from client.workplace import Workplace, workplace
from privacy.ledger import Ledger
from shared_models.faults import Fault
from shared_models.parameters import Parameters, get_parameters
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from tests.client.conftest import content_of, model_of, plan_of
from tests.client.real_site import APPROVED, BUDGET, DATA, Authority, settings_text, started, write_rows

HEAD = {"kind": "head"}
NOWHERE = {"where": "none"}


@pytest.fixture
def place() -> Workplace:
    return workplace(write_plan(plan_of(private=False, personal=HEAD, evaluation=NOWHERE)))


def request(number: int = 1, run: str = "run") -> Request:
    return Request(run=run, round=number, phase="train", digest=f"digest-{number}")


def whole(place: Workplace, value: float) -> Parameters:
    return {name: np.full_like(v, value) for name, v in get_parameters(place.model).items()}


def shared(place: Workplace, value: float) -> Parameters:
    return {name: np.full(shape, value, np.float32) for name, shape in place.layout.entries}


def test_only_the_body_of_a_change_is_shared_and_the_head_is_kept_once_it_has_left(place: Workplace) -> None:
    state = RecordDict()
    found = Personal(state, place, request())
    start = found.whole(shared(place, 1.0))
    assert start.keys() == get_parameters(place.model).keys()
    sent = found.shared(start, whole(place, 2.0))
    assert list(sent) == [name for name, _ in place.layout.entries]
    assert not state  # the reply may never leave
    again = Personal(state, place, request())
    for name, value in place.own.items():
        assert np.array_equal(again.whole(shared(place, 1.0))[name], value)
    found.answered()
    after = Personal(state, place, request(2)).whole(shared(place, 5.0))
    for name, value in after.items():
        assert np.array_equal(value, place.own[name] + 2.0 if name in place.own else np.full_like(value, 5.0))


def test_a_reply_that_was_stored_changes_no_head(place: Workplace) -> None:
    state = RecordDict()
    keep(state, place.plan, request(), {name: v + 1 for name, v in place.own.items()})
    before = state["veil-personal"]
    Personal(state, place, request()).answered()
    assert state["veil-personal"] == before


def test_of_another_plan_or_run_nothing_is_used(place: Workplace) -> None:
    """The head of a plan without privacy would bring into a private update what was never charged."""
    state = RecordDict()
    private = plan_of(private=True, personal=HEAD, evaluation=NOWHERE)
    other = workplace(write_plan(private))
    keep(state, place.plan, request(), {name: v + 1 for name, v in place.own.items()})
    assert kept_of(state, place, "run") is not None
    assert kept_of(state, other, "run") is None
    assert kept_of(state, place, "another") is None
    model = personal_model(state, other, "run", shared(other, 1.0))
    assert all(np.array_equal(model[name], value) for name, value in other.own.items())


def test_a_head_that_is_not_finite_stays_as_it_was(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    state = RecordDict()
    found = Personal(state, place, request())
    found.shared(found.whole(shared(place, 1.0)), whole(place, float("inf")))
    with caplog.at_level(logging.WARNING, "veil.client"):
        found.answered()
    assert not state
    assert "not finite" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [ArrayRecord({"x": Array(np.zeros(3, np.float32))}), ConfigRecord({"a": 1}), ArrayRecord({})],
    ids=["other names", "another record", "nothing"],
)
def test_a_damaged_state_is_not_used(place: Workplace, damage: Any) -> None:
    state = RecordDict()
    keep(state, place.plan, request(), place.own)
    state["veil-personal"] = damage
    assert kept_of(state, place, "run") is None


def last_model(plan: Plan) -> RecordDict:
    """As a server sends it after the last round."""
    return content_of(plan, 3, model=last_model_values(plan))


def last_model_values(plan: Plan) -> Parameters:
    names = {name for name, _ in workplace(write_plan(plan)).layout.entries}
    return {name: value for name, value in model_of(plan).items() if name in names}


# --- at a deployed site -------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Any:
    found = Authority(tmp_path / "authority").admit(tmp_path / "site")
    found.settings.write_text(settings_text(BUDGET, DATA, APPROVED, '[release]\nentrust = ["clinics"]\n'))
    write_rows(found.path / "rows.csv", rows=40)
    return found


@pytest.mark.parametrize("kind", ["head", "finetune", "ditto"])
def test_a_site_keeps_its_model_for_its_owner_alone(
    home: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.chdir(home.path)
    plan = plan_of(private=True, personal={"kind": kind}, evaluation=NOWHERE, privacy={"noise": "secret"})
    site = started(home)
    notes = Notes(status=home.status, log=home.log, server="s", say=lambda _: None)
    try:
        assert site.ask(plan, last_model(plan), "query.personalise").error.code == Fault.PLAN_MISMATCH  # of no run here
        assert not home.personal.exists()
        assert not site.ask(plan, content_of(plan, 1, model=last_model_values(plan)), "train").has_error()
        charged = site.kinds()
        reply = site.ask(plan, last_model(plan), "query.personalise")
        kept = {path.name: path.read_bytes() for path in home.personal.iterdir()}
        assert not site.ask(plan, last_model(plan), "query.personalise").has_error()  # again: nothing new
        assert {path.name: path.read_bytes() for path in home.personal.iterdir()} == kept
    finally:
        notes.close()
    assert not reply.has_error()
    assert {name: dict(record) for name, record in reply.content.items()} == {"config": {"client-id": "st-mary"}}
    (path,) = home.personal.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.personal.stat().st_mode) == 0o700
    names = {name for name, _ in workplace(write_plan(plan)).model.named_parameters()}
    assert load_file(path).keys() == names
    line, _ = [json.loads(text) for text in home.log.read_text().splitlines() if "personal model kept" in text]
    assert line["event"] == "personal model kept"
    assert line["file"] == f"personal/{path.name}"
    assert 0 <= line["accuracy"] <= 1
    assert site.kinds() == charged  # nothing leaves, nothing is charged
    site.site.close()


def test_a_site_that_refuses_a_plan_makes_nothing_of_its_last_model(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.path)
    home.settings.write_text(settings_text(BUDGET, DATA))  # the owner has not approved
    plan = plan_of(private=True, personal={"kind": "finetune"}, evaluation=NOWHERE, privacy={"noise": "secret"})
    site = started(home)
    reply = site.ask(plan, last_model(plan), "query.personalise")
    assert reply.error.code == Fault.POLICY_APPROVAL
    assert not home.personal.exists()
    site.site.close()


def test_a_plan_without_personal_models_has_no_such_question(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.path)
    plan = plan_of(private=True, privacy={"noise": "secret"})
    site = started(home)
    assert site.ask(plan, last_model(plan), "query.personalise").error.code == Fault.PLAN_MISMATCH
    site.site.close()


@pytest.mark.parametrize("answered_by", ["this process", "another"])
def test_a_head_is_kept_with_the_update_that_left_and_with_no_other(
    home: Any, monkeypatch: pytest.MonkeyPatch, answered_by: str
) -> None:
    """Were it kept beside another process' update, one charge would have paid for two releases of the round."""
    monkeypatch.chdir(home.path)
    plan = plan_of(private=True, personal=HEAD, evaluation=NOWHERE, privacy={"noise": "secret"})
    commit = Ledger.commit

    def beaten(ledger: Ledger, scope: str, task: str, reply: bytes, **fields: Any) -> bytes:
        theirs = _decode(reply)
        (name, array), *_ = theirs.array_records["arrays"].items()
        theirs.array_records["arrays"][name] = Array(array.numpy() + 1)
        first = _encode(theirs)
        commit(ledger, scope, task, first, **fields)
        left = commit(ledger, scope, task, reply, **fields)
        assert left == first != reply
        return left

    site, state = started(home), RecordDict()
    with monkeypatch.context() as patched:
        if answered_by == "another":
            patched.setattr(Ledger, "commit", beaten)
        request = content_of(plan, 1, model=last_model_values(plan))
        assert not site.ask(plan, request, "train", state=state).has_error()
    assert not site.ask(plan, last_model(plan), "query.personalise", state=state).has_error()
    (path,) = home.personal.iterdir()
    kept, begun = load_file(path), workplace(write_plan(plan)).own
    unchanged = [np.array_equal(kept[name], value) for name, value in begun.items()]
    assert all(unchanged) if answered_by == "another" else not any(unchanged)
    site.site.close()
