"""The parameters of a secure sum keep its promises for every cohort, and are refused in words where none can."""

from __future__ import annotations

import math

import pytest

from security.secure_sum.parameters import LARGEST_FULL_GRAPH, SumParameters, parameters_for

TENTH = [(n, -(-n // 10), -(-n // 2)) for n in (65, 80, 100, 150, 200, 300, 500, 1000)]
OTHERS = [(66, 0, 33), (100, 0, 1), (100, 33, 50), (100, 20, 80), (200, 66, 134), (200, 10, 190), (1000, 200, 500)]


@pytest.mark.parametrize("cohort", range(2, LARGEST_FULL_GRAPH + 1))
def test_up_to_64_clients_everybody_shares_with_everybody(cohort: int) -> None:
    for corrupt in range(cohort):
        for honest in range(1, cohort - corrupt + 1):
            found = parameters_for(cohort=cohort, corrupt=corrupt, honest=honest)
            assert found.is_full_graph
            assert found.holders == cohort - 1
            # Two sets of survivors can't both be confirmed; those who collude can't rebuild; those who remain can.
            assert 2 * (found.least - corrupt) > cohort - corrupt
            assert corrupt < found.threshold <= found.least <= cohort
            assert 2 * found.threshold > cohort + corrupt
            assert found.least >= max(honest + corrupt, 2)
            assert found.security_bits == found.correctness_bits == math.inf


def test_least_and_threshold_are_no_larger_than_they_must() -> None:
    found = parameters_for(cohort=10, corrupt=1, honest=5)
    assert (found.least, found.threshold) == (6, 6)
    assert parameters_for(cohort=10, corrupt=1, honest=8).least == 9
    assert parameters_for(cohort=10, corrupt=0, honest=5).least == 6
    assert parameters_for(cohort=2, corrupt=0, honest=1).least == 2
    assert parameters_for(cohort=3, corrupt=1, honest=2) == SumParameters(
        cohort=3,
        corrupt=1,
        honest=2,
        holders=2,
        threshold=3,
        least=3,
        security_bits=math.inf,
        correctness_bits=math.inf,
    )


@pytest.mark.parametrize(("cohort", "corrupt", "honest"), TENTH + OTHERS)
def test_larger_cohorts_share_with_fewer_and_keep_the_promises(cohort: int, corrupt: int, honest: int) -> None:
    found = parameters_for(cohort=cohort, corrupt=corrupt, honest=honest)
    full = max((cohort + corrupt) // 2 + 1, honest + corrupt)
    assert found.holders < cohort - 1
    assert found.security_bits >= 40
    assert found.correctness_bits >= 20
    assert full <= found.least <= min(full + cohort // 20, cohort)
    assert found.threshold <= found.holders
    assert found.threshold < found.least
    assert 2 * found.threshold > found.holders + 1


def test_the_number_of_holders_grows_far_slower_than_the_cohort() -> None:
    holders = {n: parameters_for(cohort=n, corrupt=c, honest=h).holders for n, c, h in TENTH}
    assert (holders[100], holders[200], holders[1000]) == (54, 72, 133)
    thresholds = {n: parameters_for(cohort=n, corrupt=c, honest=h).threshold for n, c, h in TENTH}
    assert (thresholds[100], thresholds[200], thresholds[1000]) == (33, 47, 95)


def test_rarer_dropouts_need_fewer_holders_and_frequent_ones_a_full_graph() -> None:
    few, some = (parameters_for(cohort=200, corrupt=20, honest=100, dropout=part) for part in (0.02, 0.1))
    assert few.holders < some.holders
    many = parameters_for(cohort=65, corrupt=7, honest=33, dropout=0.4)
    assert many.is_full_graph
    assert many.security_bits == math.inf
    assert (many.threshold, many.least) == (37, 40)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.9])
def test_dropouts_decide_nothing_in_small_cohorts(dropout: float) -> None:
    assert parameters_for(cohort=64, corrupt=6, honest=32, dropout=dropout) == parameters_for(
        cohort=64, corrupt=6, honest=32
    )


@pytest.mark.parametrize(
    ("cohort", "corrupt", "honest", "text"),
    [
        (1, 0, 1, "from 2 to 10000 clients, not 1"),
        (10_001, 0, 1, "from 2 to 10000 clients, not 10001"),
        (10, -1, 5, "at least 0 that may collude"),
        (10, 1, 0, "at least 1 honest client"),
        (10, 6, 5, "5 honest clients and 6 that may collude are more than the 10 clients of the cohort: ask for fewer"),
    ],
    ids=["one", "too-many", "negative", "no-honest", "more-than-all"],
)
def test_where_nothing_fits_the_text_says_why(cohort: int, corrupt: int, honest: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parameters_for(cohort=cohort, corrupt=corrupt, honest=honest)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_a_part_that_drops_out_is_a_part(dropout: float) -> None:
    with pytest.raises(ValueError, match="drop out"):
        parameters_for(cohort=10, corrupt=1, honest=5, dropout=dropout)
