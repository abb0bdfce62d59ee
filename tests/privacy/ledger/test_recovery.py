"""After a loss: what was signed is charged, what nobody signed closes the scope or ends its claims."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import Anchor, Ledger, LedgerError, Stored, default_anchors
from privacy.ledger.anchors import read_anchors
from privacy.ledger.check import audit, verify
from privacy.ledger.recovery import recover
from privacy.lifetime import Account, Limit
from privacy.statement import make_statement
from security.errors import UsageError
from security.identity import Identity
from tests.privacy.ledger.cases import (
    FIELDS,
    LIMIT,
    OTHER_PLAN,
    PERSONS,
    RECORDS,
    affordable,
    charged,
    play,
    reserve,
    tamper,
    task,
)

OWNER = Identity.derive(b"sixteen bytes ..", "site")


class Site:
    """A ledger with its anchor, its backups, and the statements it gave away."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.sqlite"
        self.anchors = default_anchors(self.path)
        self._folder = folder
        with Ledger.create(self.path, anchors=self.anchors) as ledger:
            ledger.open_scope("site", owner=OWNER.public_hex)

    def open(self) -> Ledger:
        return Ledger.open(self.path, durable=False, anchors=self.anchors)

    def play(self, *numbers: int, **how: Any) -> Anchor:
        with self.open() as ledger:
            for number in numbers:
                play(ledger, number, **how)
            return ledger.head("site")

    def say(self, detail: Any = "full") -> str:
        with self.open() as ledger:
            return make_statement(ledger, "site", OWNER, detail=detail).text

    def backup(self) -> Callable[[], None]:
        """A copy of the ledger; called, it is put back, with the anchor as it is then."""
        copy = self._folder / f"backup-{len(list(self._folder.iterdir()))}"
        shutil.copy(self.path, copy)

        def restore() -> None:
            self.path.unlink(missing_ok=True)
            shutil.copy(copy, self.path)

        return restore

    def recover(self, *statements: str, **how: Any) -> Any:
        return recover(self.path, "site", statements=statements, anchors=self.anchors, **how)

    def charged(self) -> int:
        with self.open() as ledger:
            return charged(ledger)

    def is_closed(self) -> bool:
        try:
            with self.open() as ledger:
                reserve(ledger, 99)
        except LedgerError:
            return True
        return False


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class TestARestoredBackup:
    def test_a_statement_restores_what_was_charged_since(self, site: Site) -> None:
        site.play(0, 1)
        restore = site.backup()
        site.play(2, 3, 4)
        statement = site.say()
        restore()
        assert site.is_closed()
        result = site.recover(statement)
        assert not result.withdrawn
        assert sum(count for charge in result.charges for _, count in charge.releases) == 3
        assert site.charged() == 5
        assert verify(site.path) == []
        assert not site.is_closed()

    def test_what_the_lost_chain_had_is_held_from_then_on(self, site: Site) -> None:
        site.play(0)
        restore = site.backup()
        places = [site.play(1), site.play(2)]
        statement = site.say()
        restore()
        site.recover(statement)
        with site.open() as ledger:
            assert all(ledger.holds(place) for place in places)
            assert not ledger.holds(Anchor(scope="site", position=3, hash="0" * 64))

    def test_a_task_of_the_lost_chain_is_a_new_release_and_charged_again(self, site: Site) -> None:
        site.play(0)
        restore = site.backup()
        site.play(1)
        statement = site.say()
        restore()
        site.recover(statement)
        site.play(1)
        assert site.charged() == 3

    def test_plans_and_balances_that_the_backup_never_saw(self, site: Site) -> None:
        site.play(0)
        restore = site.backup()
        site.play(1, plan=OTHER_PLAN)
        site.play(2, 3, balance=PERSONS, limit=Limit(epsilon=3.0, delta=1e-5))
        with site.open() as ledger:
            before = {balance: ledger.account("site", balance) for balance in (RECORDS, PERSONS)}
        statement = site.say()
        restore()
        site.recover(statement)
        with site.open() as ledger:
            assert {balance: ledger.account("site", balance) for balance in (RECORDS, PERSONS)} == before
            assert before[PERSONS].plans[0].envelope is not None

    def test_a_recovered_budget_is_as_spent_as_it_was(self, site: Site) -> None:
        limit = Limit(epsilon=3.0, delta=1e-5)
        count = affordable(limit)
        restore = site.backup()
        site.play(*range(count - 1), limit=limit)
        statement = site.say()
        restore()
        site.recover(statement)
        site.play(50, limit=limit)
        with pytest.raises(Exception, match="budget does not cover"):
            site.play(51, limit=limit)

    def test_without_a_statement_the_scope_stays_closed(self, site: Site) -> None:
        restore = site.backup()
        head = site.play(0)
        restore()
        with pytest.raises(LedgerError, match=f"nothing says what was charged up to entry {head.position}"):
            site.recover()
        assert site.is_closed()

    def test_a_statement_that_is_too_old_leaves_a_gap(self, site: Site) -> None:
        restore = site.backup()
        site.play(0)
        statement = site.say()
        site.play(1)
        restore()
        with pytest.raises(LedgerError, match="find a newer full statement, or write the gap off"):
            site.recover(statement)
        assert site.is_closed()

    def test_a_gap_that_is_written_off_ends_every_claim(self, site: Site) -> None:
        restore = site.backup()
        site.play(0)
        statement = site.say()
        site.play(1)
        restore()
        result = site.recover(statement, write_off=True)
        assert result.withdrawn
        with site.open() as ledger:
            assert charged(ledger) == 1
            play(ledger, 2, balance=PERSONS)
            for balance in (RECORDS, PERSONS):
                assert ledger.account("site", balance).withdrawn
                assert LIMIT.spent(ledger.account("site", balance)).proof == "withdrawn"
            assert ledger.snapshot("site").withdrawn
        assert verify(site.path) == []

    def test_writing_off_what_is_no_gap_withdraws_nothing(self, site: Site) -> None:
        restore = site.backup()
        site.play(0)
        statement = site.say()
        restore()
        assert not site.recover(statement, write_off=True).withdrawn

    def test_recovered_twice_it_is_charged_once(self, site: Site) -> None:
        restore = site.backup()
        site.play(0)
        statement = site.say()
        restore()
        site.recover(statement)
        head = site.recover(statement).head
        assert site.charged() == 1
        with site.open() as ledger:
            assert [entry.kind for entry in ledger.entries("site")] == ["open", "recover"]
            assert ledger.head("site") == head

    def test_several_statements_of_one_chain_are_charged_once(self, site: Site) -> None:
        restore = site.backup()
        said = []
        for number in range(4):
            site.play(number)
            said.append(site.say())
        restore()
        site.recover(*said)
        assert site.charged() == 4

    def test_nothing_to_recover_writes_nothing(self, site: Site) -> None:
        head = site.play(0)
        assert site.recover(site.say(), anchor=head).head == head
        with site.open() as ledger:
            assert ledger.head("site") == head


class TestTwoCopiesThatWentOn:
    """A backup put to use without its anchor: both copies released, so both count."""

    def fork(self, site: Site, *numbers: int, **how: Any) -> str:
        """A copy plays on by itself, says what it did, and is lost."""
        restore = site.backup()
        with Ledger.open(site.path) as ledger:
            for number in numbers:
                play(ledger, number, **how)
            statement = make_statement(ledger, "site", OWNER, detail="full").text
        restore()
        return statement

    def test_what_both_charged_after_they_parted_is_added(self, site: Site) -> None:
        site.play(0, 1)
        statement = self.fork(site, 2, 3, 4)
        site.play(2, 3)  # the same tasks, with other noise
        site.recover(statement)
        assert site.charged() == 2 + 3 + 2

    def test_far_apart_more_is_charged_rather_than_less(self, site: Site) -> None:
        """Of a long past a statement names fewer and fewer places; between them everything counts twice."""
        wide: dict[str, Any] = {"limit": Limit(epsilon=300.0, delta=1e-5), "rounds": 300}
        site.play(*range(40), **wide)
        statement = self.fork(site, *range(100, 170), **wide)
        site.recover(statement)
        assert 110 <= site.charged() <= 110 + 40

    def test_a_plan_that_both_charged_beyond_its_envelope_ends_the_claim(self, site: Site) -> None:
        how: dict[str, Any] = {"limit": Limit(epsilon=3.0, delta=1e-5)}
        count = affordable(how["limit"])
        site.play(0, **how)
        statement = self.fork(site, *range(10, 10 + count - 1), **how)
        site.play(1, 2, **how)
        with pytest.raises(LedgerError, match="charged more than a plan may"):
            site.recover(statement)
        assert site.recover(statement, write_off=True).withdrawn
        assert site.charged() == count + 2
        assert verify(site.path) == []

    def test_a_plan_under_unlike_proofs_ends_the_claim(self, site: Site) -> None:
        statement = self.fork(site, 0, limit=Limit(epsilon=3.0, delta=1e-5))
        site.play(0)
        with pytest.raises(LedgerError, match="unlike proofs"):
            site.recover(statement)
        assert site.recover(statement, write_off=True).withdrawn

    def test_two_lost_copies_both_count(self, site: Site) -> None:
        site.play(0)
        first, second = self.fork(site, 1, 2), self.fork(site, 1, 2, 3)
        site.recover(first, second)
        assert site.charged() == 1 + 2 + 3


class TestALostFile:
    def test_a_new_ledger_takes_up_what_was_signed(self, site: Site) -> None:
        site.play(0, 1)
        with site.open() as ledger:
            before = ledger.account("site", RECORDS)
        statement = site.say()
        site.path.unlink()
        site.recover(statement)
        with site.open() as ledger:
            assert ledger.account("site", RECORDS) == before
            assert ledger.snapshot("site").owner == OWNER.public_hex
        assert not site.is_closed()

    def test_without_a_statement_there_is_no_fresh_budget(self, site: Site) -> None:
        site.play(0)
        site.path.unlink()
        with pytest.raises(LedgerError, match="nothing says what was charged"):
            site.recover(owner=OWNER.public_hex)
        assert not site.path.exists()

    def test_whose_it_is_must_be_said(self, site: Site) -> None:
        site.play(0)
        site.path.unlink()
        with pytest.raises(UsageError, match="name its public key"):
            site.recover(write_off=True)
        site.recover(write_off=True, owner=OWNER.public_hex)
        with site.open() as ledger:
            assert ledger.account("site", RECORDS) == Account(withdrawn=True)

    def test_a_damaged_copy_is_not_recovered_upon(self, site: Site) -> None:
        site.play(0)
        statement = site.say()
        tamper(site.path, "UPDATE entries SET time = '2020-01-01T00:00:00.000000Z' WHERE position = 1")
        with pytest.raises(LedgerError, match="entry 1: its hash"):
            site.recover(statement)


class TestALostAnchor:
    def test_something_from_outside_must_say_how_far_the_chain_went(self, site: Site) -> None:
        head = site.play(0)
        site.anchors.unlink()
        assert site.is_closed()
        with pytest.raises(LedgerError, match="its anchor was lost"):
            site.recover()
        site.recover(anchor=head)
        assert read_anchors(site.anchors) == {"site": head}
        assert not site.is_closed()

    def test_a_statement_says_it_as_well(self, site: Site) -> None:
        site.play(0)
        statement = site.say("epsilon")
        site.anchors.unlink()
        assert not site.recover(statement).withdrawn
        assert not site.is_closed()

    def test_an_anchor_from_outside_that_the_copy_lacks_is_a_gap(self, site: Site) -> None:
        restore = site.backup()
        head = site.play(0)
        restore()
        site.anchors.unlink()
        with pytest.raises(LedgerError, match="nothing says"):
            site.recover(anchor=head)
        assert site.recover(anchor=head, write_off=True).acknowledged == (head,)
        assert not site.is_closed()

    def test_it_can_be_written_off(self, site: Site) -> None:
        site.play(0)
        site.anchors.unlink()
        assert site.recover(write_off=True).withdrawn

    def test_other_scopes_stay_closed_until_they_are_recovered_too(self, site: Site) -> None:
        with site.open() as ledger:
            ledger.open_scope("second", owner="")
            head = ledger.head("site")
        site.anchors.unlink()
        site.recover(anchor=head)
        with site.open() as ledger:
            reserve(ledger, 0)
            with pytest.raises(LedgerError, match="'second': its anchor was lost"):
                reserve(ledger, 0, scope="second")
            with pytest.raises(LedgerError, match="'second': its anchor was lost"):
                ledger.open_scope("second", owner="")
        assert [problem.what for problem in audit(site.path).problems] == ["its anchor was lost"]

    def test_a_damaged_anchor_is_a_lost_one(self, site: Site) -> None:
        head = site.play(0)
        site.anchors.write_text("{}")
        site.recover(anchor=head)
        assert not site.is_closed()


class TestStatementsThatCannotBeUsed:
    @pytest.mark.parametrize("detail", ["epsilon", "totals"])
    def test_one_that_does_not_say_what_was_charged(self, site: Site, detail: str) -> None:
        restore = site.backup()
        site.play(0)
        statement = site.say(detail)
        restore()
        with pytest.raises(UsageError, match="give one of detail full"):
            site.recover(statement)

    def test_another_owners(self, site: Site, tmp_path: Path) -> None:
        with Ledger.create(tmp_path / "other") as ledger:
            thief = Identity.create()
            ledger.open_scope("site", owner=thief.public_hex)
            play(ledger)
            statement = make_statement(ledger, "site", thief, detail="full").text
        with pytest.raises(UsageError, match="another owner"):
            site.recover(statement)

    def test_another_scopes(self, site: Site) -> None:
        with site.open() as ledger:
            ledger.open_scope("second", owner=OWNER.public_hex)
            play(ledger, scope="second")
            statement = make_statement(ledger, "second", OWNER, detail="full").text
        with pytest.raises(UsageError, match="another scope"):
            site.recover(statement)
        with pytest.raises(UsageError, match="is of scope 'second'"):
            site.recover(anchor=Anchor(scope="second", position=0, hash="0" * 64))

    def test_one_that_was_changed(self, site: Site) -> None:
        with pytest.raises(UsageError, match="signature is wrong"):
            site.recover(site.say().replace('"position":0', '"position":1'))

    def test_one_that_makes_no_claim_itself(self, site: Site) -> None:
        restore = site.backup()
        site.play(0)
        site.anchors.unlink()
        site.recover(write_off=True)
        site.play(1)
        statement = site.say()
        restore()
        with pytest.raises(LedgerError, match="makes no claim itself"):
            site.recover(statement)
        assert site.recover(statement, write_off=True).withdrawn


def test_a_crash_during_recovery_leaves_it_to_be_done_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    restore = site.backup()
    site.play(0)
    statement = site.say()
    restore()
    with monkeypatch.context() as patch:
        patch.setattr("privacy.ledger.recovery.write_anchors", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.recover(statement)
    site.recover(statement)
    assert site.charged() == 1


def test_tasks_of_the_backup_keep_their_replies(site: Site) -> None:
    site.play(0)
    restore = site.backup()
    site.play(1)
    statement = site.say()
    restore()
    site.recover(statement)
    with site.open() as ledger:
        assert isinstance(reserve(ledger, 0), Stored)
        assert ledger.commit("site", task(0).id, b"other", fields=FIELDS) == b"reply 0"
