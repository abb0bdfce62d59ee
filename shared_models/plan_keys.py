"""Every key a plan can have, read off its definition: for `veil plan keys` and `docs/plan.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared_models.plan import Plan


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: as in `--set`; `<name>` stands for a name of one's own, `(dirichlet)` for the kind a key belongs to.
        allowed: what its value may be.
        default: its default, as TOML would say it; "-" for none.
        meaning: one line.
    """

    path: str
    allowed: str
    default: str
    meaning: str


def plan_keys() -> list[Key]:
    """All keys, in the order of the plan's sections."""
    return list(_keys(Plan, ""))


def plan_keys_markdown() -> str:
    """The keys as a table in Markdown."""
    rows = [f"| `{key.path}` | {key.allowed} | {key.default} | {key.meaning} |" for key in plan_keys()]
    return "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if name in ("kind", "sampling") and get_origin(field.annotation) is Literal:
            continue
        held = field.annotation
        if get_origin(held) is dict:
            held = get_args(held)[1]
        sections = [option for option in _options(held) if _is_model(option)]
        if held is not field.annotation and sections:
            path = f"{path}.<name>"
        if len(sections) == 1:
            yield from _keys(sections[0], f"{path}.")
        elif sections:
            tag = next(key for key in ("kind", "sampling") if key in sections[0].model_fields)
            tags = [get_args(section.model_fields[tag].annotation)[0] for section in sections]
            yield Key(f"{path}.{tag}", ", ".join(tags), _default_tag(field, tag), field.description or "")
            for section, value in zip(sections, tags, strict=True):
                yield from _keys(section, f"{path}.({value}).")
        else:
            yield Key(path, _allowed(field.annotation), _default(field), field.description or "")


def _default_tag(field: FieldInfo, tag: str) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    return f'"{getattr(default, tag)}"' if isinstance(default, BaseModel) else "-"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == {}:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _allowed(annotation: Any) -> str:
    options = [option for option in _options(annotation) if option is not type(None)]
    return " or ".join(_one(option) for option in options)


def _one(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return _one(get_args(annotation)[0])
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(str(value) for value in get_args(annotation))
    if origin is tuple:
        return f"list of {_one(get_args(annotation)[0])}"
    if origin is dict:
        return "a table"
    names = {str: "text", int: "whole number", float: "number", bool: "true, false"}
    return names.get(annotation, str(annotation))


def _options(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _options(get_args(annotation)[0])
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
