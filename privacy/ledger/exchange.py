"""A ledger as text: one line an entry, to be read by others, archived, or made a ledger again.

The lines hold no replies: those are between the owner and the servers that asked for them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privacy.canonical_json import canonical, parse_canonical, record
from privacy.ledger import Anchor, Ledger
from privacy.ledger.entries import DamageError, Entry
from privacy.ledger.file import LedgerError, create_file, remove_file, resolved
from privacy.ledger.store import Store

_FIELDS: dict[str, type] = {
    "scope": str,
    "position": int,
    "kind": str,
    "time": str,
    "body": dict,
    "previous": str,
    "hash": str,
}


def export_lines(ledger: Ledger, scope: str) -> Iterator[str]:
    """The entries of a scope in canonical JSON, one line each, without line ends; at last a line that closes it.

    Raises:
        LedgerError: if the ledger is damaged.
    """
    last: Anchor | None = None
    for entry in ledger.entries(scope):
        last = entry.anchor
        yield canonical({name: getattr(entry, name) for name in _FIELDS})
    if last is not None:
        yield canonical({"head": asdict(last)})


def import_lines(path: Path, lines: Iterable[str], *, durable: bool = True) -> tuple[Anchor, ...]:
    """Make a new ledger of lines that `export_lines` wrote, of one scope or several, one after another.

    Args:
        path: of the new ledger.
        lines: with or without line ends; empty ones are left out.
        durable: as for `Ledger.open`.

    Returns:
        The newest entry of each scope, for an anchor file.

    Raises:
        LedgerError: if there is a file already, a line is damaged, or one is missing; then there is no ledger.
    """
    path = resolved(path)
    create_file(path)
    try:
        store = Store(path, durable=durable, read_only=False, anchors=None, clock=lambda: datetime.now(UTC))
        try:
            with store.transaction(), store.reading():
                return _import(store, lines)
        finally:
            store.close()
    except BaseException:
        remove_file(path)
        raise


def _import(store: Store, lines: Iterable[str]) -> tuple[Anchor, ...]:
    heads: dict[str, Anchor] = {}
    open_scope: str | None = None
    number = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = parse_canonical(line.rstrip("\r\n"))
            if isinstance(data, dict) and data.keys() == {"head"}:
                anchor = Anchor(**record(data["head"], "the head", scope=str, position=int, hash=str))
                if anchor.scope != open_scope or store.chain(anchor.scope).head != anchor:
                    raise DamageError("entries before it are missing")
                store.end_import(anchor)
                heads[anchor.scope], open_scope = anchor, None
                continue
            entry = Entry(**_entry(data))
            if entry.scope in heads or open_scope not in (None, entry.scope):
                raise DamageError("the scope before it was not closed, or its own was")
            open_scope = entry.scope
            store.import_entry(entry)
        except ValueError as error:
            raise LedgerError(f"line {number}: {error}; export the ledger again") from error
    if open_scope is not None or not heads:
        raise LedgerError(f"line {number}: the end is missing; export the ledger again")
    return tuple(heads.values())


def _entry(data: object) -> dict[str, Any]:
    return record(data, "an entry", **_FIELDS)
