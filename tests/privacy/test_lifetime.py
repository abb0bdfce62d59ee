"""Rule 4: across plans a filter keeps the lifetime limit, and a budget equal to a plan's epsilon finishes the plan.

What is recomputed here doesn't go through the package's accountant: divergences come from Google's series or closed
forms, PLD epsilons from Google's own accountant.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import accountant
from privacy.lifetime import (
    SLACK,
    Account,
    Admission,
    Balance,
    Limit,
    PlanAccount,
    Releases,
    Terms,
    multiset,
)
from privacy.mechanisms import ClientLevel, DpSgd, Gaussian, NoisyCounts, Release

ROUND = DpSgd(noise_multiplier=1.0, sample_rate=0.05, steps=10)
COUNTS = NoisyCounts(noise=30.0)
DELTA = 1e-5


def digest(name: str) -> str:
    return (name * 64)[:64]


def plan(name: str, *rounds: Iterable[Release], delta: float = DELTA) -> Terms:
    return Terms(plan=digest(name), rounds=tuple(multiset(round_) for round_ in rounds), delta=delta)


class Book:
    """A ledger's part in this: it keeps the account and does what it is told."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.account = Account()

    def charge(self, terms: Terms, releases: Releases) -> Admission | None:
        admission = self.limit.admit(self.account, terms, releases)
        if admission is None:
            return None
        own = [entry for entry in self.account.plans if entry.plan == terms.plan]
        if own:
            assert admission.envelope is None
            assert admission.proof == own[0].proof
            charged = multiset(Counter(dict(own[0].charged)) + Counter(dict(releases)))
            entries = [replace(e, charged=charged) if e is own[0] else e for e in self.account.plans]
        else:
            new = PlanAccount(
                plan=terms.plan,
                proof=admission.proof,
                envelope=admission.envelope,
                charged=releases,
                delta=terms.delta,
            )
            entries = [*self.account.plans, new]
        self.account = Account(plans=tuple(entries))
        return admission

    def run(self, terms: Terms, rounds: Iterable[Releases] | None = None) -> int:
        """How many rounds of a plan are admitted before the first that isn't."""
        rounds = terms.rounds if rounds is None else rounds
        return sum(1 for _ in itertools.takewhile(lambda round_: self.charge(terms, round_), rounds))

    @property
    def charged(self) -> Counter[Release]:
        return sum((Counter(dict(entry.charged)) for entry in self.account.plans), Counter())


@lru_cache(maxsize=1000)
def divergence(release: Release, order: float) -> float:
    """Of a whole release, by Google's series: for whole orders."""
    return float(RdpAccountant([order]).compose(release.event())._rdp[0])


@lru_cache(maxsize=1000)
def pld_epsilon(releases: frozenset[tuple[Release, int]], delta: float) -> float:
    found = PLDAccountant(value_discretization_interval=1e-3)
    for release, count in releases:
        found.compose(release.event(), count)
    return float(found.get_epsilon(delta))


def cost(*rounds: Iterable[Release], delta: float = DELTA) -> float:
    return accountant.epsilon(list(itertools.chain(*rounds)), delta).epsilon


FILTERS = pytest.mark.parametrize("kind", ["rdp", "sum"])


class TestABudgetEqualToAPlan:
    @FILTERS
    @pytest.mark.parametrize("rounds", [1, 3, 10])
    def test_admits_exactly_the_planned_rounds(self, kind: str, rounds: int) -> None:
        whole = plan("a", *[[ROUND, COUNTS]] * rounds)
        book = Book(Limit(epsilon=cost(*[[ROUND, COUNTS]] * rounds), delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert book.run(whole) == rounds
        assert book.charge(whole, whole.rounds[0]) is None
        spent = book.limit.spent(book.account)
        assert spent.epsilon == pytest.approx(book.limit.epsilon)
        assert spent.fraction == pytest.approx(1)

    @FILTERS
    def test_a_budget_for_three_of_ten_rounds_admits_exactly_three(self, kind: str) -> None:
        ten = plan("a", *[[ROUND]] * 10)
        for budget in (cost(*[[ROUND]] * 3), (cost(*[[ROUND]] * 3) + cost(*[[ROUND]] * 4)) / 2):
            book = Book(Limit(epsilon=budget, delta=DELTA, filter=kind))  # type: ignore[arg-type]
            assert book.run(ten) == 3

    @FILTERS
    def test_a_budget_below_the_first_round_admits_nothing(self, kind: str) -> None:
        book = Book(Limit(epsilon=cost([ROUND]) * 0.99, delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert book.run(plan("a", *[[ROUND]] * 10)) == 0
        assert book.account == Account()

    @FILTERS
    def test_floats_that_differ_in_the_last_bits_refuse_nothing(self, kind: str) -> None:
        budget = cost(*[[ROUND]] * 3)
        book = Book(Limit(epsilon=budget * (1 - SLACK / 2), delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert book.run(plan("a", *[[ROUND]] * 3)) == 3
        tight = Book(Limit(epsilon=budget * (1 - 1e-6), delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert tight.run(plan("a", *[[ROUND]] * 3)) == 2

    @FILTERS
    def test_rounds_of_many_kinds(self, kind: str) -> None:
        """Every third round evaluates, and the noise falls."""
        rounds = [[replace(ROUND, noise_multiplier=2 - 0.1 * i), *([COUNTS] if i % 3 == 2 else [])] for i in range(9)]
        book = Book(Limit(epsilon=cost(*rounds[:7]), delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert book.run(plan("a", *rounds)) == 7

    @FILTERS
    def test_training_and_evaluation_may_be_charged_apart_and_in_any_order(self, kind: str) -> None:
        terms = plan("a", *[[ROUND, COUNTS]] * 2)
        parts = [multiset([ROUND]), multiset([COUNTS]), multiset([COUNTS]), multiset([ROUND])]
        for order in set(itertools.permutations(parts)):
            book = Book(Limit(epsilon=cost(*[[ROUND, COUNTS]] * 2), delta=DELTA, filter=kind))  # type: ignore[arg-type]
            assert book.run(terms, order) == 4
            assert book.charge(terms, multiset([COUNTS])) is None

    @FILTERS
    def test_steps_count_however_they_are_cut_into_rounds(self, kind: str) -> None:
        terms = plan("a", *[[ROUND]] * 2)
        book = Book(Limit(epsilon=cost([ROUND], [ROUND]), delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert book.run(terms, [multiset([replace(ROUND, steps=4)])] * 5) == 5
        assert book.charge(terms, multiset([replace(ROUND, steps=1)])) is None

    @FILTERS
    def test_what_the_plan_does_not_say_is_not_covered_by_its_envelope(self, kind: str) -> None:
        terms = plan("a", *[[ROUND]] * 2)
        book = Book(Limit(epsilon=cost([ROUND], [ROUND]), delta=DELTA, filter=kind))  # type: ignore[arg-type]
        assert book.charge(terms, multiset([COUNTS])) is None
        assert book.charge(terms, multiset([ROUND])) is not None
        assert book.charge(terms, multiset([COUNTS])) is None
        # Terms told later don't widen what was fixed at the first charge.
        wider = plan("a", *[[ROUND, COUNTS]] * 20)
        assert wider.plan == terms.plan
        assert book.charge(wider, multiset([COUNTS])) is None

    def test_the_plan_s_own_delta_may_be_larger_than_the_budget_s(self) -> None:
        """Then the epsilon counts at the budget's delta; a sum of deltas can't cover it."""
        terms = plan("a", *[[ROUND]] * 3, delta=1e-3)
        budget = cost(*[[ROUND]] * 3, delta=1e-6)
        assert Book(Limit(epsilon=budget, delta=1e-6)).run(terms) == 3
        assert Book(Limit(epsilon=budget, delta=1e-6, filter="sum")).run(terms) == 0


class TestADedicatedPlan:
    terms = plan("a", *[[ROUND]] * 10)

    def test_has_the_balance_to_itself(self) -> None:
        book = Book(Limit(epsilon=cost(*[[ROUND]] * 10), delta=DELTA))
        first = book.charge(self.terms, self.terms.rounds[0])
        assert first is not None
        assert first.proof == "plan"
        assert first.envelope == multiset({ROUND: 10})
        cheap = plan("b", [Gaussian(noise_multiplier=1000.0)])
        assert book.charge(cheap, cheap.rounds[0]) is None
        assert book.run(self.terms, self.terms.rounds[1:]) == 9

    def test_claims_its_planned_rounds_however_early_it_stops(self) -> None:
        book = Book(Limit(epsilon=cost(*[[ROUND]] * 10), delta=DELTA))
        book.run(self.terms, self.terms.rounds[:4])
        spent = book.limit.spent(book.account)
        assert spent.proof == "dedicated-plan"
        assert spent.epsilon == pytest.approx(cost(*[[ROUND]] * 10))
        assert spent.charged_epsilon == cost(*[[ROUND]] * 4)
        assert spent.fraction == pytest.approx(spent.charged_epsilon / book.limit.epsilon)
        assert spent.relation == "add or remove one unit"
        assert spent.accountant.startswith("PLD")

    def test_is_decided_at_the_first_charge_alone(self) -> None:
        """A plan that fits the filter is not dedicated, even if another one later wouldn't fit."""
        book = Book(Limit(epsilon=20.0, delta=DELTA))
        assert book.run(self.terms) == 10
        assert book.account.plans[0].proof == "filter"
        more = plan("b", *[[ROUND]] * 1000)
        assert 0 < book.run(more) < 1000
        assert {entry.proof for entry in book.account.plans} == {"filter"}

    def test_stops_when_the_owner_lowers_the_limit_below_its_claim(self) -> None:
        book = Book(Limit(epsilon=cost(*[[ROUND]] * 10), delta=DELTA))
        book.run(self.terms, self.terms.rounds[:4])
        book.limit = Limit(epsilon=cost(*[[ROUND]] * 9), delta=DELTA)
        assert book.charge(self.terms, multiset([ROUND])) is None
        assert book.limit.spent(book.account).epsilon > book.limit.epsilon


class TestTheRenyiFilter:
    limit = Limit(epsilon=8.0, delta=DELTA)

    def test_its_order_depends_on_the_budget_alone(self) -> None:
        order, most = self.limit.order_and_divergence()
        # Canonne, Kamath & Steinke 2020, proposition 12, as the paper has it.
        assert math.exp((order - 1) * (most - 8.0)) / (order - 1) * (1 - 1 / order) ** order == pytest.approx(DELTA)
        assert Limit(epsilon=8.0, delta=DELTA).order_and_divergence() == (order, most)
        assert Limit(epsilon=1.0, delta=DELTA).order_and_divergence()[0] > order

    def test_it_admits_the_most_gaussian_releases_of_all_orders(self) -> None:
        _, most = self.limit.order_and_divergence()
        one = Gaussian(noise_multiplier=10.0)
        book = Book(self.limit)
        # After a plan that fits, so that the filter decides.
        admitted = book.run(plan("a", [one])) + book.run(plan("b", *[[one]] * 10_000))
        order, _ = self.limit.order_and_divergence()
        assert admitted == math.floor(most * (1 + SLACK) / (order / 200))
        for other in (2.0, 3.0, 5.0, 11.0, 32.0):
            left = 8.0 - math.log1p(-1 / other) + math.log(DELTA * other) / (other - 1)
            assert left / (other / 200) <= admitted + 1

    def test_many_plans_share_it(self) -> None:
        many, alone = Book(self.limit), Book(self.limit)
        for book in (many, alone):
            assert book.run(plan("first", [ROUND])) == 1
        names, admitted = itertools.cycle("abc"), 0
        while many.charge(plan(next(names), *[[ROUND]] * 10_000), multiset([ROUND])) is not None:
            admitted += 1
        assert alone.run(plan("a", *[[ROUND]] * 10_000)) == admitted > 3
        assert len(many.account.plans) == 4

    def test_a_plan_that_was_approved_once_is_not_played_twice(self) -> None:
        """Whatever the budget has left: its owner said yes to what the plan said it would release."""
        book = Book(self.limit)
        whole = plan("a", [ROUND, COUNTS], [ROUND])
        assert book.charge(whole, multiset([ROUND, COUNTS])) == Admission(proof="filter")
        assert book.charge(whole, multiset([COUNTS])) is None
        assert book.charge(whole, multiset([ROUND])) == Admission(proof="filter")
        assert book.charge(whole, multiset([ROUND])) is None
        assert book.charge(plan("b", [ROUND]), multiset([ROUND, ROUND])) is None
        assert book.charge(plan("b", [ROUND]), multiset([ROUND])) == Admission(proof="filter")

    def test_the_claim_is_the_limit_whatever_was_used(self) -> None:
        """A running total at a time that depends on the data has no proof; it is given for information."""
        book = Book(self.limit)
        book.charge(plan("a", [ROUND]), multiset([ROUND]))
        spent = book.limit.spent(book.account)
        assert (spent.epsilon, spent.delta, spent.proof) == (8.0, DELTA, "rdp-filter")
        assert spent.charged_epsilon == cost([ROUND])
        order, most = self.limit.order_and_divergence()
        assert spent.fraction == pytest.approx(accountant.renyi([ROUND], order) / most)
        assert spent.accountant == f"RDP filter at order {order:g}"

    def test_a_limit_lowered_below_what_was_charged_is_not_claimed(self) -> None:
        book = Book(self.limit)
        book.run(plan("a", [ROUND]))
        book.run(plan("b", *[[ROUND]] * 10_000))
        lower = Limit(epsilon=2.0, delta=DELTA)
        spent = lower.spent(book.account)
        assert spent.epsilon > cost(*[[ROUND]] * book.charged[ROUND]) > 2.0
        assert spent.fraction == 1.0

    def test_releases_about_unlike_neighbours_are_not_covered(self) -> None:
        book = Book(self.limit)
        assert book.charge(plan("a", [ROUND]), multiset([ROUND])) is not None
        cohorts = ClientLevel(noise_multiplier=50.0, cohort="fixed", size=1, of=100)
        assert book.charge(plan("b", [cohorts]), multiset([cohorts])) is None

    def test_a_tiny_budget_admits_nothing_and_fails_nowhere(self) -> None:
        tiny = Book(Limit(epsilon=1e-6, delta=1e-12))
        assert tiny.run(plan("a", [ROUND])) == 0
        assert tiny.limit.spent(tiny.account).epsilon == 0


class TestTheSumOfPlans:
    def test_epsilons_and_deltas_of_envelopes_add(self) -> None:
        one, other = cost(*[[ROUND]] * 2), cost(*[[ROUND, COUNTS]] * 3, delta=2e-5)
        book = Book(Limit(epsilon=one + other, delta=3e-5, filter="sum"))
        assert book.run(plan("a", *[[ROUND]] * 2)) == 2
        assert book.run(plan("b", *[[ROUND, COUNTS]] * 3, delta=2e-5)) == 3
        spent = book.limit.spent(book.account)
        assert spent.proof == "sum-of-plans"
        assert spent.epsilon == pytest.approx(one + other)
        assert spent.delta == pytest.approx(3e-5)
        assert spent.fraction == pytest.approx(1)
        assert book.run(plan("c", [Gaussian(noise_multiplier=1e6)])) == 0

    def test_an_envelope_counts_whole_used_or_not(self) -> None:
        budget = cost(*[[ROUND]] * 5)
        book = Book(Limit(epsilon=budget, delta=2e-5, filter="sum"))
        book.run(plan("a", *[[ROUND]] * 5), [multiset([ROUND])])
        assert book.run(plan("b", [ROUND])) == 0
        assert book.limit.spent(book.account).epsilon == pytest.approx(budget)

    def test_a_later_plan_gets_the_rounds_that_still_fit(self) -> None:
        book = Book(Limit(epsilon=cost([ROUND]) + cost(*[[ROUND]] * 3), delta=2e-5, filter="sum"))
        assert book.run(plan("a", [ROUND])) == 1
        assert book.run(plan("b", *[[ROUND]] * 10)) == 3

    def test_deltas_run_out_too(self) -> None:
        book = Book(Limit(epsilon=100.0, delta=1.5e-5, filter="sum"))
        assert book.run(plan("a", [ROUND])) == 1
        assert book.run(plan("b", [ROUND])) == 0
        assert book.run(plan("c", [ROUND], delta=5e-6)) == 1

    def test_plans_may_overlap_in_time(self) -> None:
        two = cost([ROUND], [ROUND])
        book = Book(Limit(epsilon=2 * two, delta=2e-5, filter="sum"))
        a, b = plan("a", *[[ROUND]] * 2), plan("b", *[[ROUND]] * 2)
        assert all(book.charge(terms, multiset([ROUND])) for terms in (a, b, a, b))
        assert not any(book.charge(terms, multiset([ROUND])) for terms in (a, b))


def test_one_filter_s_charges_close_a_balance_to_the_other() -> None:
    """Their proofs don't add; a site that changes its policy starts from what the new filter can prove."""
    filtered = Book(Limit(epsilon=20.0, delta=DELTA))
    filtered.run(plan("a", [ROUND]))
    filtered.limit = Limit(epsilon=20.0, delta=1e-3, filter="sum")
    assert filtered.run(plan("b", [ROUND])) == 0
    assert filtered.limit.spent(filtered.account).epsilon == math.inf

    summed = Book(Limit(epsilon=20.0, delta=1e-3, filter="sum"))
    summed.run(plan("a", [ROUND]))
    summed.run(plan("b", [ROUND]))
    summed.limit = Limit(epsilon=20.0, delta=DELTA)
    assert summed.run(plan("b", [ROUND])) == 0
    # All that was ever fixed, as one history.
    assert summed.limit.spent(summed.account).epsilon == pytest.approx(cost([ROUND], [ROUND]))


def test_nothing_charged_costs_nothing() -> None:
    for kind in ("rdp", "sum"):
        spent = Limit(epsilon=3.0, delta=DELTA, filter=kind).spent(Account())  # type: ignore[arg-type]
        assert (spent.epsilon, spent.delta, spent.fraction, spent.proof) == (0.0, 0.0, 0.0, "nothing-charged")


def test_a_balance_with_a_gap_makes_no_claim() -> None:
    book = Book(Limit(epsilon=20.0, delta=DELTA))
    book.run(plan("a", [ROUND]))
    spent = book.limit.spent(replace(book.account, withdrawn=True))
    assert (spent.epsilon, spent.proof, spent.fraction) == (math.inf, "withdrawn", 1.0)


def test_an_entry_without_charge_needs_no_admission() -> None:
    with pytest.raises(ValueError, match="nothing to admit"):
        Limit(epsilon=1.0, delta=DELTA).admit(Account(), plan("a", [ROUND]), ())


class TestMultisets:
    def test_have_one_form(self) -> None:
        assert multiset([COUNTS, ROUND, COUNTS]) == multiset({ROUND: 1, COUNTS: 2}) == ((COUNTS, 2), (ROUND, 1))
        assert multiset({ROUND: 0}) == multiset([]) == ()

    def test_can_t_lack_a_release(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            multiset({ROUND: -1})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        *[({"epsilon": bad}, "epsilon") for bad in (0.0, -1.0, math.inf, math.nan)],
        *[({"delta": bad}, "delta") for bad in (0.0, 1.0, math.nan)],
        ({"filter": "advanced"}, "filter"),
    ],
)
def test_a_limit_out_of_range_is_refused(values: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limit(**{"epsilon": 1.0, "delta": DELTA, **values})  # type: ignore[arg-type]


def test_a_balance_is_known_by_unit_and_trust() -> None:
    assert Balance(unit="person:5", trust="local") != Balance(unit="record", trust="local")
    assert len({Balance(unit="client", trust="central"), Balance(unit="client", trust="central")}) == 1


KINDS: tuple[Release, ...] = (
    ROUND,
    replace(ROUND, noise_multiplier=0.7, steps=3),
    Gaussian(noise_multiplier=4.0),
    COUNTS,
)
charges = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(KINDS), st.integers(1, 4)), max_size=40)
budgets = st.sampled_from([0.3, 1.0, 2.0, 4.0, 8.0, 20.0])


class TestWhateverIsAskedFor:
    """The filters' promise, for plans and charges of any kind and order (derandomised: the same cases each time)."""

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(budget=budgets, asked=charges, planned=st.dictionaries(st.sampled_from("abc"), st.integers(1, 6)))
    def test_the_renyi_filter_is_never_passed(
        self, budget: float, asked: list[tuple[str, Release, int]], planned: dict[str, int]
    ) -> None:
        book = Book(Limit(epsilon=budget, delta=DELTA))
        for name, release, count in asked:
            terms = plan(name, *[[ROUND, COUNTS]] * planned.get(name, 1))
            book.charge(terms, multiset({release: count}))
        if any(entry.proof == "plan" for entry in book.account.plans):
            (only,) = book.account.plans
            assert only.envelope is not None
            assert pld_epsilon(frozenset(only.envelope), DELTA) <= budget * (1 + 1e-6)
            assert pld_epsilon(frozenset(book.charged.items()), DELTA) <= budget * (1 + 1e-6) or not book.charged
            return
        order, _ = book.limit.order_and_divergence()
        # At a whole order, the next above, Google's series is exact; divergences grow with the order.
        total = sum(count * divergence(release, math.floor(order)) for release, count in book.charged.items())
        most = budget - math.log1p(-1 / order) + math.log(DELTA * order) / (order - 1)
        assert total <= most * (1 + 1e-6)
        if float(order).is_integer():
            implied = total + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)
            assert implied <= budget * (1 + 1e-6)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(budget=budgets, asked=charges, rounds=st.integers(1, 5), delta=st.sampled_from([1e-6, 4e-6, 1e-5]))
    def test_the_sum_of_plans_is_never_passed(
        self, budget: float, asked: list[tuple[str, Release, int]], rounds: int, delta: float
    ) -> None:
        book = Book(Limit(epsilon=budget, delta=DELTA, filter="sum"))
        for name, release, count in asked:
            terms = plan(name, *[[ROUND, COUNTS, release]] * rounds, delta=delta)
            book.charge(terms, multiset({release: count}))
        total = 0.0
        for entry in book.account.plans:
            assert entry.envelope is not None
            assert not Counter(dict(entry.charged)) - Counter(dict(entry.envelope))
            total += pld_epsilon(frozenset(entry.envelope), entry.delta)
        assert total <= budget * (1 + 1e-6) + 1e-6
        assert sum(entry.delta for entry in book.account.plans) <= DELTA * (1 + 1e-6)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(budget=budgets, asked=st.permutations([(name, kind) for name in "ab" for kind in KINDS for _ in range(3)]))
    def test_what_the_filter_holds_does_not_depend_on_the_order(
        self, budget: float, asked: list[tuple[str, Release]]
    ) -> None:
        """Either all of them fit, in any order, or in no order."""
        fits = Book(Limit(epsilon=budget, delta=DELTA))
        fits.account = Account(
            plans=(
                PlanAccount(plan=digest("x"), proof="filter", envelope=None, charged=multiset([COUNTS]), delta=DELTA),
            )
        )
        rounds = [[kind] for kind in KINDS for _ in range(3)]
        admitted = [fits.charge(plan(name, *rounds), multiset([kind])) is not None for name, kind in asked]
        together = multiset([COUNTS, *(kind for _, kind in asked)])
        order, most = fits.limit.order_and_divergence()
        assert all(admitted) == (accountant.renyi(dict(together), order) <= most * (1 + SLACK))
