"""`verify` finds what was changed, names every place, and computes every balance again."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import BudgetExhausted, Ledger, LedgerError, Reason, Snapshot, default_anchors
from privacy.ledger.anchors import write_anchors
from privacy.ledger.check import Problem, audit, verify
from privacy.ledger.entries import next_entry
from privacy.lifetime import Admission, Limit
from tests.privacy.ledger.cases import (
    FIELDS,
    LIMIT,
    PERSONS,
    RECORDS,
    affordable,
    charged,
    content,
    play,
    rehash,
    reserve,
    tamper,
    task,
    terms,
)

EDIT = "UPDATE entries SET {} WHERE scope = 'site' AND position = {}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two scopes with every kind of entry, and replies of one page and of several."""
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, durable=False) as ledger:
        for scope in ("site", "other site"):
            ledger.open_scope(scope, owner="")
            ledger.set_policy(scope, {"budget": 8.0}, "d" * 64)
            for number in range(3):
                play(ledger, number, scope=scope, reply=bytes([number]) * (100 + 5_000 * number))
            play(ledger, 3, scope=scope, balance=PERSONS, limit=Limit(epsilon=3.0, delta=1e-5))
            ledger.reserve(scope, task(4), terms=terms())
            ledger.commit_unkept(scope, task(4).id, sha256="ab" * 32, length=5, fields={"update": "unprotected"})
            ledger.refuse(scope, task(5), Reason.POLICY)
            reserve(ledger, 6, scope=scope)
    assert verify(path) == []
    return path


def found(path: Path) -> list[str]:
    """What a check says; and that nobody can go on where a chain is broken."""
    return [str(problem) for problem in verify(path)]


def closed(path: Path, scope: str = "site") -> bool:
    try:
        with Ledger.open(path) as ledger:
            reserve(ledger, 99, scope=scope)
    except LedgerError:
        return True
    return False


class TestEdits:
    @pytest.mark.parametrize(
        ("change", "position", "said"),
        [
            ("time = '2020-01-01T00:00:00.000000Z'", 3, "its hash is not that of its content"),
            ("kind = 'refuse'", 3, "its hash is not that of its content"),
            ("kind = 'other'", 3, "unknown kind"),
            ("body = replace(body, '5.0', '9.0')", 2, "its hash is not that of its content"),
            ("body = replace(body, ':', ': ')", 2, "not in canonical form"),
            ("body = body || ' '", 2, "not in canonical form"),
            ("body = replace(body, '1e-05', '0.00001')", 2, "not in canonical form"),
            ("body = replace(body, '8.0', '8.' || hex(zeroblob(2500)))", 2, "not in canonical form"),
            ("body = replace(body, '8.0', '8' || hex(zeroblob(2500)))", 2, "can't be read"),
            ("body = replace(body, '8.0', 'NaN')", 2, "NaN is not a number"),
            ("body = replace(body, '8.0', '1e999')", 2, "its body can't be read"),
            ("body = CAST(body AS BLOB)", 2, "wrong type"),
            ("body = CAST(x'ff' AS TEXT)", 2, "can't be read"),
            ("body = NULL", 2, ""),
            ("previous = hash", 3, "doesn't carry the hash of the entry before"),
            ("hash = previous", 3, "its hash is not that of its content"),
            ("hash = upper(hash)", 3, "64 hexadecimal digits"),
            ("scope = 'other site', position = 70", 3, "its hash is not that of its content"),
            ("position = 71", 3, "its hash is not that of its content"),
            ("position = -1", 3, "not a whole number of at least 0"),
        ],
    )
    def test_an_edited_entry(self, path: Path, change: str, position: int, said: str) -> None:
        with suppress(sqlite3.IntegrityError):  # NOT NULL, which SQLite's own check would report otherwise
            tamper(path, EDIT.format(change, position))
        if said:
            assert any(said in problem for problem in found(path)), found(path)
            assert closed(path)

    def test_a_deleted_entry(self, path: Path) -> None:
        tamper(path, "DELETE FROM entries WHERE scope = 'site' AND position = 4")
        assert "scope 'site', entry 5: expected entry 4 here: entries are missing, doubled or out of order" in found(
            path
        )
        assert closed(path)

    def test_a_deleted_beginning(self, path: Path) -> None:
        tamper(path, "DELETE FROM entries WHERE scope = 'site' AND position < 2")
        assert any("expected entry 0 here" in problem for problem in found(path))
        assert closed(path)

    def test_exchanged_entries(self, path: Path) -> None:
        tamper(
            path,
            EDIT.format("position = 70", 2),
            EDIT.format("position = 2", 4),
            EDIT.format("position = 4", 70),
        )
        assert sum("its hash is not that of its content" in problem for problem in found(path)) == 2
        assert closed(path)

    def test_a_doubled_entry(self, path: Path) -> None:
        columns = "kind, time, body, previous, hash FROM entries WHERE scope = 'site' AND position = 2"
        last = "(SELECT max(position) + 1 FROM entries WHERE scope = 'site')"
        tamper(path, f"INSERT INTO entries SELECT scope, {last}, {columns}")
        assert any("its hash is not that of its content" in problem for problem in found(path))
        assert closed(path)

    def test_an_entry_of_another_scope(self, path: Path) -> None:
        tamper(
            path,
            "DELETE FROM entries WHERE scope = 'site' AND position = 0",
            "INSERT INTO entries SELECT 'site', 0, kind, time, body, previous, hash FROM entries "
            "WHERE scope = 'other site' AND position = 0",
        )
        assert any("its hash is not that of its content" in problem for problem in found(path))
        assert closed(path)
        assert not closed(path, "other site")

    def test_every_problem_is_named_not_only_the_first(self, path: Path) -> None:
        tamper(
            path,
            EDIT.format("time = '2020-01-01T00:00:00.000000Z'", 1),
            EDIT.format("body = '{}'", 5),
            "DELETE FROM entries WHERE scope = 'other site' AND position = 3",
            "UPDATE replies SET reply = x'00' WHERE scope = 'site'",
        )
        places = {(problem.scope, problem.position) for problem in verify(path)}
        assert places >= {("site", 1), ("site", 5), ("other site", 4), ("site", 9)}

    def test_a_problem_reads_as_a_line(self) -> None:
        assert str(Problem(what="w")) == "w"
        assert str(Problem(scope="s", what="w")) == "scope 's': w"
        assert str(Problem(scope="s", position=0, what="w")) == "scope 's', entry 0: w"


class TestReplies:
    def test_an_altered_reply(self, path: Path) -> None:
        tamper(path, "UPDATE replies SET reply = zeroblob(length(reply)) WHERE scope = 'site'")
        assert found(path) == [
            "scope 'site', entry 7: its stored reply was changed",
            "scope 'site', entry 9: its stored reply was changed",
        ]

    def test_a_reply_of_another_type(self, path: Path) -> None:
        tamper(path, "UPDATE replies SET reply = CAST('raw' AS TEXT) WHERE scope = 'site'")
        assert len(found(path)) == 2

    def test_a_missing_reply(self, path: Path) -> None:
        tamper(path, "DELETE FROM replies WHERE scope = 'site'")
        assert "scope 'site', entry 9: its stored reply is missing" in found(path)

    def test_replies_of_two_tasks_exchanged(self, path: Path) -> None:
        one, two = task(2).id, task(3).id
        tamper(
            path,
            f"UPDATE replies SET task = 'x' WHERE scope = 'site' AND task = '{one}'",
            f"UPDATE replies SET task = '{one}' WHERE scope = 'site' AND task = '{two}'",
            f"UPDATE replies SET task = '{two}' WHERE scope = 'site' AND task = 'x'",
        )
        assert len(found(path)) == 2

    def test_a_reply_nobody_committed(self, path: Path) -> None:
        tamper(path, "INSERT INTO replies VALUES ('site', 'x', x'00')", "INSERT INTO replies VALUES ('no', 'x', x'00')")
        assert sum("no entry stores" in problem for problem in found(path)) == 2

    def test_replies_said_to_be_imported(self, path: Path) -> None:
        for row in (("site", 999), ("nowhere", 0)):
            tamper(path, ("INSERT INTO imported VALUES (?, ?)", row))
        assert sum("imported up to an entry that is not there" in problem for problem in found(path)) == 2


class TestRewriting:
    """The key's holder can compute all hashes anew. A chain alone can't show that: an anchor does."""

    def test_only_an_anchor_shows_it(self, path: Path) -> None:
        with Ledger.open(path) as ledger:
            kept = ledger.snapshot("site")
        tamper(path, EDIT.format("body = replace(body, '8.0', '9.0')", 4))
        rehash(path, "site", 4)
        assert verify(path) == []
        assert not closed(path)
        with Ledger.open(path) as ledger:
            assert not ledger.holds(kept.head)
            assert [ledger.holds(place) for place in kept.past] == [place.position < 4 for place in kept.past]

    def test_an_anchor_file_shows_it(self, path: Path, tmp_path: Path) -> None:
        with Ledger.open(path) as ledger:
            heads = {scope: ledger.head(scope) for scope in ledger.scopes()}
        for place in (default_anchors(path), tmp_path / "elsewhere"):
            write_anchors(place, heads)
        tamper(path, EDIT.format("body = replace(body, '8.0', '9.0')", 4))
        rehash(path, "site", 4)
        for problems in (verify(path), verify(path, anchors=tmp_path / "elsewhere")):
            assert [problem.scope for problem in problems] == ["site"]
            assert "anchored" in problems[0].what

    @pytest.mark.parametrize(
        ("old", "new", "position", "said"),
        [
            ('"count"', '"x"', 0, None),
            ('"format":1', '"format":true', 0, "format must be int"),
            ('"owner":""', '"owner":"me"', 0, "no public key"),
            ('"digest":"dd', '"digest":"DD', 1, "no SHA-256"),
            ('"round":0', '"round":-1', 2, "round"),
            ('"round":0', '"round":1', 2, "never reserved"),
            (",1]]", ",0]]", 2, "count"),
            (",1]]", ",1.0]]", 2, "count"),
            (",1]]", ",99999999999999999999]]", 2, "count"),
            ('"epsilon":8.0', '"epsilon":0.5', 13, "above the limit 0.5"),
            ('"epsilon":8.0', '"epsilon":-8.0', 2, "epsilon must be"),
            ('"mechanism":"dp-sgd"', '"mechanism":"magic"', 2, "unknown mechanism"),
            ('"noise_multiplier":5.0', '"noise_multiplier":0.0', 2, "noise_multiplier"),
            ('"proof":"filter"', '"proof":"trust me"', 2, "proof"),
            ('"proof":"filter"', '"proof":"plan"', 2, "envelope"),
            ('"proof":"filter"', '"proof":"plan"', 4, "another proof|envelope"),
            ('"kept":true', '"kept":1', 3, "kept must be bool"),
            ('"length":100', '"length":-1', 3, "length"),
            ('"charged"', '"harmless"', 3, "no known class"),
            ('"reason":"policy"', '"reason":"Mrs X has a NaN"', 12, "no code"),
        ],
    )
    def test_even_with_all_hashes_right_an_entry_must_make_sense(
        self, path: Path, old: str, new: str, position: int, said: str | None
    ) -> None:
        tamper(path, (EDIT.format("body = replace(body, ?, ?)", position), (old, new)))
        rehash(path, "site", position)
        problems = found(path)
        if said is None:
            assert problems == []
        else:
            assert any(re.search(said, problem) for problem in problems), problems

    def test_a_task_reserved_or_committed_twice(self, path: Path) -> None:
        with Ledger.open(path) as ledger:
            entries = list(ledger.entries("site"))
            head = ledger.head("site")
        for entry in (entries[2], entries[3]):
            extra = next_entry(head, "site", entry.kind, entry.time, entry.body)
            head = extra.anchor
            tamper(path, ("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", extra.row()))
        assert [problem.split(": ")[1] for problem in found(path)] == [
            "its task was reserved before",
            "its task was committed before",
        ]
        assert closed(path)

    def test_a_second_beginning(self, path: Path) -> None:
        with Ledger.open(path) as ledger:
            first, head = next(ledger.entries("site")), ledger.head("site")
        extra = next_entry(head, "site", "open", first.time, first.body)
        tamper(path, ("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", extra.row()))
        assert any("begins with its one open entry" in problem for problem in found(path))
        assert closed(path)


class TestBalances:
    def test_they_are_computed_again_from_the_entries_alone(self, path: Path) -> None:
        result = audit(path)
        with Ledger.open(path) as ledger:
            heads = {head.scope: head for head in result.heads}
            assert heads == {scope: ledger.head(scope) for scope in ledger.scopes()}
            for item in result.balances:
                account = ledger.account(item.scope, item.balance)
                assert item.account == account
                assert item.limit is not None
                assert item.spent == item.limit.spent(account)
        assert {(item.scope, item.balance) for item in result.balances} == {
            (scope, balance) for scope in ("site", "other site") for balance in (RECORDS, PERSONS)
        }

    @pytest.mark.parametrize("filter_", ["rdp", "sum"])
    def test_an_exhausted_budget_is_no_problem(self, tmp_path: Path, filter_: Any) -> None:
        limit = Limit(epsilon=3.0, delta=1e-5, filter=filter_)
        with Ledger.create(tmp_path / "ledger") as ledger:
            ledger.open_scope("site", owner="")
            with suppress(BudgetExhausted):
                for number in range(20):
                    play(ledger, number, limit=limit)
            assert charged(ledger) == affordable(limit)
        assert verify(tmp_path / "ledger") == []

    def test_an_overspent_budget_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if a guard had not asked."""
        with monkeypatch.context() as patch:
            patch.setattr(Limit, "admit", lambda *_: Admission(proof="filter"))
            with Ledger.create(tmp_path / "ledger") as ledger:
                ledger.open_scope("site", owner="")
                for number in range(20):
                    play(ledger, number, limit=replace(LIMIT, epsilon=1.0))
        (problem,) = verify(tmp_path / "ledger")
        assert "record x local has spent" in problem.what
        assert "above the limit 1 at 1e-05" in problem.what

    def test_a_policy_that_was_tightened_is_no_overspending(self, tmp_path: Path) -> None:
        with Ledger.create(tmp_path / "ledger") as ledger:
            ledger.open_scope("site", owner="")
            for number in range(8):
                play(ledger, number)
            with pytest.raises(BudgetExhausted):
                reserve(ledger, 9, limit=Limit(epsilon=1.0, delta=1e-5))
        assert verify(tmp_path / "ledger") == []


def flips(data: bytes, count: int) -> Iterator[bytes]:
    """Copies with one byte changed: all of the header, and places over the whole file. Always the same ones."""
    draw = random.Random(7)
    places = [*range(100), *draw.sample(range(100, len(data)), count)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= draw.randrange(1, 256)
        yield bytes(changed)


def test_a_flipped_byte_is_reported_or_changes_nothing_that_is_said(path: Path) -> None:
    """Each flip is found, or every entry and every reply reads as before (free pages, SQLite's counters)."""
    data, original = path.read_bytes(), content(path)
    victim = path.with_name("victim.sqlite")
    outcomes = {"reported": 0, "harmless": 0}
    for changed in flips(data, 400):
        for suffix in ("-wal", "-shm"):
            victim.with_name(victim.name + suffix).unlink(missing_ok=True)
        victim.write_bytes(changed)
        if verify(victim):
            outcomes["reported"] += 1
        else:
            assert content(victim) == original
            outcomes["harmless"] += 1
    assert outcomes["reported"] > 250  # most of the file is entries and replies
    assert outcomes["harmless"] > 20


def test_a_flipped_byte_never_makes_the_ledger_say_something_else(path: Path) -> None:
    """What a client reads is what was written, or an error."""
    data = path.read_bytes()
    with Ledger.open(path) as ledger:
        expected = view(ledger)
    victim = path.with_name("victim.sqlite")
    for changed in flips(data, 200):
        for suffix in ("-wal", "-shm"):
            victim.with_name(victim.name + suffix).unlink(missing_ok=True)
        victim.write_bytes(changed)
        try:
            with Ledger.open(victim) as ledger:
                seen = view(ledger)
        except LedgerError:
            continue
        # A cut tail needs an anchor to be seen, so what is left must be a beginning of what was.
        for scope, (snapshot, replies) in seen.items():
            assert expected[scope][1] == replies
            assert snapshot.head in (expected[scope][0].head, *expected[scope][0].past)
            if snapshot.head == expected[scope][0].head:
                assert snapshot.accounts == expected[scope][0].accounts


def view(ledger: Ledger) -> dict[str, tuple[Snapshot, list[object]]]:
    seen: dict[str, tuple[Snapshot, list[object]]] = {}
    for scope in ("site", "other site"):
        answers = [
            reserve(ledger, 2, scope=scope),
            reserve(ledger, 3, scope=scope, balance=PERSONS, limit=Limit(epsilon=3.0, delta=1e-5)),
        ]
        seen[scope] = ledger.snapshot(scope), [getattr(answer, "reply", None) for answer in answers]
    return seen


def test_the_check_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    verify(path)
    assert path.read_bytes() == before


def test_the_check_reads_one_moment_while_others_write(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for number in range(20, 30):
            play(ledger, number)
            assert verify(path) == []
        assert charged(ledger) == 14


def test_the_check_of_what_is_no_ledger_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(json.dumps(FIELDS))
    for name in ("missing", "text", "."):
        (problem,) = verify(tmp_path / name)
        assert problem.scope is None
