"""A ledger as lines: what comes back is the same chain, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import Ledger, LedgerError, ReplyGone, Stored
from privacy.ledger.check import verify
from privacy.ledger.exchange import export_lines, import_lines
from tests.privacy.ledger.cases import RECORDS, content, play, reserve, tamper


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, durable=False) as ledger:
        for scope in ("site", "other site"):
            ledger.open_scope(scope, owner="")
            for number in range(3):
                play(ledger, number, scope=scope, reply=b"secret reply")
    return path


@pytest.fixture
def lines(path: Path) -> list[str]:
    with Ledger.open(path, read_only=True) as ledger:
        return [line for scope in ledger.scopes() for line in export_lines(ledger, scope)]


def test_exported_and_imported_it_is_the_same_chain(path: Path, tmp_path: Path, lines: list[str]) -> None:
    copy = tmp_path / "copy.sqlite"
    heads = import_lines(copy, [line + "\n" for line in lines])
    assert verify(copy) == []
    assert content(copy)[0] == content(path)[0]
    with Ledger.open(path) as old, Ledger.open(copy) as new:
        assert list(heads) == [old.head(scope) for scope in ("other site", "site")]
        assert new.account("site", RECORDS) == old.account("site", RECORDS)
        assert list(export_lines(new, "site")) == list(export_lines(old, "site"))


def test_each_line_is_one_json_object_and_holds_no_reply(lines: list[str]) -> None:
    assert all(isinstance(json.loads(line), dict) and "\n" not in line for line in lines)
    assert b"secret reply".hex() not in "".join(lines)
    assert "secret reply" not in "".join(lines)


def test_an_imported_ledger_goes_on_but_has_no_replies(tmp_path: Path, lines: list[str]) -> None:
    copy = tmp_path / "copy.sqlite"
    import_lines(copy, lines)
    with Ledger.open(copy) as ledger:
        with pytest.raises(ReplyGone):
            reserve(ledger, 2)
        play(ledger, 3)
        assert isinstance(reserve(ledger, 3), Stored)
    assert verify(copy) == []


def test_one_scope_alone(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path) as ledger:
        import_lines(tmp_path / "copy", export_lines(ledger, "site"))
    with Ledger.open(tmp_path / "copy") as copy:
        assert copy.scopes() == ("site",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], "the end is missing"),
        (lambda lines: lines[:-1], "the end is missing"),
        (lambda lines: lines[:-2], "the end is missing"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4: expected entry 3 here"),
        (lambda lines: [*lines[:-2], lines[-1]], "entries before it are missing"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: expected entry 0"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4: expected entry 3"),
        (lambda lines: [*lines, lines[0]], "was not closed, or its own was"),
        (lambda lines: [lines[0], lines[10], *lines[1:]], "was not closed"),
        (lambda lines: [*lines, lines[-1]], "entries before it are missing"),
        (lambda lines: [lines[0].replace(":", ": "), *lines[1:]], "line 1: not in canonical form"),
        (lambda lines: [lines[0].replace('"position":0', '"position":0.0'), *lines[1:]], "position must be int"),
        (lambda lines: [lines[0][:-1], *lines[1:]], "line 1"),
        (lambda lines: ["not json", *lines], "line 1"),
        (lambda lines: ["[]", *lines], "line 1: an entry must have the keys"),
        (lambda lines: ['{"head":{}}', *lines], "line 1: the head must have the keys"),
        (lambda lines: [lines[0], lines[1].replace("5.0", "9.0"), *lines[2:]], "line 2: its hash is not that"),
        (lambda lines: [lines[0].replace('"hash":"', '"hash":"x'), *lines[1:]], "line 1"),
    ],
)
def test_damaged_lines_make_no_ledger(tmp_path: Path, lines: list[str], change: Any, said: str) -> None:
    with pytest.raises(LedgerError, match=said):
        import_lines(tmp_path / "copy", change(lines))
    assert not [item for item in tmp_path.iterdir() if "copy" in item.name]


def test_an_import_never_touches_a_ledger_that_is_there(path: Path, lines: list[str]) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        import_lines(path, lines)
    assert path.read_bytes() == before


def test_a_damaged_ledger_is_not_exported(path: Path) -> None:
    tamper(path, "UPDATE entries SET time = '2020-01-01T00:00:00.000000Z' WHERE position = 2")
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="entry 2"):
        list(export_lines(ledger, "site"))
