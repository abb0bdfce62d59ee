"""A client's books: one ledger and its owners, opened once a process, the policy of the day written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client import books as module
from client.books import Books, books, create_simulated, put_away, register
from client.policy import Allow, SitePolicy
from privacy.ledger import Ledger, LedgerError
from security.errors import RunError


def policy(scope: str = "people", **allow: object) -> SitePolicy:
    return SitePolicy(site="berlin", budget_scope=scope, allow=Allow.model_validate(allow))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "ledger.sqlite"
    create_simulated(found)
    yield found
    for name in list(module._open):
        if name[0].startswith(str(tmp_path)):
            module._open.pop(name).ledger.close()


def test_books_are_opened_once_a_process(path: Path) -> None:
    assert books(str(path)) is books(str(path))


def test_books_may_be_registered_under_any_name(path: Path) -> None:
    mine = Books(Ledger.open(path), b"x" * 32)
    register(f"{path}-elsewhere", mine)
    assert books(f"{path}-elsewhere") is mine


def test_books_that_are_put_away_leave_one_file_and_may_be_opened_again(path: Path) -> None:
    first = books(str(path))
    first.prepare(policy())
    assert list(path.parent.glob("ledger.sqlite-*"))  # SQLite's log, while it is open
    put_away()
    assert not list(path.parent.glob("ledger.sqlite-*"))
    assert books(str(path)) is not first
    assert books(str(path)).ledger.head("people") is not None


def test_a_ledger_is_made_once_and_its_secret_is_nobody_elses_to_read(path: Path) -> None:
    secret = path.with_name("ledger.sqlite.owners")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_bytes()) == 32
    with pytest.raises(LedgerError, match="exists already"):
        create_simulated(path)
    other = path.with_name("other.sqlite")
    create_simulated(other)
    assert other.with_name("other.sqlite.owners").read_bytes() != secret.read_bytes()


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "l.owners").write_bytes(b"of a ledger that was here before")
    with pytest.raises(RunError, match=r"l\.owners: can't be written \(File exists\)"):
        create_simulated(tmp_path / "l")
    assert (tmp_path / "l.owners").read_bytes() == b"of a ledger that was here before"


def test_each_scope_has_an_owner_of_its_own_and_always_the_same(path: Path) -> None:
    found = books(str(path))
    assert found.owner("a").public_hex != found.owner("b").public_hex
    again = Books.of_simulation(path)
    assert again.owner("a").public_hex == found.owner("a").public_hex
    again.ledger.close()


def test_a_scope_begins_with_its_owner_and_policy(path: Path) -> None:
    found = books(str(path))
    found.prepare(policy())
    found.prepare(policy())
    entries = list(found.ledger.entries("people"))
    assert [entry.kind for entry in entries] == ["open", "policy"]
    assert entries[0].body["owner"] == found.owner("people").public_hex
    assert entries[1].body == {"digest": policy().digest(), "policy": policy().to_json()}


def test_each_change_of_policy_is_an_entry_and_so_is_a_change_back(path: Path) -> None:
    found = books(str(path))
    one, other = policy(), policy(rounds_a_day=3)
    for each in (one, other, other, one, one):
        found.prepare(each)
    digests = [entry.body["digest"] for entry in found.ledger.entries("people") if entry.kind == "policy"]
    assert digests == [one.digest(), other.digest(), one.digest()]


def test_scopes_have_policies_of_their_own(path: Path) -> None:
    found = books(str(path))
    for scope in ("a", "b", "a", "b"):
        found.prepare(policy(scope))
    assert [len(list(found.ledger.entries(scope))) for scope in ("a", "b")] == [2, 2]


@pytest.mark.parametrize("damage", ["gone", "cut", "a folder"])
def test_without_the_owners_secret_the_ledger_is_closed(path: Path, damage: str) -> None:
    secret = path.with_name("ledger.sqlite.owners")
    content = secret.read_bytes()
    secret.unlink()
    if damage == "cut":
        secret.write_bytes(content[:31])
    elif damage == "a folder":
        secret.mkdir()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite\.owners: .*without it nobody signs"):
        books(str(path))
    if damage == "a folder":
        secret.rmdir()
    secret.write_bytes(content)
    books(str(path)).prepare(policy())  # nothing of the failure is kept


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger here"):
        books(str(tmp_path / "nothing.sqlite"))
    assert list(tmp_path.iterdir()) == []
