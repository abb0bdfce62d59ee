"""Entries of many owners, written at once: for simulations alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy.ledger import BudgetExhausted, Ledger, LedgerError, Reserved, Stored, default_anchors
from privacy.lifetime import Limit
from tests.privacy.ledger.cases import FIELDS, LIMIT, affordable, charged, play, reserve, task

LITTLE = Limit(epsilon=1.0, delta=1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.create(path, durable=False) as found:
        for scope in ("north", "south"):
            found.open_scope(scope, owner="")
        yield found


def in_file(path: Path, scope: str) -> list[str]:
    """Kinds of a scope's entries, as another process would read them."""
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT kind FROM entries WHERE scope = ? ORDER BY position", (scope,))
        return [kind for (kind,) in rows]


def reply_to(ledger: Ledger, number: int, scope: str) -> bytes | None:
    """The stored reply to a task that was committed."""
    answer = reserve(ledger, number, scope=scope)
    return answer.reply if isinstance(answer, Stored) else None


def test_nothing_is_in_the_file_before_the_end_and_all_of_it_after(ledger: Ledger, path: Path) -> None:
    with ledger.deferred():
        for number in range(3):
            for scope in ("north", "south"):
                play(ledger, number, scope=scope)
        assert in_file(path, "north") == in_file(path, "south") == ["open"]
        assert charged(ledger, scope="north") == 3
    assert in_file(path, "north") == in_file(path, "south") == ["open", *["reserve", "commit"] * 3]
    with Ledger.open(path, durable=False) as other:
        assert len(other.verified_entries("north")) == 7
        assert charged(other, scope="south") == 3
        assert reply_to(other, 2, "south") == b"reply 2"


def test_it_is_the_same_ledger_that_is_written_entry_by_entry(ledger: Ledger, path: Path) -> None:
    def bodies(scope: str) -> list[object]:
        return [entry.body for entry in ledger.verified_entries(scope)][1:]

    for number in range(4):
        play(ledger, number, scope="north")
    with ledger.deferred():
        for number in range(4):
            play(ledger, number, scope="south")
    assert bodies("north") == bodies("south")


def test_a_budget_is_held_inside_too(ledger: Ledger, path: Path) -> None:
    fits = affordable(LITTLE)
    with ledger.deferred():
        for number in range(fits):
            play(ledger, number, scope="north", limit=LITTLE)
        with pytest.raises(BudgetExhausted):
            reserve(ledger, fits, scope="north", limit=LITTLE)
    assert in_file(path, "north")[-1] == "refuse"
    assert charged(ledger, scope="north") == fits


def test_what_was_reserved_stays_so_when_an_error_ends_it(ledger: Ledger, path: Path) -> None:
    def cut_off() -> None:
        with ledger.deferred():
            play(ledger, 0, scope="north")
            reserve(ledger, 1, scope="north")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert in_file(path, "north") == ["open", "reserve", "commit", "reserve"]
    assert charged(ledger, scope="north") == 2


def test_a_call_that_fails_undoes_itself_alone(ledger: Ledger, path: Path) -> None:
    def fail() -> None:
        with ledger.batch():
            play(ledger, 1, scope="north")
            play(ledger, 0, scope="south")
            raise ZeroDivisionError

    with ledger.deferred():
        play(ledger, 0, scope="north")
        with pytest.raises(ZeroDivisionError):
            fail()
        assert charged(ledger, scope="north") == 1
        assert charged(ledger, scope="south") == 0
        play(ledger, 2, scope="north")
    assert in_file(path, "north") == ["open", *["reserve", "commit"] * 2]
    assert in_file(path, "south") == ["open"]
    assert set(ledger.task_ids("north").values()) == {task(0).id, task(2).id}


def test_what_is_not_in_the_file_yet_is_read_all_the_same(ledger: Ledger, path: Path) -> None:
    play(ledger, 0, scope="north")
    with ledger.deferred():
        first = ledger.head("north")
        play(ledger, 1, scope="north")
        ledger.open_scope("east", owner="")
        assert [entry.kind for entry in ledger.entries("north")] == ["open", *["reserve", "commit"] * 2]
        assert [entry.position for entry in ledger.verified_entries("north")] == [0, 1, 2, 3, 4]
        assert reply_to(ledger, 0, "north") == b"reply 0"
        assert reply_to(ledger, 1, "north") == b"reply 1"
        assert ledger.snapshot("north").head.position == 4
        assert {anchor.position for anchor in ledger.snapshot("north").past} == {0, 1, 2, 3}
        assert ledger.holds(first)
        assert ledger.holds(ledger.open_scope("east", owner=""))
        assert ledger.scopes() == ("east", "north", "south")
        assert in_file(path, "north") == ["open", "reserve", "commit"]
    assert in_file(path, "north") == ["open", *["reserve", "commit"] * 2]


def test_a_part_that_read_what_it_wrote_is_undone_as_a_whole(ledger: Ledger, path: Path) -> None:
    def fail() -> None:
        with ledger.batch():
            play(ledger, 1, scope="north")
            assert reply_to(ledger, 1, "north") == b"reply 1"
            assert len(ledger.verified_entries("north")) == 5
            raise ZeroDivisionError

    with ledger.deferred():
        play(ledger, 0, scope="north")
        with pytest.raises(ZeroDivisionError):
            fail()
        assert reply_to(ledger, 0, "north") == b"reply 0"
    assert in_file(path, "north") == ["open", "reserve", "commit"]


def test_two_processes_may_write_at_once_but_not_to_one_scope(ledger: Ledger, path: Path) -> None:
    def play_at_once(other: Ledger) -> None:
        with ledger.deferred():
            play(ledger, 1, scope="north")
            play(ledger, 1, scope="south")
            play(other, 5, scope="north")

    with Ledger.open(path, durable=False) as other:
        with ledger.deferred():
            play(ledger, 0, scope="north")
            play(other, 0, scope="south")
        assert charged(other, scope="north") == charged(ledger, scope="south") == 1
        with pytest.raises(LedgerError):
            play_at_once(other)
        # The other one's stands, and nothing of ours.
        assert set(ledger.task_ids("north").values()) == {task(0).id, task(5).id}
        assert set(ledger.task_ids("south").values()) == {task(0).id}
        play(ledger, 6, scope="north")
        assert len(other.verified_entries("north")) == 7


def test_what_another_process_wrote_before_is_seen(ledger: Ledger, path: Path) -> None:
    play(ledger, 0, scope="north")
    with Ledger.open(path, durable=False) as other:
        play(other, 1, scope="north")
        with ledger.deferred():
            assert charged(ledger, scope="north") == 2
            play(ledger, 2, scope="north")
        assert charged(other, scope="north") == 3


def test_an_interrupt_goes_on_though_what_was_done_can_t_be_written(ledger: Ledger, path: Path) -> None:
    """Whoever catches ledgers' errors would swallow it, and go on working."""

    def cut_off(other: Ledger) -> None:
        with ledger.deferred():
            play(ledger, 0, scope="north")
            play(other, 3, scope="north")
            raise KeyboardInterrupt

    with Ledger.open(path, durable=False) as other:
        with pytest.raises(KeyboardInterrupt) as caught:
            cut_off(other)
        assert "another process has written for the same clients" in caught.value.__notes__[0]
        assert set(ledger.task_ids("north").values()) == {task(3).id}  # nothing of the lost is remembered


@pytest.mark.parametrize("how", [{"durable": True}, {"durable": False, "anchors": True}])
def test_a_site_s_ledger_is_never_written_later(tmp_path: Path, how: dict[str, bool]) -> None:
    path = tmp_path / "own.sqlite"
    anchors = default_anchors(path) if how.get("anchors") else None
    with Ledger.create(path, durable=how["durable"], anchors=anchors) as own:
        own.open_scope("north", owner="")
        with pytest.raises(ValueError, match="simulation"), own.deferred():
            pass
        assert isinstance(reserve(own, scope="north", limit=LIMIT), Reserved)
        assert own.commit("north", task().id, b"x", fields=FIELDS) == b"x"


def test_it_can_t_begin_inside_of_a_batch(ledger: Ledger) -> None:
    with ledger.batch(), pytest.raises(ValueError, match="open"), ledger.deferred():
        pass


def test_it_can_t_begin_inside_of_another(ledger: Ledger, path: Path) -> None:
    with ledger.deferred():
        play(ledger, 0, scope="north")
        with pytest.raises(ValueError, match="open"), ledger.deferred():
            pass
        play(ledger, 1, scope="north")
    assert in_file(path, "north") == ["open", *["reserve", "commit"] * 2]
