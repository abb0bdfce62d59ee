"""What a report is made from, beside a run's own files: ledgers and statements, as plain views.

A view is read from a ledger or a statement by whoever may open them. Nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from privacy.accountant import RELATION
from privacy.report.facts import FieldKind

ReleaseCounts = tuple[tuple[Mapping[str, Any], int], ...]
"""Releases as JSON (`Release.to_json`), and how often each."""


@dataclass(frozen=True, kw_only=True)
class ChargeView:
    """One task that a ledger knows.

    Attributes:
        round: of the run that asked, from 1.
        plan: digest of its plan.
        phase: "train", "evaluate", ...
        time: UTC ISO text; informative only.
        status: "reserved" (never committed: counts as spent), "committed" or "refused" (costs nothing).
        unit: of the balance charged, e.g. "record"; None where nothing was charged.
        trust: of the balance charged; None where nothing was charged.
        releases: charged; empty for an unprotected task.
        reason: fixed code of a refusal, or of what came between a reservation and its commit; else None.
    """

    round: int
    plan: str
    phase: str
    time: str
    status: Literal["reserved", "committed", "refused"]
    unit: str | None = None
    trust: str | None = None
    releases: ReleaseCounts = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """What one plan cost one balance (`privacy.lifetime.PlanAccount`).

    Attributes:
        plan: its digest.
        proof: "filter" or "plan".
        epsilon: PLD epsilon at `delta` of all that counts: with proof "plan" its envelope, else its charges; None where
            none can be computed.
        delta: of the plan's own claim.
    """

    plan: str
    proof: Literal["filter", "plan"]
    epsilon: float | None
    delta: float


@dataclass(frozen=True, kw_only=True)
class BalanceView:
    """One balance of a ledger, with what `privacy.lifetime.Limit.spent` says of it.

    Attributes:
        unit: "record", "person:5" or "client".
        trust: "local", "distributed" or "central".
        spent_epsilon: proven so far; None where nothing is claimed (`math.inf` there).
        spent_delta: of `spent_epsilon`.
        proof: "nothing-charged", "rdp-filter", "dedicated-plan", "sum-of-plans" or "withdrawn".
        accountant: how `spent_epsilon` was computed.
        relation: the neighbouring relation.
        charged_epsilon: what the charges alone would cost; None where none can be computed.
        fraction: of the limit used, 0 to 1; None without a limit.
        epsilon: the limit of the site's policy; None without one.
        delta: the limit's; None without one.
        filter: "rdp" or "sum"; None without a limit.
        plans: in the order of their first charge.
        withdrawn: a gap in the history was written off.
    """

    unit: str
    trust: str
    spent_epsilon: float | None
    spent_delta: float
    proof: str
    accountant: str
    relation: str = RELATION
    charged_epsilon: float | None = None
    fraction: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    filter: Literal["rdp", "sum"] | None = None
    plans: tuple[PlanView, ...] = ()
    withdrawn: bool = False


@dataclass(frozen=True, kw_only=True)
class FieldView:
    """One kind of value that left, by what the ledger's commits say.

    Attributes:
        name: of the field.
        kind: its class.
        count: how often it left.
        receiver: the server it was entrusted to; None unless entrusted.
    """

    name: str
    kind: FieldKind
    count: int
    receiver: str | None = None


@dataclass(frozen=True, kw_only=True)
class LedgerView:
    """One scope of a ledger.

    Attributes:
        client: id of the scope.
        charges: in the chain's order.
        balances: one for each (unit, trust) charged.
        fields: what left.
        position: of the head; -1 for an empty chain.
        hash: of the head.
        policy: digest of the policy in force; empty if none.
        verified: chain and charges recomputed and equal; None if not checked.
        problems: what is wrong, one line each.
        withdrawn: a gap was written off: nothing is claimed for this scope.
    """

    client: str
    charges: tuple[ChargeView, ...]
    balances: tuple[BalanceView, ...] = ()
    fields: tuple[FieldView, ...] = ()
    position: int = -1
    hash: str = ""
    policy: str = ""
    verified: bool | None = None
    problems: tuple[str, ...] = ()
    withdrawn: bool = False


@dataclass(frozen=True, kw_only=True)
class StatementView:
    """One signed statement.

    Attributes:
        client: scope it is about.
        owner: fingerprint of the owner's key.
        position: of the ledger's head that it names.
        hash: of that head.
        time: as the owner's clock had it.
        detail: "epsilon", "totals" or "full".
        verified: whether its signature holds; None if not checked.
        problem: what is wrong, in one line; None if nothing is.
    """

    client: str
    owner: str
    position: int
    hash: str
    time: str
    detail: str
    verified: bool | None
    problem: str | None = None
