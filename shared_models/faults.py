"""Why a client's reply is missing from a round: fixed codes, never text.

A free text could carry data out of a client, so a failure is one of these numbers and nothing else (rule 5:
refusals depend on plan, policy and ledger alone; any other failure is one fixed code).
"""

from __future__ import annotations

from enum import IntEnum


class Fault(IntEnum):
    """What went wrong with one client in one round. Numbers are part of the wire format: never reuse one."""

    CLIENT_FAILED = 1001
    """The client could not finish its work; it says no more than that."""
    PLAN_MISMATCH = 1002
    """The client holds another plan than the server asked for."""
    MODEL_MISMATCH = 1003
    """The parameters don't have the names, shapes or types of the plan's model."""
    BUDGET_EXHAUSTED = 1004
    """The client's privacy budget does not cover another round."""
    MALFORMED_REPLY = 1005
    """The reply holds fields that it must not hold, or lacks some it must."""
    NON_FINITE = 1006
    """Without privacy: the update holds NaN or infinity."""
    UNREACHABLE = 1007
    """No reply: the process or machine behind the client died, twice."""
    TIMED_OUT = 1008
    """No reply before the round's deadline."""

    @property
    def reason(self) -> str:
        """The code as outputs print it, e.g. `client-failed`."""
        return self.name.lower().replace("_", "-")


def fault_of(code: int) -> Fault:
    """The fault behind an error code; a code that isn't ours means the client failed."""
    try:
        return Fault(code)
    except ValueError:
        return Fault.CLIENT_FAILED
