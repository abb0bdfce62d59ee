"""What a privacy-budget report says, as plain facts: the content of report.json, in no language.

Everything here is a number, a fixed code or a name; sentences are made by `privacy.report.render`. The JSON form is
docs/schemas/report.schema.json. A figure that can't be claimed is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from privacy.report.accounts import BalanceFacts, Status
from privacy.report.plain import from_plain, to_plain

VERSION = 1
"""Of report.json. A reader refuses another."""

ConditionStatus = Literal["met", "not-met", "unchecked", "assumed", "outside"]
"""Met; not met, so that no claim is made; not checked by this report; assumed, for nothing here proves it; not covered
by any claim."""

FieldKind = Literal["charged", "public", "entrusted", "unprotected", "refused"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something a claim needs, assumes, or does not cover.

    Attributes:
        code: which one; "other" for a sentence without a code, of an early summary.
        status: whether it is met.
        values: what its sentence mentions, by name.
        clients: whom it concerns; empty for everybody.
        text: in plain English, where this version doesn't know the code; else null.
    """

    code: str
    status: ConditionStatus
    values: Mapping[str, str] = field(default_factory=dict)
    clients: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Charged:
    """One mechanism that was charged.

    Attributes:
        mechanism: its name.
        parameters: its public constants.
        text: one line in English.
        unit: of the balance it was charged to.
        trust: of that balance.
        phase: "train", "evaluate", ...; empty if unknown.
        most: how often it was charged to one client at most.
        total: to all clients together; null if unknown.
        epsilon: of `most` of them by themselves; null where none can be computed.
        delta: of `epsilon`.
    """

    mechanism: str
    parameters: Mapping[str, Any]
    text: str
    unit: str
    trust: str
    phase: str
    most: int
    total: int | None
    epsilon: float | None
    delta: float


@dataclass(frozen=True, kw_only=True)
class Released:
    """One kind of value that left a client, or was refused.

    Attributes:
        name: of the field.
        kind: "charged" to a ledger, "public", "entrusted" (unprotected, to a server that the policy names),
            "unprotected" or "refused".
        count: how often, over all clients; null if unknown.
        receiver: who got it, where it was entrusted; else null.
        recorded: whether a ledger recorded it; else it follows from the plan.
    """

    name: str
    kind: FieldKind
    count: int | None
    receiver: str | None = None
    recorded: bool = True


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """The plan of a run.

    Attributes:
        name: of the plan.
        digest: SHA-256 of the resolved plan, in hexadecimal.
        rounds: planned.
        played: played.
        stopped: why the run ended early: "target", "plateau", "budget", "failed"; null if all rounds were played.
        reason: one line that says why a run failed; else null.
    """

    name: str
    digest: str
    rounds: int
    played: int
    stopped: str | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A constant that the figures rest on.

    Attributes:
        key: its place in the plan.
        value: as text.
        status: "met" where the plan fixes it, pinned by its digest; "not-met" where no claim can rest on it.
    """

    key: str
    value: str
    status: ConditionStatus


@dataclass(frozen=True, kw_only=True)
class UtilityPoint:
    """How good the model of one round was.

    Attributes:
        round: number of the round.
        value: of the metric.
        epsilon: the largest spent so far; null without privacy or where none can be computed.
    """

    round: int
    value: float
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class Utility:
    """How good the model is.

    Attributes:
        metric: the plan's own, e.g. "accuracy".
        higher_is_better: false for a loss.
        points: one an evaluated round.
        final: all metrics of the last model evaluated.
    """

    metric: str
    higher_is_better: bool
    points: tuple[UtilityPoint, ...]
    final: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Refusals of a client, or replies missing from a round.

    Attributes:
        kind: "refused" (by the client, before data was touched) or "fault".
        reason: fixed code.
        client: whose.
        rounds: in which rounds.
    """

    kind: Literal["refused", "fault"]
    reason: str
    client: str
    rounds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StatementFacts:
    """What an owner signed.

    Attributes:
        client: the ledger's scope.
        owner: fingerprint of the owner's key.
        position: of the ledger's head when it was signed.
        hash: of that head.
        time: as the owner's clock had it.
        detail: "epsilon", "totals" or "full": how much it tells.
        verified: whether the signature was checked, and holds; null if it was not checked.
        problem: what is wrong, in one line; null if nothing is.
    """

    client: str
    owner: str
    position: int
    hash: str
    time: str
    detail: str
    verified: bool | None
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Head:
    """The newest entry of a client's ledger: what an anchor outside is compared with.

    Attributes:
        client: the ledger's scope.
        position: of the entry.
        hash: of the entry.
        policy: digest of the site's policy.
        verified: whether chain and charges were recomputed, and agree; null if they were not.
        problems: what is wrong, one line each.
    """

    client: str
    position: int
    hash: str
    policy: str
    verified: bool | None
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What one audit of the run's plan found, in a simulation of its own.

    Attributes:
        looked_for, way, method, trust, claim: codes, as of `privacy.audit.finding.Finding`.
        epsilon: lower bound or estimate.
        claimed: epsilon that the accountant states of the same.
        delta: of both.
        alpha: how often a bound may be too large; null of an estimate.
        power: the largest epsilon that could have come out.
        trials, guesses, correct: counts behind it.
        verdict: "consistent", "broken" or "uninformative".
    """

    looked_for: str
    way: str
    method: str
    trust: str
    claim: str
    epsilon: float
    claimed: float
    delta: float
    alpha: float | None
    power: float
    trials: int
    guesses: int
    correct: int
    verdict: Literal["consistent", "broken", "uninformative"]


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """How alike images of a round and what an attack took for them are; means.

    Attributes:
        way: the attack: "zhu" or "geiping"; or "guess", the mean image of the right class.
        psnr: decibels, at most 60.
        ssim: structural similarity, from -1 to 1.
        recognised: part of the images that are nearer to their reconstruction than any other record is; null without
            others.
        by_chance: the same of images that weren't in the round; null where there are too few.
    """

    way: str
    psnr: float
    ssim: float
    recognised: float | None
    by_chance: float | None


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How many different words of a round's texts were named.

    Attributes:
        found: words that were named.
        right: those of them that were there.
        there: words that were there.
    """

    found: int
    right: int
    there: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What the server could have seen: how well attacks got records back from one simulated round of the run's plan.

    Attributes:
        trust: of the plan, which says what the server gets.
        movements: of the model that were attacked: updates, or sums.
        inverted: of these, whose images were reconstructed.
        clients: behind each movement.
        records: behind each movement, a mean.
        images: of each attack; none where no image was reconstructed.
        image_guess: of a server that looked at nothing; null where it had nothing to guess by.
        labels: part of the classes that were inferred rightly; null where they weren't.
        label_guess: the same without looking.
        line_up: part of other records that explain a movement less than the true ones do; 0.5 is chance; null where it
            wasn't tried.
        tokens: words of texts; null where records aren't texts.
        token_guess: the same without looking.
        others: records of clients outside the round.
        labels_given: whether the attacker was told the classes of the images.
        left_out: codes of what wasn't tried.
        picture: file name of the originals and reconstructions beside the report; null unless it was asked for.
    """

    trust: Literal["none", "local", "distributed", "central"]
    movements: int
    inverted: int
    clients: int
    records: int
    images: tuple[ImageScores, ...]
    image_guess: ImageScores | None
    labels: float | None
    label_guess: float | None
    line_up: float | None
    tokens: TokenScores | None
    token_guess: TokenScores | None
    others: int
    labels_given: bool
    left_out: tuple[str, ...]
    picture: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A report.

    Attributes:
        version: of this format.
        kind: of one run, or of a site's own ledger.
        name: of the run or the ledger.
        made: when, UTC; empty if it was not told.
        status: of the weakest claim in it.
        plan: of the run; null in a ledger's report.
        balances: one a kind of epsilon; none where nobody is protected.
        clients: number of clients.
        conditions: what the claims need, what they assume, and what they don't cover.
        parameters: constants that the figures rest on.
        selection: how hyper-parameters were chosen: "public", "charged", "uncharged"; null if unknown (rule 11).
        charged: mechanisms charged.
        released: kinds of values that left, or were refused.
        utility: how good the model is; null where it was never evaluated.
        incidents: refusals and faults.
        statements: what owners signed.
        heads: of the ledgers.
        versions: of the software.
        audit: what audits of the plan found; none where there was none.
        reconstruction: what the server could have seen; None, and not in report.json, where nobody tried.
    """

    version: int = VERSION
    kind: Literal["run", "ledger"]
    name: str
    made: str
    status: Status
    plan: PlanFacts | None
    balances: tuple[BalanceFacts, ...]
    clients: int
    conditions: tuple[Condition, ...]
    parameters: tuple[Parameter, ...]
    selection: str | None
    charged: tuple[Charged, ...]
    released: tuple[Released, ...]
    utility: Utility | None
    incidents: tuple[Incident, ...]
    statements: tuple[StatementFacts, ...]
    heads: tuple[Head, ...]
    versions: Mapping[str, str]
    audit: tuple[AuditRow, ...] = ()
    reconstruction: Reconstruction | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of report.json: plain JSON values, no NaN, no infinity."""
        plain = to_plain(self)
        assert isinstance(plain, dict)
        if self.reconstruction is None:
            del plain["reconstruction"]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Facts:
        """The inverse of `to_json`.

        Raises:
            ValueError: another version, or not a report.
        """
        if data.get("version") != VERSION:
            raise ValueError(f"report.json has version {data.get('version')!r}; this Veil reads version {VERSION}")
        return from_plain(cls, {"reconstruction": None, **data})
