"""Why a party of a secure sum refuses: one named reason each, with nothing in it of what was sent."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from security.errors import RunError


class Abort(StrEnum):
    """What is wrong. A refusal depends on messages, plan, policy and roster, never on a vector."""

    DAMAGED_MESSAGE = "damaged-message"
    OTHER_ATTEMPT = "other-attempt"
    OUT_OF_ORDER = "out-of-order"
    ALREADY_ANSWERED = "already-answered"
    ABORTED = "aborted"
    ATTEMPT_USED = "attempt-used"
    COHORT_TOO_SMALL = "cohort-too-small"
    NOT_IN_COHORT = "not-in-cohort"
    UNKNOWN_CLIENT = "unknown-client"
    EQUAL_KEYS = "equal-keys"
    WEAK_KEY = "weak-key"
    BAD_SIGNATURE = "bad-signature"
    VIEWS_DIFFER = "views-differ"
    TOO_FEW_CLIENTS = "too-few-clients"
    TOO_FEW_HOLDERS = "too-few-holders"
    MISSING_SHARE = "missing-share"
    DAMAGED_SHARE = "damaged-share"
    WRONG_VECTOR = "wrong-vector"
    SURVIVORS_DIFFER = "survivors-differ"
    TOO_FEW_SHARES = "too-few-shares"
    WRONG_SHARE = "wrong-share"


_MEANING: Final[Mapping[Abort, str]] = {
    Abort.DAMAGED_MESSAGE: "a message is not of its form",
    Abort.OTHER_ATTEMPT: "a message belongs to another federation, run, round, plan or attempt",
    Abort.OUT_OF_ORDER: "a message came out of its turn",
    Abort.ALREADY_ANSWERED: "this was answered before, and is answered once",
    Abort.ABORTED: "this attempt was aborted here",
    Abort.ATTEMPT_USED: "an attempt of this number was begun before; a resumed round is a new attempt",
    Abort.COHORT_TOO_SMALL: "the cohort is smaller than the policy asks for, or no sum of it is safe",
    Abort.NOT_IN_COHORT: "a list names a client that isn't of it, or leaves out the one it was sent to",
    Abort.UNKNOWN_CLIENT: "the cohort has a client that isn't in the roster",
    Abort.EQUAL_KEYS: "two keys of the cohort are equal",
    Abort.WEAK_KEY: "a key is one that agrees on the same secret with everybody",
    Abort.BAD_SIGNATURE: "a client's keys aren't signed by its identity for this attempt",
    Abort.VIEWS_DIFFER: "the list of keys doesn't hold this client's own",
    Abort.TOO_FEW_CLIENTS: "too few clients are left for a sum that hides each of them",
    Abort.TOO_FEW_HOLDERS: "too few of those who hold a client's shares are left",
    Abort.MISSING_SHARE: "shares weren't sent to, or didn't come from, everyone they should",
    Abort.DAMAGED_SHARE: "shares don't open: their sender saw other keys, or they were changed, swapped or replayed",
    Abort.WRONG_VECTOR: "a vector isn't of the length and type of the attempt",
    Abort.SURVIVORS_DIFFER: "a client didn't confirm these survivors, or none were confirmed by it",
    Abort.TOO_FEW_SHARES: "too few shares came to take a mask away",
    Abort.WRONG_SHARE: "shares are wrong, too many to find out which",
}


class SecureSumError(RunError):
    """A step of a secure sum that is refused, and why. `reason` is fit for logs, faults and replies."""

    def __init__(self, reason: Abort) -> None:
        super().__init__(f"secure sum: {reason}: {_MEANING[reason]}")
        self.reason: Abort = reason

    def __reduce__(self) -> tuple[type["SecureSumError"], tuple[Abort]]:
        return SecureSumError, (self.reason,)
