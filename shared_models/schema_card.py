"""`data.toml`: the schema card that all sites of a federation share, so that they mean the same by each column.

It says of data what a plan's `[data.card]` says, and what people need beside it: units, descriptions, licence, which
columns name people or groups. A plan that names it (`data.schema = "data.toml"`) has it written into its `[data]` when
it is read from its file, so the plan that travels, and its digest, hold the card itself; a plan that came from
elsewhere can name no file. Everything in it is public: nothing may be computed from records that somebody wants
protected (rule 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from security.errors import UsageError
from shared_models.plan_data import (
    TABLES,
    CardPlan,
    CategoricalColumn,
    DataPlan,
    NormalisationPlan,
    NumericColumn,
    Scale,
    TextPlan,
)
from shared_models.plan_section import Count, Positive, Section
from shared_models.toml_errors import checked, parse, quoted, read_text

UNKNOWN: Final = "?"
"""What a draft says where its owner has yet to give a public fact."""

_TYPE: Final = "number, integer, category, boolean, text, image, array or label."
_FEATURE: Final = "Whether a model sees it."
_ABOUT: Final = "What it is, for people."


class _Number(Section):
    """What numbers share."""

    low: float = Field(description="Public lower bound; smaller values are clipped to it.")
    high: float = Field(description="Public upper bound; larger values are clipped to it.")
    spread: Positive = Field(1.0, description="What the bounds become, as in a plan's card.")
    unit: str = Field("", description="Unit of measurement, for people.")
    mean: float | None = Field(None, description="Released mean; with scale, what values are normalised by.")
    scale: Positive | None = Field(None, description="Released scale, such as a standard deviation.")
    feature: bool = Field(True, description=_FEATURE)
    description: str = Field("", description=_ABOUT)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if (self.mean is None) != (self.scale is None):
            raise ValueError("mean and scale go together; give both, or neither")
        return self


class NumberColumn(_Number):
    """A number."""

    type: Literal["number"] = Field("number", description=_TYPE)


class IntegerColumn(_Number):
    """A whole number."""

    type: Literal["integer"] = Field("integer", description=_TYPE)


class CategoryColumn(Section):
    """One of a public list of values."""

    type: Literal["category"] = Field("category", description=_TYPE)
    values: tuple[str, ...] = Field(min_length=1, strict=False, description="Public list of values.")
    feature: bool = Field(True, description=_FEATURE)
    description: str = Field("", description=_ABOUT)


class BooleanColumn(Section):
    """Yes or no."""

    type: Literal["boolean"] = Field("boolean", description=_TYPE)
    values: tuple[str, str] = Field(("false", "true"), strict=False, description="How no and yes are written.")
    feature: bool = Field(True, description=_FEATURE)
    description: str = Field("", description=_ABOUT)


class TextColumn(Section):
    """A text to be classified, or one that nobody looks at."""

    type: Literal["text"] = Field("text", description=_TYPE)
    feature: bool = Field(True, description=_FEATURE)
    description: str = Field("", description=_ABOUT)


class _Shaped(Section):
    """What images and arrays share."""

    shape: tuple[Count, ...] = Field(min_length=1, strict=False, description="Of one example, e.g. [1, 28, 28].")
    mean: float = Field(0.0, description="Public constant subtracted from every value.")
    std: Positive = Field(1.0, description="Public constant every value is divided by.")
    description: str = Field("", description=_ABOUT)


class ImageColumn(_Shaped):
    """An image: `image-folder`, or `x` of an `.npz`."""

    type: Literal["image"] = Field("image", description=_TYPE)


class ArrayColumn(_Shaped):
    """Any other array, such as a signal: `x` of an `.npz`."""

    type: Literal["array"] = Field("array", description=_TYPE)


class LabelColumn(Section):
    """What is to be predicted."""

    type: Literal["label"] = Field("label", description=_TYPE)
    values: tuple[str, ...] = Field(min_length=2, strict=False, description="Names of the classes, in order.")
    description: str = Field("", description=_ABOUT)


SchemaColumn = Annotated[
    NumberColumn
    | IntegerColumn
    | CategoryColumn
    | BooleanColumn
    | TextColumn
    | ImageColumn
    | ArrayColumn
    | LabelColumn,
    Field(discriminator="type"),
]


class PersonSchema(Section):
    """Who a record belongs to."""

    column: str = Field(description="Column that names the person.")
    max_rows: Annotated[int, Field(ge=1, le=1000)] = Field(description="Most records of one person that are used.")


class SchemaCard(Section):
    """The whole of `data.toml`."""

    name: str = Field("", description="What the data is called.")
    description: str = Field("", description=_ABOUT)
    licence: str = Field("", description="On what terms it may be used.")
    source: str = Field("", description="Where it is from.")
    missing: tuple[str, ...] = Field(
        CardPlan.model_fields["missing"].default, strict=False, description="Texts that mean a missing value."
    )
    groups: tuple[str, ...] = Field((), strict=False, description="Columns that may name clients, or groups of people.")
    statistics: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="Digest of the plan that released the columns' mean and scale."
    )
    person: PersonSchema | None = Field(None, description="Who a record belongs to.")
    text: TextPlan | None = Field(None, description="How the text becomes tokens.")
    columns: dict[str, SchemaColumn] = Field(min_length=1, description="The columns, by name.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        labels = [name for name, column in self.columns.items() if isinstance(column, LabelColumn)]
        if len(labels) != 1:
            raise ValueError(f"columns: {len(labels)} have type = 'label'; give it to the one that is to be predicted")
        scaled = [name for name, column in self.columns.items() if isinstance(column, _Number) and column.scale]
        if scaled and self.statistics is None:
            raise ValueError(
                f"columns.{scaled[0]}: mean and scale need statistics, the digest of the plan that released them"
            )
        seen = [name for name, column in self.columns.items() if _is_feature(column)]
        texts = [name for name in seen if isinstance(self.columns[name], TextColumn)]
        shaped = [name for name in seen if isinstance(self.columns[name], _Shaped)]
        if not seen:
            raise ValueError("columns: no feature among them; a model would see nothing")
        for kind, names in (("text", texts), ("image or array", shaped)):
            if names and len(seen) > 1:
                raise ValueError(
                    f"columns: {names[0]!r} is a {kind}, which is seen alone; give the others feature = false, or it"
                )
        if self.text is not None and not texts:
            raise ValueError("text says how a text becomes tokens, but no feature is one; remove it")
        return self

    @property
    def label(self) -> str:
        """The column that is to be predicted."""
        return next(name for name, column in self.columns.items() if isinstance(column, LabelColumn))

    @property
    def is_table(self) -> bool:
        """Whether it describes a table, and no images or arrays."""
        return not any(isinstance(column, _Shaped) for column in self.columns.values())


def read_schema(path: Path) -> SchemaCard:
    """Read a `data.toml`.

    Raises:
        UsageError: it can't be read, is a draft whose bounds are still open, or says something else.
    """
    raw = parse(read_text(path), str(path))
    open_still = list(_open(raw, ""))
    if open_still:
        raise UsageError(
            f"{path}: {', '.join(open_still[:5])}{' and more' if len(open_still) > 5 else ''}: still '{UNKNOWN}' as "
            "drafted; give public facts, none computed from the records"
        )
    return checked(SchemaCard, raw, where=str(path))


def plan_tables(schema: SchemaCard) -> dict[str, Any]:
    """What a plan's [data] says of such data: card, person_column, max_rows_per_person, text, normalisation."""
    shaped = next((column for column in schema.columns.values() if isinstance(column, _Shaped)), None)
    label = schema.columns[schema.label]
    assert isinstance(label, LabelColumn)
    card: dict[str, Any] = {"classes": label.values, "missing": schema.missing}
    found: dict[str, Any] = {"card": card}
    if shaped is not None:
        card |= {"input_shape": shaped.shape, "mean": shaped.mean, "std": shaped.std}
    else:
        card["target"] = schema.label
        features = {name: column for name, column in schema.columns.items() if _is_feature(column)}
        texts = [name for name, column in features.items() if isinstance(column, TextColumn)]
        card |= {"text": texts[0]} if texts else {"columns": {n: _encoded(c) for n, c in features.items()}}
        scales = {
            name: Scale(mean=column.mean, scale=column.scale)
            for name, column in features.items()
            if isinstance(column, _Number) and column.mean is not None and column.scale is not None
        }
        if scales and schema.statistics is not None:
            found["normalisation"] = NormalisationPlan(statistics=schema.statistics, columns=scales)
    if schema.person is not None:
        found |= {"person_column": schema.person.column, "max_rows_per_person": schema.person.max_rows}
    if schema.text is not None:
        found["text"] = schema.text
    return {**found, "card": CardPlan(**card)}


def schema_of(data: DataPlan) -> SchemaCard:
    """The schema card of a plan's [data]: `plan_tables` of it is what the plan says.

    Raises:
        UsageError: the plan has no card of its own.
    """
    card = data.card
    if card is None:
        raise UsageError(f"data.name = '{data.name}' brings its own card; a schema is for data of one's own")
    columns: dict[str, Any] = {}
    scales = {} if data.normalisation is None else data.normalisation.columns
    if data.name in TABLES or card.columns or card.text is not None:
        for name, column in card.columns.items():
            columns[name] = _described(column, scales.get(name))
        if card.text is not None:
            columns[card.text] = TextColumn()
        columns[card.target or "label"] = LabelColumn(values=card.classes)
    elif card.input_shape is None:
        raise UsageError("data.card has neither columns, nor a text, nor an input_shape; describe the data first")
    else:
        columns["x"] = ArrayColumn(shape=card.input_shape, mean=card.mean, std=card.std)
        if data.name == "image-folder":
            columns["x"] = ImageColumn(shape=card.input_shape, mean=card.mean, std=card.std)
        columns["y"] = LabelColumn(values=card.classes)
    person = None
    if data.person_column is not None and data.max_rows_per_person is not None:
        person = PersonSchema(column=data.person_column, max_rows=data.max_rows_per_person)
    return SchemaCard(
        missing=card.missing,
        statistics=None if data.normalisation is None else data.normalisation.statistics,
        person=person,
        text=data.text,
        columns=columns,
    )


def write_schema(schema: SchemaCard) -> str:
    """The card as TOML, without what is as by default."""
    import tomli_w

    raw = schema.model_dump(mode="json", exclude_defaults=True)
    columns = raw.pop("columns")
    for name, column in columns.items():  # the type is a default of each, and what it is read by
        columns[name] = {"type": schema.columns[name].type, **column}
    lines = [tomli_w.dumps(raw).rstrip("\n")] if raw else []
    for name, column in columns.items():
        lines += ["", f"[columns.{quoted(name)}]", tomli_w.dumps(column).rstrip("\n")]
    return "\n".join(lines).lstrip("\n") + "\n"


def _is_feature(column: Any) -> bool:
    return bool(getattr(column, "feature", isinstance(column, _Shaped)))


def _encoded(column: Any) -> NumericColumn | CategoricalColumn:
    if isinstance(column, _Number):
        return NumericColumn(low=column.low, high=column.high, spread=column.spread)
    return CategoricalColumn(values=column.values)


def _described(column: NumericColumn | CategoricalColumn, scale: Scale | None) -> NumberColumn | CategoryColumn:
    if isinstance(column, CategoricalColumn):
        return CategoryColumn(values=column.values)
    found = NumberColumn(low=column.low, high=column.high, spread=column.spread)
    return found if scale is None else found.model_copy(update={"mean": scale.mean, "scale": scale.scale})


def _open(raw: Any, path: str) -> Iterator[str]:
    """Where a draft still says that it doesn't know."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            if key != "missing":  # there it may be a code
                yield from _open(value, f"{path}.{key}" if path else str(key))
    elif raw in (UNKNOWN, [UNKNOWN]):
        yield path
