"""What is written into a ledger: entries, each carrying the hash of the one before it.

A *scope* is a population that an owner declares; it has a chain of its own. An entry's hash is SHA-256 over the
canonical JSON of all its other fields, so an entry that was edited, moved to another place or copied into another
scope no longer fits. Whoever edits an entry can compute all hashes after it anew: only an anchor shows that.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, Self, TypeGuard, get_args

from privacy.canonical_json import canonical, canonical_again, is_digest, parse, parse_canonical, record

Kind = Literal["open", "policy", "reserve", "commit", "refuse", "recover"]

FieldClass = Literal["charged", "public", "entrusted", "unprotected"]
"""What a value in a reply is (principle 1 of the design): nothing leaves that is none of these."""

FIELD_CLASSES: tuple[str, ...] = get_args(FieldClass)
START = "0" * 64
"""What the first entry of a scope carries as the hash before it."""

_KINDS = get_args(Kind)
_TASK_FIELDS = ("federation", "run", "round", "phase", "client", "request")
_LONGEST_SCOPE = 200
_LARGEST_BODY = 1 << 20  # characters
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class DamageError(ValueError):
    """An entry that can't stand where it stands. The text says what is wrong, without its place."""


class Reason(StrEnum):
    """Why a client refused a task: fixed codes that depend on plan, policy and ledger alone (rule 5)."""

    BUDGET_EXHAUSTED = "budget-exhausted"
    CLIENT_FAILED = "client-failed"  # after a reservation; the claim for the round is withdrawn
    MODEL_MISMATCH = "model-mismatch"
    PLAN_MISMATCH = "plan-mismatch"
    POLICY_APPROVAL = "policy-approval"
    POLICY_CLIPPING = "policy-clipping"
    POLICY_ENTRUST = "policy-entrust"
    POLICY_FEDERATION = "policy-federation"
    POLICY_FIELD = "policy-field"
    POLICY_MODEL = "policy-model"
    POLICY_NOISE = "policy-noise"
    POLICY_PLAN = "policy-plan"
    POLICY_RATE = "policy-rate"
    POLICY_RESOURCES = "policy-resources"
    POLICY_SECURE_SUM = "policy-secure-sum"
    POLICY_UNIT = "policy-unit"
    ROUND_REPEATED = "round-repeated"
    SECURE_SUM_REFUSED = "secure-sum-refused"  # the attempt is over at this client; a reservation stays
    SITE_DATA = "site-data"
    TOO_FEW_HONEST = "too-few-honest"
    # Of early ledgers, which named no rule of the policy.
    POLICY = "policy"
    ROUNDS_A_DAY = "rounds-a-day"


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A place in a chain: whoever keeps it outside can tell a chain that was cut or rewritten.

    Attributes:
        scope: whose chain.
        position: of the entry, from 0.
        hash: of the entry.
    """

    scope: str
    position: int
    hash: str

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if type(self.position) is not int or self.position < 0:
            raise ValueError("an anchor's position must be a whole number of at least 0")
        if not is_digest(self.hash):
            raise ValueError("an anchor's hash must be 64 lower-case hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a server asked of a client, once. Messages may be sent again; the task stays the same.

    Attributes:
        federation: who asks.
        run: of which run.
        round: from 0.
        phase: "train", "evaluate" or a phase of a secure sum.
        client: the client's stable id.
        request: SHA-256 of the request, 64 hexadecimal digits.
    """

    federation: str
    run: str
    round: int
    phase: str
    client: str
    request: str

    def __post_init__(self) -> None:
        for name in ("federation", "run", "phase", "client"):
            text = getattr(self, name)
            if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_SCOPE:
                raise ValueError(f"a task's {name} must be a text of 1 to {_LONGEST_SCOPE} characters")
        if type(self.round) is not int or not 0 <= self.round < 1 << 53:
            raise ValueError("a task's round must be a whole number of at least 0")
        if not is_digest(self.request):
            raise ValueError("a task's request must be 64 lower-case hexadecimal digits")

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON of the fields: the key under which a task is reserved and committed."""
        return sha256(canonical_again(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, str | int]:
        """The fields by name."""
        return {field: getattr(self, field) for field in _TASK_FIELDS}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The inverse of `to_json`. Raises ValueError."""
        return cls(
            **record(data, "a task", federation=str, run=str, round=int, phase=str, client=str, request=str),
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry. Made by `next_entry`, or read by `read_entry`.

    Attributes:
        scope: whose chain.
        position: 0, 1, 2, ... in its scope.
        kind: of what happened.
        time: UTC, as the owner's clock said; informative, never trusted.
        body: JSON, by kind.
        previous: hash of the entry before.
        hash: of all the above.
    """

    scope: str
    position: int
    kind: Kind
    time: str
    body: Mapping[str, Any]
    previous: str
    hash: str

    @property
    def anchor(self) -> Anchor:
        """This entry's place."""
        return Anchor(scope=self.scope, position=self.position, hash=self.hash)

    @cached_property
    def text(self) -> str:
        """The body in canonical JSON."""
        return canonical(self.body)

    def row(self) -> tuple[str, int, str, str, str, str, str]:
        """The entry as the file holds it."""
        return self.scope, self.position, self.kind, self.time, self.text, self.previous, self.hash


def next_entry(head: Anchor | None, scope: str, kind: Kind, time: str, body: Mapping[str, Any]) -> Entry:
    """The entry that comes after `head`, or first in its scope.

    Raises:
        ValueError: if the body is not JSON.
    """
    text = canonical(body)
    if len(text) > _LARGEST_BODY:
        raise ValueError(f"a {kind} entry of {len(text)} characters is too long")
    position = 0 if head is None else head.position + 1
    previous = START if head is None else head.hash
    entry = Entry(
        scope=scope,
        position=position,
        kind=kind,
        time=time,
        body=parse(text),
        previous=previous,
        hash=_hash(scope, position, kind, time, text, previous),
    )
    entry.__dict__["text"] = text
    return entry


def read_entry(row: Sequence[object]) -> tuple[Entry, bool]:
    """The entry in a row, and whether its hash is right.

    Raises:
        DamageError: if the row is no entry at all.
    """
    scope, position, kind, time, text, previous, digest = row
    if not (isinstance(scope, str) and isinstance(kind, str) and isinstance(time, str) and isinstance(text, str)):
        raise DamageError("a value of the wrong type")
    if type(position) is not int or position < 0:
        raise DamageError("its position is not a whole number of at least 0")
    if not _is_kind(kind):
        raise DamageError("unknown kind of entry")
    if not is_time(time):
        raise DamageError("its time is not one")
    if not (isinstance(previous, str) and is_digest(previous) and isinstance(digest, str) and is_digest(digest)):
        raise DamageError("a hash that is not 64 hexadecimal digits")
    try:
        check_scope(scope)
        if len(text) > _LARGEST_BODY:
            raise ValueError("too long")
        body = parse_canonical(text)
    except ValueError as error:
        raise DamageError(f"its body can't be read: {error}") from None
    if not isinstance(body, dict):
        raise DamageError("its body is no object")
    entry = Entry(scope=scope, position=position, kind=kind, time=time, body=body, previous=previous, hash=digest)
    return entry, digest == _hash(scope, position, kind, time, text, previous)


def check_scope(scope: object) -> None:
    """Raises ValueError unless this can name a scope: two names that look alike would be two budgets."""
    if not isinstance(scope, str) or not _is_scope(scope):
        raise ValueError(
            f"a scope's name must be 1 to {_LONGEST_SCOPE} printable characters in Unicode form NFKC, without spaces "
            "around them"
        )


@lru_cache(maxsize=4096)
def _is_scope(scope: str) -> bool:
    fits = 0 < len(scope) <= _LONGEST_SCOPE and scope.isprintable()
    return fits and scope == unicodedata.normalize("NFKC", scope).strip()


def is_time(text: str) -> bool:
    """Whether the text has the form of an entry's time."""
    return _TIME.fullmatch(text) is not None


def time_text(time: datetime) -> str:
    """UTC to the microsecond."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def seconds(time: str) -> float:
    """The time of an entry in seconds since 1970. Raises DamageError for a day that never was."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        raise DamageError("its time is not one") from None


def _is_kind(kind: str) -> TypeGuard[Kind]:
    return kind in _KINDS


def _hash(scope: str, position: int, kind: str, time: str, body: str, previous: str) -> str:
    # The canonical JSON of {"body", "kind", "position", "previous", "scope", "time"}; the body is canonical already.
    text = (
        f'{{"body":{body},"kind":"{kind}","position":{position},"previous":"{previous}",'
        f'"scope":{encode_basestring_ascii(scope)},"time":"{time}"}}'
    )
    return sha256(text.encode()).hexdigest()
