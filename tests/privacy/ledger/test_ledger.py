"""The ledger: reserve before data is touched, commit before a byte leaves, and one release for one charge."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from privacy.canonical_json import canonical
from privacy.ledger import BudgetExhausted, Ledger, LedgerError, Reason, ReplyGone, Reserved, Stored
from privacy.ledger.check import verify
from privacy.lifetime import Account, Limit, multiset
from privacy.mechanisms import DpSgd
from tests.privacy.ledger.cases import (
    FIELDS,
    LIMIT,
    OTHER_PLAN,
    PERSONS,
    PLAN,
    RECORDS,
    RELEASE,
    ROUND,
    Clock,
    affordable,
    charged,
    in_child,
    play,
    reserve,
    tamper,
    task,
    terms,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.create(path, durable=False, clock=clock) as ledger:
        ledger.open_scope("site", owner="")
        yield ledger
    assert verify(path) == []  # whatever a test did through the ledger alone


def kinds(ledger: Ledger, scope: str = "site") -> list[str]:
    return [entry.kind for entry in ledger.entries(scope)]


class TestOneTask:
    def test_it_is_reserved_then_committed(self, ledger: Ledger) -> None:
        answer = reserve(ledger)
        assert answer == Reserved(again=False, anchor=ledger.head("site"))
        assert charged(ledger) == 1
        assert ledger.commit("site", task().id, b"update", fields=FIELDS) == b"update"
        assert kinds(ledger) == ["open", "reserve", "commit"]

    def test_a_reservation_counts_as_spent_whether_or_not_a_commit_follows(self, ledger: Ledger, path: Path) -> None:
        reserve(ledger, 0)
        play(ledger, 1)
        with Ledger.open(path) as again:
            assert charged(again) == charged(ledger) == 2

    def test_uncommitted_it_may_run_again_and_is_charged_once(self, ledger: Ledger) -> None:
        first = reserve(ledger)
        assert reserve(ledger) == Reserved(again=True, anchor=first.anchor)
        assert charged(ledger) == 1

    def test_committed_it_gets_its_stored_reply_byte_for_byte(self, ledger: Ledger, path: Path) -> None:
        play(ledger, reply=bytes(range(256)) * 100)
        for reader in (ledger, Ledger.open(path)):
            answer = reserve(reader)
            assert answer == Stored(reply=bytes(range(256)) * 100, anchor=ledger.head("site"))
        assert charged(ledger) == 1

    def test_a_second_commit_sends_the_first_ones_reply(self, ledger: Ledger) -> None:
        """Rule 5, principle 5: two replies under one charge would be two releases."""
        play(ledger, reply=b"first noise")
        assert ledger.commit("site", task().id, b"other noise", fields=FIELDS) == b"first noise"
        assert kinds(ledger) == ["open", "reserve", "commit"]

    def test_two_processes_with_the_same_task_send_one_reply(self, ledger: Ledger, path: Path) -> None:
        with Ledger.open(path) as other:
            first, second = reserve(ledger), reserve(other)
            assert first.anchor == second.anchor
            assert (first, second) == tuple(Reserved(again=again, anchor=first.anchor) for again in (False, True))
            assert ledger.commit("site", task().id, b"a", fields=FIELDS) == b"a"
            assert other.commit("site", task().id, b"b", fields=FIELDS) == b"a"
            assert charged(other) == charged(ledger) == 1

    def test_what_was_never_reserved_cannot_leave(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="never reserved"):
            ledger.commit("site", task().id, b"update", fields=FIELDS)
        assert kinds(ledger) == ["open"]

    def test_a_field_of_no_known_class_cannot_leave(self, ledger: Ledger) -> None:
        """Principle 1: each value is charged, public, entrusted or unprotected."""
        reserve(ledger)
        with pytest.raises(ValueError, match="charged, public, entrusted, unprotected"):
            ledger.commit("site", task().id, b"x", fields={"loss": "harmless"})  # type: ignore[dict-item]
        assert kinds(ledger) == ["open", "reserve"]

    def test_the_same_task_with_another_charge_is_refused(self, ledger: Ledger) -> None:
        reserve(ledger)
        dearer = multiset([DpSgd(noise_multiplier=1.0, sample_rate=1.0, steps=1)])
        for how in ({"releases": dearer}, {"plan": OTHER_PLAN}, {"balance": PERSONS}):
            with pytest.raises(LedgerError, match="another charge"):
                reserve(ledger, **how)
        with pytest.raises(LedgerError, match="another charge"):
            ledger.reserve("site", task())

    def test_an_unprotected_task_is_written_down_and_charged_nothing(self, ledger: Ledger) -> None:
        assert ledger.reserve("site", task(), terms=terms()) == Reserved(again=False, anchor=ledger.head("site"))
        assert ledger.balances("site") == ()
        entry = list(ledger.entries("site"))[-1]
        assert (entry.body["charge"], entry.body["plan"]) == (None, PLAN)
        ledger.commit("site", task().id, b"raw", fields={"update": "unprotected"})
        assert isinstance(ledger.reserve("site", task()), Stored)

    @pytest.mark.parametrize("missing", ["balance", "terms", "limit"])
    def test_what_releases_something_needs_balance_terms_and_limit(self, ledger: Ledger, missing: str) -> None:
        given: dict[str, Any] = {"balance": RECORDS, "terms": terms(), "limit": LIMIT, missing: None}
        with pytest.raises(ValueError, match="balance, terms and a limit"):
            ledger.reserve("site", task(), releases=ROUND, **given)

    def test_releases_that_are_not_in_canonical_form_are_refused(self, ledger: Ledger) -> None:
        other = DpSgd(noise_multiplier=2.0, sample_rate=1.0, steps=1)
        good = multiset([RELEASE, other])
        for bad in (good[::-1], ((RELEASE, 0),), ((RELEASE, 1), (RELEASE, 1)), ((RELEASE, True),)):
            with pytest.raises(ValueError, match="release"):
                reserve(ledger, releases=bad)
        assert kinds(ledger) == ["open"]
        assert reserve(ledger, releases=good)

    def test_the_entry_says_who_asked_for_what_and_what_was_charged(self, ledger: Ledger) -> None:
        play(ledger)
        _, reserved, committed = ledger.entries("site")
        assert reserved.body["task"] == {
            "federation": "fed", "run": "run-1", "round": 0, "phase": "train", "client": "site",
            "request": task().request,
        }  # fmt: skip
        assert reserved.body["charge"] == {
            "balance": {"unit": "record", "trust": "local"},
            "plan": PLAN,
            "delta": 1e-5,
            "proof": "filter",
            "envelope": None,
            "releases": [[RELEASE.to_json(), 1]],
            "limit": {"epsilon": 8.0, "delta": 1e-5, "filter": "rdp"},
        }
        assert committed.body["fields"] == FIELDS
        assert committed.body["length"] == len(b"reply 0")
        assert "reply" not in committed.body  # its hash alone
        assert b"reply 0".hex() not in canonical(committed.body)


class TestBudget:
    def test_every_round_it_covers_and_not_one_more(self, ledger: Ledger) -> None:
        """Rule 4: the same answer as the limit itself gives, without a ledger."""
        limit = Limit(epsilon=3.0, delta=1e-5)
        count = affordable(limit)
        assert 0 < count < 20
        for number in range(count):
            play(ledger, number, limit=limit)
        with pytest.raises(BudgetExhausted, match="budget does not cover round"):
            reserve(ledger, count, limit=limit)
        assert charged(ledger) == count

    @pytest.mark.parametrize("filter_", ["rdp", "sum"])
    def test_an_envelope_is_written_once_and_read_back(self, ledger: Ledger, path: Path, filter_: Any) -> None:
        limit = Limit(epsilon=3.0, delta=1e-5, filter=filter_)
        play(ledger, 0, limit=limit)
        play(ledger, 1, limit=limit)
        charges = [entry.body["charge"] for entry in ledger.entries("site") if entry.kind == "reserve"]
        assert [charge["envelope"] is not None for charge in charges] == [True, False]
        with Ledger.open(path) as other:
            (plan,) = other.account("site", RECORDS).plans
        assert plan.proof == "plan"
        assert plan.envelope == ((RELEASE, affordable(limit)),)

    def test_a_budget_spent_in_one_process_is_spent_in_another(self, ledger: Ledger, path: Path) -> None:
        limit = Limit(epsilon=3.0, delta=1e-5)
        with Ledger.open(path) as other:
            other.head("site")  # it knows the chain as it was
            for number in range(affordable(limit)):
                reserve(ledger, number, limit=limit)
            with pytest.raises(BudgetExhausted):
                reserve(other, 99, limit=limit)

    def test_a_refusal_is_written_once_however_often_the_task_is_asked(self, ledger: Ledger) -> None:
        tiny = Limit(epsilon=0.01, delta=1e-5)
        for _ in range(3):
            with pytest.raises(BudgetExhausted):
                reserve(ledger, limit=tiny)
        assert kinds(ledger) == ["open", "refuse"]
        assert list(ledger.entries("site"))[-1].body["reason"] == "budget-exhausted"
        assert ledger.account("site", RECORDS) == Account()

    def test_a_refused_task_may_run_once_the_policy_allows_it(self, ledger: Ledger) -> None:
        with pytest.raises(BudgetExhausted):
            reserve(ledger, limit=Limit(epsilon=0.01, delta=1e-5))
        assert reserve(ledger) == Reserved(again=False, anchor=ledger.head("site"))

    def test_unlike_balances_have_accounts_of_their_own(self, ledger: Ledger) -> None:
        play(ledger, 0)
        play(ledger, 1, balance=PERSONS)
        play(ledger, 2, balance=PERSONS)
        assert (charged(ledger), charged(ledger, balance=PERSONS)) == (1, 2)
        assert ledger.balances("site") == (RECORDS, PERSONS)

    def test_plans_stand_in_the_order_of_their_first_charge(self, ledger: Ledger) -> None:
        for number, plan in enumerate([OTHER_PLAN, PLAN, OTHER_PLAN]):
            play(ledger, number, plan=plan)
        account = ledger.account("site", RECORDS)
        assert [(plan.plan, plan.charged[0][1]) for plan in account.plans] == [(OTHER_PLAN, 2), (PLAN, 1)]

    def test_scopes_have_budgets_of_their_own(self, ledger: Ledger) -> None:
        """Rule 6: a ledger belongs to a population."""
        ledger.open_scope("other people", owner="")
        play(ledger, 0)
        assert charged(ledger, scope="other people") == 0
        assert ledger.scopes() == ("other people", "site")

    def test_integers_in_a_limit_are_written_as_numbers_like_all_others(self, ledger: Ledger) -> None:
        reserve(ledger, limit=Limit(epsilon=8, delta=1e-5))
        assert reserve(ledger).again  # type: ignore[union-attr]


class TestStoredReplies:
    def test_the_two_newest_of_each_run_and_phase_are_kept(self, ledger: Ledger, path: Path) -> None:
        for number in range(4):
            play(ledger, number)
            play(ledger, number, phase="evaluate")
        for number, phase in [(2, "train"), (3, "train"), (2, "evaluate"), (3, "evaluate")]:
            assert isinstance(reserve(ledger, number, phase=phase), Stored)
        with Ledger.open(path) as other:
            for reader in (ledger, other):
                with pytest.raises(ReplyGone, match="no longer stored"):
                    reserve(reader, 1)
                with pytest.raises(ReplyGone):
                    reader.commit("site", task(1).id, b"another", fields=FIELDS)

    def test_a_late_second_commit_never_sends_other_bytes(self, ledger: Ledger) -> None:
        for number in range(3):
            play(ledger, number)
        with pytest.raises(ReplyGone):
            ledger.commit("site", task(0).id, b"reply 0", fields=FIELDS)

    def test_a_reply_need_not_be_kept_and_then_is_sent_once(self, ledger: Ledger) -> None:
        reserve(ledger)
        ledger.commit_unkept("site", task().id, sha256="ab" * 32, length=1, fields=FIELDS)
        with pytest.raises(ReplyGone):
            reserve(ledger)
        with pytest.raises(ReplyGone):
            ledger.commit_unkept("site", task().id, sha256="ab" * 32, length=1, fields=FIELDS)
        assert kinds(ledger) == ["open", "reserve", "commit"]

    def test_a_reply_that_is_not_kept_needs_a_reservation_and_a_hash(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="never reserved"):
            ledger.commit_unkept("site", task().id, sha256="ab" * 32, length=1, fields=FIELDS)
        reserve(ledger)
        with pytest.raises(ValueError, match="hash"):
            ledger.commit_unkept("site", task().id, sha256="none", length=1, fields=FIELDS)
        assert kinds(ledger) == ["open", "reserve"]

    def test_an_altered_reply_is_found_before_it_is_sent_again(self, path: Path) -> None:
        with Ledger.create(path) as ledger:
            ledger.open_scope("site", owner="")
            play(ledger)
        tamper(path, "UPDATE replies SET reply = x'00'")
        with Ledger.open(path) as ledger:
            with pytest.raises(LedgerError, match="entry 2: its reply was changed"):
                reserve(ledger)
            with pytest.raises(LedgerError, match="its reply was changed"):
                ledger.commit("site", task().id, b"x", fields=FIELDS)

    def test_a_lost_reply_is_damage_not_an_old_one(self, path: Path) -> None:
        with Ledger.create(path) as ledger:
            ledger.open_scope("site", owner="")
            play(ledger)
        tamper(path, "DELETE FROM replies")
        with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="its reply is missing"):
            reserve(ledger)


class TestRefusals:
    def test_a_refusal_names_the_task_and_a_code_once_each(self, ledger: Ledger) -> None:
        """Rule 5: fixed codes, no text."""
        for reason in (Reason.POLICY_NOISE, Reason.POLICY_NOISE, Reason.POLICY_RATE):
            ledger.refuse("site", task(), reason)
        assert [entry.body["reason"] for entry in list(ledger.entries("site"))[1:]] == ["policy-noise", "policy-rate"]

    @pytest.mark.parametrize("reason", ["policy", "rounds-a-day", "a-rule-of-a-newer-veil"])
    def test_a_code_of_an_earlier_or_a_newer_ledger_is_read(self, path: Path, reason: str) -> None:
        with Ledger.create(path, durable=False) as ledger:
            ledger.open_scope("site", owner="")
            with ledger.batch():
                chain, _ = ledger._store.opened("site")
                ledger._store.append(chain, "refuse", {"task": asdict(task()), "reason": reason})
        assert verify(path) == []
        with Ledger.open(path) as ledger:
            assert [entry.body["reason"] for entry in list(ledger.entries("site"))[1:]] == [reason]

    def test_free_text_is_no_reason(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="not a valid Reason"):
            ledger.refuse("site", task(), "record 17 has a NaN")  # type: ignore[arg-type]


class TestScopesAndPolicies:
    def test_opening_a_scope_again_changes_nothing(self, ledger: Ledger) -> None:
        first = ledger.head("site")
        assert ledger.open_scope("site", owner="") == first == ledger.head("site")

    def test_a_scope_belongs_to_one_key(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="another key"):
            ledger.open_scope("site", owner="c" * 64)
        with pytest.raises(ValueError, match="64 lower-case"):
            ledger.open_scope("new", owner="C" * 64)

    def test_two_ledgers_never_begin_alike(self, tmp_path: Path, clock: Clock) -> None:
        heads = set()
        for name in "ab":
            with Ledger.create(tmp_path / name, clock=clock) as ledger:
                heads.add(ledger.open_scope("site", owner="").hash)
        assert len(heads) == 2

    @pytest.mark.parametrize("name", ["", " site", "si\nte", "x" * 201, "\udc80", "Mu\u0308nchen", "ﬁliale", None])
    def test_a_name_that_could_mislead_is_refused(self, ledger: Ledger, name: Any) -> None:
        with pytest.raises(ValueError, match="scope's name"):
            ledger.open_scope(name, owner="")

    def test_names_in_any_script_are_fine(self, ledger: Ledger) -> None:
        ledger.open_scope("Klinikum München · 病院", owner="")
        play(ledger, scope="Klinikum München · 病院")

    def test_nothing_is_done_in_a_scope_that_was_never_opened(self, ledger: Ledger) -> None:
        for call in (
            lambda: reserve(ledger, scope="unknown"),
            lambda: ledger.head("unknown"),
            lambda: ledger.account("unknown", RECORDS),
            lambda: ledger.refuse("unknown", task(), Reason.POLICY),
            lambda: ledger.set_policy("unknown", {}, "d" * 64),
        ):
            with pytest.raises(LedgerError, match="no scope 'unknown'"):
                call()

    def test_a_policy_is_written_when_its_digest_changes(self, ledger: Ledger) -> None:
        ledger.set_policy("site", {"budget": 8.0}, "d" * 64)
        ledger.set_policy("site", {"budget": 8.0}, "d" * 64)
        ledger.set_policy("site", {"budget": 3.0}, "e" * 64)
        ledger.set_policy("site", {"budget": 8.0}, "d" * 64)
        assert [entry.body["policy"]["budget"] for entry in list(ledger.entries("site"))[1:]] == [8.0, 3.0, 8.0]

    @pytest.mark.parametrize("policy", [{"budget": float("nan")}, {1: "x"}, {"x": object()}])
    def test_a_policy_that_is_not_json_is_refused(self, ledger: Ledger, policy: Any) -> None:
        with pytest.raises(ValueError, match=r"JSON|text"):
            ledger.set_policy("site", policy, "d" * 64)
        assert kinds(ledger) == ["open"]


class TestBatches:
    def test_all_that_is_done_inside_comes_at_once(self, ledger: Ledger, path: Path) -> None:
        with Ledger.open(path) as other, ledger.batch():
            for number in range(5):
                reserve(ledger, number)
            assert charged(ledger) == 5
            assert charged(other) == 0
        assert charged(Ledger.open(path)) == 5

    def test_an_exception_undoes_all_of_it(self, ledger: Ledger) -> None:
        play(ledger, 0)
        with suppress(ZeroDivisionError), ledger.batch():
            play(ledger, 1)
            _ = 1 / 0
        assert charged(ledger) == 1
        play(ledger, 1, reply=b"anew")
        assert reserve(ledger, 1) == Stored(reply=b"anew", anchor=ledger.head("site"))

    def test_an_exception_that_is_caught_undoes_its_own_call_alone(self, ledger: Ledger) -> None:
        tiny = Limit(epsilon=0.01, delta=1e-5)
        with ledger.batch():
            reserve(ledger, 0)
            with pytest.raises(ValueError, match="never reserved"):
                ledger.commit("site", task(7).id, b"x", fields=FIELDS)
            with pytest.raises(BudgetExhausted):
                reserve(ledger, 1, limit=tiny)
            reserve(ledger, 2)
        assert kinds(ledger) == ["open", "reserve", "refuse", "reserve"]

    def test_inside_one_another_they_are_one(self, ledger: Ledger) -> None:
        with suppress(ZeroDivisionError), ledger.batch():
            with ledger.batch():
                reserve(ledger, 0)
            _ = 1 / 0
        assert charged(ledger) == 0

    def test_a_rule_checked_inside_holds_until_the_end(self, ledger: Ledger, path: Path, clock: Clock) -> None:
        """Two processes that both count 0 rounds today and both begin one would have begun two."""
        started = threading.Event()

        def in_time() -> int:
            with Ledger.open(path, clock=clock) as other:
                started.set()
                with other.batch():
                    return len(other.tasks_within("site", timedelta(days=1)))

        with ThreadPoolExecutor(1) as pool:
            with ledger.batch():
                assert ledger.tasks_within("site", timedelta(days=1)) == {}
                waiting = pool.submit(in_time)
                started.wait()
                reserve(ledger, 0)
            assert waiting.result() == 1


class TestRoundsADay:
    DAY = timedelta(days=1)

    def rounds(self, ledger: Ledger) -> set[int]:
        return {number for *_, number in ledger.tasks_within("site", self.DAY).values()}

    def test_a_round_counts_once_for_a_day(self, ledger: Ledger, clock: Clock) -> None:
        reserve(ledger, 0)
        reserve(ledger, 0, phase="evaluate")
        clock.move(hours=23)
        reserve(ledger, 1)
        assert self.rounds(ledger) == {0, 1}
        clock.move(hours=1)
        assert self.rounds(ledger) == {1}
        clock.move(hours=23)
        assert self.rounds(ledger) == set()

    def test_a_clock_that_jumps_back_frees_nothing(self, ledger: Ledger, clock: Clock) -> None:
        reserve(ledger, 0)
        clock.move(days=-3000)
        assert self.rounds(ledger) == {0}
        reserve(ledger, 1)
        clock.move(hours=23)
        assert self.rounds(ledger) == {0, 1}

    def test_a_jump_ahead_that_is_put_right_neither_frees_nor_blocks_later_rounds(
        self, ledger: Ledger, clock: Clock
    ) -> None:
        reserve(ledger, 0)
        clock.move(days=30_000)
        reserve(ledger, 1)
        clock.move(days=-30_000)
        for number in (2, 3):
            reserve(ledger, number)
        assert self.rounds(ledger) == {1, 2, 3}
        clock.move(hours=24)
        assert self.rounds(ledger) == set()

    def test_times_are_informative_only(self, ledger: Ledger, clock: Clock, path: Path) -> None:
        clock.move(days=-3000)
        play(ledger, 0)
        assert charged(Ledger.open(path)) == 1
        assert verify(path) == []


class TestWhoMayUseIt:
    def test_a_ledger_opened_before_a_fork_is_not_used_after(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="before a fork"):
            in_child(lambda: reserve(ledger))
        reserve(ledger)

    def test_a_file_that_was_open_at_a_fork_is_not_opened_in_the_child(self, ledger: Ledger, path: Path) -> None:
        """SQLite would believe it holds the locks of the parent, and lose what the child writes."""
        with pytest.raises(LedgerError, match="was open when this process was forked"):
            in_child(lambda: Ledger.open(path))
        ledger.close()
        assert in_child(lambda: Ledger.open(path).scopes()) == ("site",)

    def test_threads_take_turns(self, ledger: Ledger) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: play(ledger, number, rounds=40), range(40)))
        assert charged(ledger) == 40
        assert sorted(kinds(ledger)) == ["commit"] * 40 + ["open"] + ["reserve"] * 40

    def test_a_reader_changes_nothing(self, ledger: Ledger, path: Path) -> None:
        play(ledger)
        with Ledger.open(path, read_only=True) as reader:
            assert charged(reader) == 1
            with pytest.raises(LedgerError, match="for reading only"):
                reserve(reader, 5)
            assert reader.head("site") == ledger.head("site")

    def test_the_account_is_read_on_from_where_it_was(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(10):
            play(ledger, number)
        from privacy.ledger.chain import Chain

        read: list[object] = []
        monkeypatch.setattr(Chain, "read", lambda _, row: read.append(row))
        ledger.account("site", RECORDS)
        assert read == []


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_called_in_whatever_order_by_whomever(path: Path, seed: int) -> None:
    """Against a model of a few lines: three users of one file, who now and then close it, crash or batch."""
    draw = random.Random(seed)
    limit = Limit(epsilon=5.0, delta=1e-5)
    budget = affordable(limit, rounds=200)
    reserved: set[int] = set()
    answers: dict[int, bytes] = {}
    with Ledger.create(path) as ledger:
        ledger.open_scope("site", owner="")
    users = [Ledger.open(path, durable=False) for _ in range(3)]
    for step in range(300):
        index, number = draw.randrange(3), draw.randrange(budget + 5)
        ledger = users[index]
        gone = number in answers and number not in list(answers)[-2:]
        match draw.choice(["reserve", "reserve", "commit", "commit", "close", "undone batch"]):
            case "reserve":
                try:
                    found = reserve(ledger, number, limit=limit, rounds=200)
                except BudgetExhausted:
                    assert number not in reserved
                    assert len(reserved) == budget
                    continue
                except ReplyGone:
                    assert gone
                    continue
                if number in answers:
                    assert isinstance(found, Stored)
                    assert found.reply == answers[number]
                else:
                    assert isinstance(found, Reserved)
                    assert found.again == (number in reserved)
                reserved.add(number)
            case "commit" if number in reserved:
                try:
                    sent = ledger.commit("site", task(number).id, b"%d" % step, fields=FIELDS)
                except ReplyGone:
                    assert gone
                    continue
                assert sent == answers.setdefault(number, b"%d" % step)
            case "close":
                ledger.close()
                users[index] = Ledger.open(path, durable=False)
            case "undone batch":
                with suppress(ZeroDivisionError, BudgetExhausted), ledger.batch():
                    reserve(ledger, 500 + step, limit=limit, rounds=200)
                    _ = 1 / 0
        assert charged(draw.choice(users)) == len(reserved) <= budget
    assert verify(path) == []
    assert len(reserved) == budget
    for ledger in users:
        ledger.close()


def test_a_snapshot_is_of_one_moment_and_names_earlier_places(ledger: Ledger) -> None:
    for number in range(100):
        reserve(ledger, number, limit=Limit(epsilon=100.0, delta=1e-5), rounds=100)
    found = ledger.snapshot("site")
    assert found.head == ledger.head("site")
    assert [place.position for place in found.past] == [*range(99, 35, -1), 0]
    assert all(ledger.holds(place) for place in found.past)
    assert found.accounts[RECORDS] == ledger.account("site", RECORDS)


def test_an_anchor_is_held_by_the_chain_it_is_of(ledger: Ledger) -> None:
    play(ledger)
    places = [entry.anchor for entry in ledger.entries("site")]
    assert all(ledger.holds(place) for place in places)
    assert not ledger.holds(replace(places[1], hash=places[2].hash))
    assert not ledger.holds(replace(places[1], position=9))
    assert not ledger.holds(replace(places[1], scope="other"))
