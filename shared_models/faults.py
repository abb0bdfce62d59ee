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
    LEDGER_CLOSED = 1009
    """The client's ledger is missing, damaged, full or behind what the server knows: nothing is trained without it."""
    REPLY_GONE = 1010
    """The request was answered before, too long ago to be answered again."""
    POLICY_FEDERATION = 1011
    """The site's policy doesn't know this federation."""
    POLICY_PLAN = 1012
    """The site's policy doesn't list this plan."""
    POLICY_MODEL = 1013
    """The site's policy doesn't list this network."""
    POLICY_UNIT = 1014
    """The site has no budget for this unit and trust."""
    POLICY_ENTRUST = 1015
    """The site entrusts this federation with nothing unprotected."""
    POLICY_NOISE = 1016
    """The plan has less noise than the site asks for, or noise that follows from a seed."""
    POLICY_CLIPPING = 1017
    """The plan's clipping norm is larger than the site allows."""
    POLICY_FIELD = 1018
    """The plan asks for values that the site doesn't let out."""
    POLICY_RATE = 1019
    """The site has taken part in as many rounds today as it allows."""
    POLICY_APPROVAL = 1020
    """The site's owner has not approved this plan."""
    SITE_DATA = 1021
    """The site has no data of the plan's kind."""
    POLICY_RESOURCES = 1022
    """The plan asks for more threads or memory than the site gives, or for a device that isn't there."""

    @property
    def reason(self) -> str:
        """The code as outputs print it, e.g. `client-failed`."""
        return self.name.lower().replace("_", "-")

    @property
    def is_refusal(self) -> bool:
        """Whether a client says it before it touches data: it depends on plan, settings and ledger alone (rule 5)."""
        return self in _REFUSALS


_REFUSALS = (
    Fault.PLAN_MISMATCH,
    Fault.MODEL_MISMATCH,
    Fault.BUDGET_EXHAUSTED,
    Fault.LEDGER_CLOSED,
    Fault.REPLY_GONE,
    Fault.SITE_DATA,
    *(fault for fault in Fault if fault.name.startswith("POLICY_")),
)


def fault_of(code: int) -> Fault:
    """The fault behind an error code; a code that isn't ours means the client failed."""
    try:
        return Fault(code)
    except ValueError:
        return Fault.CLIENT_FAILED
