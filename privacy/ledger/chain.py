"""What a chain of entries amounts to: its tasks and accounts, folded from the entries alone.

The ledger, its verification and its recovery all read a chain through this one fold, so none of them can come to
another account than the others. Every rule that ties entries together is here: a break raises `DamageError` and
leaves the state as it was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import NoneType
from typing import Any, Self

from privacy.accountant import history
from privacy.canonical_json import canonical, canonical_again, is_digest, parse, record
from privacy.ledger.entries import (
    FIELD_CLASSES,
    START,
    Anchor,
    DamageError,
    Entry,
    Task,
    check_scope,
    read_entry,
    seconds,
)
from privacy.lifetime import Account, Balance, Limit, PlanAccount, Proof, Releases, multiset
from privacy.mechanisms import Release, release_from_json
from security.identity import is_public_key

FORMAT = 1
"""Of the entries; named in each `open` entry."""

REPLIES_KEPT = 2
"""Of each (federation, run, phase): a server's checkpoints go back two rounds."""

_MOST = 1 << 53


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one entry charges to one balance.

    Attributes:
        balance: that is charged.
        plan: digest of the plan that asked.
        delta: of the plan's own claim.
        proof: of this plan on this balance.
        envelope: at the first charge of a plan with proof "plan": all that it may ever charge; else None.
        releases: charged now; at least one.
        limit: under which it was admitted; None for a charge that was recovered, which nobody could refuse.
    """

    balance: Balance
    plan: str
    delta: float
    proof: Proof
    envelope: Releases | None
    releases: Releases
    limit: Limit | None

    def to_json(self) -> dict[str, Any]:
        """As an entry holds it."""
        return {
            "balance": asdict(self.balance),
            "plan": self.plan,
            "delta": self.delta,
            "proof": self.proof,
            "envelope": None if self.envelope is None else releases_to_json(self.envelope),
            "releases": releases_to_json(self.releases),
            "limit": None if self.limit is None else asdict(self.limit),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The inverse of `to_json`. Raises ValueError."""
        values = record(
            data,
            "a charge",
            balance=dict,
            plan=str,
            delta=float,
            proof=str,
            envelope=(list, NoneType),
            releases=list,
            limit=(dict, NoneType),
        )
        if not is_digest(values["plan"]) or not 0 < values["delta"] < 1 or values["proof"] not in ("filter", "plan"):
            raise ValueError("a charge's plan, delta or proof is out of range")
        limit = values["limit"]
        return cls(
            balance=balance_from_json(values["balance"]),
            plan=values["plan"],
            delta=values["delta"],
            proof=values["proof"],
            envelope=None if values["envelope"] is None else releases_from_json(values["envelope"]),
            releases=releases_from_json(values["releases"]),
            limit=None if limit is None else Limit(**record(limit, "a limit", epsilon=float, delta=float, filter=str)),
        )

    @property
    def key(self) -> tuple[Balance, str, float, Releases]:
        """What the caller asked for: the same task must ask for the same again."""
        return self.balance, self.plan, self.delta, self.releases


@dataclass(kw_only=True, slots=True)
class TaskState:
    """What became of a reserved task.

    Attributes:
        group: federation, run, phase.
        round: of the run.
        charge: what was asked for (`Charge.key`); None for a task without protection.
        reserved: position of its reserve entry.
        clock: seconds on the chain's own clock when it was reserved.
        committed: position of its commit entry.
        sha256: of the committed reply.
        kept: whether the commit stored the reply.
    """

    group: tuple[str, str, str]
    round: int
    charge: tuple[Balance, str, float, Releases] | None
    reserved: int
    clock: float
    committed: int | None = None
    sha256: str = ""
    kept: bool = False


@dataclass(kw_only=True, slots=True)
class _Plan:
    proof: Proof
    envelope: Releases | None
    delta: float
    charged: Counter[Release]


class Chain:
    """One scope's state after the entries so far. Changed by `append` alone."""

    def __init__(self, scope: str) -> None:
        check_scope(scope)
        self.scope = scope
        self.head: Anchor | None = None
        self.owner = ""
        self.policy: str | None = None
        self.tasks: dict[str, TaskState] = {}
        self.refused: set[tuple[str, str]] = set()
        self.acknowledged: set[Anchor] = set()
        self.limits: dict[Balance, Limit] = {}
        self.recovered: set[Balance] = set()
        self.withdrawn = False
        self._kept: dict[tuple[str, str, str], list[str]] = {}
        self._plans: dict[Balance, dict[str, _Plan]] = {}
        self._accounts: dict[Balance, Account] = {}
        self._shared: dict[Any, Any] = {}
        self._clock = 0.0
        self._time: float | None = None

    def read(self, row: Sequence[object]) -> Entry:
        """Check a row, append its entry.

        Raises:
            DamageError: if it isn't the entry that comes next.
        """
        entry, intact = read_entry(row)
        if not intact:
            raise DamageError("its hash is not that of its content")
        self.check_place(entry)
        self.append(entry)
        return entry

    def check_place(self, entry: Entry) -> None:
        """Raises DamageError unless the entry's scope, position and previous hash fit the end of this chain."""
        expected = 0 if self.head is None else self.head.position + 1
        if entry.scope != self.scope:
            raise DamageError("it belongs to another scope")
        if entry.position != expected:
            raise DamageError(f"expected entry {expected} here: entries are missing, doubled or out of order")
        if entry.previous != (START if self.head is None else self.head.hash):
            raise DamageError("it doesn't carry the hash of the entry before")

    def append(self, entry: Entry) -> None:
        """Take up an entry whose hash and place are right.

        Raises:
            DamageError: if its body doesn't fit what came before; nothing is changed.
        """
        time = seconds(entry.time)
        if (entry.kind == "open") != (entry.position == 0):
            raise DamageError("a scope begins with its one open entry")
        try:
            getattr(self, f"_{entry.kind}")(entry)
        except DamageError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DamageError(f"its {entry.kind} makes no sense: {error}") from error
        self._clock, self._time = self.clock_at(time), time
        self.head = entry.anchor

    def clock_at(self, time: float) -> float:
        """The chain's own clock at a time of day: it goes forward with the day's, and stands still when that jumps
        back. So a jump back frees nothing, and a jump ahead that is put right does no lasting harm."""
        return self._clock if self._time is None else self._clock + max(0.0, time - self._time)

    def balances(self) -> tuple[Balance, ...]:
        """In the order of their first charge."""
        return tuple(self._plans)

    def account(self, balance: Balance) -> Account:
        """All that was ever charged to a balance."""
        if balance not in self._accounts:
            plans = tuple(
                PlanAccount(
                    plan=digest,
                    proof=plan.proof,
                    envelope=plan.envelope,
                    charged=multiset(plan.charged),
                    delta=plan.delta,
                )
                for digest, plan in self._plans.get(balance, {}).items()
            )
            self._accounts[balance] = Account(plans=plans, withdrawn=self.withdrawn)
        return self._accounts[balance]

    def stored_replies(self) -> dict[str, int]:
        """Tasks whose replies the file must hold, with the positions of their commits."""
        tasks = [task for group in self._kept.values() for task in group]
        return {task: position for task in tasks if (position := self.tasks[task].committed) is not None}

    def stores(self, task: str) -> bool:
        """Whether the file must hold a task's reply."""
        return task in self._kept.get(self.tasks[task].group, ())

    def drops(self, task: str) -> list[str]:
        """Tasks whose stored replies make room when that of `task` comes."""
        return [*self._kept.get(self.tasks[task].group, ()), task][:-REPLIES_KEPT]

    # --- one method a kind of entry: check everything, then change --------------------------------------------------

    def _open(self, entry: Entry) -> None:
        body = record(entry.body, "an open entry", format=int, owner=str, nonce=str)
        if body["format"] != FORMAT:
            raise DamageError(f"entries of format {body['format']}; this Veil reads format {FORMAT}")
        if body["owner"] and not is_public_key(body["owner"]):
            raise DamageError("its owner is no public key")
        self.owner = body["owner"]

    def _policy(self, entry: Entry) -> None:
        body = record(entry.body, "a policy entry", digest=str, policy=dict)
        if not is_digest(body["digest"]):
            raise DamageError("its digest is no SHA-256")
        self.policy = body["digest"]

    def _reserve(self, entry: Entry) -> None:
        body = record(entry.body, "a reserve entry", task=dict, plan=(str, NoneType), charge=(dict, NoneType))
        task = Task.from_json(body["task"])
        if task.id in self.tasks:
            raise DamageError("its task was reserved before")
        if body["plan"] is not None and not is_digest(body["plan"]):
            raise DamageError("its plan is no SHA-256")
        charge = None if body["charge"] is None else _charge(canonical_again(body["charge"]))
        if charge is not None:
            if charge.plan != body["plan"] or charge.limit is None:
                raise DamageError("its charge names no limit, or another plan")
            self._check(charge)
            self._add(charge)
            self.limits[charge.balance] = self._share(charge.limit)
        self.tasks[task.id] = TaskState(
            group=self._share((task.federation, task.run, task.phase)),
            round=task.round,
            charge=None if charge is None else self._share(charge.key),
            reserved=entry.position,
            clock=self.clock_at(seconds(entry.time)),
        )

    def _commit(self, entry: Entry) -> None:
        body = record(entry.body, "a commit entry", task=str, sha256=str, length=int, kept=bool, fields=dict)
        state = self.tasks.get(body["task"])
        if state is None:
            raise DamageError("its task was never reserved")
        if state.committed is not None:
            raise DamageError("its task was committed before")
        if not is_digest(body["sha256"]) or not 0 <= body["length"] < _MOST:
            raise DamageError("its reply's hash or length is none")
        if not all(value in FIELD_CLASSES for value in body["fields"].values()):
            raise DamageError("a field of its reply is of no known class")
        state.committed, state.sha256, state.kept = entry.position, body["sha256"], body["kept"]
        if state.kept:
            group = self._kept.setdefault(state.group, [])
            group.append(body["task"])
            del group[:-REPLIES_KEPT]

    def _refuse(self, entry: Entry) -> None:
        body = record(entry.body, "a refuse entry", task=dict, reason=str)
        key = (Task.from_json(body["task"]).id, body["reason"])
        if key in self.refused:
            raise DamageError("its task was refused for that reason before")
        # Whatever the codes of a newer Veil, it is no free text.
        if len(key[1]) > 40 or key[1].strip("abcdefghijklmnopqrstuvwxyz-"):
            raise DamageError("its reason is no code")
        self.refused.add(key)

    def _recover(self, entry: Entry) -> None:
        body = record(entry.body, "a recover entry", acknowledged=list, charges=list, withdrawn=bool)
        anchors = {Anchor(scope=self.scope, position=position, hash=hash_) for position, hash_ in body["acknowledged"]}
        charges = [Charge.from_json(item) for item in body["charges"]]
        known = {(balance, plan) for balance, plans in self._plans.items() for plan in plans}
        for charge in charges:
            first = (charge.balance, charge.plan) not in known
            if charge.limit is not None or (charge.envelope is not None) != (first and charge.proof == "plan"):
                raise DamageError("a recovered charge names a limit, or its envelope is missing")
            known.add((charge.balance, charge.plan))
        for charge in charges:
            self._add(charge)
            self.recovered.add(charge.balance)
        self.acknowledged |= anchors
        self.withdrawn |= body["withdrawn"]
        self._accounts.clear()

    def _check(self, charge: Charge) -> None:
        plan = self._plans.get(charge.balance, {}).get(charge.plan)
        first = plan is None
        if (charge.envelope is not None) != (first and charge.proof == "plan"):
            raise DamageError("its envelope is missing, or comes after the plan's first charge")
        if plan is not None and (plan.proof, plan.delta) != (charge.proof, charge.delta):
            raise DamageError("its plan was charged with another delta or under another proof before")
        envelope = charge.envelope if plan is None else plan.envelope
        charged = Counter(dict(charge.releases)) + (Counter() if plan is None else plan.charged)
        if envelope is not None and not within(charged, dict(envelope)):
            raise DamageError("it charges more than its plan's envelope")

    def _add(self, charge: Charge) -> None:
        plans = self._plans.setdefault(charge.balance, {})
        if charge.plan not in plans:
            plans[charge.plan] = _Plan(
                proof=charge.proof, envelope=charge.envelope, delta=charge.delta, charged=Counter()
            )
        plans[charge.plan].charged.update(dict(charge.releases))
        self._accounts.pop(charge.balance, None)

    def _share(self, value: Any) -> Any:
        # Thousands of tasks ask for the same charge.
        return self._shared.setdefault(value, value)


def within(charged: Mapping[Release, int], envelope: Mapping[Release, int]) -> bool:
    """Whether one multiset of smallest parts is contained in another (`Release.parts`)."""
    most = dict(history(envelope))
    return all(count <= most.get(part, 0) for part, count in history(charged))


@lru_cache(maxsize=1024)
def _charge(text: str) -> Charge:
    """A charge out of its canonical JSON: a run's rounds ask for the same one again and again."""
    return Charge.from_json(parse(text))


def balance_from_json(data: object) -> Balance:
    """The inverse of `dataclasses.asdict`. Raises ValueError."""
    return Balance(**record(data, "a balance", unit=str, trust=str))


def releases_to_json(releases: Releases) -> list[list[Any]]:
    """Pairs of a release and its count."""
    return [[release.to_json(), count] for release, count in releases]


def releases_from_json(data: object) -> Releases:
    """The inverse of `releases_to_json`. Raises ValueError, for one if the releases are not in canonical order."""
    if not isinstance(data, list) or not data:
        raise ValueError("releases must be a list of at least one pair")
    counts: dict[Release, int] = {}
    last = ""
    for item in data:
        if not isinstance(item, list) or len(item) != 2:
            raise ValueError("releases must be pairs of a release and its count")
        text, count = canonical(item[0]), item[1]
        release = _release(text)
        if type(count) is not int or not 0 < count < _MOST:
            raise ValueError("a release's count must be a whole number of at least 1")
        if text <= last or release in counts:
            raise ValueError("releases must be in canonical order, each once")
        counts[release], last = count, text
    return tuple(counts.items())


@lru_cache(maxsize=4096)
def _release(text: str) -> Release:
    data = parse(text)
    if not isinstance(data, dict):
        raise ValueError("a release must be an object")
    return release_from_json(data)
