"""What was written to a ledger and is not in its file yet: in simulations, where many owners take turns."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator

from privacy.ledger.entries import Anchor

INSERT_ENTRY = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)"
INSERT_REPLY = "INSERT INTO replies VALUES (?, ?, ?)"
DELETE_REPLY = "DELETE FROM replies WHERE scope = ? AND task = ?"
INSERT_IMPORTED = "INSERT INTO imported VALUES (?, ?)"

Values = tuple[object, ...]
"""A row, as the table's columns are."""


class Unwritten:
    """Statements in order, and what whoever reads meanwhile has to know of them.

    Attributes:
        seen: scopes whose chains hold all that there is of them.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._rows: list[tuple[str, str, Values]] = []
        self._of: dict[str, list[tuple[str, Values]]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, scope: str, statement: str, values: Values) -> None:
        """One more statement, about a scope."""
        self._rows.append((scope, statement, values))
        self._of[scope].append((statement, values))

    def undo(self, count: int) -> None:
        """All but the first `count` statements were never made."""
        for scope, _, _ in self._rows[count:]:
            self._of[scope].pop()
        del self._rows[count:]

    def entries(self, scope: str, first: int = 0, last: int | None = None) -> Iterator[Values]:
        """A scope's entries, in order, as rows of their table; those at positions from `first` to `last`."""
        for statement, values in self._of.get(scope, ()):
            if statement is INSERT_ENTRY and isinstance(position := values[1], int) and position >= first:
                if last is not None and position > last:
                    return
                yield values

    def anchor(self, scope: str, position: int) -> Anchor | None:
        """The place of an entry, if it is here."""
        digest = next((row[6] for row in self.entries(scope, position, position)), None)
        return Anchor(scope=scope, position=position, hash=digest) if isinstance(digest, str) else None

    def reply(self, scope: str, task: str) -> object:
        """A task's reply, if it is here."""
        kept = (values for statement, values in self._of.get(scope, ()) if statement is INSERT_REPLY)
        return next((values[2] for values in kept if values[1] == task), None)

    def scopes(self) -> set[str]:
        """Those that something is written to."""
        return {scope for scope, statements in self._of.items() if statements}

    def write(self, database: sqlite3.Connection) -> None:
        """Make the statements."""
        for _, statement, values in self._rows:
            database.execute(statement, values)
