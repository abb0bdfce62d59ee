"""Data cards: the public facts about a data set that both sides must agree on before a round.

A card is known without looking at anybody's data, so nothing in it costs privacy. Cards of the sets Veil knows are
listed here; the card of a user's own data comes from the plan (`data.card`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from security.errors import UsageError, did_you_mean
from shared_models.example_form import ExampleForm
from shared_models.plan_data import (
    TABLES,
    TEXTS,
    CardPlan,
    CategoricalColumn,
    Column,
    DataPlan,
    NormalisationPlan,
    NumericColumn,
    Scale,
    TextPlan,
)
from shared_models.tokens import character_names, vocabulary_of


@dataclass(frozen=True, kw_only=True)
class DataCard:
    """Public facts about a data set.

    Attributes:
        name: name in the registry of data sets.
        input_shape: shape of one example as a model sees it, without the batch.
        classes: names of the classes, in the order of their numbers.
        mean, std: public constants; images are `(value - mean) / std`.
        vocabulary: number of tokens, where an example is a row of token numbers.
        at_each_place: whether what is predicted is the token after each one (a language model); `classes` are then
            the tokens.
        target: column to predict, for tables.
        text_column: of a table, the one that holds a text to classify, in place of columns.
        columns: the columns of a table that are used, with their public bounds or values. A plan's are in the
            order of their names: that of its text is no part of its digest, and must not move the features.
        missing: texts of a table that mean a missing value.
        source, licence: where the data comes from and on what terms.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: float = 0.0
    std: float = 1.0
    vocabulary: int | None = None
    at_each_place: bool = False
    target: str | None = None
    text_column: str | None = None
    columns: Mapping[str, Column] = field(default_factory=lambda: MappingProxyType({}))
    missing: tuple[str, ...] = ()
    source: str = "the user's own"
    licence: str = "the user's own"

    @property
    def form(self) -> ExampleForm:
        """What one example looks like to a network."""
        return ExampleForm(self.input_shape, len(self.classes), self.vocabulary, self.at_each_place)


def table_width(columns: Mapping[str, Column]) -> int:
    """Number of features of an encoded table.

    A number takes two places (value scaled to [-1, 1], flag for missing), a category one place for each value and
    one for anything else.
    """
    return sum(2 if isinstance(column, NumericColumn) else len(column.values) + 1 for column in columns.values())


# UCI heart disease, the columns that all four hospitals filled in. Bounds are those of adult medicine, not of the
# data: nothing here was computed from the records. Most adults are well within them, hence the spread.
_HEART_COLUMNS: dict[str, Column] = {
    "age": NumericColumn(low=20, high=90, spread=2),
    "sex": CategoricalColumn(values=("Female", "Male")),
    "cp": CategoricalColumn(values=("asymptomatic", "atypical angina", "non-anginal", "typical angina")),
    "trestbps": NumericColumn(low=80, high=220, spread=2),
    "chol": NumericColumn(low=100, high=500, spread=2),
    "fbs": CategoricalColumn(values=("FALSE", "TRUE")),
    "restecg": CategoricalColumn(values=("lv hypertrophy", "normal", "st-t abnormality")),
    "thalch": NumericColumn(low=60, high=210, spread=2),
    "exang": CategoricalColumn(values=("FALSE", "TRUE")),
    "oldpeak": NumericColumn(low=-3, high=7, spread=2),
}

# Adult census income: bounds and values are those that the set's own description lists (adult.names).
_ADULT_COLUMNS: dict[str, Column] = {
    "age": NumericColumn(low=15, high=95, spread=2),
    "workclass": CategoricalColumn(
        values=(
            "Private",
            "Self-emp-not-inc",
            "Self-emp-inc",
            "Federal-gov",
            "Local-gov",
            "State-gov",
            "Without-pay",
            "Never-worked",
        )
    ),
    "education-num": NumericColumn(low=1, high=16, spread=2),
    "marital-status": CategoricalColumn(
        values=(
            "Married-civ-spouse",
            "Divorced",
            "Never-married",
            "Separated",
            "Widowed",
            "Married-spouse-absent",
            "Married-AF-spouse",
        )
    ),
    "occupation": CategoricalColumn(
        values=(
            "Tech-support",
            "Craft-repair",
            "Other-service",
            "Sales",
            "Exec-managerial",
            "Prof-specialty",
            "Handlers-cleaners",
            "Machine-op-inspct",
            "Adm-clerical",
            "Farming-fishing",
            "Transport-moving",
            "Priv-house-serv",
            "Protective-serv",
            "Armed-Forces",
        )
    ),
    "relationship": CategoricalColumn(
        values=("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried")
    ),
    "race": CategoricalColumn(values=("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black")),
    "sex": CategoricalColumn(values=("Female", "Male")),
    "capital-gain": NumericColumn(low=0, high=20_000, spread=2),
    "capital-loss": NumericColumn(low=0, high=3_000, spread=2),
    "hours-per-week": NumericColumn(low=1, high=99, spread=2),
}

KNOWN: Mapping[str, DataCard] = MappingProxyType(
    {
        card.name: card
        for card in (
            DataCard(
                name="adult",
                input_shape=(table_width(_ADULT_COLUMNS),),
                classes=("<=50K", ">50K"),
                target="income",
                columns=MappingProxyType(_ADULT_COLUMNS),
                missing=("?",),
                source="Adult (Becker and Kohavi 1996), UCI",
                licence="CC BY 4.0",
            ),
            DataCard(
                name="digits",
                input_shape=(1, 8, 8),
                classes=tuple("0123456789"),
                mean=8.0,  # pixels go from 0 to 16
                std=8.0,
                source="Optical recognition of handwritten digits (UCI), as shipped with scikit-learn",
                licence="CC BY 4.0",
            ),
            DataCard(
                name="fashion-mnist",
                input_shape=(1, 28, 28),
                classes=(
                    "t-shirt",
                    "trouser",
                    "pullover",
                    "dress",
                    "coat",
                    "sandal",
                    "shirt",
                    "sneaker",
                    "bag",
                    "boot",
                ),
                mean=0.286,
                std=0.353,
                source="Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747)",
                licence="MIT",
            ),
            DataCard(
                name="heart-disease",
                input_shape=(table_width(_HEART_COLUMNS),),
                classes=("healthy", "disease"),
                target="num",
                columns=MappingProxyType(_HEART_COLUMNS),
                missing=("",),
                source="Heart disease (Janosi, Steinbrunn, Pfisterer, Detrano 1989), UCI",
                licence="CC BY 4.0",
            ),
            DataCard(
                name="mnist",
                input_shape=(1, 28, 28),
                classes=tuple("0123456789"),
                mean=0.1307,
                std=0.3081,
                source="MNIST (LeCun, Cortes, Burges 1998), 10,000 of its images",
                licence="as its authors say; the package that ships them: MIT",
            ),
            DataCard(
                name="sentences",
                input_shape=(1,),  # as the plan's [data.text] says
                classes=("bad", "good"),
                vocabulary=2,
                source="Sentiment labelled sentences (Kotzias et al. 2015), UCI",
                licence="CC BY 4.0",
            ),
            DataCard(
                name="sentiment",
                input_shape=(1,),
                classes=("negative", "positive"),
                vocabulary=2,
                source="VADER's rated snippets (Hutto and Gilbert 2014)",
                licence="MIT",
            ),
            DataCard(
                name="shakespeare",
                input_shape=(1,),
                classes=("0", "1"),
                vocabulary=2,
                at_each_place=True,
                source="Shakespeare's plays, Project Gutenberg",
                licence="public domain",
            ),
            DataCard(
                name="watch",
                input_shape=(6, 128),
                classes=("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"),
                source="Shoulder exercises by smartwatch (Burns et al. 2018), as shipped with seglearn",
                licence="BSD-3-Clause",
            ),
        )
    }
)


def card_for(data: DataPlan) -> DataCard:
    """The card of the data a plan names.

    Raises:
        UsageError: the plan's own data is not fully described.
    """
    return _normalised(_card_for(data), data.normalisation)


class NormalisedColumn(NumericColumn):
    """A number that is normalised by released statistics once it is clipped, in place of its bounds."""

    scale: Scale


def _normalised(card: DataCard, normalisation: NormalisationPlan | None) -> DataCard:
    if normalisation is None:
        return card
    columns = dict(card.columns)
    for name, scale in normalisation.columns.items():
        column = columns.get(name)
        if not isinstance(column, NumericColumn):
            raise UsageError(
                f"data.normalisation.columns.{name}: {did_you_mean(name, columns)}no number of the card; remove it"
            )
        columns[name] = NormalisedColumn(**column.model_dump(), scale=scale)
    return dataclasses.replace(card, columns=MappingProxyType(columns))


def _card_for(data: DataPlan) -> DataCard:
    known = KNOWN.get(data.name)
    if known is not None:
        if data.card is not None:
            raise UsageError(f"data.card: '{data.name}' brings its own card; remove [data.card] from the plan")
        return known if data.name not in TEXTS else _of_texts(known, data)
    if data.card is None:
        raise UsageError(
            f"data.card: {did_you_mean(data.name, KNOWN)}data.name = '{data.name}' needs a [data.card] with its public "
            f"facts (classes, columns or input_shape); data sets that bring their own: {', '.join(sorted(KNOWN))}"
        )
    return _own_card(data.name, data.card, data.texts)


def _of_texts(known: DataCard, data: DataPlan) -> DataCard:
    """The card of a set of texts, as the plan turns these into tokens."""
    vocabulary = vocabulary_of(data.texts)
    return dataclasses.replace(
        known,
        input_shape=(data.texts.places,),
        vocabulary=vocabulary,
        classes=character_names() if known.at_each_place else known.classes,  # what comes next is a character
    )


def _own_card(name: str, card: CardPlan, texts: TextPlan) -> DataCard:
    _refuse_repeats("data.card.classes", card.classes)
    for column_name, column in card.columns.items():
        if isinstance(column, CategoricalColumn):
            _refuse_repeats(f"data.card.columns.{column_name}.values", column.values)
    vocabulary = None
    if name in TABLES:
        if card.target is None or bool(card.columns) == (card.text is not None):
            raise UsageError(
                f"data.card: data.name = '{name}' needs data.card.target, and [data.card.columns] or data.card.text"
            )
        if card.target in card.columns or card.target == card.text:
            raise UsageError(f"data.card.columns.{card.target}: is the target; remove it from the columns")
        shape: tuple[int, ...] = (table_width(card.columns),)
        if card.text is not None:
            shape, vocabulary = (texts.places,), vocabulary_of(texts)
    else:
        if card.input_shape is None:
            raise UsageError(f"data.card.input_shape: data.name = '{name}' needs the shape of one example")
        shape = card.input_shape
    return DataCard(
        name=name,
        input_shape=shape,
        classes=card.classes,
        mean=card.mean,
        std=card.std,
        vocabulary=vocabulary,
        target=card.target,
        text_column=card.text,
        columns=MappingProxyType(dict(sorted(card.columns.items()))),
        missing=card.missing,
    )


def _refuse_repeats(key: str, values: tuple[str, ...]) -> None:
    """Loaders compare stripped text, so values that differ in outer spaces only are the same value twice."""
    stripped = [value.strip() for value in values]
    repeated = [value for value in dict.fromkeys(stripped) if stripped.count(value) > 1]
    if repeated:
        raise UsageError(f"{key}: {', '.join(map(repr, repeated))} is there more than once; name each once")
