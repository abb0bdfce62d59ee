"""Whatever a server shows to whom, it never sees the sum of a part of the honest clients: every case of small cohorts.

A model of the rules in a full graph, with every client's masks as unknowns. The server shows each honest client a set
of its own of who shared, picks the survivors and who confirms them, and uses all that colluding clients hold. What it
can then reckon is the null space of a small matrix: one row a client, one column a mask that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, product

import numpy as np
import pytest

from security.secure_sum.parameters import parameters_for

Clients = frozenset[int]


def subsets(of: Clients, least: int) -> list[Clients]:
    sizes = (combinations(sorted(of), size) for size in range(max(least, 0), len(of) + 1))
    return [frozenset(one) for one in chain.from_iterable(sizes)]


def runs(cohort: int, corrupt: int, least: int) -> Iterator[tuple[list[Clients], Clients, Clients]]:
    """All that honest clients accept: whom each saw share, the survivors, and those of them who confirm."""
    honest, colluding = frozenset(range(cohort - corrupt)), frozenset(range(cohort - corrupt, cohort))
    seen_by = [
        [others | {one} | colluding for others in subsets(honest - {one}, least - corrupt - 1)]
        for one in sorted(honest)
    ]
    for honest_survivors in subsets(honest, least - corrupt):
        survivors = honest_survivors | colluding
        for confirming in subsets(honest_survivors, least - corrupt):
            for seen in product(*seen_by):
                if all(survivors <= seen[one] for one in confirming):
                    yield list(seen), survivors, confirming


def learned(
    cohort: int, corrupt: int, threshold: int, seen: list[Clients], survivors: Clients, confirming: Clients
) -> np.ndarray:
    """A basis of the combinations of honest clients' vectors that the server can reckon."""
    honest = range(cohort - corrupt)

    def shares_of(owner: int) -> int:
        return corrupt + sum(owner in seen[one] for one in confirming)

    bare = {one for one in honest if one in survivors and shares_of(one) >= threshold}
    opened = {one for one in honest if one not in survivors and shares_of(one) >= threshold}
    columns = [[float(one == owner) for one in honest] for owner in honest if owner not in bare]
    for low, high in combinations(honest, 2):
        if low not in opened and high not in opened:
            column = [0.0] * len(honest)
            column[low] = float(high in seen[low])
            column[high] = -float(low in seen[high])
            columns.append(column)
    matrix = np.array(columns)
    _, sizes, rows = np.linalg.svd(matrix)
    return rows[np.count_nonzero(sizes > 1e-9) :]


def broken(cohort: int, corrupt: int, least: int, threshold: int) -> Iterator[bool]:
    """For each run, whether the server learns something else than the sum of all honest survivors."""
    for seen, survivors, confirming in runs(cohort, corrupt, least):
        basis = learned(cohort, corrupt, threshold, seen, survivors, confirming)
        whole = np.array([float(one in survivors) for one in range(cohort - corrupt)])
        # One combination at most, and it counts each of them alike.
        along = basis @ whole / np.linalg.norm(whole)
        yield len(basis) > 1 or not np.allclose(np.abs(along), 1)


@pytest.mark.parametrize(("cohort", "corrupt"), [(3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (5, 1), (5, 2), (6, 2)])
def test_the_sum_of_all_honest_survivors_or_nothing(cohort: int, corrupt: int) -> None:
    found = parameters_for(cohort=cohort, corrupt=corrupt, honest=1)
    results = list(broken(cohort, corrupt, found.least, found.threshold))
    assert results
    assert not any(results)


@pytest.mark.parametrize(("cohort", "corrupt"), [(4, 1), (5, 1), (6, 2)])
def test_with_fewer_clients_or_shares_it_would_be_broken(cohort: int, corrupt: int) -> None:
    """The model can tell: two clients less in every phase, and a server can open a part."""
    found = parameters_for(cohort=cohort, corrupt=corrupt, honest=1)
    assert any(broken(cohort, corrupt, found.least - 2, found.threshold - 2))
