"""A run's ledger through crashes, failures and damage: each client is charged once a round, and never in silence."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flwr.common.serde import recorddict_to_proto

import client.app
import client.private_trainer
import client.simulated_site
from client.guard import Guard
from privacy.accountant import epsilon as epsilon_of
from privacy.ledger import LedgerError
from privacy.ledger.check import verify
from privacy.statement import verify_statement
from security.errors import RunError, UsageError, VeilError
from server.federation import Outcome
from server.observer import RoundRecord, Silent
from server.run_folder import RunFolder
from shared_models.plan import Plan
from simulations.inline_grid import InlineGrid
from simulations.run import Settings, resume_run, start_run
from simulations.worker import Worker
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import bodies, charges, committed, copy_of, epsilon, reserved, settle

INLINE = Settings(engine="inline")
PRIVATE = ("privacy.trust=local", "training.steps=1")
CLIENTS = [str(number) for number in range(10)]


class CutOffError(BaseException):
    """Ends a run at once, as a kill would: nobody catches it."""


class Diary(Silent):
    """Keeps what it is told; interrupts the run once a round is on disk."""

    def __init__(self, last: int | None = None) -> None:
        self.notes: list[str] = []
        self.last = last

    def note(self, text: str) -> None:
        self.notes.append(text)

    def round_done(self, record: RoundRecord) -> None:
        if record.round == self.last:
            raise CutOffError


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bytes]]:
    """What clients sent, in order: group of the message, client, and the reply's bytes (none: an error)."""
    found: list[tuple[str, str, bytes]] = []
    original = Worker.handle

    def handle(self: Worker, metadata: Any, content: Any, client: str, state: Any, *company: Any) -> Any:
        reply, state = original(self, metadata, content, client, state, *company)
        raw = recorddict_to_proto(reply.content).SerializeToString(deterministic=True) if reply.has_content() else b""
        if metadata.message_type in ("train", "evaluate"):
            found.append((metadata.group_id, client, raw))
        return reply, state

    monkeypatch.setattr(Worker, "handle", handle)
    return found


def broken(
    plan: Plan,
    folder: Path,
    where: str = "training",
    client_id: str = "5",
    round_number: int = 2,
    *,
    diary: Diary | None = None,
) -> None:
    """A run that was killed while a client trained ("training"), or right after it had committed ("sending")."""
    asked: list[tuple[str, int]] = []
    admit, release = Guard.admit, Guard.release

    def admitting(self: Guard, request: Any) -> Any:
        asked.append((self._client, request.round))
        return admit(self, request)

    def dies_in(train: Callable[..., Any]) -> Callable[..., Any]:
        def training(*arguments: Any, **named: Any) -> Any:
            if asked[-1] == (client_id, round_number):
                raise CutOffError
            return train(*arguments, **named)

        return training

    def sending(self: Guard, content: Any) -> Any:
        found = release(self, content)
        if asked[-1] == (client_id, round_number):
            raise CutOffError
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "admit", admitting)
        if where == "training":
            for module, name in ((client.app, "train_in_company"), (client.private_trainer, "train_private")):
                patch.setattr(module, name, dies_in(getattr(module, name)))
        else:
            patch.setattr(Guard, "release", sending)
        with pytest.raises(CutOffError):
            start_run(plan, folder, replace(INLINE, observer=diary or Diary()))


def gone_on(folder: Path, diary: Diary | None = None) -> tuple[RunFolder, Outcome]:
    found, outcome = resume_run(folder, replace(INLINE, observer=diary or Diary()))
    assert outcome is not None
    return found, outcome


def once_each(path: Path, rounds: int, phase: str = "train") -> bool:
    wanted = {(client, phase, number): 1 for client in CLIENTS for number in range(1, rounds + 1)}
    return {job: count for job, count in reserved(path).items() if job[1] == phase} == wanted


# --- a run that goes well -----------------------------------------------------------------------------------------


def test_a_run_has_one_ledger_with_a_chain_for_each_client_and_signed_statements(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    folder, _ = start_run(small_plan(*PRIVATE), tmp_path / "run", INLINE)
    assert once_each(folder.ledger, 3)
    assert committed(folder.ledger) == reserved(folder.ledger)
    assert verify(folder.ledger) == []
    rows = folder.read_summary()["privacy"]["clients"]
    assert {row["statement"] for row in rows} == {"verified"}
    texts = folder.read_statements()
    assert sorted(texts) == CLIENTS
    for client_id, text in texts.items():
        statement = verify_statement(text)
        assert statement.scope == client_id
        assert statement.balances[0].totals == {"dp-sgd": 3}
    assert len({verify_statement(text).owner for text in texts.values()}) == 10


def test_without_privacy_the_ledger_says_what_was_entrusted_and_charges_nothing(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    """Principle 1: it left unprotected, and that stands there."""
    folder, _ = start_run(small_plan("federation.rounds=1"), tmp_path / "run", INLINE)
    assert {body["charge"] for body in bodies(folder.ledger, "reserve")} == {None}
    for body in bodies(folder.ledger, "commit"):
        assert body["fields"]["arrays"] == body["fields"]["metrics.train-loss"] == "entrusted"
    assert not folder.statements.exists()


def test_the_epsilon_of_each_round_is_what_the_ledgers_charges_cost(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Recomputed from the entries by dp_accounting, with clients drawn at random and judging the model too."""
    plan = small_plan(
        *PRIVATE,
        "federation.rounds=6",
        "federation.cohort.sampling=fixed",
        "federation.cohort.size=4",
        "evaluation.where=clients",
        "evaluation.every=2",
    )
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    lines = folder.read_metrics()
    assert len(lines) == 6
    for line in lines:
        spent = [
            epsilon(charges(folder.ledger, client_id, up_to=line["round"]), plan.privacy.delta) for client_id in CLIENTS
        ]
        assert line["epsilon_max"] == pytest.approx(max(spent), abs=1e-6)
    summary = folder.read_summary()["privacy"]
    for row in summary["clients"]:
        assert row["epsilon"] == pytest.approx(epsilon(charges(folder.ledger, row["id"]), plan.privacy.delta), abs=1e-6)
        trained = [job for job in reserved(folder.ledger) if job[0] == row["id"] and job[1] == "train"]
        judged = [job for job in reserved(folder.ledger) if job[0] == row["id"] and job[1] == "evaluate"]
        assert (row["charged_rounds"], row["charged_evaluations"]) == (len(trained), len(judged))
    assert 0 < summary["epsilon_max"] <= summary["epsilon_planned"]


# --- killed, and gone on with -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["training", "sending"])
@pytest.mark.parametrize(("client_id", "round_number"), [("0", 1), ("5", 2), ("9", 3)])
def test_a_private_round_that_was_cut_off_is_charged_once_and_answered_with_the_stored_replies(
    small_plan: PlanMaker,
    tmp_path: Path,
    sent: list[tuple[str, str, bytes]],
    where: str,
    client_id: str,
    round_number: int,
) -> None:
    """Principle 5, with secret noise: what was released once is sent again as it was, never drawn anew."""
    plan = small_plan(*PRIVATE)
    broken(plan, tmp_path / "run", where, client_id, round_number)
    before = {(group, name): raw for group, name, raw in sent}
    charged = reserved(tmp_path / "run" / "ledger.sqlite")
    assert charged[client_id, "train", round_number] == 1
    sent.clear()
    folder, outcome = gone_on(tmp_path / "run")
    assert (outcome.stopped, outcome.state.round) == (None, 3)
    assert once_each(folder.ledger, 3)
    again = {(group, name): raw for group, name, raw in sent}
    repeated = [key for key in before if key in again]
    assert repeated == [(str(round_number), name) for name in CLIENTS[: int(client_id)]]
    assert all(before[key] == again[key] != b"" for key in repeated)
    if where == "sending":  # what it had committed and not sent: nothing was drawn anew
        stored = [body["sha256"] for body in bodies(folder.ledger, "commit")]
        assert sha256(again[str(round_number), client_id]).hexdigest() in stored
    privacy = folder.read_summary()["privacy"]
    assert {(row["charged_rounds"], row["rounds"], row["refused"]) for row in privacy["clients"]} == {(3, 3, 0)}
    assert privacy["epsilon_max"] <= plan.privacy.epsilon
    assert "no-client-failed" not in {reason["code"] for reason in privacy["withdrawn"]}
    assert {row["statement"] for row in privacy["clients"]} == {"verified"}


@pytest.mark.parametrize("where", ["training", "sending"])
def test_without_privacy_a_round_that_was_cut_off_ends_in_the_same_model(
    small_plan: PlanMaker, tmp_path: Path, where: str
) -> None:
    """Replies are not stored then: nothing is charged, and they are computed again."""
    plan = small_plan()
    whole, expected = start_run(plan, tmp_path / "whole", INLINE)
    broken(plan, tmp_path / "run", where)
    folder, outcome = gone_on(tmp_path / "run")
    assert outcome.stopped is None
    assert outcome.state.faults == []
    assert once_each(folder.ledger, 3)
    for name, value in expected.parameters.items():
        assert outcome.parameters[name].tobytes() == value.tobytes()
    assert [line["updates"] for line in folder.read_metrics()] == [10, 10, 10]
    assert whole.read_summary()["rounds"] == folder.read_summary()["rounds"]


def test_an_evaluation_that_was_cut_off_is_charged_once(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[str, str, bytes]]
) -> None:
    plan = small_plan(*PRIVATE, "evaluation.where=clients")
    counted: list[int] = []
    original = client.app.count_correct

    def counting(*arguments: Any, **named: Any) -> Any:
        counted.append(1)
        if len(counted) == 14:  # in round 2, the fourth client
            raise CutOffError
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(client.app, "count_correct", counting)
        with pytest.raises(CutOffError):
            start_run(plan, tmp_path / "run", INLINE)
    before = {(group, name): raw for group, name, raw in sent}
    sent.clear()
    folder, outcome = gone_on(tmp_path / "run")
    again = {(group, name): raw for group, name, raw in sent}
    assert outcome.stopped is None
    assert once_each(folder.ledger, 3)
    assert once_each(folder.ledger, 3, "evaluate")
    assert all(before[key] == again[key] for key in before if key in again)
    assert {("2", name) for name in CLIENTS} | {("2 evaluate", name) for name in "012"} <= before.keys() & again.keys()
    assert {row["charged_evaluations"] for row in folder.read_summary()["privacy"]["clients"]} == {3}


def test_a_round_that_failed_is_charged_once_when_it_is_played_again(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[str, str, bytes]]
) -> None:
    """The client that failed trains again under the reservation it has; its claim for the round is withdrawn."""
    plan = small_plan(*PRIVATE, "federation.min_clients=10")
    trained, count = client.private_trainer.train_private, [0]

    def failing(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == 14:
            raise RuntimeError("a defect")
        return trained(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(client.private_trainer, "train_private", failing)
        folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.round) == ("failed", 1)
    assert once_each(folder.ledger, 2)
    failed = folder.read_summary()["privacy"]
    assert {row["charged_rounds"] for row in failed["clients"]} == {3}  # rule 4: the planned rounds are claimed
    before = {(group, name): raw for group, name, raw in sent}
    sent.clear()
    _, outcome = gone_on(folder.path)
    assert outcome.stopped is None
    assert once_each(folder.ledger, 3)
    again = {(group, name): raw for group, name, raw in sent}
    assert [name for name in CLIENTS if before["2", name] == again["2", name]] == [n for n in CLIENTS if n != "3"]
    rows = {row["id"]: row for row in folder.read_summary()["privacy"]["clients"]}
    assert {(row["charged_rounds"], row["rounds"]) for row in rows.values()} == {(3, 3)}
    assert rows["3"]["withdrawn_rounds"] == [2]
    refusals = [(body["task"]["client"], body["reason"]) for body in bodies(folder.ledger, "refuse")]
    assert refusals == [("3", "client-failed")]


def test_two_rounds_back_the_replies_are_still_there(
    small_plan: PlanMaker, tmp_path: Path, sent: list[tuple[str, str, bytes]]
) -> None:
    """The newest checkpoint is damaged as well: the round before is played from stored replies, and the one cut off
    is asked for in the same words, for the model before it is the same."""
    plan = small_plan(*PRIVATE)
    broken(plan, tmp_path / "run", "training", "5", 3)
    newest = tmp_path / "run" / "checkpoints" / "round-000002" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    before = {(group, name): raw for group, name, raw in sent}
    sent.clear()
    folder, outcome = gone_on(tmp_path / "run")
    assert (outcome.stopped, outcome.state.round) == (None, 3)
    assert once_each(folder.ledger, 3)
    again = {(group, name): raw for group, name, raw in sent}
    assert set(again) == {(number, name) for number in ("2", "3") for name in CLIENTS}
    assert all(before[key] == raw for key, raw in again.items() if key in before)


def test_a_model_that_comes_out_otherwise_the_second_time_is_asked_for_anew_and_the_books_say_so(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time client 9 was late in round 2, so it went into no model; played again from the checkpoint before,
    its stored reply is in time. Round 3 is then another request: who had begun on the first one has paid for that,
    and its budget, which covers three rounds, covers no fourth. No epsilon is less than what was charged."""
    deliver = InlineGrid._deliver

    def late(self: InlineGrid, messages: Any, timeout: Any) -> Any:
        for reply in deliver(self, messages, timeout):
            if (reply.metadata.group_id, reply.metadata.src_node_id) != ("2", self.client_nodes["9"]):
                yield reply

    plan = small_plan(*PRIVATE)
    with monkeypatch.context() as patch:
        patch.setattr(InlineGrid, "_deliver", late)
        broken(plan, tmp_path / "run", "training", "5", 3)
    newest = tmp_path / "run" / "checkpoints" / "round-000002" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    folder, outcome = gone_on(tmp_path / "run")
    assert (outcome.stopped, outcome.state.round) == (None, 3)
    assert {fault["client"] for fault in outcome.state.faults if fault["reason"] == "budget-exhausted"} == set("012345")
    assert set(Counter(job[0] for job in reserved(folder.ledger).elements()).values()) == {3}
    privacy = folder.read_summary()["privacy"]
    for row in privacy["clients"]:
        assert row["epsilon"] == pytest.approx(epsilon(charges(folder.ledger, row["id"]), plan.privacy.delta), abs=1e-6)
    assert privacy["epsilon_max"] <= plan.privacy.epsilon


def test_a_run_cut_off_before_anybody_was_asked_begins_anew(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr("simulations.run.create_simulated", killed)
        with pytest.raises(CutOffError):
            start_run(small_plan(*PRIVATE), tmp_path / "run", INLINE)
    folder, outcome = gone_on(tmp_path / "run")
    assert outcome.stopped is None
    assert once_each(folder.ledger, 3)


def test_a_new_run_in_the_folder_of_a_removed_one_has_a_ledger_of_its_own(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    """In one process, as in a notebook: the ledger of the first must not be held on to."""
    plan = small_plan(*PRIVATE, "federation.rounds=1")
    for _ in range(2):
        folder, outcome = start_run(plan, tmp_path / "run", INLINE)
        assert outcome.stopped is None
        assert outcome.state.faults == []
        assert once_each(folder.ledger, 1)
        shutil.rmtree(folder.path)


# --- a ledger that is not what it was -----------------------------------------------------------------------------


@pytest.fixture
def killed(small_plan: PlanMaker, tmp_path: Path) -> Path:
    """A private run that was killed in round 3, with a backup of its ledger from after round 1."""

    class Backs(Diary):
        def round_done(self, record: RoundRecord) -> None:
            if record.round == 1:
                copy_of(tmp_path / "run" / "ledger.sqlite", tmp_path / "backup.sqlite")

    broken(small_plan(*PRIVATE), tmp_path / "run", round_number=3, diary=Backs())
    settle(tmp_path / "run" / "ledger.sqlite")
    return tmp_path / "run"


def remove(ledger: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)


def test_a_ledger_that_is_gone_ends_it_in_one_line(killed: Path) -> None:
    remove(killed / "ledger.sqlite")
    with pytest.raises(
        UsageError, match=r"^[^\n]*ledger\.sqlite: is missing, and with it what clients have spent[^\n]*$"
    ):
        resume_run(killed, INLINE)
    assert not (killed / "ledger.sqlite").exists()


@pytest.mark.parametrize("damage", [b"", b"not a database", b"\x00" * 8192])
def test_a_ledger_that_is_none_ends_it_in_one_line(killed: Path, damage: bytes) -> None:
    remove(killed / "ledger.sqlite")
    (killed / "ledger.sqlite").write_bytes(damage)
    with pytest.raises(LedgerError, match=r"^[^\n]*ledger\.sqlite: is [^\n]*$"):
        resume_run(killed, INLINE)


def test_lost_identities_end_it_in_one_line(killed: Path) -> None:
    (killed / "ledger.sqlite.owners").unlink()
    with pytest.raises(
        RunError, match=r"^[^\n]*owners: can't be read \(No such file or directory\); without it[^\n]*$"
    ):
        resume_run(killed, INLINE)


def test_an_older_copy_leaves_every_client_out_and_trains_nobody(killed: Path, tmp_path: Path) -> None:
    """The server knows of entries of round 2. What the clients then did would be charged to a history that is not
    theirs."""
    remove(killed / "ledger.sqlite")
    shutil.copy(tmp_path / "backup.sqlite", killed / "ledger.sqlite")
    before = reserved(killed / "ledger.sqlite")
    diary = Diary()
    folder, outcome = gone_on(killed, diary)
    assert outcome.stopped == "failed"
    assert outcome.reason == "round 3: 0 good updates of 10 clients, the plan needs 1 (ledger-closed)"
    assert len(diary.notes) == 10
    assert reserved(folder.ledger) == before
    rows = folder.read_summary()["privacy"]["clients"]
    assert {row["statement"] for row in rows} == {"none: ledger-closed"}
    assert {row["charged_rounds"] for row in rows} == {2}  # what the server knows they spent


def flip(ledger: Path, text: bytes, place: int = 0) -> None:
    """Flip a bit of a byte inside a text that the file holds."""
    raw = bytearray(ledger.read_bytes())
    at = raw.index(text) + place
    raw[at] ^= 1
    ledger.write_bytes(raw)


def test_one_byte_flipped_in_one_clients_chain_leaves_that_client_out(killed: Path) -> None:
    with_hash = next(entry.hash for entry in _entries(killed / "ledger.sqlite", "3") if entry.kind == "reserve")
    flip(killed / "ledger.sqlite", with_hash.encode(), 7)
    diary = Diary()
    folder, outcome = gone_on(killed, diary)
    assert outcome.stopped is None
    assert [note.split(":")[0] for note in diary.notes] == ["client 3"]
    assert outcome.state.faults == [{"round": 3, "client": "3", "reason": "ledger-closed"}]
    rows = {row["id"]: row for row in folder.read_summary()["privacy"]["clients"]}
    assert (rows["3"]["charged_rounds"], rows["3"]["rounds"], rows["3"]["refused"]) == (2, 2, 1)
    assert rows["3"]["statement"] == "none: ledger-closed"
    assert {row["rounds"] for name, row in rows.items() if name != "3"} == {3}


def _entries(path: Path, scope: str) -> Iterator[Any]:
    from privacy.ledger import Ledger

    with Ledger.open(path, read_only=True) as ledger:
        yield from ledger.entries(scope)


def test_one_byte_flipped_anywhere_is_an_error_of_one_line_or_costs_clients_or_nothing(
    killed: Path, tmp_path: Path
) -> None:
    """Forty places all over the file. Who trained on has a chain without a flaw, and was charged once a round."""
    whole = (killed / "ledger.sqlite").read_bytes()
    places = random.Random(7).sample(range(len(whole)), 40)
    ends: Counter[str] = Counter()
    for number, place in enumerate(places):
        run = tmp_path / f"flipped-{number}"
        shutil.copytree(killed, run)
        raw = bytearray(whole)
        raw[place] ^= 0x10
        (run / "ledger.sqlite").write_bytes(raw)
        try:
            folder, outcome = gone_on(run)
        except VeilError as error:
            ends["error" if "\n" not in str(error) else "an error of several lines"] += 1
            continue
        left_out = {fault["client"] for fault in outcome.state.faults}
        assert {fault["reason"] for fault in outcome.state.faults} <= {"ledger-closed"}
        ends["clients left out" if left_out else "nothing lost"] += 1
        # A stored reply that nobody asks for any more may be damaged unseen: it will not be sent.
        flaws = [flaw for flaw in verify(folder.ledger) if "stored reply" not in flaw.what]
        for client_id in set(CLIENTS) - left_out:
            assert not [flaw for flaw in flaws if flaw.scope == client_id], place
        if not [flaw for flaw in flaws if flaw.scope is None] and not left_out:
            assert once_each(folder.ledger, 3)
        shutil.rmtree(run)
    assert ends["clients left out"] > 3
    assert set(ends) <= {"error", "clients left out", "nothing lost"}


# --- budgets ------------------------------------------------------------------------------------------------------


def cost_of(plan: Plan, rounds: int) -> float:
    release = plan.train_release()
    assert release is not None
    return epsilon_of({release: rounds}, plan.privacy.delta).epsilon


def test_a_client_whose_budget_pays_for_three_of_ten_rounds_refuses_from_the_fourth_on(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    """The others go on; nobody is told more than a code."""
    ten = (*PRIVATE, "federation.rounds=10")
    budget = cost_of(small_plan(*ten), 3)
    folder, outcome = start_run(small_plan(*ten, f"privacy.client_budgets.3={budget}"), tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.round) == (None, 10)
    assert outcome.state.faults == [
        {"round": number, "client": "3", "reason": "budget-exhausted"} for number in range(4, 11)
    ]
    rows = {row["id"]: row for row in folder.read_summary()["privacy"]["clients"]}
    assert (rows["3"]["rounds"], rows["3"]["charged_rounds"], rows["3"]["refused"]) == (3, 3, 7)
    assert rows["3"]["epsilon"] == pytest.approx(budget) == rows["3"]["budget"]
    assert rows["3"]["withdrawn_rounds"] == []  # rule 5: it depends on plan and ledger alone
    assert {row["rounds"] for name, row in rows.items() if name != "3"} == {10}
    own = Counter(job[2] for job in reserved(folder.ledger) if job[0] == "3")
    assert own == {1: 1, 2: 1, 3: 1}
    refused = [body for body in bodies(folder.ledger, "refuse") if body["task"]["client"] == "3"]
    assert [(body["task"]["round"], body["reason"]) for body in refused] == [
        (number, "budget-exhausted") for number in range(4, 11)
    ]
    assert rows["3"]["statement"] == "verified"


def test_a_hair_less_pays_for_two(small_plan: PlanMaker, tmp_path: Path) -> None:
    five = (*PRIVATE, "federation.rounds=5")
    budget = cost_of(small_plan(*five), 3) * (1 - 1e-6)
    _, outcome = start_run(small_plan(*five, f"privacy.client_budgets.3={budget}"), tmp_path / "run", INLINE)
    assert [fault["round"] for fault in outcome.state.faults] == [3, 4, 5]


def test_too_few_left_end_the_run_for_want_of_budget_and_resuming_it_ends_it_again(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    ten = (*PRIVATE, "federation.rounds=10", "federation.min_clients=10")
    budget = cost_of(small_plan(*ten), 3)
    plan = small_plan(*ten, f"privacy.client_budgets.3={budget}")
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    for _ in range(2):
        assert (outcome.stopped, outcome.state.round) == ("budget", 3)
        assert outcome.reason == (
            "round 4: 1 of 10 clients have no privacy budget left; 9 good updates are too few, the plan needs 10"
        )
        summary = folder.read_summary()
        assert summary["stopped"] == "budget"
        charged = {row["id"]: row["charged_rounds"] for row in summary["privacy"]["clients"]}
        # The others had paid for round 4; asked again, they send what they had computed.
        assert charged == {name: 3 if name == "3" else 4 for name in CLIENTS}
        assert reserved(folder.ledger) == Counter(
            {(name, "train", number): 1 for name in CLIENTS for number in range(1, charged[name] + 1)}
        )
        folder, outcome = gone_on(folder.path)


# --- unprotected fields -------------------------------------------------------------------------------------------


def test_fields_that_leave_unprotected_withdraw_the_claim_of_those_who_let_them_out(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site has the last word: one that doesn't allow it takes part all the same, and keeps its claim."""
    plan = small_plan(*PRIVATE, 'privacy.unprotected=["train-loss", "examples"]', "federation.rounds=2")
    original: Callable[..., Any] = client.simulated_site.simulated_policy

    def strict(plan: Plan, name: str) -> Any:
        policy = original(plan, name)
        release = policy.release.model_copy(update={"unprotected": ()})
        return policy.model_copy(update={"release": release}) if name == "2" else policy

    monkeypatch.setattr(client.simulated_site, "simulated_policy", strict)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.state.faults == []
    assert all(line["train_loss"] > 0 for line in folder.read_metrics())
    assert {line["examples"] for line in folder.read_metrics()} == {_examples(plan, without="2")}
    privacy = folder.read_summary()["privacy"]
    (reason,) = [one for one in privacy["withdrawn"] if one["code"] == "nothing-unprotected"]
    assert reason["clients"] == [name for name in CLIENTS if name != "2"]
    assert reason["values"] == {"fields": "train-loss, examples"}
    assert {row["id"]: row["unprotected_rounds"] for row in privacy["clients"]} == {
        name: [] if name == "2" else [1, 2] for name in CLIENTS
    }
    for body in bodies(folder.ledger, "commit"):
        assert body["fields"]["arrays"] == "charged"
    classes = Counter(body["fields"].get("metrics.train-loss") for body in bodies(folder.ledger, "commit"))
    assert classes == {"unprotected": 18, None: 2}


def _examples(plan: Plan, *, without: str) -> int:
    from client.datasets.partition import client_records
    from client.workplace import split_key

    records = client_records(plan.data, seed=plan.seed, split_key=split_key(plan))
    return sum(len(own) for name, own in records.items() if name != without)


# --- evaluation at clients ----------------------------------------------------------------------------------------


def test_without_privacy_the_clients_accuracy_is_the_pooled_one(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Counted again with the model in the folder on all held-out records together."""
    import torch

    from client.datasets.partition import client_parts
    from client.workplace import split_key
    from simulations.results import load_run

    plan = small_plan("evaluation.where=clients", "training.steps=20")
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    parts = client_parts(plan.data, seed=plan.seed, split_key=split_key(plan))
    x = torch.cat([held_out.x for _, held_out in parts.values()])
    y = torch.cat([held_out.y for _, held_out in parts.values()])
    model = load_run(folder.path).model()
    with torch.inference_mode():
        right = int((model(x).argmax(dim=1) == y).sum())
    final = folder.read_summary()["final"]
    assert final["accuracy"] == right / len(y)
    assert final["accuracy_low"] < final["accuracy"] < final["accuracy_high"]
    assert right > len(y) / 5


def test_under_privacy_the_interval_holds_the_true_accuracy_and_the_plan_pays_for_it(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = small_plan(*PRIVATE, "evaluation.where=clients", "evaluation.count_noise=5", "privacy.noise=reproducible")
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    lines = folder.read_metrics()
    for line in lines:
        evaluation = line["evaluation"]
        assert set(evaluation) == {"accuracy", "accuracy_low", "accuracy_high"}
        assert evaluation["accuracy_low"] <= evaluation["accuracy"] <= evaluation["accuracy_high"]
    privacy = folder.read_summary()["privacy"]
    assert {(row["charged_rounds"], row["charged_evaluations"]) for row in privacy["clients"]} == {(3, 3)}
    assert privacy["epsilon_max"] <= privacy["epsilon_planned"] == plan.privacy.epsilon
    without = small_plan(*PRIVATE)
    assert plan.privacy.noise_multiplier is not None
    assert without.privacy.noise_multiplier is not None
    assert plan.privacy.noise_multiplier > without.privacy.noise_multiplier  # the counts have their part of epsilon
    fields = [body["fields"] for body in bodies(folder.ledger, "commit")]
    assert Counter(own.get("metrics.correct") for own in fields) == {"charged": 30, None: 30}
