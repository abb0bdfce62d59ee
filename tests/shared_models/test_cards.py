"""Data cards: public facts, known without looking at anybody's data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.errors import UsageError
from shared_models.cards import KNOWN, DataCard, card_for, table_width
from shared_models.example_form import ExampleForm
from shared_models.plan_data import TEXTS, CategoricalColumn, DataPlan, NumericColumn

AGE = {"kind": "numeric", "low": 0.0, "high": 99.0}
SEX = {"kind": "categorical", "values": ["f", "m"]}


def data(name: str, card: dict[str, Any] | None = None) -> DataPlan:
    partition = {"kind": "iid", "clients": 2}
    return DataPlan.model_validate(
        {"name": name, "path": "x", "partition": partition} | ({} if card is None else {"card": card})
    )


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_known_set_brings_its_card(name: str) -> None:
    card = card_for(data(name))
    assert name in TEXTS or card == KNOWN[name]
    assert card.name == name
    assert len(set(card.classes)) == len(card.classes) >= 2
    assert all(side >= 1 for side in card.input_shape)
    assert card.std > 0
    assert "own" not in card.source + card.licence
    if card.columns:
        assert card.target is not None
        assert card.target not in card.columns
        assert card.input_shape == (table_width(card.columns),)


def test_the_known_cards_are_these() -> None:
    assert {name: (card.input_shape, len(card.classes)) for name, card in KNOWN.items()} == {
        "adult": ((58,), 2),
        "digits": ((1, 8, 8), 10),
        "fashion-mnist": ((1, 28, 28), 10),
        "heart-disease": ((28,), 2),
        "mnist": ((1, 28, 28), 10),
        "sentences": ((1,), 2),
        "sentiment": ((1,), 2),
        "shakespeare": ((1,), 2),
        "watch": ((6, 128), 7),
    }


def test_the_card_of_a_set_of_texts_follows_from_the_plans_tokens() -> None:
    words = card_for(DataPlan.model_validate({"name": "sentiment", "text": {"vocabulary": 500, "places": 20}}))
    assert (words.form, words.classes) == (ExampleForm((20,), 2, vocabulary=500), ("negative", "positive"))
    plays = card_for(DataPlan.model_validate({"name": "shakespeare", "partition": {"kind": "iid"}}))
    assert plays.form == ExampleForm((80,), 98, vocabulary=98, at_each_place=True)


def test_no_card_can_be_changed() -> None:
    card = card_for(data("heart-disease"))
    with pytest.raises(AttributeError):
        card.mean = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        card.columns["age"] = NumericColumn(low=0, high=1)  # type: ignore[index]
    with pytest.raises(TypeError):
        KNOWN["digits"] = card  # type: ignore[index]
    own = card_for(data("csv", {"classes": ["a", "b"], "target": "y", "columns": {"age": AGE}}))
    with pytest.raises(TypeError):
        own.columns["age"] = NumericColumn(low=0, high=1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "card", "message"),
    [
        ("digits", {"classes": ["a", "b"]}, r"'digits' brings its own card; remove \[data\.card\]"),
        ("csv", None, r"data\.name = 'csv' needs a \[data\.card\].*digits, fashion"),
        ("fashon-mnist", None, r"did you mean fashion-mnist\? data\.name = 'fashon-mnist'"),
    ],
)
def test_data_of_ones_own_needs_a_card_and_known_data_has_its_own(
    name: str, card: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=rf"^data\.card: {message}"):
        card_for(data(name, card))


def test_the_card_of_a_table() -> None:
    card = card_for(
        data("csv", {"classes": ["no", "yes"], "target": "y", "columns": {"sex": SEX, "age": AGE}, "missing": ["-"]})
    )
    assert card == DataCard(
        name="csv",
        input_shape=(2 + 3,),
        classes=("no", "yes"),
        target="y",
        columns={"age": NumericColumn(low=0, high=99), "sex": CategoricalColumn(values=("f", "m"))},
        missing=("-",),
    )


def test_rule_4_plans_of_one_digest_put_the_columns_in_one_order() -> None:
    # Digest and equality of a plan don't know in what order a text names the columns, so the features may not either.
    there = data("csv", {"classes": ["a", "b"], "target": "y", "columns": {"sex": SEX, "age": AGE, "Zip": AGE}})
    back = data("csv", {"classes": ["a", "b"], "target": "y", "columns": {"Zip": AGE, "age": AGE, "sex": SEX}})
    assert there == back
    assert list(card_for(there).columns) == list(card_for(back).columns) == ["Zip", "age", "sex"]


@pytest.mark.parametrize("name", ["npz", "image-folder"])
def test_the_card_of_images(name: str) -> None:
    card = card_for(data(name, {"classes": ["a", "b"], "input_shape": [3, 8, 8], "mean": 0.5, "std": 2.0}))
    assert (card.input_shape, card.mean, card.std, card.columns) == ((3, 8, 8), 0.5, 2.0, {})


@pytest.mark.parametrize(
    ("name", "card", "message"),
    [
        ("csv", {"columns": {"age": AGE}}, r"^data\.card: data\.name = 'csv' needs data\.card\.target"),
        ("csv", {"target": "y"}, r"^data\.card: data\.name = 'csv' needs data\.card\.target, and "),
        ("csv", {"target": "age", "columns": {"age": AGE}}, r"^data\.card\.columns\.age: is the target"),
        ("npz", {}, r"^data\.card\.input_shape: data\.name = 'npz' needs the shape of one example"),
        ("npz", {"classes": ["a", "a "], "input_shape": [3]}, r"^data\.card\.classes: 'a' is there more than once"),
        (
            "csv",
            {"target": "y", "columns": {"s": {"kind": "categorical", "values": ["f", " f", "m"]}}},
            r"^data\.card\.columns\.s\.values: 'f' is there more than once",
        ),
    ],
)
def test_a_card_that_does_not_describe_the_data_is_refused(name: str, card: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        card_for(data(name, {"classes": ["a", "b"], **card}))


@settings(deadline=None)
@given(st.lists(st.integers(1, 9)))
def test_a_number_takes_two_places_and_a_category_one_more_than_its_values(sizes: list[int]) -> None:
    columns = {
        f"c{i}": NumericColumn(low=0, high=1)
        if size == 1
        else CategoricalColumn(values=tuple(str(v) for v in range(size)))
        for i, size in enumerate(sizes)
    }
    assert table_width(columns) == sum(2 if size == 1 else size + 1 for size in sizes)
