"""Rules 6 and 10: who is held out, and which of a person's records count, is a secret hash of content alone."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.datasets.records import Records
from client.datasets.split import bound_rows_per_person, split

KEY = b"an owner's secret of 32 bytes..."

Row = tuple[int, int]  # a feature and a label: small, so that identical records are common
rows_of_anybody = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), max_size=30)
rows_of_people = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 2), st.sampled_from(["ann", "bob", "cy"])), max_size=30
)


def records(rows: list[Row], people: list[str] | None = None) -> Records:
    return Records(
        x=torch.tensor([[float(x)] for x, _ in rows]).reshape(-1, 1),
        y=torch.tensor([y for _, y in rows], dtype=torch.int64),
        people=None if people is None else np.array(people, dtype=np.str_),
    )


def contents(part: Records) -> list[Row]:
    return [(int(x), int(y)) for x, y in zip(part.x[:, 0], part.y, strict=True)]


def with_people(part: Records) -> list[tuple[int, int, str]]:
    assert part.people is not None
    return [(x, y, str(who)) for (x, y), who in zip(contents(part), part.people, strict=True)]


@settings(deadline=None)
@given(rows_of_anybody)
def test_every_record_is_on_exactly_one_side(rows: list[Row]) -> None:
    train, test = split(records(rows), key=KEY, test_fraction=0.4)
    assert sorted(contents(train) + contents(test)) == sorted(rows)


@settings(deadline=None)
@given(rows_of_anybody, st.data())
def test_rule_10_removing_a_record_moves_no_other(rows: list[Row], data: st.DataObject) -> None:
    # Read backwards this is adding: both directions of the neighbouring relation.
    gone = data.draw(st.integers(0, len(rows))) - 1
    fewer = rows[:gone] + rows[gone + 1 :] if gone >= 0 else rows
    train, test = split(records(rows), key=KEY, test_fraction=0.4)
    fewer_train, fewer_test = split(records(fewer), key=KEY, test_fraction=0.4)
    on_test = set(contents(test))
    assert contents(fewer_test) == [row for row in fewer if row in on_test]
    assert contents(fewer_train) == [row for row in fewer if row not in on_test]
    assert not on_test & set(contents(train))


@settings(deadline=None)
@given(rows_of_anybody)
def test_rule_10_identical_records_share_a_side(rows: list[Row]) -> None:
    train, test = split(records(rows + rows), key=KEY, test_fraction=0.4)
    assert not set(contents(train)) & set(contents(test))


def test_rule_10_the_side_is_secret_another_key_splits_otherwise() -> None:
    pool = records([(number, 0) for number in range(200)])
    _, test = split(pool, key=KEY, test_fraction=0.5)
    _, other = split(pool, key=KEY[::-1], test_fraction=0.5)
    assert contents(test) != contents(other)
    assert 60 < len(set(contents(test)) ^ set(contents(other))) < 140  # independent keys disagree on about half


def test_zero_and_minus_zero_are_the_same_record() -> None:
    for label in range(20):
        _, test = split(
            Records(x=torch.tensor([[0.0], [-0.0]]), y=torch.tensor([label, label])), key=KEY, test_fraction=0.5
        )
        assert len(test) in (0, 2)


def test_the_label_is_part_of_the_record() -> None:
    _, test = split(records([(0, label) for label in range(100)]), key=KEY, test_fraction=0.5)
    assert 0 < len(test) < 100


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_the_test_part_is_about_as_large_as_asked(fraction: float) -> None:
    n = 4000
    _, test = split(records([(number, 0) for number in range(n)]), key=KEY, test_fraction=fraction)
    five_sigma = 5 * (fraction * (1 - fraction) / n) ** 0.5
    assert abs(len(test) / n - fraction) < five_sigma


def test_no_records_split_into_none() -> None:
    train, test = split(records([]), key=KEY, test_fraction=0.5)
    assert (len(train), len(test)) == (0, 0)


@settings(deadline=None)
@given(rows_of_people, st.integers(0, 2**16))
def test_rule_6_a_persons_records_are_on_one_side(rows: list[tuple[int, int, str]], salt: int) -> None:
    pool = records([(x, y) for x, y, _ in rows], [who for *_, who in rows])
    train, test = split(pool, key=KEY + salt.to_bytes(4), test_fraction=0.5)
    assert not {who for *_, who in with_people(train)} & {who for *_, who in with_people(test)}
    assert len(train) + len(test) == len(rows)


@settings(deadline=None)
@given(rows_of_people, st.integers(1, 4))
def test_rule_6_the_bound_holds_and_people_within_it_keep_all(rows: list[tuple[int, int, str]], most: int) -> None:
    pool = records([(x, y) for x, y, _ in rows], [who for *_, who in rows])
    kept = with_people(bound_rows_per_person(pool, key=KEY, most=most))
    for person in ("ann", "bob", "cy"):
        own = [row for row in rows if row[2] == person]
        assert len([row for row in kept if row[2] == person]) == min(most, len(own))
        if len(own) <= most:
            assert [row for row in kept if row[2] == person] == own


@settings(deadline=None)
@given(rows_of_people, st.integers(1, 4))
def test_rule_6_removing_a_person_changes_nothing_for_the_others(rows: list[tuple[int, int, str]], most: int) -> None:
    def kept(part: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        pool = records([(x, y) for x, y, _ in part], [who for *_, who in part])
        return with_people(bound_rows_per_person(pool, key=KEY, most=most))

    without_bob = [row for row in rows if row[2] != "bob"]
    assert kept(without_bob) == [row for row in kept(rows) if row[2] != "bob"]


@settings(deadline=None)
@given(rows_of_people, st.integers(1, 4), st.randoms(use_true_random=False))
def test_rule_6_the_choice_does_not_depend_on_the_order_of_the_file(
    rows: list[tuple[int, int, str]], most: int, random: Random
) -> None:
    def kept(part: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        pool = records([(x, y) for x, y, _ in part], [who for *_, who in part])
        return sorted(with_people(bound_rows_per_person(pool, key=KEY, most=most)))

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert kept(shuffled) == kept(rows)


def test_the_bound_needs_people() -> None:
    with pytest.raises(ValueError, match="without people"):
        bound_rows_per_person(records([(1, 1)]), key=KEY, most=1)
