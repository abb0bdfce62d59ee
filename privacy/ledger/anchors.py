"""A ledger's anchors: where each chain ended when it was last written, in a small file of its own.

A chain can't show that its end was cut off, or that the whole file is an old copy. The anchor file can: it is
replaced after each write, so it is at most one write behind. Kept on another disk than the ledger it also shows
that a backup of the whole folder was restored; what was given to others (statements, a server's records) shows the
rest.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from privacy.canonical_json import parse, record
from privacy.ledger.entries import Anchor
from privacy.ledger.file import LedgerError, sync

_LARGEST_FILE = 1 << 26
_RECOVER = "run `veil ledger recover` with the newest statement or anchor that anyone has"


def default_anchors(path: Path) -> Path:
    """The anchor file that lies beside a ledger, whatever links its name goes through."""
    path = path.resolve()
    return path.with_name(path.name + ".anchor")


def read_anchors(path: Path) -> dict[str, Anchor | None]:
    """The anchors of all scopes; None for one that was lost, until the scope is recovered.

    Raises:
        LedgerError: if the file is missing or damaged. A lost anchor is never taken for none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE)
        data = record(parse(text.decode()), "an anchor file", version=int, anchors=dict)
        if data["version"] != 1:
            raise ValueError(f"version {data['version']} is not known")
        found: dict[str, Anchor | None] = {}
        for scope, item in data["anchors"].items():
            values = None if item is None else record(item, "an anchor", position=int, hash=str)
            found[scope] = None if values is None else Anchor(scope=scope, **values)
    except FileNotFoundError:
        raise LedgerError(f"{path}: the ledger's anchor is missing; {_RECOVER}") from None
    except OSError as error:
        raise LedgerError(f"{path}: can't read the ledger's anchor ({error.strerror}); {_RECOVER}") from error
    except ValueError as error:
        raise LedgerError(f"{path}: the ledger's anchor is damaged ({error}); {_RECOVER}") from error
    return found


def write_anchors(path: Path, anchors: Mapping[str, Anchor | None]) -> None:
    """Replace the file: a crash leaves the old one or the new.

    Raises:
        LedgerError: if it can't be written.
    """
    data = {
        scope: None if anchor is None else {"position": anchor.position, "hash": anchor.hash}
        for scope, anchor in anchors.items()
    }
    text = json.dumps({"version": 1, "anchors": data}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    new = path.with_name(f".{path.name}.new")  # one name is enough: who writes holds the ledger's lock
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise LedgerError(
            f"{path}: can't write the ledger's anchor ({error.strerror}); make room, or give the right to write"
        ) from error
