"""After a loss: bring an old copy of a ledger, or a new one, up to what the owner has signed for.

A restored backup lacks the charges made since. A full statement proves what was charged up to its own anchor; the
difference is charged again, in a `recover` entry. What lies beyond the newest statement is a gap. It closes the
scope, unless the owner writes it off: then the scope works again, and no claim is made on it any more.

The difference is taken at the newest place that both the statement and this copy know, so that what this copy
charged since counts as well: two copies that went on side by side have both released.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privacy.ledger import Anchor, Ledger
from privacy.ledger.anchors import read_anchors, write_anchors
from privacy.ledger.chain import Chain, Charge, within
from privacy.ledger.file import LedgerError, remove_file, resolved
from privacy.lifetime import Balance, PlanAccount, Releases, multiset
from privacy.mechanisms import Release
from privacy.statement import Statement, verify_statement
from security.errors import UsageError

_WRITE_OFF = "find a newer full statement, or write the gap off: the scope then works again, without any claim"


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a recovery did.

    Attributes:
        charges: that the copy lacked.
        acknowledged: places of the lost chain that count as held from now on.
        withdrawn: whether a gap was written off.
        head: the scope's newest entry now.
    """

    charges: tuple[Charge, ...]
    acknowledged: tuple[Anchor, ...]
    withdrawn: bool
    head: Anchor


def recover(
    path: Path,
    scope: str,
    *,
    statements: Iterable[str | bytes | Mapping[str, Any]] = (),
    anchor: Anchor | None = None,
    anchors: Path | None = None,
    owner: str = "",
    write_off: bool = False,
    durable: bool = True,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Recovery:
    """Bring a scope up to date with what is known of it outside, and open it again.

    Args:
        path: of the ledger: a restored copy, intact as far as it goes; if there is none, a new one is made.
        scope: which.
        statements: of the scope's owner. Those of detail "full" that this copy doesn't hold are charged.
        anchor: the newest place anybody outside knows, such as the server's record.
        anchors: the ledger's anchor file, present or lost; brought up to date at the end.
        owner: public key, for a scope that is not in the copy.
        write_off: go on in spite of a gap, and withdraw every claim on this scope.
        durable: as for `Ledger.open`.
        clock: as for `Ledger.open`.

    Raises:
        LedgerError: if the copy itself is damaged, or a gap remains.
        UsageError: if a statement can't be used.
    """
    path = resolved(path)
    said = [verify_statement(item) for item in statements]
    wanted, lost = _wanted(anchors, scope, anchor)
    is_new = not path.exists()
    if is_new:
        Ledger.create(path, durable=durable).close()
    try:
        with Ledger.open(path, durable=durable, clock=clock) as ledger:
            with ledger.batch():
                if scope not in ledger.scopes():
                    ledger.open_scope(scope, owner=owner or _only_owner(said))
                plan = _Plan(ledger, scope)
                # The newest first: it covers older ones of the same chain.
                for statement in sorted(said, key=lambda item: item.anchor.position, reverse=True):
                    plan.take(statement)
                if lost and not wanted and not said:
                    plan.gaps.append("its anchor was lost, and nothing else says how far the chain went")
                acknowledged = plan.acknowledge(wanted)
                if plan.gaps and not write_off:
                    raise LedgerError(f"{path}, scope {scope!r}: {'; '.join(plan.gaps)}; {_WRITE_OFF}")
                if plan.charges or acknowledged or plan.gaps:
                    body = {
                        "acknowledged": [[place.position, place.hash] for place in acknowledged],
                        "charges": [charge.to_json() for charge in plan.charges],
                        "withdrawn": bool(plan.gaps),
                    }
                    ledger.append_recovery(scope, body)
            head = ledger.head(scope)
            if anchors is not None:
                write_anchors(anchors, {**_others(anchors, ledger), scope: head})
    except BaseException:
        if is_new:
            remove_file(path)
        raise
    return Recovery(charges=tuple(plan.charges), acknowledged=acknowledged, withdrawn=bool(plan.gaps), head=head)


class _Plan:
    """What a recovery would write: nothing is written here."""

    def __init__(self, ledger: Ledger, scope: str) -> None:
        self._ledger = ledger
        self._scope = scope
        snapshot = ledger.snapshot(scope)
        self._owner = snapshot.owner
        self._entries = list(ledger.entries(scope))
        self._covered: set[Anchor] = set()
        self._totals = {
            (balance, plan.plan): plan for balance, account in snapshot.accounts.items() for plan in account.plans
        }
        self.charges: list[Charge] = []
        self.gaps: list[str] = []

    def take(self, statement: Statement) -> None:
        """Charge what the statement says and this copy lacks.

        Raises:
            UsageError: if it is another's, or doesn't say what was charged.
        """
        place = f"the statement at entry {statement.anchor.position}"
        if statement.scope != self._scope or statement.owner != self._owner:
            raise UsageError(f"{place} is about another scope than {self._scope!r}, or another owner's; leave it out")
        if statement.anchor in self._covered or self._ledger.holds(statement.anchor):
            return
        if statement.past is None:
            raise UsageError(f"{place} doesn't say what was charged; give one of detail full")
        if statement.withdrawn:
            self.gaps.append(f"{place} makes no claim itself")
        before = self._totals_at(statement.past)
        for item in statement.balances:
            for plan in item.account.plans if item.account is not None else ():
                missing = Counter(dict(plan.charged))
                missing.subtract(before.get((item.balance, plan.plan), {}))
                if min(missing.values()) < 0:
                    raise UsageError(f"{place} says less than this copy, which is older; leave it out")
                if any(missing.values()):
                    self._charge(item.balance, plan, multiset(missing))
        self._covered |= {statement.anchor, *statement.past}

    def acknowledge(self, wanted: Iterable[Anchor]) -> tuple[Anchor, ...]:
        """All places this copy doesn't hold, in order; those nobody vouches for are gaps."""
        missing = {place for place in wanted if not self._ledger.holds(place)}
        for place in sorted(missing - self._covered, key=_order):
            self.gaps.append(f"nothing says what was charged up to entry {place.position}, which was anchored")
        missing |= {place for place in self._covered if not self._ledger.holds(place)}
        return tuple(sorted(missing, key=_order))

    def _charge(self, balance: Balance, plan: PlanAccount, missing: Releases) -> None:
        known = self._totals.get((balance, plan.plan))
        total = multiset(Counter(dict(known.charged if known else ())) + Counter(dict(missing)))
        if known is not None and (known.proof, known.envelope, known.delta) != (plan.proof, plan.envelope, plan.delta):
            self.gaps.append("two copies of the ledger have charged a plan under unlike proofs")
        elif plan.envelope is not None and not within(dict(total), dict(plan.envelope)):
            self.gaps.append("two copies of the ledger have charged more than a plan may")
        self._totals[balance, plan.plan] = replace(known or plan, charged=total)
        self.charges.append(
            Charge(
                balance=balance,
                plan=plan.plan,
                delta=plan.delta,
                proof=plan.proof,
                envelope=plan.envelope if known is None else None,
                releases=missing,
                limit=None,
            )
        )

    def _totals_at(self, past: Iterable[Anchor]) -> dict[tuple[Balance, str], dict[Release, int]]:
        """What was charged at the newest place that the statement and this copy share; nothing if they share none."""
        places = set(past)
        shared = max((entry.position for entry in self._entries if entry.anchor in places), default=-1)
        chain = Chain(self._scope)
        for entry in self._entries[: shared + 1]:
            chain.append(entry)
        return {
            (balance, plan.plan): dict(plan.charged)
            for balance in chain.balances()
            for plan in chain.account(balance).plans
        }


def _wanted(anchors: Path | None, scope: str, anchor: Anchor | None) -> tuple[list[Anchor], bool]:
    """The places that must be accounted for, and whether the ledger's own anchor is lost."""
    wanted = [] if anchor is None else [anchor]
    if anchor is not None and anchor.scope != scope:
        raise UsageError(f"the anchor is of scope {anchor.scope!r}, not of {scope!r}; give the one of this scope")
    if anchors is None:
        return wanted, False
    try:
        found = read_anchors(anchors)
    except LedgerError:
        return wanted, True
    own = found.get(scope)
    if own is not None:
        wanted.append(own)
    return wanted, scope in found and own is None


def _others(anchors: Path, ledger: Ledger) -> Mapping[str, Anchor | None]:
    try:
        return read_anchors(anchors)
    except LedgerError:
        # The other scopes' are lost as well: each stays closed until it is recovered.
        return dict.fromkeys(ledger.scopes())


def _only_owner(statements: Iterable[Statement]) -> str:
    owners = {statement.owner for statement in statements}
    if len(owners) != 1:
        raise UsageError(
            "the scope is not in this ledger, and the statements don't name one owner; name its public key"
        )
    return owners.pop()


def _order(place: Anchor) -> tuple[int, str]:
    return place.position, place.hash
