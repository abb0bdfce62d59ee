"""The facts are report.json: documented by a schema, read back as they were written, and never a guess."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from privacy.report import Facts, accounts, facts, facts_of_ledger, facts_of_run
from privacy.report.accounts import Point
from privacy.report.plain import to_plain
from privacy.report.render import json_text
from tests.privacy.report import examples

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs/schemas/report.schema.json").read_text("utf-8"))
OPTIONAL = {("Facts", "reconstruction")}  # a report without is as it was before there were such
RUNS = ["simulated", "deployed", "remote", "troubled", "withdrawn", "plain", "attacked"]


def made(name: str) -> Facts:
    """The facts of one of the examples."""
    example: Callable[[], dict[str, Any]] = getattr(examples, name)
    return facts_of_ledger(**example()) if name == "lifetime" else facts_of_run(**example())


@pytest.mark.parametrize("name", [*RUNS, "lifetime"])
def test_report_json_keeps_to_its_schema(name: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json_text(made(name))))


def test_the_schema_is_one_and_documents_every_field() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    classes = {
        name: kind
        for module in (facts, accounts)
        for name, kind in vars(module).items()
        if dataclasses.is_dataclass(kind) and isinstance(kind, type)
    }
    documented = {"Facts": SCHEMA, **SCHEMA["$defs"]}
    assert documented.keys() == classes.keys()
    for name, kind in classes.items():
        fields = [field.name for field in dataclasses.fields(kind)]
        assert list(documented[name]["properties"]) == fields
        assert documented[name]["required"] == [one for one in fields if (name, one) not in OPTIONAL]
        assert documented[name]["additionalProperties"] is False
        assert all(one["description"] for one in documented[name]["properties"].values())


@pytest.mark.parametrize("name", [*RUNS, "lifetime"])
def test_what_was_written_is_read_back(name: str) -> None:
    assert Facts.from_json(json.loads(json_text(made(name)))) == made(name)


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="has version 2; this Veil reads version 1"):
        Facts.from_json(made("plain").to_json() | {"version": 2})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"clients": "ten"}, "Facts.clients"),
        ({"clients": True}, "Facts.clients"),
        ({"status": "fine"}, "Facts.status"),
        ({"balances": [{}]}, r"Facts.balances\[0\]"),
        ({"extra": 1}, "Facts"),
    ],
)
def test_what_is_not_a_report_is_refused_with_its_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=f"not a report: {where} has another form"):
        Facts.from_json(made("simulated").to_json() | change)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_figure_that_cannot_be_claimed_is_not_written_as_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="must be None"):
        to_plain(Point(at=1, value=value))
