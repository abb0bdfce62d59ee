"""What every table of a plan is: frozen, strict, without unknown keys; and how its definition is read.

Where a key may hold one of several tables, a tag tells them apart: the one key of a table whose value is fixed
(`kind = "iid"`).
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A table of the plan: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def options(annotation: Any) -> tuple[Any, ...]:
    """The types a key may hold, None among them where it may be left out."""
    if hasattr(annotation, "__metadata__"):  # Annotated
        return options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(one for part in get_args(annotation) for one in options(part))
    return (annotation,)


def tables(annotation: Any) -> list[type[Section]]:
    """The tables a key may hold: none for a plain value, several where a tag tells them apart."""
    return [option for option in options(annotation) if isinstance(option, type) and issubclass(option, Section)]


def alternatives(annotation: Any) -> tuple[str, dict[str, type[Section]]]:
    """For a key that may hold several tables: the tag, and the tables by what it says in each."""
    found = tables(annotation)
    tag = next(key for key, field in found[0].model_fields.items() if len(_literal(field.annotation)) == 1)
    return tag, {_literal(table.model_fields[tag].annotation)[0]: table for table in found}


def _literal(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()
