"""What is wrong with a TOML file, in its own words: one line for each key, with its path, what was given and what is
allowed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from security.errors import UsageError, did_you_mean
from shared_models.plan_section import Section, alternatives, tables

TOO_DEEP: Final = "tables within tables without end; a file has five levels at most"

_MOST_DOTS: Final = 1000  # in a line, those of numbers aside
_NUMBER: Final = re.compile(r"(?<=[,=\[\s])[+-]?\d+\.\d")

Table = TypeVar("Table", bound=Section)


def read_section(root: type[Table], path: Path) -> Table:
    """Read a file that holds one such table.

    Raises:
        UsageError: it can't be read, isn't TOML, or says something else.
    """
    return checked(root, parse(read_text(path), str(path)), where=str(path))


def checked(root: type[Table], raw: Any, *, where: str) -> Table:
    """The table that plain dictionaries hold.

    Raises:
        UsageError: one line for each key that is wrong; `where` names the file.
    """
    try:
        return root.model_validate(raw)
    except RecursionError as error:
        raise UsageError(f"{where}: {TOO_DEEP}") from error
    except ValidationError as error:
        lines = list(dict.fromkeys(_line(detail, root) for detail in error.errors()))
        raise UsageError("\n".join(f"{where}: {line}" for line in lines)) from error


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UsageError: it can't be read, or isn't text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: can't be read ({reason})") from error


def parse(text: str, where: str) -> dict[str, Any]:
    """TOML as plain dictionaries.

    Raises:
        UsageError: the text isn't TOML; `where` names it.
    """
    if any(_dots(line) > _MOST_DOTS for line in text.split("\n")):
        raise UsageError(f"{where}: {TOO_DEEP}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long and nesting too deep for Python
        raise UsageError(f"{where}: not valid TOML: {error}") from error


def _dots(line: str) -> int:
    """Dots that may be those of one key: the library takes time that grows with their square, hours for a megabyte."""
    found = line.count(".")
    return found if found <= _MOST_DOTS else found - len(_NUMBER.findall(line))


def quoted(part: str) -> str:
    """A key as TOML writes it: bare where it may be."""
    return tomli_w.dumps({part: 0}).removesuffix(" = 0\n")


def short(given: object) -> str:
    """A value as it was given, cut where it is long."""
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(detail: ErrorDetails, root: type[Section]) -> str:
    path, held = _follow(detail["loc"], root)
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        keys = [key for table in tables(_follow(detail["loc"][:-1], root)[1]) for key in table.model_fields]
        return f"{path}: unknown key; {did_you_mean(detail['loc'][-1], keys)}allowed: {', '.join(keys)}"
    if kind == "missing":
        return f"{path}: missing, give it a value"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key, tags = alternatives(held)
        allowed = f"allowed: {', '.join(map(repr, tags))}"
        if kind == "union_tag_not_found":
            return f"{path}.{key}: missing; {allowed}"
        tag = given.get(key, context.get("tag")) if isinstance(given, dict) else context.get("tag")
        return f"{path}.{key} = {short(tag)}: {did_you_mean(tag, tags)}{allowed}"
    if kind == "literal_error":
        allowed = str(context.get("expected", "")).replace(" or ", ", ")
        hint = did_you_mean(given, re.findall("'([^']*)'", allowed))
        return f"{path} = {short(given)}: {hint}allowed: {allowed}"
    if kind == "value_error":
        reason = str(context.get("error", detail["msg"]))
        if isinstance(given, (dict, BaseModel)):
            return f"{path}: {reason}" if path else reason
        return f"{path} = {short(given)}: {reason}"
    return f"{path} = {short(given)}: {_expected(detail)}"


def _expected(detail: ErrorDetails) -> str:
    """What is allowed, in words of TOML where pydantic's are those of Python."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a table"
    if kind == "tuple_type":
        return "should be a list"
    if kind == "too_short":
        return f"should have at least {context.get('min_length')} entries"
    if kind == "too_long":
        return f"should have at most {context.get('max_length')} entries"
    return detail["msg"].removeprefix("Input ").removeprefix("String ")


def _follow(location: tuple[int | str, ...], root: type[Section]) -> tuple[str, Any]:
    """An error's key path as a user writes it, without the tags pydantic puts between, and the type found there."""
    path: list[str] = []
    held: Any = root
    for part in location:
        found = tables(held)
        if len(found) > 1:
            held = alternatives(held)[1][str(part)]
            continue
        path.append(quoted(str(part)))
        if found:
            field = found[0].model_fields.get(str(part))
            held = Any if field is None else field.annotation
        elif get_origin(held) is dict:
            held = get_args(held)[1]
        else:
            held = get_args(held)[0] if get_origin(held) is tuple else Any
    return ".".join(path), held
