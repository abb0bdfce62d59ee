"""The data sets by name, and how one is loaded: read, bounded by person, split into train and test.

A new set is one file with a `load(data, card)` and one line in `_LOADERS`; `shared_models.cards` holds its
card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from client.datasets import csv_table, digits, fashion_mnist, heart_disease, image_folder, npz
from client.datasets.records import Parts, Records
from client.datasets.sources import did_you_mean
from client.datasets.split import bound_rows_per_person, split
from security.errors import UsageError
from shared_models.cards import DataCard, card_for
from shared_models.plan_data import DataPlan

# Loaders import what they read with (pandas, scikit-learn, Pillow, ...) when they are called: a client that
# only has a CSV file needs neither the others' libraries nor their start-up time.
_LOADERS: Final[Mapping[str, Callable[[DataPlan, DataCard], Parts]]] = {
    "csv": csv_table.load,
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "heart-disease": heart_disease.load,
    "image-folder": image_folder.load,
    "npz": npz.load,
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A data set, ready for training and evaluation.

    Unless the set has a test part of its own, the two share no record, and no person where they are named.
    """

    train: Records
    test: Records
    card: DataCard


def names() -> tuple[str, ...]:
    """The names `data.name` may have, sorted."""
    return tuple(sorted(_LOADERS))


def load(data: DataPlan, *, split_key: bytes, whole: bool = False) -> Loaded:
    """The data a plan names.

    Args:
        data: the plan's [data]. With `person_column`, at most `max_rows_per_person` records of each person
            are kept (rule 6) and a person's records are on one side of the split.
        split_key: the owner's secret for the hashes of rules 6 and 10; the same key gives the same records.
        whole: whether a set without a test part of its own stays in one piece, all of it `train`: each client then
            holds out a part of what it gets.

    Raises:
        UsageError: the set is not known, not described or not there, or its content is not as described.
    """
    if not split_key:
        raise ValueError("split_key is empty: the split would not be secret (rule 10)")
    loader = _LOADERS.get(data.name)
    if loader is None:
        raise UsageError(
            f"data.name: {data.name!r} is not known{did_you_mean(data.name, names())}; known: {', '.join(names())}"
        )
    card = card_for(data)
    train, test = loader(data, card)
    for part in (train,) if test is None else (train, test):
        _check(part, card)
    if data.max_rows_per_person is not None:
        if train.people is None:
            raise UsageError(
                f"data.person_column: data.name = '{data.name}' has no column {data.person_column!r}; remove "
                f"data.person_column and data.max_rows_per_person"
            )
        train = bound_rows_per_person(train, key=split_key, most=data.max_rows_per_person)
    if test is None:
        none = train.take([])
        train, test = (train, none) if whole else split(train, key=split_key, test_fraction=data.test_fraction)
    return Loaded(train=train, test=test, card=card)


def _check(records: Records, card: DataCard) -> None:
    """What a model will rely on: the shape and classes both sides agreed on."""
    if records.x.shape[1:] != card.input_shape:
        raise UsageError(
            f"{card.name}: records have shape {tuple(records.x.shape[1:])}, its card says {card.input_shape}"
        )
    wrong = int((records.y >= len(card.classes)).sum())
    if wrong:
        raise UsageError(f"{card.name}: {wrong} of {len(records)} labels are above {len(card.classes) - 1}")
