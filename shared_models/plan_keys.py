"""Every key a plan can have, read off its definition: for `veil plan keys` and `docs/plan.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared_models.plan import Plan
from shared_models.plan_section import Section, alternatives, options, tables


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


_SCHEMA = Key(
    "data.schema",
    "text",
    "-",
    "In a plan's file: a data.toml, whose card, people, text and normalisation are read into [data]; relative to the "
    "plan's file.",
)


def plan_keys() -> list[Key]:
    """All keys, in the order of the plan's sections."""
    found = list(_keys(Plan, "", tag=""))
    after = next(place for place, key in enumerate(found) if key.path == "data.path")
    return [*found[: after + 1], _SCHEMA, *found[after + 1 :]]


def plan_keys_markdown() -> str:
    """The keys as a table in Markdown."""
    rows = [f"| `{key.path}` | {key.allowed} | {key.default} | {key.meaning} |" for key in plan_keys()]
    return "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _keys(table: type[Section], prefix: str, *, tag: str) -> Iterator[Key]:
    """The keys of a table but its tag, which is listed once for all the tables it tells apart."""
    for name, field in table.model_fields.items():
        if name == tag:
            continue
        path, held = f"{prefix}{name}", field.annotation
        if get_origin(held) is dict and tables(get_args(held)[1]):
            path, held = f"{path}.<name>", get_args(held)[1]
        below = tables(held)
        if len(below) == 1:
            yield from _keys(below[0], f"{path}.", tag="")
        elif below:
            key, kinds = alternatives(held)
            yield Key(f"{path}.{key}", ", ".join(kinds), _default_tag(field, key), field.description or "")
            for kind, one in kinds.items():
                yield from _keys(one, f"{path}.({kind}).", tag=key)
        else:
            yield Key(path, _allowed(held), _default(field), field.description or "")


def _default_tag(field: FieldInfo, key: str) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    return f'"{getattr(default, key)}"' if isinstance(default, Section) else "-"


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
    return " or ".join(_one(option) for option in options(annotation) if option is not type(None))


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
