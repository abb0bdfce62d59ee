"""The plan's [data]: which data, how a simulation spreads it over clients, and the public facts about one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from shared_models.plan_section import Count, CountOrZero, Positive, Section

# What the key says that tells the tables of a kind apart.
_PARTITION: Final = "iid, dirichlet, pathological, size-skewed or natural."
_COLUMN: Final = "numeric or categorical."


TEXTS: Final = ("sentences", "sentiment", "shakespeare")
"""Sets of texts."""
TABLES: Final = ("csv", "hugging-face", "jsonl", "parquet")
"""Forms of one's own records of columns."""
LANGUAGE: Final = ("shakespeare",)
"""Those of them whose task is the next character."""


class IidPartition(Section):
    """Records are dealt to the clients at random, in equal parts."""

    kind: Literal["iid"] = Field("iid", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")


class DirichletPartition(Section):
    """Each class is spread over the clients by a Dirichlet draw (Hsu et al. 2019, arXiv 1909.06335)."""

    kind: Literal["dirichlet"] = Field("dirichlet", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")
    alpha: Positive = Field(0.5, description="Concentration: small is unequal, large is nearly iid.")
    min_size: CountOrZero = Field(1, description="Fewest records a client may get; the draw repeats until met.")


class PathologicalPartition(Section):
    """Each client holds a few classes only (McMahan et al. 2017, arXiv 1602.05629, section 3)."""

    kind: Literal["pathological"] = Field("pathological", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")
    classes_per_client: Count = Field(2, description="Number of classes each client holds.")


class SizeSkewedPartition(Section):
    """Records are dealt at random, the number a client gets grows with its index."""

    kind: Literal["size-skewed"] = Field("size-skewed", description=_PARTITION)
    clients: Count = Field(10, description="Number of virtual clients.")
    growth: Literal["linear", "square", "exponential"] = Field(
        "linear", description="How the size grows with the client's index."
    )


class NaturalPartition(Section):
    """One client for each value of a column: hospitals, people, sources."""

    kind: Literal["natural"] = Field("natural", description=_PARTITION)
    column: str = Field(description="Column whose values are the clients.")


Partition = Annotated[
    IidPartition | DirichletPartition | PathologicalPartition | SizeSkewedPartition | NaturalPartition,
    Field(discriminator="kind"),
]


class NumericColumn(Section):
    """A number, clipped to public bounds and scaled by them to [-spread, spread]; missing gets 0 and its own flag."""

    kind: Literal["numeric"] = Field("numeric", description=_COLUMN)
    low: float = Field(description="Public lower bound; smaller values are clipped to it.")
    high: float = Field(description="Public upper bound; larger values are clipped to it.")
    spread: Positive = Field(
        1.0,
        description="What the bounds become: more where most values lie well within them, so that noise hides less.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self


class CategoricalColumn(Section):
    """One of a public list of values, one-hot; any other value, or none, gets a place of its own."""

    kind: Literal["categorical"] = Field("categorical", description=_COLUMN)
    values: tuple[str, ...] = Field(min_length=1, strict=False, description="Public list of values.")


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class CardPlan(Section):
    """Public facts about the user's own data: nothing here is computed from it."""

    classes: tuple[str, ...] = Field(min_length=2, strict=False, description="Names of the classes, in order.")
    target: str | None = Field(None, description="tables: the column to predict.")
    columns: dict[str, Column] = Field(default_factory=dict, description="tables: the columns used, by name.")
    text: str | None = Field(None, description="tables: in place of columns, the one that holds a text to classify.")
    missing: tuple[str, ...] = Field(
        ("", "?", "NA", "nan", "NaN"), strict=False, description="tables: texts that mean a missing value."
    )
    input_shape: tuple[Count, ...] | None = Field(
        None, strict=False, description="npz, image-folder: shape of one example, e.g. [1, 28, 28]."
    )
    mean: float = Field(0.0, description="npz, image-folder: public constant subtracted from every value.")
    std: Positive = Field(1.0, description="npz, image-folder: public constant every value is divided by.")


class Scale(Section):
    """How a number is normalised, once it is clipped to its public bounds."""

    mean: float = Field(description="Subtracted from every value; what a missing one counts as.")
    scale: Positive = Field(description="What every value is divided by then, such as a standard deviation.")


class NormalisationPlan(Section):
    """Released statistics by which numbers are normalised, in place of their public bounds."""

    statistics: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="Digest of the plan that released them, where they are charged."
    )
    columns: dict[str, Scale] = Field(default_factory=dict, description="Numbers that are normalised, by column.")


class TextPlan(Section):
    """How a text becomes numbers of tokens: by public rules, the same everywhere."""

    tokens: Literal["words", "characters", "wordpiece"] = Field(
        "words",
        description="What a token is: a word, by its hash; a character; or a piece of the pretrained encoder's "
        "vocabulary.",
    )
    vocabulary: Annotated[int, Field(ge=2, le=2**24)] = Field(8192, description="words: numbers of tokens there are.")
    places: Annotated[int, Field(ge=1, le=2048)] = Field(
        64, description="Tokens of a record: a longer text is cut, a shorter one filled."
    )


class DataPlan(Section):
    """Which data, and how it is spread over the clients."""

    name: str = Field(
        "digits",
        description="Data set: adult, digits, fashion-mnist, heart-disease, mnist, sentences, sentiment, shakespeare, "
        "watch; or one's own: csv, hugging-face, image-folder, jsonl, npz, parquet.",
    )
    path: str | None = Field(
        None, description="File or folder of the data, where the set needs one; relative to the plan's file."
    )
    partition: Partition = Field(
        default_factory=DirichletPartition, description="How a simulation spreads the records over clients."
    )
    leave_out: tuple[Annotated[str, Field(pattern=r"^[a-z0-9-]{1,200}$")], ...] | None = Field(
        None, strict=False, min_length=1, description="Simulation: ids of clients that take no part, as in a fold."
    )
    test_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Part held out by a keyed hash of the record, if the set has no test part; 0, for all to be "
        "trained on, only with evaluation.where = 'none'.",
    )
    person_column: str | None = Field(None, description="Column that names the person a record belongs to.")
    max_rows_per_person: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Most records of one person that are used; the privacy unit is then a person."
    )
    text: TextPlan | None = Field(None, description="How texts become tokens, where the set holds texts.")
    card: CardPlan | None = Field(None, description="Public description of the user's own data.")
    normalisation: NormalisationPlan | None = Field(
        None, description="Released statistics of the data; `veil data normalise` writes them."
    )

    @model_validator(mode="after")
    def _person(self) -> Self:
        if self.max_rows_per_person is not None and self.person_column is None:
            raise ValueError("max_rows_per_person needs person_column, the column that names the person")
        if self.person_column is not None and self.max_rows_per_person is None:
            raise ValueError("person_column needs max_rows_per_person, a public bound on a person's records")
        return self

    @model_validator(mode="after")
    def _left_out(self) -> Self:
        names, parts = self.leave_out or (), self.parts
        if len(set(names)) < len(names):
            raise ValueError("leave_out names a client twice; name each once")
        nobody = [] if parts is None else [name for name in names if not is_numbered(name, parts)]
        if nobody and parts is not None:
            last = str(parts - 1)
            raise ValueError(f"leave_out: no client has the id {nobody[0]!r}; allowed: {'0' * len(last)!r} to {last!r}")
        if parts is not None and len(names) >= parts:
            raise ValueError("leave_out names all clients; at least one has to take part")
        return self

    @model_validator(mode="after")
    def _texts(self) -> Self:
        own = self.card is not None and self.card.text is not None
        if self.text is not None and self.name not in TEXTS and not own:
            raise ValueError(
                f"text is for sets of texts ({', '.join(TEXTS)}, or one's own with card.text), name = '{self.name}' is "
                "none"
            )
        if self.name in LANGUAGE and self.texts.tokens != "characters":
            raise ValueError(f"text.tokens = '{self.texts.tokens}' with name = '{self.name}': allowed: characters")
        if self.name in LANGUAGE and isinstance(self.partition, DirichletPartition | PathologicalPartition):
            raise ValueError(
                f"partition.kind = '{self.partition.kind}' goes by classes, of which a record of '{self.name}' has "
                "many; allowed: iid, natural, size-skewed"
            )
        return self

    @property
    def texts(self) -> TextPlan:
        """How texts become tokens: as the plan says, else by words, and a language model's by characters."""
        if self.text is not None:
            return self.text
        return TextPlan(tokens="characters", places=80) if self.name in LANGUAGE else TextPlan()

    @property
    def parts(self) -> int | None:
        """How many clients the records are spread over; None where the records themselves say it."""
        return getattr(self.partition, "clients", None)

    @property
    def clients(self) -> int | None:
        """How many of them take part."""
        return None if self.parts is None else self.parts - len(self.leave_out or ())


def numbered(clients: int) -> tuple[str, ...]:
    """The ids of so many virtual clients: "0", "1", ... padded with zeros to one length."""
    width = len(str(clients - 1))
    return tuple(f"{number:0{width}}" for number in range(clients))


def is_numbered(name: str, clients: int) -> bool:
    """Whether `numbered(clients)` has that id; without making them all, for a stranger may say how many there are."""
    digits = len(str(clients - 1))
    return len(name) == digits and name.isascii() and name.isdigit() and int(name) < clients


def located(path: str, folder: Path) -> str:
    """A plan's `data.path` made absolute: a relative one is taken from that folder, one from a home (`~`) stays."""
    if path.startswith("~") or Path(path).is_absolute():
        return path
    return str((folder / path).absolute())
