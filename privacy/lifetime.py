"""The limit over an owner's lifetime: whether one more release is covered, whatever plans come (rule 4).

A plan is fixed before its first round; which plan comes next, and when one stops, may depend on everything seen so
far. Two filters keep an owner's budget (epsilon, delta) under such choices. Both decide before a release, from public
facts alone: what was charged, what is planned, and the budget. `docs/accounting.md` has the proofs at length.

**"rdp"** (default). At ONE order alpha, a function of the budget alone, the Renyi divergences of all that was
charged sum to B(alpha) at most, where B(alpha) is the largest divergence of order alpha that implies (epsilon, delta)
(Canonne, Kamath & Steinke 2020, arXiv 2004.00010, proposition 12). Fully adaptive (Feldman & Zrnic 2021, arXiv
2008.11193, their Renyi filter): with l_t the privacy loss of release t and r_t its divergence, chosen by the past,
E[exp((alpha - 1)(l_t - r_t)) | past] <= 1 under the first data set, so exp((alpha - 1) sum (l_t - r_t)) is a
supermartingale, of mean 1 at most at any stop. As sum r_t <= B always, E exp((alpha - 1) sum l_t) <=
exp((alpha - 1) B): the whole has divergence at most B. One order must do: which order is best afterwards depends on
what was seen.

**"plan"**, the exception within "rdp", so that a budget equal to a plan's epsilon finishes the plan. The first
plan of an empty balance, if the filter doesn't hold all its rounds, may have the balance to itself: its *envelope*,
the longest prefix of its rounds whose PLD epsilon at the budget's delta is within the budget, is fixed before its
first release, and nothing outside the envelope is ever admitted. The choice depends on plan and budget alone.

**"sum"**. Each plan fixes such an envelope at its first charge. It costs its PLD epsilon at the plan's own delta, used
or not; the epsilons and deltas of all plans sum to the budget's at most. Basic composition is a filter (Rogers, Roth,
Ullman & Vadhan 2016, arXiv 1605.08294), also of plans that overlap in time (Haney et al. 2023, arXiv 2309.05901).

Why an envelope covers any order of its releases and any stop: let H(S, t) be the hockey-stick divergence that
remains at likelihood ratio t if exactly the releases S are still made. Composition gives H(S, t) = E[H(S - i, t r)],
r the ratio of i, for every i in S alike: so by induction no choice of the next one, made by looking, gains anything.
And H(S, t) >= H({}, t) by Jensen's inequality, so stopping gains nothing.

Noise drawn from tables is a little off what its price is about (rule 9; `privacy.accountant`). Plans pay for that in
their own figure. The filter sets a fixed part of its delta aside for it, 2^-30: B(alpha) is for the rest, and what is
charged may be off by that part at most. The part is set aside always, for whether it will be needed may depend on what
was seen.

Budgets compare with a relative slack of 1e-9, for floats differ between machines.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from privacy import accountant, rdp
from privacy.mechanisms import Release, canonical
from privacy.table_distance import delta_of_distance

Releases = tuple[tuple[Release, int], ...]
"""A multiset: sorted by the releases' canonical JSON, counts at least 1. Made by `multiset`."""

Proof = Literal["filter", "plan"]

SLACK = 1e-9
"""Relative: far below what a printed budget shows."""

_FOR_TABLES = 2.0**-30  # of the filter's delta


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What an epsilon is about. Epsilons of unlike balances are never added.

    Attributes:
        unit: "record", "person" or "client"; how many records a person has is in the price of a release.
        trust: "local", "distributed" or "central": who need not be, or must be, trusted.
    """

    unit: str
    trust: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a pinned plan may release of one client at most, over its whole run.

    Attributes:
        plan: the plan's digest, 64 hex digits.
        rounds: releases of each planned round, in order, training and evaluation alike.
        delta: of the plan's own claim.
    """

    plan: str
    rounds: tuple[Releases, ...]
    delta: float


@dataclass(frozen=True, kw_only=True)
class PlanAccount:
    """What one plan has charged to one balance.

    Attributes:
        plan: the plan's digest.
        proof: "filter": each charge counts by itself; "plan": the envelope counts, used or not.
        envelope: with "plan", all that this plan may ever charge here, fixed at its first charge; else None.
        charged: so far.
        delta: of the plan's own claim.
    """

    plan: str
    proof: Proof
    envelope: Releases | None
    charged: Releases
    delta: float


@dataclass(frozen=True, kw_only=True)
class Account:
    """One balance's history: plans in the order of their first charge.

    Attributes:
        plans: one entry a plan.
        withdrawn: a gap in the history was written off: nothing is claimed.
    """

    plans: tuple[PlanAccount, ...] = ()
    withdrawn: bool = False


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Yes, and under which proof: written into the reserve entry.

    Attributes:
        proof: of this plan, from now on.
        envelope: only at the first charge of a plan with proof "plan".
    """

    proof: Proof
    envelope: Releases | None = None


@dataclass(frozen=True, kw_only=True)
class LifetimeSpent:
    """What an owner may say of a balance.

    Attributes:
        epsilon: proven for everything up to now, whatever the reason to stop here, and whatever plans were chosen
            after seeing results. Under the RDP filter that is the limit itself as soon as anything was charged: a
            running total at a time that depends on the data has no such proof. `math.inf`: no claim.
        delta: of `epsilon`.
        charged_epsilon: what the charges alone would cost at the limit's delta, had their number been fixed
            beforehand (`privacy.accountant`): for information, and for a history that was.
        proof: "nothing-charged", "rdp-filter", "dedicated-plan", "sum-of-plans" or "withdrawn".
        fraction: of the limit used, in 0..1: of the filter's divergence; of a dedicated budget, the charges'
            epsilon; of a sum, the larger of its part of epsilon and of delta.
        relation: the neighbouring relation.
        accountant: how `epsilon` was computed.
    """

    epsilon: float
    delta: float
    charged_epsilon: float
    proof: str
    fraction: float
    relation: str
    accountant: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A budget, as the site's policy fixes it, and the filter that keeps it.

    Attributes:
        epsilon: above 0, finite.
        delta: in (0, 1).
        filter: "rdp" or "sum". A balance that was charged under one is closed to the other: their proofs don't add.

    Raises:
        ValueError: if a value is out of range.
    """

    epsilon: float
    delta: float
    filter: Literal["rdp", "sum"] = "rdp"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon must be a finite number above 0, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be above 0 and below 1, got {self.delta}")
        if self.filter not in ("rdp", "sum"):
            raise ValueError(f"filter must be rdp or sum, got {self.filter!r}")

    def admit(self, account: Account, terms: Terms, releases: Releases) -> Admission | None:
        """Whether `releases` may be charged to `account` on top of what is there, by the plan of `terms`.

        Args:
            account: of one balance, with every charge ever made to it.
            terms: of the plan that asks. What counts is what they said at the plan's first charge.
            releases: the next charge, not empty.

        Returns:
            None if the limit doesn't cover it; also if it is more than the plan said it would release, whatever is
            left (who approved the plan approved that), or about other neighbours than earlier charges, for their costs
            don't add. A pure function: the answer depends on no data.

        Raises:
            ValueError: if there is nothing to charge: an entry without charge needs no admission.
        """
        if not releases:
            raise ValueError("nothing to admit: an entry without charge needs no admission")
        own = next((entry for entry in account.plans if entry.plan == terms.plan), None)
        planned = () if own else _all(terms.rounds)
        if len({release.relation for release, _ in (*_charged(account), *releases, *planned)}) > 1:
            return None
        if not _within(_all((own.charged if own else (), releases)), _all(terms.rounds)):
            return None
        if self.filter == "sum":
            return self._admit_to_sum(account, own, terms, releases)
        if any(entry.proof == "plan" for entry in account.plans):
            return self._admit_to_dedicated(account, own, releases)
        if own is None and not account.plans and not self._filter_holds(planned):
            envelope = _prefix(terms.rounds, 0.0, self.epsilon, self.delta)
            return Admission(proof="plan", envelope=envelope) if envelope and _within(releases, envelope) else None
        return Admission(proof="filter") if self._filter_holds(_charged(account), releases) else None

    def spent(self, account: Account) -> LifetimeSpent:
        """What may be said of `account` under this limit."""
        charged = _charged(account)
        so_far = accountant.epsilon(dict(charged), self.delta)
        epsilon, delta, proof, fraction = 0.0, 0.0, "nothing-charged", 0.0
        how = so_far.accountant
        if account.withdrawn:
            epsilon, delta, proof, fraction = math.inf, self.delta, "withdrawn", 1.0
        elif any(entry.proof == "plan" for entry in account.plans) and self.filter == "rdp":
            claim = accountant.epsilon(dict(_all(_envelopes(account))), self.delta)
            epsilon, delta, proof = claim.epsilon, self.delta, "dedicated-plan"
            fraction, how = so_far.epsilon / self.epsilon, claim.accountant
        elif account.plans and self.filter == "rdp":
            order, most = self.order_and_divergence()
            used = accountant.renyi(dict(charged), order)
            # Above the limit only if the policy has lowered it meanwhile.
            epsilon = max(self.epsilon, rdp.epsilon_for(order, used, self.delta * (1 - _FOR_TABLES)))
            if not self._tables_fit(epsilon, charged):
                epsilon = math.inf
            delta, proof = self.delta, "rdp-filter"
            fraction, how = used / most if most > 0 else 1.0, f"RDP filter at order {order:g}"
        elif account.plans:
            epsilon, delta, closed = _sum(account)
            epsilon = math.inf if closed else epsilon
            proof = "sum-of-plans"
            fraction = max(epsilon / self.epsilon, delta / self.delta)
        return LifetimeSpent(
            epsilon=epsilon,
            delta=delta,
            charged_epsilon=so_far.epsilon,
            proof=proof,
            fraction=min(1.0, fraction),
            relation=so_far.relation,
            accountant=how,
        )

    def order_and_divergence(self) -> tuple[float, float]:
        """The filter's order alpha, and the divergence B(alpha) that it may spend.

        Of the accountant's orders the one with the largest B(alpha) / alpha, for the divergence of a Gaussian release
        is proportional to alpha: it admits the most of them. B <= 0: the filter admits nothing.
        """
        return _order(self.epsilon, self.delta)

    def _filter_holds(self, *charges: Releases) -> bool:
        order, most = self.order_and_divergence()
        if most <= 0:
            return not any(charges)
        within = accountant.renyi(dict(_all(charges)), order) <= most * (1 + SLACK)
        return within and self._tables_fit(self.epsilon, *charges)

    def _tables_fit(self, epsilon: float, *charges: Releases) -> bool:
        """Whether what is set aside of delta covers how far all tables are off."""
        off = accountant.distance(dict(_all(charges)))
        return delta_of_distance(off, epsilon=epsilon) <= _FOR_TABLES * self.delta

    def _admit_to_dedicated(self, account: Account, own: PlanAccount | None, releases: Releases) -> Admission | None:
        envelope = own.envelope if own else None
        if own is None or envelope is None or len(account.plans) > 1:
            return None
        # The limit may have been lowered since.
        covered = _fits(_epsilon(envelope, self.delta), self.epsilon)
        return Admission(proof="plan") if covered and _within(_all((own.charged, releases)), envelope) else None

    def _admit_to_sum(
        self, account: Account, own: PlanAccount | None, terms: Terms, releases: Releases
    ) -> Admission | None:
        epsilon, delta, closed = _sum(account)
        if closed or not (_fits(epsilon, self.epsilon) and _fits(delta, self.delta)):
            return None
        if own is not None:
            assert own.envelope is not None
            return Admission(proof="plan") if _within(_all((own.charged, releases)), own.envelope) else None
        if not _fits(delta + terms.delta, self.delta):
            return None
        envelope = _prefix(terms.rounds, epsilon, self.epsilon, terms.delta)
        return Admission(proof="plan", envelope=envelope) if envelope and _within(releases, envelope) else None


def multiset(releases: Iterable[Release] | Mapping[Release, int]) -> Releases:
    """`releases` in their one canonical form.

    Raises:
        ValueError: if a count is negative.
    """
    counts = Counter(releases)
    if any(count < 0 for count in counts.values()):
        raise ValueError("a release can't be charged a negative number of times")
    return tuple(
        sorted(((release, count) for release, count in counts.items() if count), key=lambda item: canonical(item[0]))
    )


def _all(charges: Iterable[Releases]) -> Releases:
    total: Counter[Release] = Counter()
    for charge in charges:
        total.update(dict(charge))
    return tuple(total.items())


def _charged(account: Account) -> Releases:
    return _all(entry.charged for entry in account.plans)


def _envelopes(account: Account) -> list[Releases]:
    return [entry.charged if entry.envelope is None else entry.envelope for entry in account.plans]


def _within(charges: Releases, envelope: Releases) -> bool:
    """Whether a multiset of smallest parts is contained in another."""
    most = dict(accountant.history(dict(envelope)))
    return all(count <= most.get(part, 0) for part, count in accountant.history(dict(charges)))


def _epsilon(charges: Releases, delta: float) -> float:
    return accountant.claim(accountant.history(dict(charges)), delta)


def _fits(cost: float, limit: float) -> bool:
    return cost <= limit * (1 + SLACK)


def _sum(account: Account) -> tuple[float, float, bool]:
    """Epsilon and delta of all envelopes, and whether a plan without one closes the balance."""
    epsilon = delta = 0.0
    for entry in account.plans:
        if entry.envelope is None:
            return math.inf, 1.0, True
        epsilon += _epsilon(entry.envelope, entry.delta)
        delta += entry.delta
    return epsilon, delta, False


@lru_cache(maxsize=256)
def _prefix(rounds: tuple[Releases, ...], spent: float, limit: float, delta: float) -> Releases:
    """The longest prefix whose epsilon at `delta`, on top of `spent`, is within `limit`: all its releases."""

    def fits(length: int) -> bool:
        return _fits(spent + _epsilon(_all(rounds[:length]), delta), limit)

    low, high = 0, len(rounds) + 1
    middle = len(rounds)  # most often the whole plan fits: ask that first
    while high - low > 1:
        low, high = (middle, high) if fits(middle) else (low, middle)
        middle = (low + high) // 2
    return multiset(dict(_all(rounds[:low])))


@lru_cache(maxsize=256)
def _order(epsilon: float, delta: float) -> tuple[float, float]:
    # The rest of delta is for the distance of tables.
    kept = delta * (1 - _FOR_TABLES)
    budgets = [(order, rdp.divergence_for(order, epsilon, kept)) for order in rdp.ORDERS]
    return max(budgets, key=lambda item: item[1] / item[0])
