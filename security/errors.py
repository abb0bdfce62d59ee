"""Errors whose text may be shown to a person.

The text of a `VeilError` is one line that says what is wrong, where, and what to do. It is printed without a
traceback and may travel in logs, so it never holds a record, an update or a secret.
"""

import difflib
from collections.abc import Iterable


class VeilError(Exception):
    """Base of every error that Veil raises on purpose."""


class UsageError(VeilError):
    """Wrong usage, plan, scenario or data description: the run was not started (exit code 2)."""


class RunError(VeilError):
    """A run that had started could not go on (exit code 1)."""


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`did you mean X? `, to stand before what is allowed; nothing if no known name is near."""
    close = difflib.get_close_matches(given, list(known), n=1) if isinstance(given, str) else []
    return f"did you mean {close[0]}? " if close else ""
