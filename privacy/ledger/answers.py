"""What a ledger answers."""

from collections.abc import Mapping
from dataclasses import dataclass

from privacy.ledger.entries import Anchor
from privacy.lifetime import Account, Balance, Limit
from security.errors import RunError


class BudgetExhausted(RunError):
    """The limit does not cover the task; a `refuse` entry says so, and nothing was charged."""


class ReplyGone(RunError):
    """The task was committed, and its reply is no longer stored: it can't be answered again."""


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """The task may run now.

    Attributes:
        again: whether it had been reserved before; nothing was charged now.
        anchor: of its reserve entry.
    """

    again: bool
    anchor: Anchor


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The task has been answered before.

    Attributes:
        reply: the answer, checked against the hash in its commit entry.
        anchor: of its commit entry.
    """

    reply: bytes
    anchor: Anchor


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A scope as it was after one entry.

    Attributes:
        scope: its name.
        owner: public key in hexadecimal, or "".
        policy: digest of the policy in force, if any.
        head: the newest entry.
        time: when this was read, UTC.
        withdrawn: whether a gap in the history was written off.
        accounts: of each balance, in the order of their first charge.
        limits: under which each balance was last charged.
        past: earlier places in the chain, newest first: the last 64, then at doubling distances, and the first.
    """

    scope: str
    owner: str
    policy: str | None
    head: Anchor
    time: str
    withdrawn: bool
    accounts: Mapping[Balance, Account]
    limits: Mapping[Balance, Limit]
    past: tuple[Anchor, ...]
