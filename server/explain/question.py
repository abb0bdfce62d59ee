"""The one question that is to be explained, read from its asker's own file or text."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from security.errors import UsageError
from server.export.inputs import Inputs
from shared_models.pictures import CHANNELS, decode, pillow

_ARRAYS: Final = (".npy", ".npz")
_IMAGES: Final = (".png", ".jpg", ".jpeg")
_MOST_BYTES: Final = 1 << 28


def read_question(inputs: Inputs, *, file: Path | None = None, row: int | None = None, text: str | None = None) -> Any:
    """A question as `Inputs.encode` takes it.

    Args:
        inputs: what the model takes.
        file: `.json` (one question, or a list of them); of a table also `.csv` and `.jsonl`, of a text `.txt`, of
            values `.npy`, `.npz` (its `x`), and images `.png` and `.jpg` (brightness from 0 to 1).
        row: which of several, from 1.
        text: in place of a file.

    Raises:
        UsageError: nothing or two things are given, or the file doesn't hold such a question.
    """
    if (file is None) == (text is None):
        raise UsageError("give --input FILE, or --text of a model that reads texts")
    if text is not None:
        if inputs.kind != "text":
            raise UsageError(f"--text: this model reads no texts; give --input FILE with {_wanted(inputs)}")
        if row is not None:
            raise UsageError("--row: goes with --input")
        return text
    assert file is not None
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{file}: is larger than {_MOST_BYTES >> 20} MB; give the one question alone")
        found = _read(inputs, file)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"{file}: can't be read ({error.strerror or 'damaged'})") from error
    if not found:
        raise UsageError(f"{file}: holds no question; it should hold {_wanted(inputs)}")
    if row is None and len(found) > 1:
        raise UsageError(f"{file}: holds {len(found)} questions; say which with --row, from 1")
    if row is not None and not 1 <= row <= len(found):
        raise UsageError(f"--row {row}: {file} holds {len(found)}; the first is 1")
    return found[(row or 1) - 1]


def _wanted(inputs: Inputs) -> str:
    if inputs.kind == "text":
        return "a text (.txt, .json)"
    if inputs.kind == "table":
        return "a record of the card's columns (.csv, .json, .jsonl)"
    image = len(inputs.shape) == 3 and inputs.shape[0] in (1, 3)
    return f"numbers of shape {inputs.shape} (.npy, .npz, .json{', .png, .jpg' if image else ''})"


def _read(inputs: Inputs, file: Path) -> list[Any]:
    """All the questions of a file."""
    kind, ending = inputs.kind, file.suffix.lower()
    if ending == ".json":
        return _listed(inputs, _json(file.read_text(encoding="utf-8-sig"), file))
    if kind == "table" and ending == ".jsonl":
        return [_json(line, file) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if kind == "table" and ending == ".csv":
        return _records(inputs, file)
    if kind == "text" and ending == ".txt":
        return [file.read_text(encoding="utf-8-sig").strip("\r\n")]
    if kind == "values" and ending in _ARRAYS:
        return _arrays(inputs, file)
    if kind == "values" and ending in _IMAGES and len(inputs.shape) == 3 and inputs.shape[0] in (1, 3):
        return [_image(inputs, file)]
    raise UsageError(f"{file}: should hold {_wanted(inputs)}")


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is not JSON that can be read") from error


def _listed(inputs: Inputs, found: Any) -> list[Any]:
    """One question or several: of values it is told by their depth."""
    if not isinstance(found, list):
        return [found]
    if inputs.kind != "values":
        return found
    depth, inner = 0, cast("Any", found)
    while isinstance(inner, list):
        depth, inner = depth + 1, inner[0] if inner else None
    return found if depth == len(inputs.shape) + 1 else [found]


def _records(inputs: Inputs, file: Path) -> list[dict[str, str]]:
    """Lines of a CSV file, by the card's columns: others, such as the target, are no part of a question."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        try:
            reader = csv.DictReader(lines, strict=True)
            rows = [{(name or "").strip(): value for name, value in row.items()} for row in reader]
        except csv.Error as error:
            raise UsageError(f"{file}: is not a CSV file that can be read ({error})") from error
    for number, row in enumerate(rows, start=1):
        if None in row.values() or "" in row:
            raise UsageError(f"{file}: record {number} has more or fewer fields than the header; mend it")
    return [{name: value for name, value in row.items() if name in inputs.card.columns} for row in rows]


def _arrays(inputs: Inputs, file: Path) -> list[Any]:
    try:
        found = np.load(file, allow_pickle=False)
        if file.suffix.lower() == ".npz":
            if "x" not in found:
                raise UsageError(f"{file}: has no array x")
            found = found["x"]
    except UsageError:
        raise
    except Exception as error:  # numpy's and zipfile's errors have no common class
        raise UsageError(f"{file}: is not an array file that can be read") from error
    return list(found) if found.ndim == len(inputs.shape) + 1 else [found]


def _image(inputs: Inputs, file: Path) -> Any:
    if inputs.card.name == "digits":
        raise UsageError(f"{file}: pixels of 'digits' go from 0 to 16; give them as .npy or .json")
    if inputs.shape[0] not in CHANNELS:
        raise UsageError(f"{file}: a picture has 1 or 3 channels, the model takes {inputs.shape[0]}; give it as .npy")
    pixels = decode(pillow("--input with a picture"), file, inputs.shape, asked_by="the model")
    return pixels.astype(np.float32) / 255
