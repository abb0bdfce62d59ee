"""A statement: what an owner is willing to say of its ledger, signed.

It is testimony, not proof: the signature shows who says it and that nobody changed it, not that noise was added. Its
anchor ties it to the chain: whoever keeps a statement can tell later that the ledger was cut off or rewritten. One of
detail "full" can restore what a lost ledger had charged (`privacy.ledger.recovery`).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args

from privacy.accountant import RELATIONS
from privacy.canonical_json import canonical, is_digest, parse, record
from privacy.ledger import Anchor, Ledger
from privacy.ledger.chain import balance_from_json, releases_from_json, releases_to_json
from privacy.ledger.entries import check_scope, is_time
from privacy.lifetime import SLACK, Account, Balance, LifetimeSpent, Limit, PlanAccount
from security.errors import UsageError
from security.identity import Identity, is_public_key, verify

Detail = Literal["epsilon", "totals", "full"]
"""Budgets and epsilons alone; also how often each mechanism released; all charges of each plan."""

VERSION = 1

_PREFIX = b"veil statement 1\n"
_LONGEST = 1 << 24


@dataclass(frozen=True, kw_only=True)
class BalanceStatement:
    """What is said of one balance.

    Attributes:
        balance: what the epsilons are about. Those of unlike balances are never added.
        budget: the limit that the owner keeps.
        spent: what was spent of it, and how that is proven.
        totals: mechanisms by name, and how many releases of each; None at detail "epsilon".
        account: all charges; at detail "full" alone.
    """

    balance: Balance
    budget: Limit
    spent: LifetimeSpent
    totals: Mapping[str, int] | None
    account: Account | None


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A signed statement. Made by `make_statement`, or read by `verify_statement`.

    Attributes:
        owner: public key of who signs, in hexadecimal.
        scope: what it is about.
        policy: digest of the policy in force, if any.
        anchor: the newest entry it takes into account.
        time: when it was made, as the owner's clock said.
        withdrawn: whether a gap in the history was written off: then nothing is claimed.
        detail: how much it says.
        balances: one a balance.
        past: earlier places of the chain; at detail "full" alone.
        signature: Ed25519, over the rest.
    """

    owner: str
    scope: str
    policy: str | None
    anchor: Anchor
    time: str
    withdrawn: bool
    detail: Detail
    balances: tuple[BalanceStatement, ...]
    past: tuple[Anchor, ...] | None
    signature: str = ""

    def to_json(self) -> dict[str, Any]:
        """As docs/schemas/statement.schema.json describes it."""
        return {**_unsigned(self), "signature": self.signature}

    @property
    def text(self) -> str:
        """The statement as it is kept and sent: canonical JSON."""
        return canonical(self.to_json())


def make_statement(
    ledger: Ledger,
    scope: str,
    identity: Identity,
    limits: Mapping[Balance, Limit] | None = None,
    *,
    detail: Detail = "epsilon",
) -> Statement:
    """Say, and sign, what a scope has spent.

    Args:
        ledger: whose.
        scope: of it.
        identity: the scope's owner.
        limits: the policy's budgets; by default those under which the balances were last charged.
        detail: how much to say.

    Raises:
        LedgerError: if the ledger can't be relied on.
        UsageError: if the scope belongs to another key, or a balance has no budget.
    """
    snapshot = ledger.snapshot(scope)
    if snapshot.owner != identity.public_hex:
        raise UsageError(f"{ledger.path}, scope {scope!r}: is another's; sign with the key it was opened with")
    budgets = {**snapshot.limits, **(limits or {})}
    balances = []
    for balance in {**snapshot.accounts, **budgets}:
        if balance not in budgets:
            raise UsageError(f"scope {scope!r}: no budget for {balance.unit} x {balance.trust}; name one in the policy")
        account = snapshot.accounts.get(balance, Account(withdrawn=snapshot.withdrawn))
        budget = _floats(budgets[balance])
        balances.append(
            BalanceStatement(
                balance=balance,
                budget=budget,
                spent=budget.spent(account),
                totals=None if detail == "epsilon" else _totals(account),
                account=account if detail == "full" else None,
            )
        )
    unsigned = Statement(
        owner=snapshot.owner,
        scope=scope,
        policy=snapshot.policy,
        anchor=snapshot.head,
        time=snapshot.time,
        withdrawn=snapshot.withdrawn,
        detail=detail,
        balances=tuple(balances),
        past=snapshot.past if detail == "full" else None,
    )
    return _signed(unsigned, identity)


def verify_statement(given: str | bytes | Mapping[str, Any], *, owner: str | None = None) -> Statement:
    """Read a statement and check its signature and form.

    Args:
        given: its text, or the JSON value.
        owner: the public key that must have signed it. Without one anybody may have: compare `Statement.owner`.

    Raises:
        UsageError: naming what is wrong.
    """
    try:
        data = parse(_text(given))
        signature = data.pop("signature", None) if isinstance(data, dict) else None
        statement = _from_json(data, signature)
        message = _PREFIX + canonical(data).encode()
    except ValueError as error:
        raise UsageError(f"the statement can't be read: {error}; ask its owner for it again") from error
    if owner is not None and statement.owner != owner:
        raise UsageError("the statement is signed by another key than its owner's; ask its owner for it again")
    if not verify(statement.owner, bytes.fromhex(statement.signature), message):
        raise UsageError("the statement's signature is wrong: it was changed, or another key signed it")
    return statement


def understated(statement: Statement) -> tuple[Balance, ...]:
    """Balances whose stated epsilon or delta is less than the stated charges cost; none can be found below "full"."""
    found = []
    for item in statement.balances:
        if item.account is not None:
            real = item.budget.spent(item.account)
            if item.spent.epsilon < real.epsilon * (1 - SLACK) or item.spent.delta < real.delta * (1 - SLACK):
                found.append(item.balance)
    return tuple(found)


def _signed(statement: Statement, identity: Identity) -> Statement:
    message = _PREFIX + canonical(_unsigned(statement)).encode()
    return replace(statement, signature=identity.sign(message).hex())


def _totals(account: Account) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for plan in account.plans:
        for release, count in plan.charged:
            totals[release.to_json()["mechanism"]] += count
    return dict(totals)


def _floats(limit: Limit) -> Limit:
    return Limit(epsilon=float(limit.epsilon), delta=float(limit.delta), filter=limit.filter)


# --- to JSON ----------------------------------------------------------------------------------------------------------


def _unsigned(statement: Statement) -> dict[str, Any]:
    return {
        "version": VERSION,
        "owner": statement.owner,
        "scope": statement.scope,
        "policy": statement.policy,
        "anchor": {"position": statement.anchor.position, "hash": statement.anchor.hash},
        "time": statement.time,
        "withdrawn": statement.withdrawn,
        "detail": statement.detail,
        "balances": [_balance_to_json(item) for item in statement.balances],
        "past": None if statement.past is None else [[anchor.position, anchor.hash] for anchor in statement.past],
    }


def _balance_to_json(item: BalanceStatement) -> dict[str, Any]:
    spent = asdict(item.spent)
    return {
        "unit": item.balance.unit,
        "trust": item.balance.trust,
        "relation": spent.pop("relation"),
        "budget": asdict(item.budget),
        "spent": {key: value if isinstance(value, str) else _finite(value) for key, value in spent.items()},
        "totals": None if item.totals is None else dict(item.totals),
        "plans": None if item.account is None else [_plan_to_json(plan) for plan in item.account.plans],
    }


def _finite(value: float) -> float | None:
    # JSON has no infinity: null is no bound.
    return None if value == math.inf else float(value)


def _plan_to_json(plan: PlanAccount) -> dict[str, Any]:
    return {
        "plan": plan.plan,
        "delta": plan.delta,
        "proof": plan.proof,
        "envelope": None if plan.envelope is None else releases_to_json(plan.envelope),
        "charged": releases_to_json(plan.charged),
    }


# --- from JSON: every ValueError ends as a UsageError -----------------------------------------------------------------


def _text(given: str | bytes | Mapping[str, Any]) -> str:
    text = given.decode() if isinstance(given, bytes) else given if isinstance(given, str) else canonical(given)
    if len(text) > _LONGEST:
        raise ValueError("it is too long")
    return text


def _from_json(data: object, signature: object) -> Statement:
    if isinstance(data, dict) and data.get("version") != VERSION:
        raise ValueError(f"its version is not {VERSION}, the one this Veil knows")
    values = record(
        data,
        "a statement",
        version=int,
        owner=str,
        scope=str,
        policy=(str, NoneType),
        anchor=dict,
        time=str,
        withdrawn=bool,
        detail=str,
        balances=list,
        past=(list, NoneType),
    )
    check_scope(values["scope"])
    if not is_public_key(values["owner"]):
        raise ValueError("its owner is no public key")
    if not (values["policy"] is None or is_digest(values["policy"])) or not is_time(values["time"]):
        raise ValueError("its policy or time is none")
    if values["detail"] not in get_args(Detail):
        raise ValueError(f"its detail is none of {', '.join(get_args(Detail))}")
    if not isinstance(signature, str) or len(signature) != 128 or signature.strip("0123456789abcdef"):
        raise ValueError("it has no signature of 128 hexadecimal digits")
    place = record(values["anchor"], "its anchor", position=int, hash=str)
    anchor = Anchor(scope=values["scope"], **place)
    balances = tuple(_balance_from_json(item, values["detail"], values["withdrawn"]) for item in values["balances"])
    if len({item.balance for item in balances}) != len(balances):
        raise ValueError("it names a balance twice")
    return Statement(
        owner=values["owner"],
        scope=values["scope"],
        policy=values["policy"],
        anchor=anchor,
        time=values["time"],
        withdrawn=values["withdrawn"],
        detail=values["detail"],
        balances=balances,
        past=_past_from_json(values["past"], values["detail"], anchor),
        signature=signature,
    )


def _past_from_json(data: list[Any] | None, detail: Detail, anchor: Anchor) -> tuple[Anchor, ...] | None:
    if (data is not None) != (detail == "full"):
        raise ValueError("its past doesn't go with its detail")
    found = []
    for item in data or ():
        if not isinstance(item, list) or len(item) != 2:
            raise ValueError("its past is no list of positions and hashes")
        found.append(Anchor(scope=anchor.scope, position=item[0], hash=item[1]))
    if any(earlier.position >= anchor.position for earlier in found):
        raise ValueError("its past is not before its anchor")
    return None if data is None else tuple(found)


def _balance_from_json(data: object, detail: Detail, withdrawn: bool) -> BalanceStatement:
    values = record(
        data,
        "a balance",
        unit=str,
        trust=str,
        relation=str,
        budget=dict,
        spent=dict,
        totals=(dict, NoneType),
        plans=(list, NoneType),
    )
    if (values["totals"] is not None, values["plans"] is not None) != (detail != "epsilon", detail == "full"):
        raise ValueError("its totals or plans don't go with its detail")
    if values["relation"] not in RELATIONS:
        raise ValueError("its neighbouring relation is not known")
    totals, plans = values["totals"], values["plans"]
    if totals is not None and not all(type(count) is int and count > 0 for count in totals.values()):
        raise ValueError("its totals are no counts")
    account = None
    if plans is not None:
        account = Account(plans=tuple(_plan_from_json(plan) for plan in plans), withdrawn=withdrawn)
        if len({plan.plan for plan in account.plans}) != len(account.plans) or _totals(account) != totals:
            raise ValueError("its plans are named twice, or don't come to its totals")
    return BalanceStatement(
        balance=balance_from_json({"unit": values["unit"], "trust": values["trust"]}),
        budget=Limit(**record(values["budget"], "a budget", epsilon=float, delta=float, filter=str)),
        spent=_spent_from_json(values["spent"], values["relation"], withdrawn),
        totals=totals,
        account=account,
    )


def _spent_from_json(data: object, relation: str, withdrawn: bool) -> LifetimeSpent:
    bound = (float, NoneType)
    values = record(
        data,
        "what was spent",
        epsilon=bound,
        delta=float,
        charged_epsilon=bound,
        proof=str,
        fraction=float,
        accountant=str,
    )
    values = {key: math.inf if value is None else value for key, value in values.items()}
    if not (values["epsilon"] >= 0 and values["charged_epsilon"] >= 0 and 0 <= values["fraction"] <= 1):
        raise ValueError("what was spent is out of range")
    if not 0 <= values["delta"] <= 1 or (withdrawn and values["epsilon"] != math.inf):
        raise ValueError("what was spent is out of range, or claimed though the claim was withdrawn")
    return LifetimeSpent(**values, relation=relation)


def _plan_from_json(data: object) -> PlanAccount:
    values = record(data, "a plan's account", plan=str, delta=float, proof=str, envelope=(list, NoneType), charged=list)
    if not is_digest(values["plan"]) or not 0 < values["delta"] < 1 or values["proof"] not in ("filter", "plan"):
        raise ValueError("a plan's digest, delta or proof is out of range")
    if (values["envelope"] is not None) != (values["proof"] == "plan"):
        raise ValueError("a plan's envelope doesn't go with its proof")
    return PlanAccount(
        plan=values["plan"],
        proof=values["proof"],
        envelope=None if values["envelope"] is None else releases_from_json(values["envelope"]),
        charged=releases_from_json(values["charged"]),
        delta=values["delta"],
    )
