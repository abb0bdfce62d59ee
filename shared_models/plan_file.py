"""Plans as TOML: reading, overriding keys, and writing out with every default and its meaning.

Errors are one line for each thing that is wrong: key path, what was given, what is allowed.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from security.errors import UsageError
from shared_models.plan import Plan


def read_plan(path: Path, overrides: Iterable[str] = (), *, where: str | None = None) -> Plan:
    """Read a plan from a TOML file and apply `KEY=VALUE` overrides; errors name it by `where`, or by its path.

    Raises:
        UsageError: the file can't be read, isn't TOML, or isn't a plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: can't read the plan ({reason})") from error
    return parse_plan(text, where=where or str(path), overrides=overrides)


def parse_plan(text: str, *, where: str, overrides: Iterable[str] = ()) -> Plan:
    """Build a plan from TOML text; `where` names it in errors.

    Raises:
        UsageError: the text isn't TOML, or isn't a plan.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not valid TOML: {error}") from error
    return plan_from(raw, where=where, overrides=overrides)


def plan_from(raw: Mapping[str, Any], *, where: str, overrides: Iterable[str] = ()) -> Plan:
    """Build a plan from plain dictionaries.

    Raises:
        UsageError: one line for each key that is wrong.
    """
    merged = _override(raw, tuple(overrides))
    try:
        return Plan.model_validate(merged)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(detail) for detail in error.errors()))
        raise UsageError("\n".join(f"{where}: {line}" for line in lines)) from error


def write_plan(plan: Plan) -> str:
    """The plan as TOML with every default written out and each key's meaning beside it."""
    lines = ["# A Veil plan with every default written out. Keys that are not set are shown as comments."]
    _write_section(plan, path=(), lines=lines)
    return "\n".join(lines) + "\n"


# --- overrides ----------------------------------------------------------------------------------------------------


def _override(raw: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    merged = _copy_tables(raw)
    if overrides:
        _forget_computed(merged)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not separator or not all(keys):
            raise UsageError(f"--set {override}: give KEY=VALUE, e.g. --set privacy.epsilon=3")
        table = merged
        for key in keys[:-1]:
            child = table.setdefault(key, {})
            if not isinstance(child, dict):
                raise UsageError(f"--set {override}: {key} is not a table of the plan")
            table = child
        if text.strip() == "":
            table.pop(keys[-1], None)
        else:
            table[keys[-1]] = _value(text.strip())
    return merged


def _forget_computed(raw: dict[str, Any]) -> None:
    """Drop the number a resolved plan computed: an override may change what it was computed from."""
    privacy = raw.get("privacy")
    if isinstance(privacy, dict) and "calibrated_from" in privacy:
        given = privacy.pop("calibrated_from")
        privacy.pop("noise_multiplier" if given == "epsilon" else "epsilon", None)


def _copy_tables(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy_tables(value) if isinstance(value, Mapping) else value for key, value in raw.items()}


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it isn't one (`vit` for `"vit"`)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# --- explaining what is wrong --------------------------------------------------------------------------------------


def _explain(detail: ErrorDetails) -> str:
    path = _plain_path(detail["loc"])
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        keys = _known_keys(detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), keys, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{path}: unknown key; {hint}allowed: {', '.join(keys)}"
    if kind == "missing":
        return f"{path}: missing, give it a value"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(context.get("discriminator", "'kind'")).strip("'")
        if kind == "union_tag_not_found":
            return f"{path}.{key}: missing, give it a value"
        return f"{path}.{key} = {context.get('tag')!r}: allowed: {context.get('expected_tags')}"
    if kind == "literal_error":
        return f"{path} = {given!r}: allowed: {str(context.get('expected', '')).replace(' or ', ', ')}"
    if kind == "value_error":
        reason = str(context.get("error", detail["msg"]))
        if isinstance(given, (dict, BaseModel)):
            return f"{path}: {reason}" if path else reason
        return f"{path} = {given!r}: {reason}"
    message = detail["msg"].removeprefix("Input ")
    return f"{path} = {_short(given)}: {message}" if path else f"the plan {message}"


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


_TAGS = frozenset(
    {"iid", "dirichlet", "pathological", "size-skewed", "natural"}
    | {"numeric", "categorical"}
    | {"constant", "cosine", "step"}
    | {"all", "fixed", "poisson"}
)


def _plain_path(location: tuple[int | str, ...]) -> str:
    """The key path as a user writes it: without the union tags that pydantic puts between."""
    parts: list[str] = []
    annotation: Any = Plan
    for part in location:
        step = _step(annotation, part)
        if step is None and part in _TAGS:
            annotation = _tagged(annotation, str(part))
            continue
        parts.append(str(part))
        annotation = step
    return ".".join(parts)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    annotation: Any = Plan
    for part in location:
        step = _step(annotation, part)
        annotation = _tagged(annotation, str(part)) if step is None else step
    return list(annotation.model_fields) if _is_model(annotation) else []


def _step(annotation: Any, part: int | str) -> Any:
    """The type found under a key of a type, or None where the key is a union's tag."""
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field is not None else Any
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    models = [option for option in _options(annotation) if _is_model(option)]
    if len(models) == 1:  # an optional section
        return _step(models[0], part)
    return None if models else Any


def _tagged(annotation: Any, tag: str) -> Any:
    for option in _options(annotation):
        if _is_model(option):
            for key in ("kind", "sampling"):
                field = option.model_fields.get(key)
                if field is not None and get_args(field.annotation) == (tag,):
                    return option
    return Any


def _options(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    arguments = get_args(annotation)  # Annotated[Union[...], Field(discriminator=...)]
    return _options(arguments[0]) if arguments and hasattr(annotation, "__metadata__") else ()


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


# --- writing out ---------------------------------------------------------------------------------------------------


def _write_section(section: BaseModel, *, path: tuple[str, ...], lines: list[str]) -> None:
    tables: list[tuple[str, Any]] = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, (BaseModel, dict)):
            tables.append((key, value))
            continue
        comment = f"  # {field.description}" if field.description else ""
        if value is None:
            lines.append(f"# {key} ={comment}")
        else:
            plain = list(value) if isinstance(value, tuple) else value
            lines.append(_one_line(key, plain) + comment)
    for key, value in tables:
        header = (*path, key)
        if isinstance(value, BaseModel):
            lines += ["", f"[{'.'.join(_quoted(part) for part in header)}]"]
            summary = (type(value).__doc__ or "").strip().splitlines()
            if summary:
                lines.append(f"# {summary[0]}")
            _write_section(value, path=header, lines=lines)
        elif any(isinstance(item, BaseModel) for item in value.values()):
            for name, item in value.items():
                lines += ["", f"[{'.'.join(_quoted(part) for part in (*header, name))}]"]
                _write_section(item, path=(*header, name), lines=lines)
        elif value:
            lines += ["", f"[{'.'.join(_quoted(part) for part in header)}]"]
            lines += [_one_line(name, item) for name, item in value.items()]


def _one_line(key: str, value: Any) -> str:
    """`key = value`; arrays stay on the line."""
    if isinstance(value, list):
        items = ", ".join(_one_line("x", item).removeprefix("x = ") for item in value)
        return f"{_quoted(key)} = [{items}]"
    return tomli_w.dumps({key: value}).strip()


def _quoted(part: str) -> str:
    return tomli_w.dumps({part: 0}).removesuffix(" = 0\n")
