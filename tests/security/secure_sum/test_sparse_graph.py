"""The bounds on failures of a random choice of holders hold: against exact formulae, chance, and a hostile server."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from security.secure_sum.sparse_graph import add_bits, loss_bits, most_corrupt, split_bits


@dataclass(frozen=True)
class Case:
    """A cohort, by the letters of the module's docstring."""

    n: int
    c: int
    honest: int
    least: int
    k: int
    t: int
    x: int

    @property
    def bits(self) -> int:
        return split_bits(
            cohort=self.n,
            corrupt=self.c,
            honest=self.honest,
            least=self.least,
            holders=self.k,
            threshold=self.t,
            most_corrupt=self.x,
        )

    @property
    def bound(self) -> Fraction:
        """The formula of the docstring, in exact fractions."""
        loyal, confirmed, inner = self.n - self.c, self.least - self.c, self.t - self.x - 1
        u = max(self.least, self.k + 1)
        total = Fraction(0)
        for s in range(self.t - self.x, loyal + 1):
            r = self.rest(s)
            if r is None or s + r > loyal or s + confirmed < 0:
                continue
            avoid = Fraction(comb(self.n - 1 - r, self.k), comb(self.n - 1, self.k))
            gather = Fraction(comb(s - 1, inner) * comb(u - 1 - inner, self.k - inner), comb(u - 1, self.k))
            total += comb(loyal, s) * comb(loyal - s, r) * min(avoid, gather) ** s
        return total

    def rest(self, s: int) -> int | None:
        """How large T must be beside an S of s, or None where S is none."""
        confirmed = self.least - self.c
        if s < self.honest:
            return confirmed - s
        return max(s, confirmed - s) if 2 * s <= self.n - self.c else None


LARGE = [
    Case(n=100, c=10, honest=50, least=62, k=54, t=33, x=10),
    Case(n=100, c=0, honest=50, least=60, k=20, t=11, x=0),
    Case(n=150, c=50, honest=60, least=110, k=60, t=49, x=36),
    Case(n=200, c=20, honest=100, least=123, k=72, t=47, x=20),
    Case(n=200, c=20, honest=30, least=111, k=40, t=30, x=18),
]


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_the_bits_of_a_split_are_those_of_the_formula_rounded_down(case: Case) -> None:
    # Terms are rounded up to powers of two, and so is their sum.
    exact = -math.log2(case.bound)
    assert exact - 2 <= case.bits <= exact


@pytest.mark.parametrize(("clients", "holders", "threshold"), [(100, 54, 33), (200, 72, 47), (70, 20, 11), (9, 3, 3)])
@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5])
def test_the_bits_of_a_loss_are_those_of_the_binomial_rounded_down(
    clients: int, holders: int, threshold: int, dropout: float
) -> None:
    gone = Fraction(dropout)
    tail = sum(
        comb(holders, lost) * gone**lost * (1 - gone) ** (holders - lost)
        for lost in range(holders - threshold + 1, holders + 1)
    )
    exact = -math.log2(clients * tail)
    found = loss_bits(clients=clients, holders=holders, threshold=threshold, dropout=dropout)
    if exact < 2:
        assert found <= max(exact, 0)
    else:
        assert exact - 2 <= found <= exact


def test_without_dropouts_nothing_is_lost() -> None:
    assert loss_bits(clients=100, holders=10, threshold=10, dropout=0.0) == 192


def colluding_tail(u: int, c: int, k: int, x: int) -> Fraction:
    """P[more than x of k holders collude], of u − 1 others of whom c collude."""
    k = min(k, u - 1)
    cases = sum(comb(c, j) * comb(u - 1 - c, k - j) for j in range(x + 1, min(c, k) + 1))
    return Fraction(cases, comb(u - 1, k))


@pytest.mark.parametrize(
    ("n", "c", "least", "k"), [(100, 10, 60, 54), (200, 66, 134, 40), (300, 30, 180, 90), (66, 0, 34, 9)]
)
def test_no_list_of_clients_surrounds_anyone_but_with_the_stated_probability(
    n: int, c: int, least: int, k: int
) -> None:
    x = most_corrupt(least=least, corrupt=c, clients=n, holders=k, bits=41)
    for u in range(least, n + 1):
        assert n * colluding_tail(u, c, k, x) <= Fraction(1, 2**41)
    # The least such number, but for rounding to powers of two.
    assert x == 0 or n * colluding_tail(least, c, k, x - 1) > Fraction(1, 2**42)


def test_holders_out_of_a_list_no_longer_than_they_are_may_be_all_who_collude() -> None:
    assert most_corrupt(least=30, corrupt=12, clients=40, holders=35, bits=41) == 12


def test_probabilities_add_up_rounded_to_the_safe_side() -> None:
    assert add_bits(41, 41) == 40
    assert add_bits(41, 90) == 40
    assert add_bits(50) == 50


# --- against chance


Graph = list[frozenset[int]]
"""The holders of each client, by number."""


def random_graph(n: int, k: int, rng: random.Random) -> Graph:
    return [frozenset(rng.sample([w for w in range(n) if w != v], k)) for v in range(n)]


def can_be_cut(graph: Graph, case: Case) -> bool:
    """Whether S and T of the docstring exist; the first n − c clients are the honest ones."""
    loyal = range(case.n - case.c)
    for s in range(case.t - case.x, len(loyal) + 1):
        r = case.rest(s)
        if r is None:
            continue
        for inside in itertools.combinations(loyal, s):
            within = frozenset(inside)
            if any(len(graph[v] & within) < case.t - case.x - 1 for v in inside):
                continue
            chosen = within.union(*(graph[v] for v in inside))
            if len(set(loyal) - chosen) >= r:
                return True
    return False


def test_the_bound_on_splits_covers_the_exact_probability() -> None:
    # All (4 over 2)^5 choices that five clients have.
    case = Case(n=5, c=0, honest=2, least=3, k=2, t=2, x=0)
    options = [list(itertools.combinations([w for w in range(5) if w != v], 2)) for v in range(5)]
    graphs = [[frozenset(some) for some in choice] for choice in itertools.product(*options)]
    exact = Fraction(sum(can_be_cut(graph, case) for graph in graphs), len(graphs))
    assert len(graphs) == 6**5
    assert 0 < exact <= case.bound < 1


@pytest.mark.parametrize(
    "case",
    [
        Case(n=10, c=0, honest=5, least=8, k=4, t=3, x=0),
        Case(n=10, c=1, honest=5, least=8, k=5, t=4, x=1),
        Case(n=11, c=2, honest=4, least=8, k=5, t=5, x=2),
    ],
    ids=str,
)
def test_the_bound_on_splits_covers_what_chance_brings(case: Case) -> None:
    # The share of 400 graphs is above the bound by 5 of its deviations with probability below 1e-6.
    rng = random.Random(case.n + case.c)
    trials = 400
    share = sum(can_be_cut(random_graph(case.n, case.k, rng), case) for _ in range(trials)) / trials
    bound = float(case.bound)
    assert share <= bound + 5 * math.sqrt(bound / trials)


def test_the_bound_on_losses_is_close_to_what_chance_brings() -> None:
    # 30 clients with 8 holders each, of which 5 must stay; a fifth drops out. The expected number of clients whose
    # secrets are lost is the bound itself; its mean over 4000 trials is within 8 deviations but with probability 1e-9
    # (clients' losses are correlated, so the deviation is taken from the trials).
    generator = np.random.default_rng(8)
    n, k, t, dropout, trials = 30, 8, 5, 0.2, 4000
    lost = []
    for _ in range(trials):
        holders = np.argsort(generator.random((n, n)) + 9 * np.eye(n), axis=1)[:, :k]
        alive = generator.random(n) >= dropout
        lost.append(int((alive[holders].sum(axis=1) < t).sum()))
    bound = n * sum(comb(k, gone) * dropout**gone * (1 - dropout) ** (k - gone) for gone in range(k - t + 1, k + 1))
    assert abs(float(np.mean(lost)) - bound) < 8 * float(np.std(lost)) / math.sqrt(trials)
    assert loss_bits(clients=n, holders=k, threshold=t, dropout=dropout) <= -math.log2(bound)


# --- against a hostile server


def opened(graph: Graph, case: Case, rng: random.Random) -> list[frozenset[int]]:
    """The sets of honest clients whose sums a server learns that keeps to no rule but what clients check.

    It chooses at random: survivors, who confirms, whose shares it withholds from whom, and what it tells those that
    don't confirm of who takes part. Whoever colludes gives it everything; of others it has the mask key unless they
    survive.
    """
    loyal = list(range(case.n - case.c))
    colluding = frozenset(range(case.n - case.c, case.n))
    confirmed_least = case.least - case.c
    confirming = set(rng.sample(loyal, rng.randint(confirmed_least, len(loyal))))
    others, noise = rng.choice([0, 0.4, 1]), rng.choice([0, 0, 0.1])
    survivors = confirming | {v for v in loyal if rng.random() < others}
    victims = set(rng.sample(loyal, rng.randint(1, case.honest))) & survivors
    # The best there is to withhold are the shares of others from its victims; sometimes it withholds at random.
    withheld = {
        (v, w)
        for v in loyal
        for w in graph[v] - colluding
        if (v not in victims and w in victims) or rng.random() < noise
    }
    told: dict[int, frozenset[int]] = {}
    for v in survivors:
        told[v] = frozenset(range(case.n))
        if v not in confirming:
            # The best there is to tell it of are victims and those that don't survive; or anybody.
            rest = [w for w in loyal if w != v]
            rng.shuffle(rest)
            if rng.random() < 0.7:
                rest.sort(key=lambda w: w in survivors and w not in victims)
            fewer = frozenset(rest[: rng.randint(confirmed_least - 1, len(rest))]) | {v} | colluding
            if len(graph[v] & fewer) + 1 >= case.t:  # or it would not take part
                told[v] = fewer

    def masks_with(v: int) -> set[int]:
        known = {w for w in survivors if w != v and v in graph[w] and (w, v) not in withheld}
        return {w for w in (graph[v] | known) & told[v] if w in survivors}

    def is_unmasked(v: int) -> bool:
        answers = {w for w in graph[v] & confirming if (v, w) not in withheld}
        return len(answers) + len(graph[v] & colluding) + (v in confirming) >= case.t

    # A sum is learnt if it has no seed and no mask in it that isn't: so whatever shares a mask belongs together.
    neighbours = {v: masks_with(v) for v in survivors}
    found, seen = [], set()
    for start in survivors:
        if start in seen:
            continue
        together, edge = {start}, [start]
        while edge:
            v = edge.pop()
            edge.extend(neighbours[v] - together)
            together |= neighbours[v]
        # What was reached one way only is no whole: it is reached from elsewhere, or holds a mask that stays.
        if all(is_unmasked(v) and all(v in neighbours[w] for w in neighbours[v]) for v in together):
            found.append(frozenset(together))
            seen |= together
    return found


def is_failure(sets: list[frozenset[int]], case: Case) -> bool:
    return len(sets) > 1 or any(len(some) < case.honest for some in sets)


def surrounded(graph: Graph, case: Case) -> bool:
    colluding = frozenset(range(case.n - case.c, case.n))
    return any(len(graph[v] & colluding) > case.x for v in range(case.n - case.c))


def search(case: Case, graphs: int, attacks: int) -> tuple[int, int, int, int]:
    """How many graphs can be cut; sums opened in the others; failures there, and in those that can be cut."""
    rng = random.Random(1)
    cuts = sums = unexplained = explained = 0
    for _ in range(graphs):
        graph = random_graph(case.n, case.k, rng)
        if surrounded(graph, case):
            continue
        cut = can_be_cut(graph, case)
        cuts += cut
        for _ in range(attacks):
            sets = opened(graph, case, rng)
            sums += 0 if cut else len(sets)
            unexplained += is_failure(sets, case) and not cut
            explained += is_failure(sets, case) and cut
    return cuts, sums, unexplained, explained


@pytest.mark.parametrize(
    "case",
    [
        Case(n=7, c=0, honest=3, least=4, k=5, t=4, x=0),
        Case(n=8, c=1, honest=4, least=6, k=3, t=3, x=1),
        Case(n=9, c=2, honest=4, least=7, k=4, t=4, x=2),
    ],
    ids=str,
)
def test_a_hostile_server_opens_nothing_small_unless_the_graph_can_be_cut(case: Case) -> None:
    assert 2 * case.t > case.k + 1 + case.x
    cuts, sums, unexplained, explained = search(case, graphs=200, attacks=40)
    assert unexplained == 0
    # The search finds what there is: sums, and failures where the graph allows them.
    assert sums > 0
    assert (explained > 0) == (cuts > 0)


def test_with_a_lower_threshold_a_hostile_server_gets_through() -> None:
    # So 2t > (k + 1) + X is needed: the same search finds failures that no cut of the graph explains.
    case = Case(n=7, c=0, honest=3, least=4, k=5, t=3, x=0)
    assert 2 * case.t == case.k + 1 + case.x
    cuts, _, unexplained, _ = search(case, graphs=200, attacks=40)
    assert cuts == 0
    assert unexplained > 0
