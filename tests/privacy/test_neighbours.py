"""Neighbouring data sets: the accountant is asked about those that a release is about."""

from __future__ import annotations

import pytest
from dp_accounting import NeighboringRelation

from privacy.neighbours import Neighbours


@pytest.mark.parametrize(
    ("neighbours", "relation"),
    [
        (Neighbours.ADD_OR_REMOVE_ONE, NeighboringRelation.ADD_OR_REMOVE_ONE),
        (Neighbours.REPLACE_ONE, NeighboringRelation.REPLACE_ONE),
    ],
)
def test_they_are_the_accountants(neighbours: Neighbours, relation: NeighboringRelation) -> None:
    assert neighbours.of_dp_accounting() is relation


def test_what_people_are_told_of_them_is_part_of_statements_and_does_not_change() -> None:
    assert [neighbours.value for neighbours in Neighbours] == ["add or remove one unit", "replace one unit"]
