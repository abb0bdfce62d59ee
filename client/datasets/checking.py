"""A check of one's own data against the schema card, before any plan comes: nothing of it leaves the machine.

Each finding says what training does with the records it is about. Under privacy a deployed site leaves out, each by
itself, what the card doesn't describe, for an error would tell whoever wrote the plan about single records (rule 5);
without privacy, and in a simulation, the first such record is an error. The check reads with the loaders' own readers
and encoders, and tests hold its word against what the loaders do.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from client.datasets.findings import Checked, Fate, Finding, nothing_usable
from client.datasets.image_folder import image_files
from client.datasets.own_tables import READERS
from client.datasets.sources import did_you_mean
from security.errors import UsageError
from shared_models.cards import DataCard, card_for
from shared_models.example_form import PADDING
from shared_models.pictures import PictureError, decode, pillow
from shared_models.plan_data import TABLES, CategoricalColumn, DataPlan, NaturalPartition, NumericColumn
from shared_models.plan_file import read_plan
from shared_models.schema_card import IntegerColumn, plan_tables, read_schema
from shared_models.table_encoding import unreadable
from shared_models.tokens import tokens_of

if TYPE_CHECKING:
    import pandas as pd

Flags = npt.NDArray[np.bool_]

KINDS: Final = (*TABLES, "image-folder", "npz")
_SHOWN: Final = 5  # places of a finding
_DELIMITERS: Final = ";\t|"
_SUFFIXES: Final = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}


def kind_of(path: Path) -> str:
    """What form data has, by its name or what lies in it.

    Raises:
        UsageError: there is nothing, or it can't be told.
    """
    if not path.exists():
        raise UsageError(f"{path}: does not exist; give the path of the data")
    if path.is_dir():
        told = ("state.json", "dataset_info.json", "dataset_dict.json")
        if any((path / name).exists() for name in told):
            return "hugging-face"
        return "parquet" if any(path.glob("*.parquet")) else "image-folder"
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(f"{path}: can't tell what it is; name it with --format ({', '.join(KINDS)})")
    return found


def check_data(path: Path, kind: str, data: DataPlan, *, integers: Sequence[str] = (), show: bool = False) -> Checked:
    """Everything about a file that its owner should know before it is trained on.

    Args:
        path: of the file or folder.
        kind: one of `KINDS`.
        data: the card, people, texts and groups: what a plan says of the data.
        integers: columns whose numbers are said to be whole.
        show: whether findings name places and values.

    Raises:
        UsageError: the card can't describe data of this kind.
    """
    own = data.model_copy(update={"name": data.name if data.name not in KINDS else kind})
    card = card_for(own)
    if kind in TABLES:
        if card.target is None:
            raise UsageError(f"the card describes no table: a {kind} file can't hold such data")
        return _check_table(path, kind, own, card, integers, show)
    if card.target is not None:
        raise UsageError(f"the card describes a table: an {kind} can't hold such data; give its file")
    return _check_images(path, card, show) if kind == "image-folder" else _check_npz(path, own, card)


# --- tables --------------------------------------------------------------------------------------------------------


def _check_table(path: Path, kind: str, data: DataPlan, card: DataCard, integers: Sequence[str], show: bool) -> Checked:
    before = list(_of_csv_text(path)) if kind == "csv" else []
    try:
        table = READERS[kind](path)
    except UsageError as error:
        return nothing_usable(str(path), kind, [*before, _unreadable_file(path, error)])
    if len(table) == 0:
        before.append(_of_file("empty", "has a header and no records", "used", 0))
    asked = [card.target, card.text_column, data.person_column, *card.columns]
    if isinstance(data.partition, NaturalPartition):
        asked.append(data.partition.column)
    lacking = [
        Finding(
            code="no-column",
            column=name,
            text=f"there is no such column{did_you_mean(name, table.columns)}",
            rows=len(table),
            private="refused",
            plain="refused",
        )
        for name in dict.fromkeys(asked)
        if name is not None and name not in table.columns
    ]
    if lacking:
        return Checked(path=str(path), kind=kind, records=len(table), used=0, findings=(*before, *lacking))
    looks = _Table(table, data, card, show)
    findings = [*before, *looks.columns(integers), *looks.text(), *looks.labels(), *looks.people()]
    return Checked(path=str(path), kind=kind, records=len(table), used=int(looks.kept.sum()), findings=tuple(findings))


class _Table:
    """A table whose columns are all there."""

    def __init__(self, table: pd.DataFrame, data: DataPlan, card: DataCard, show: bool) -> None:
        self._table = table
        self._data = data
        self._card = card
        self._show = show
        self.kept: Flags = np.ones(len(table), dtype=bool)
        """Which records a private plan trains on, as far as was looked."""

    def columns(self, integers: Sequence[str]) -> Iterator[Finding]:
        for name, column in self._card.columns.items():
            texts = self._table[name]
            if isinstance(column, NumericColumn):
                yield from self._number(texts, column, whole=name in integers)
            else:
                yield from self._category(texts, column)

    def labels(self) -> Iterator[Finding]:
        texts = self._table[self._card.target]
        strange = ~texts.isin([name.strip() for name in self._card.classes]).to_numpy(dtype=bool)
        missing = strange & texts.isin(self._card.missing).to_numpy(dtype=bool)
        yield from self._left_out("label-missing", texts, missing, "no label")
        yield from self._left_out("label-unknown", texts, strange & ~missing, "is not one of the classes")

    def people(self) -> Iterator[Finding]:
        column, most = self._data.person_column, self._data.max_rows_per_person
        if column is None or most is None:
            return
        texts = self._table[column]
        nameless = texts.isin([*self._card.missing, ""]).to_numpy(dtype=bool)
        yield from self._left_out("person-missing", texts, nameless, "names no person")
        # The bound looks at what is left by then.
        rows = Counter(texts[self.kept].tolist())
        beyond = sum(max(0, count - most) for count in rows.values())
        if beyond:
            people = sum(count > most for count in rows.values())
            text = f"{people} people have more than {most} records each; a keyed hash chooses which of them stay"
            yield self._finding("person-rows", texts, np.zeros(0, bool), text, "left out", "left out", rows=beyond)
            # Which ones is the owner's secret; how many isn't.
            self.kept[np.flatnonzero(self.kept)[:beyond]] = False

    def text(self) -> Iterator[Finding]:
        name = self._card.text_column
        if name is None:
            return
        texts, plan = self._table[name], self._data.texts
        empty = (texts == "").to_numpy(dtype=bool)
        yield from self._told("text-empty", texts, empty, "is empty", "own place")
        one_more = tokens_of(texts.tolist(), plan.model_copy(update={"places": plan.places + 1}))
        long = one_more[:, -1] != PADDING
        yield from self._told("text-long", texts, long, f"has more than {plan.places} tokens", "cut")

    def _number(self, texts: pd.Series[str], column: NumericColumn, *, whole: bool) -> Iterator[Finding]:
        import pandas as pd

        missing = texts.isin(self._card.missing).to_numpy(dtype=bool)
        values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
        bad = unreadable(texts, self._card.missing)
        infinite = bad & ~np.isnan(values)
        good = ~missing & ~bad
        yield from self._told("missing", texts, missing, "is missing", "own place")
        yield from self._left_out("not-finite", texts, infinite, "is infinite")
        yield from self._left_out(
            "no-number", texts, bad & ~infinite, "is no finite number nor a code for a missing one"
        )
        with np.errstate(invalid="ignore"):
            low, high = good & (values < column.low), good & (values > column.high)
            fractions = good & (values != np.rint(values))
        yield from self._told("below", texts, low, f"is below {column.low:g}, the public bound", "clamped")
        yield from self._told("above", texts, high, f"is above {column.high:g}, the public bound", "clamped")
        if whole:
            yield from self._told("fraction", texts, fractions, "is no whole number, as the schema says it is", "used")

    def _category(self, texts: pd.Series[str], column: CategoricalColumn) -> Iterator[Finding]:
        known = texts.isin([value.strip() for value in column.values]).to_numpy(dtype=bool)
        missing = ~known & texts.isin(self._card.missing).to_numpy(dtype=bool)
        yield from self._told("missing", texts, missing, "is missing", "own place")
        yield from self._told("other-value", texts, ~known & ~missing, "is not one of the public values", "own place")

    def _told(self, code: str, texts: pd.Series[str], found: Flags, text: str, fate: Fate) -> Iterator[Finding]:
        if found.any():
            yield self._finding(code, texts, found, text, fate, fate)

    def _left_out(self, code: str, texts: pd.Series[str], found: Flags, text: str) -> Iterator[Finding]:
        if found.any():
            self.kept &= ~found
            yield self._finding(code, texts, found, text, "left out", "refused")

    def _finding(
        self,
        code: str,
        texts: pd.Series[str],
        found: Flags,
        text: str,
        private: Fate,
        plain: Fate,
        rows: int | None = None,
    ) -> Finding:
        places: tuple[str, ...] = ()
        if self._show:
            first = np.flatnonzero(found)[:_SHOWN]
            places = tuple(f"line {texts.index[i]}: {texts.iloc[i][:60]!r}" for i in first)
        return Finding(
            code=code,
            column=str(texts.name),
            text=text,
            rows=int(found.sum()) if rows is None else rows,
            private=private,
            plain=plain,
            places=places,
        )


def _of_csv_text(path: Path) -> Iterator[Finding]:
    """What a CSV file's bytes tell before it is read; a file that can't be read is told of later."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return
    if head.startswith(b"\xef\xbb\xbf"):
        yield _of_file("byte-order-mark", "begins with a byte order mark, which is left out", "used", 0)
    first = head.decode("utf-8-sig", "replace").partition("\n")[0]
    try:
        fields = next(csv.reader([first]), [])
    except csv.Error:
        return
    other = next((mark for mark in _DELIMITERS if mark in first), None)
    if len(fields) <= 1 and other is not None:
        name = {";": "semicolons", "\t": "tabs", "|": "bars"}[other]
        yield _of_file("delimiter", f"seems to be separated by {name}; save it with commas", "refused", 0)


def _of_file(code: str, text: str, fate: Fate, rows: int) -> Finding:
    return Finding(code=code, text=text, rows=rows, private=fate, plain=fate)


def _unreadable_file(path: Path, error: UsageError) -> Finding:
    return _of_file("unreadable", str(error).removeprefix(f"{path}: "), "refused", 0)


# --- images and arrays ---------------------------------------------------------------------------------------------


_IMAGES: Final = {
    "size": "are of another size than the card says",
    "depth": "have more than 8 bits a channel",
    "damaged": "are damaged, too large, or no PNG or JPEG image",
}


def _check_images(path: Path, card: DataCard, show: bool) -> Checked:
    findings: list[Finding] = []
    try:
        files = list(image_files(path, card.classes))
    except UsageError as error:
        findings.append(
            Finding(
                code="folders",
                text=str(error).removeprefix(f"data.path: {path}").removeprefix("data.path: ").strip(": "),
                rows=0,
                private="left out",
                plain="refused",
            )
        )
        files = list(image_files(path, card.classes, leave_out=True)) if path.is_dir() else []
    if not files:
        return nothing_usable(str(path), "image-folder", [*findings, _of_file("empty", "no images", "used", 0)])
    image, bad, converted = pillow("image-folder"), {kind: list[Path]() for kind in _IMAGES}, 0
    for file, _ in files:
        try:
            decode(image, file, card.input_shape, asked_by="data.card.input_shape")
            with image.open(file) as picture:
                converted += picture.mode != ("L" if card.input_shape[0] == 1 else "RGB")
        except PictureError as error:
            bad[error.kind].append(file)
    findings += [
        Finding(
            code=f"image-{kind}",
            text=_IMAGES[kind],
            rows=len(found),
            private="left out",
            plain="refused",
            places=tuple(str(one.relative_to(path)) for one in found[:_SHOWN]) if show else (),
        )
        for kind, found in bad.items()
        if found
    ]
    if converted:
        mode = "grey" if card.input_shape[0] == 1 else "RGB"
        findings.append(_of_file("image-mode", f"are converted to {mode}", "used", converted))
    used = len(files) - sum(map(len, bad.values()))
    return Checked(path=str(path), kind="image-folder", records=len(files), used=used, findings=tuple(findings))


def _check_npz(path: Path, data: DataPlan, card: DataCard) -> Checked:
    """By the loader itself: once as a private plan has it, and once as others do."""
    from client.datasets import npz

    own = data.model_copy(update={"path": str(path)})
    try:
        records_left, most = npz.load(own, card, leave_out=True)[0], data.max_rows_per_person
        used = len(records_left)
        if records_left.people is not None and most is not None:
            used = sum(min(count, most) for count in Counter(records_left.people.tolist()).values())
    except UsageError as error:
        return nothing_usable(str(path), "npz", [_unreadable_file(path, error)])
    with np.load(path, allow_pickle=False) as archive:
        records = len(archive["y"])
    findings: list[Finding] = []
    try:
        npz.load(own, card)
    except UsageError as error:
        text = str(error).removeprefix(f"{path}: ")
        findings.append(
            Finding(code="records", text=text, rows=records - used, private="left out", plain="refused", column="x, y")
        )
    if records == 0:
        findings.append(_of_file("empty", "holds no records", "used", 0))
    return Checked(path=str(path), kind="npz", records=records, used=used, findings=tuple(findings))


# --- against a schema or a plan ------------------------------------------------------------------------------------


def check_against(
    path: Path, kind: str, *, schema: Path | None = None, plan: Path | None = None, show: bool = False
) -> tuple[Checked, bool | None]:
    """A check of data by a schema, a plan, or both: the schema then says what the data is, the plan the rest.

    Returns:
        What was found, and whether the plan is private; None without one.

    Raises:
        UsageError: neither is given, one can't be read, or they contradict each other.
    """
    if schema is None and plan is None:
        raise UsageError("give --schema data.toml, or --plan PLAN, or both")
    if kind not in KINDS:
        raise UsageError(f"--format {kind}: allowed: {', '.join(KINDS)}")
    given = None if plan is None else read_plan(plan)
    data = DataPlan(name=kind) if given is None else given.data
    integers: tuple[str, ...] = ()
    if schema is not None:
        card = read_schema(schema)
        tables = plan_tables(card)
        if given is not None and data.card not in (None, tables["card"]):
            raise UsageError(f"{plan}: data.card is not what {schema} says; give data.schema in the plan in its place")
        integers = tuple(name for name, column in card.columns.items() if isinstance(column, IntegerColumn))
        if given is None or data.card is None:
            data = data.model_copy(update=tables)
    if given is None or data.name in KINDS:
        data = data.model_copy(update={"name": kind})
    return check_data(path, kind, data, integers=integers, show=show), None if given is None else given.is_private
