"""A deployed site's books: its one ledger, made once and never again; and the key of its splits.

Whoever has lost a ledger must not quietly begin another: the budget would be spent twice. The ledger's anchor knows
that there was one; should ledger and anchor be gone together, with their folder, so does a note in the site's home.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from client.books import Books
from privacy.ledger import Ledger, LedgerError, default_anchors
from security.errors import UsageError
from security.homes import SiteHome
from security.identity import Identity
from security.private_files import make_folder, read_private, replace_file
from security.strict_json import pretty

SPLIT_KEY_BYTES: Final = 32

_KIND: Final = "veil ledger note 1"


def open_books(home: SiteHome, owner: Identity) -> Books:
    """Open a site's ledger; begin it if there has never been one.

    Raises:
        LedgerError: it can't be relied on, or is gone.
        UsageError: the home can't be written.
    """
    path = home.ledger
    anchors = default_anchors(path)
    if path.exists() or path.is_symlink():
        ledger = Ledger.open(path, anchors=anchors)
    elif home.ledger_note.exists() or anchors.exists():
        raise LedgerError(
            f"{path}: the site's ledger is gone; put back the newest copy, and run `veil ledger recover {path} SCOPE`: "
            "a new one would spend the budget again"
        )
    else:
        make_folder(path.parent, private=True)
        ledger = Ledger.create(path, anchors=anchors)
    if not home.ledger_note.exists():
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        replace_file(home.ledger_note, pretty({"kind": _KIND, "ledger": "ledger/ledger.sqlite", "noted": begun}))
    return Books(ledger, owner=owner)


def read_split_key(home: SiteHome) -> bytes:
    """The secret by which the site's records are split; made with its other keys.

    Raises:
        UsageError: it can't be read, is none, or is gone: another one would have held-out records trained on.
    """
    key = read_private(home.split_key, hint="put it back from a backup, or held-out records would be trained on")
    if len(key) != SPLIT_KEY_BYTES:
        raise UsageError(f"{home.split_key}: holds {len(key)} bytes, not {SPLIT_KEY_BYTES}; put it back from a backup")
    return key
