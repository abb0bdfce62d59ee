"""The user's own records of columns, read by the data card: CSV, Parquet, JSON lines, a Hugging Face data set on disk.

Whatever the form, a record becomes text in columns; the card says which of them are features, or which one is the text
to be classified.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from client.datasets.records import Parts
from client.datasets.sources import data_path, listed
from client.datasets.tabular import read_table, table_records
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan

if TYPE_CHECKING:
    import pandas as pd

_MOST_LINE: Final = 1 << 24  # characters of one line of JSON


def load(data: DataPlan, card: DataCard, *, leave_out: bool = False, columns: Sequence[str] = ()) -> Parts:
    """All records of `data.path`; any column may name people or natural clients. There is no test part.

    With `leave_out`, those that the card describes.

    Raises:
        UsageError: the file isn't there, can't be read, or its content is not as the card describes it.
    """
    path = data_path(data)
    table = READERS[data.name](path)
    return table_records(table, data, card, source=str(path), leave_out=leave_out, columns=columns), None


def read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet file, or a folder of them, as stripped text, indexed by each record's number from 1.

    Raises:
        UsageError: it can't be read, or its library isn't installed.
    """
    import pandas as pd

    try:
        return _as_text(pd.read_parquet(path), path)
    except ImportError as error:
        raise UsageError("data.name = 'parquet': needs pyarrow; pip install 'veil-fl[parquet]'") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror or 'not a Parquet file'})") from error
    except ValueError as error:  # pyarrow's errors
        raise UsageError(f"{path}: is not a Parquet file that can be read") from error


def read_json_lines(path: Path) -> pd.DataFrame:
    """A file of JSON objects, one a line, as stripped text; a key that a line lacks is a missing value.

    Raises:
        UsageError: it can't be read, or a line is no object. The text names file and line, never a value.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_object(line, f"{path}: line {number}"))
                    numbers.append(number)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text; save it so") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    if not rows:
        raise UsageError(f"{path}: the file is empty; it needs a JSON object a line")
    return _as_text(pd.DataFrame(rows, index=numbers, dtype=object), path)


def read_hugging_face(path: Path) -> pd.DataFrame:
    """A folder that a data set's `save_to_disk` has written, as stripped text; of several parts, the one called train.

    Raises:
        UsageError: it is none, or its library isn't installed.
    """
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise UsageError("data.name = 'hugging-face': needs datasets; pip install 'veil-fl[simulation]'") from error
    try:
        found = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is no data set that save_to_disk has written") from error
    if isinstance(found, DatasetDict):
        if "train" not in found:
            raise UsageError(f"{path}: has no part called train; there are: {listed(found)}")
        found = found["train"]
    frame: pd.DataFrame = found.to_pandas()
    return _as_text(frame, path)


READERS: Final[dict[str, Callable[[Path], pd.DataFrame]]] = {
    "csv": read_table,
    "hugging-face": read_hugging_face,
    "jsonl": read_json_lines,
    "parquet": read_parquet,
}


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line) if len(line) <= _MOST_LINE else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{where} is not a JSON object; mend it")
    return {_clean(key): value for key, value in found.items()}


def _as_text(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Every value as stripped text, what isn't there as an empty one."""
    import pandas as pd

    if len(table) == 0:
        raise UsageError(f"{path}: holds no records")
    names = [str(name).strip() for name in table.columns]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise UsageError(f"{path}: repeats columns: {listed(repeated)}; give each a name of its own")
    columns = {name: table.iloc[:, place].map(_text) for place, name in enumerate(names)}
    made = pd.DataFrame(columns, dtype=str)
    if isinstance(table.index, pd.RangeIndex):
        made.index = pd.RangeIndex(1, len(table) + 1)
    return made


def _text(value: Any) -> str:
    import pandas as pd

    # A list is some value; of it pandas' question would be asked for each entry.
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"  # whole numbers beside missing ones are read as 1.0
    return _clean(str(value)).strip()


def _clean(text: str) -> str:
    """Without halves of characters: JSON can spell them, and nothing behind here can take one (rule 5)."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
