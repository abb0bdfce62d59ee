"""Plans as TOML: reading, overriding keys, and writing out with every default and its meaning.

Errors are one line for each thing that is wrong: key path, what was given, what is allowed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_correlated import COMPUTED as COMPUTED_SCHEMA
from shared_models.plan_data import located
from shared_models.plan_secure_sum import COMPUTED
from shared_models.toml_errors import TOO_DEEP, checked, parse, quoted, read_text, short


def read_plan(path: Path, overrides: Iterable[str] = (), *, where: str | None = None) -> Plan:
    """Read a plan from a TOML file and apply `KEY=VALUE` overrides; errors name it by `where`, or by its path.

    A relative `data.path` or `data.schema` in the file is one from the file's own folder; one in an override stays as
    it is given. The schema that is named is written into the plan's [data]: a plan that is read from anything but a
    file names none.

    Raises:
        UsageError: the file can't be read, isn't TOML, or isn't a plan; or its schema isn't one.
    """
    text, where, overrides = read_text(path), where or str(path), tuple(overrides)
    raw = _beside(parse(text, where), path.parent)
    schema = _named_schema(raw, overrides, where)
    if schema is not None:
        raw = _with_schema(raw, schema, where)
        overrides = tuple(one for one in overrides if _keys(one.partition("=")[0]) != ["data", "schema"])
    return plan_from(raw, where=where, overrides=overrides)


def parse_plan(text: str, *, where: str, overrides: Iterable[str] = ()) -> Plan:
    """Build a plan from TOML text; `where` names it in errors.

    Raises:
        UsageError: the text isn't TOML, or isn't a plan.
    """
    return plan_from(parse(text, where), where=where, overrides=overrides)


def plan_from(raw: Mapping[str, Any], *, where: str, overrides: Iterable[str] = ()) -> Plan:
    """Build a plan from plain dictionaries.

    Raises:
        UsageError: one line for each key that is wrong.
    """
    try:
        merged = _override(raw, tuple(overrides))
    except RecursionError as error:
        raise UsageError(f"{where}: {TOO_DEEP}") from error
    return checked(Plan, merged, where=where)


def write_plan(plan: Plan) -> str:
    """The plan as TOML with every default written out and each key's meaning beside it."""
    lines = ["# A Veil plan with every default written out. Keys that are not set are shown as comments."]
    _write_section(plan, path=(), lines=lines)
    return "\n".join(lines) + "\n"


def _beside(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document of a file in that folder, its `data.path` absolute."""
    data = raw.get("data")
    if not isinstance(data, dict):
        return raw
    paths = {key: located(data[key], folder) for key in ("path", "schema") if isinstance(data.get(key), str)}
    return {**raw, "data": {**data, **paths}} if paths else raw


def _named_schema(raw: Mapping[str, Any], overrides: tuple[str, ...], where: str) -> str | None:
    """The schema that a plan's file names, or an override; None if there is none."""
    try:
        data = _override(raw, overrides).get("data")
    except RecursionError as error:
        raise UsageError(f"{where}: {TOO_DEEP}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema is not None and not isinstance(schema, str):
        raise UsageError(f"{where}: data.schema = {short(schema)}: should be the path of a data.toml")
    return schema


def _with_schema(raw: Mapping[str, Any], schema: str, where: str) -> dict[str, Any]:
    """The document with what a schema says in place of its name."""
    from shared_models.schema_card import plan_tables, read_schema

    data = {key: value for key, value in dict(raw.get("data", {})).items() if key != "schema"}
    tables = {
        key: value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else value
        for key, value in plan_tables(read_schema(Path(schema).expanduser())).items()
    }
    twice = next((key for key in tables if key in data), None)
    if twice is not None:
        raise UsageError(f"{where}: data.{twice} is what data.schema says; remove one of the two")
    return {**raw, "data": {**data, **tables}}


# --- overrides ----------------------------------------------------------------------------------------------------


def _override(raw: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    merged = _copy_tables(raw)
    if overrides:
        _forget_computed(merged)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = _keys(path)
        if not separator or not keys:
            raise UsageError(f"--set {_shown(override)}: give KEY=VALUE, e.g. --set privacy.epsilon=3")
        remove = text.strip() == ""
        table = merged
        for key in keys[:-1]:
            # To remove a key must not make the tables above it: an empty table has other defaults than none.
            child = table.get(key, {}) if remove else table.setdefault(key, {})
            if not isinstance(child, dict):
                raise UsageError(f"--set {_shown(override)}: {key} is not a table of the plan")
            table = child
        if remove:
            table.pop(keys[-1], None)
        else:
            table[keys[-1]] = _value(text.strip())
    return merged


def _keys(path: str) -> list[str]:
    """The parts of a key path as TOML reads it, so that a quoted part may hold dots; none if it isn't one."""
    try:
        node: Any = tomllib.loads(f"{path} = 0") if path.isprintable() else None
    except (ValueError, RecursionError):
        return []
    keys = []
    while isinstance(node, dict):
        if len(node) != 1:
            return []
        ((key, node),) = node.items()
        keys.append(key)
    return keys


def _forget_computed(raw: dict[str, Any]) -> None:
    """Drop the numbers a resolved plan computed: an override may change what they were computed from."""
    privacy = raw.get("privacy")
    computed = {"epsilon": "noise_multiplier", "noise_multiplier": "epsilon"}
    if isinstance(privacy, dict) and privacy.get("calibrated_from") in tuple(computed):
        privacy.pop(computed[privacy.pop("calibrated_from")], None)
        for table, names in ((raw.get("secure_sum"), COMPUTED), (privacy.get("correlated"), COMPUTED_SCHEMA)):
            if isinstance(table, dict):
                for name in names:
                    table.pop(name, None)


def _shown(override: str) -> str:
    return override if override.isprintable() and len(override) <= 60 else short(override)


def _copy_tables(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy_tables(value) if isinstance(value, Mapping) else value for key, value in raw.items()}


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it isn't one (`vit` for `"vit"`)."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text  # more keys: the text had lines of its own


# --- writing out ---------------------------------------------------------------------------------------------------


def _write_section(section: BaseModel, *, path: tuple[str, ...], lines: list[str]) -> None:
    tables: list[tuple[str, Any, str]] = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, (BaseModel, dict)):
            tables.append((key, value, field.description or ""))
            continue
        comment = f"  # {field.description}" if field.description else ""
        lines.append(f"# {key} ={comment}" if value is None else f"{key} = {_inline(value)}{comment}")
    for key, value, description in tables:
        header = (*path, key)
        if isinstance(value, BaseModel):
            summary = (type(value).__doc__ or "").strip().partition("\n")[0]
            lines += ["", _header(header), f"# {summary}"]
            _write_section(value, path=header, lines=lines)
        elif not value:
            lines += ["", f"# {_header(header)}  # {description}"]
        elif any(isinstance(item, BaseModel) for item in value.values()):
            lines += ["", f"# {description}"]
            for name, item in value.items():
                lines += ["", _header((*header, name))]
                _write_section(item, path=(*header, name), lines=lines)
        else:
            lines += ["", _header(header), f"# {description}"]
            lines += [f"{quoted(name)} = {_inline(item)}" for name, item in value.items()]


def _header(path: tuple[str, ...]) -> str:
    return f"[{'.'.join(quoted(part) for part in path)}]"


def _inline(value: Any) -> str:
    """A value as TOML on one line, whatever it holds."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(str(key))} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")
