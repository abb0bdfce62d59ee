"""The table [features] of a plan."""

from __future__ import annotations

import json
from typing import Any

import pytest

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, write_plan
from shared_models.resolve import resolve


def plan(data: str = "fashion-mnist", **features: Any) -> Plan:
    return Plan.model_validate(
        {
            "data": {"name": data},
            "features": features,
            "model": {"name": "linear"},
            "privacy": {"noise_multiplier": 3.0},
            "federation": {"rounds": 2},
        }
    )


def test_the_table_is_in_the_digest_only_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    before = json.dumps
    monkeypatch.setattr("shared_models.plan.json.dumps", lambda *a, **k: texts.append(before(*a, **k)) or texts[-1])
    assert Plan().digest() != plan(name="scattering").digest()
    assert ["features" in json.loads(text) for text in texts] == [False, True]


def test_resolving_pins_the_source_and_a_second_time_changes_nothing() -> None:
    found = resolve(plan(name="scattering"))
    assert found.features is not None
    assert found.features.source is not None
    assert resolve(found) == found
    assert parse_plan(write_plan(found), where="plan").digest() == found.digest()


def test_another_source_is_refused() -> None:
    with pytest.raises(UsageError, match=r"features\.source = 'ffffffffffffffff"):
        resolve(plan(name="scattering", source="f" * 64))


@pytest.mark.parametrize(
    ("data", "name", "text"),
    [
        ("heart-disease", "scattering", "takes images"),
        ("digits", "scattering", "sides of 16 or more"),
        ("fashion-mnist", "fourier", "unknown feature map"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(data: str, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"features\.name = '{name}': .*{text}"):
        resolve(plan(data, name=name))
