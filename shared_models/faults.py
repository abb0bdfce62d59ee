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
    POLICY_SECURE_SUM = 1023
    """The plan's secure sum counts on fewer honest clients, or has a smaller cohort, than the site asks for."""
    SECURE_SUM_REFUSED = 1024
    """The client refused a message of a secure sum: too few take part, or it breaks the protocol's rules."""
    SECURE_SUM_LOST = 1025
    """The client has no secrets of this attempt at a secure sum: it started again, or a newer attempt has begun."""
    SECURE_SUM_BROKEN = 1026
    """The client's part in a secure sum is wrong: a forged or damaged message, or a share that doesn't fit."""
    SECURE_SUM_ABORTED = 1027
    """The client did its part, but too few others did: the sum was not opened."""
    ROUND_REPEATED = 1028
    """In a run that is paid for as a whole, the client has answered this round otherwise, or a later one: it would be
    released twice and paid for once."""

    @property
    def reason(self) -> str:
        """The code as outputs print it, e.g. `client-failed`."""
        return self.name.lower().replace("_", "-")

    @property
    def is_refusal(self) -> bool:
        """Whether it depends on plan, settings, ledger and the server's messages alone, never on data (rule 5)."""
        return self in _REFUSALS


_REFUSALS = (
    Fault.PLAN_MISMATCH,
    Fault.MODEL_MISMATCH,
    Fault.BUDGET_EXHAUSTED,
    Fault.LEDGER_CLOSED,
    Fault.REPLY_GONE,
    Fault.SITE_DATA,
    Fault.SECURE_SUM_REFUSED,
    Fault.SECURE_SUM_LOST,
    Fault.ROUND_REPEATED,
    *(fault for fault in Fault if fault.name.startswith("POLICY_")),
)


def fault_of(code: int) -> Fault:
    """The fault behind an error code; a code that isn't ours means the client failed."""
    try:
        return Fault(code)
    except ValueError:
        return Fault.CLIENT_FAILED
