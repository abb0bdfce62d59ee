"""What a report says of accounts: a client's, all of one kind of epsilon, and what that kind is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["stands", "simulated", "withdrawn", "none", "empty"]
"""Of a claim: it stands; simulated, not a claim; withdrawn; nobody is protected; nothing was charged yet."""

Outcome = Literal["stands", "depends", "breaks"]


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What an epsilon is about. It is printed with every one of them.

    Attributes:
        unit: what is protected: "record", "person:5" (a person with at most 5 records) or "client".
        trust: who adds the noise: "local" (each client), "distributed" (all clients together), "central" (the server).
        relation: neighbouring relation of the data sets compared.
        delta: chance with which the epsilon may fail.
        accountant: how the epsilon was computed.
    """

    unit: str
    trust: str
    relation: str
    delta: float
    accountant: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who is protected from whom, how strongly, what is left, and what withdraws the claim.

    Attributes:
        status: of the claim.
        basis: what the epsilon is about; null where nobody is protected.
        epsilon: the largest of a client whose claim is not withdrawn by itself; null where none can be computed.
        budget: the limit of the client that has the least left; null where there is none.
        left: what it has left; null where there is no limit, or over a lifetime.
        fraction_left: the least part of a client's limit that is left, 0 to 1; null where there is none.
        clients: number of clients.
        clients_withdrawn: clients whose own claim is withdrawn.
        reasons: codes of the conditions that are not met.
    """

    status: Status
    basis: Basis | None
    epsilon: float | None
    budget: float | None
    left: float | None
    fraction_left: float | None
    clients: int
    clients_withdrawn: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """A client's balance over the lifetime of its data, over all plans (rule 4).

    Attributes:
        epsilon: proven for everything so far; null where nothing is claimed.
        delta: of `epsilon`.
        limit_epsilon: of the site's policy; null where it sets none.
        limit_delta: of the site's policy; null where it sets none.
        filter: "rdp" or "sum": what keeps the limit; null without one.
        proof: "nothing-charged", "rdp-filter", "dedicated-plan", "sum-of-plans" or "withdrawn".
        charged_epsilon: what the charges alone would cost, had their number been fixed beforehand; null if unknown.
        fraction: of the limit used, 0 to 1; null without a limit.
        accountant: how `epsilon` was computed.
        plans: what each plan cost.
    """

    epsilon: float | None
    delta: float
    limit_epsilon: float | None
    limit_delta: float | None
    filter: str | None
    proof: str
    charged_epsilon: float | None
    fraction: float | None
    accountant: str
    plans: tuple[PlanShare, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlanShare:
    """What one plan cost one balance.

    Attributes:
        plan: digest of the plan.
        proof: "filter" (each charge counts) or "plan" (all it may ever charge counts).
        charges: number of charges.
        epsilon: of all that counts, at `delta`; null where none can be computed.
        delta: of the plan's own claim.
        first: time of the first charge; empty if unknown.
        last: time of the last charge; empty if unknown.
    """

    plan: str
    proof: str
    charges: int
    epsilon: float | None
    delta: float
    first: str
    last: str


@dataclass(frozen=True, kw_only=True)
class AccountFacts:
    """One client's account.

    Attributes:
        client: stable id.
        epsilon: spent; in a run's report for the run, in a ledger's over its lifetime. Null: none can be computed.
        rdp_epsilon: the same by RDP, as a cross-check; null where none can be computed.
        record_epsilon: for one record; null where it is not known.
        person_epsilon: for all records of one person; null where no plan bounds them.
        budget: at which the client refuses to go on; null without one.
        left: of the budget; null without one.
        fraction: of the budget used, 0 to 1; null without one.
        rounds: rounds whose model its update went into; null where that is nobody's business, under central trust.
        charged_rounds: rounds that the epsilon covers.
        open_rounds: of these, reserved and never committed: they count as spent.
        refused: rounds it refused.
        withdrawn: codes of what withdraws this client's claim.
        withdrawn_rounds: rounds for which its claim does not hold.
        lifetime: over all plans; null if there is no ledger.
    """

    client: str
    epsilon: float | None
    rdp_epsilon: float | None = None
    record_epsilon: float | None = None
    person_epsilon: float | None = None
    budget: float | None = None
    left: float | None = None
    fraction: float | None = None
    rounds: int | None = 0
    charged_rounds: int = 0
    open_rounds: int = 0
    refused: int = 0
    withdrawn: tuple[str, ...] = ()
    withdrawn_rounds: tuple[int, ...] = ()
    lifetime: Lifetime | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a path.

    Attributes:
        at: round, or number of the charge.
        value: epsilon, or part of the limit.
    """

    at: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Path:
    """How an account grew.

    Attributes:
        which: "largest", "median" or "lowest": whose account.
        client: its id; null where only the largest figure of each round is known.
        points: so far.
        forecast: to the end of the plan, starting at the last point, if the client is asked in every round.
        last_covered: the last planned round that the budget covers; null if it covers the whole plan.
    """

    which: Literal["largest", "median", "lowest"]
    client: str | None
    points: tuple[Point, ...]
    forecast: tuple[Point, ...] = ()
    last_covered: int | None = None


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What the same releases cost at another delta.

    Attributes:
        delta: the other delta.
        epsilon: upper bound.
    """

    delta: float
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class RocPoint:
    """What the strongest attacker can reach.

    Attributes:
        false_positives: part of non-members that he takes for members.
        true_positives: largest part of members that he then finds.
    """

    false_positives: float
    true_positives: float


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What an epsilon means: an attacker who knows all but whether one unit was there, and sees all that was released.

    Attributes:
        advantage: the largest difference of his true and false positives: the total variation distance.
        certainty: how sure someone who gave even odds beforehand can become, 0.5 to 1; 1 is no bound.
        failure: chance, over the noise, that he becomes surer than that.
        found_at_1_percent: largest part of members he finds if one in 100 of his alarms on non-members is false.
        found_at_0_1_percent: the same for one in 1,000.
        roc: his best true positives over false positives.
        source: "pld" (from the privacy loss distribution), "rdp" (from Renyi divergences, which is looser) or "pair"
            (from epsilon and delta alone, which is looser still).
    """

    advantage: float
    certainty: float
    failure: float
    found_at_1_percent: float
    found_at_0_1_percent: float
    roc: tuple[RocPoint, ...]
    source: Literal["pld", "rdp", "pair"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The same charges under one accountant.

    Attributes:
        accountant: its name.
        epsilon: upper bound; null where none can be computed.
        claimed: whether this is the figure that the report claims.
    """

    accountant: str
    epsilon: float | None
    claimed: bool


@dataclass(frozen=True, kw_only=True)
class Coalition:
    """Who together could break a claim.

    Attributes:
        who: code of the coalition.
        outcome: the claim stands, depends on `values`, or breaks.
        values: what its sentence mentions, by name.
    """

    who: str
    outcome: Outcome
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BalanceFacts:
    """Everything about one kind of epsilon. Epsilons of unlike balances are never added.

    Attributes:
        verdict: in short.
        basis: what the epsilons are about.
        accounts: one a client, the largest first.
        axis: what paths run over: "round" or "charge".
        measure: what paths show: "epsilon", or over a lifetime, where a running epsilon has no proof, "fraction" of the
            limit.
        paths: how accounts grew; the largest first.
        budget_line: the limit of the first path's client, or everybody's; null without one.
        planned: rounds of the plan; null in a ledger's report.
        planned_epsilon: the plan's own target; null if it has none.
        curve: epsilon over delta for the largest account; empty where it is not known.
        meaning: of the largest account; null where there is none.
        estimates: the largest account under several accountants.
        coalitions: who together could break the claim.
    """

    verdict: Verdict
    basis: Basis
    accounts: tuple[AccountFacts, ...]
    axis: Literal["round", "charge"]
    measure: Literal["epsilon", "fraction"]
    paths: tuple[Path, ...]
    budget_line: float | None
    planned: int | None
    planned_epsilon: float | None
    curve: tuple[CurvePoint, ...]
    meaning: Meaning | None
    estimates: tuple[Estimate, ...]
    coalitions: tuple[Coalition, ...]
