"""An entry has one text and one hash, and a damaged one is never read as another."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from datetime import timedelta, timezone
from hashlib import sha256
from typing import Any

import pytest

from privacy.canonical_json import canonical, parse, parse_canonical, record
from privacy.ledger.entries import START, DamageError, Entry, next_entry, read_entry, time_text
from tests.privacy.ledger.cases import Clock, task

TIME = "2026-01-01T00:00:00.000000Z"


def entry(**body: Any) -> Entry:
    return next_entry(None, "Klinik Süd", "policy", TIME, body or {"x": 1})


class TestCanonicalJson:
    def test_equal_values_have_one_text(self) -> None:
        assert canonical({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null,true]}'
        assert canonical({"a": (1, 2)}) == canonical({"a": [1, 2]})

    @pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, {None: 1}, {"a": {True: 1}}, object(), {1, 2}, b"x"])
    def test_what_json_cannot_say_is_refused(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"JSON|text"):
            canonical({"a": value} if not isinstance(value, dict) else value)

    @pytest.mark.parametrize(
        "text",
        [
            '{"a": 1}',
            '{"b":1,"a":1}',
            '{"a":1,"a":1}',
            '{"a":1.0e0}',
            '{"a":"é"}',
            '{"a":NaN}',
            '{"a":Infinity}',
            '{"a":1e400}',
            '{"a":1}\n',
            '{"a":01}',
            '{"a":' + "9" * 5000 + "}",
            "[" * 100_000,
            "",
        ],
    )
    def test_another_layout_of_the_same_meaning_is_found(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - what is said differs
            parse_canonical(text)

    def test_it_is_read_back(self) -> None:
        value = {"a": [1e-5, 0.1, -0.0, 1 << 60, "\ud800"], "b": {}}
        assert parse_canonical(canonical(value)) == value

    def test_a_record_has_exactly_its_keys_and_types(self) -> None:
        assert record({"a": 1}, "it", a=int) == {"a": 1}
        bad: Any
        for bad in ({}, {"a": 1, "b": 2}, {"a": True}, {"a": 1.0}, [], None):
            with pytest.raises(ValueError, match="it"):
                record(bad, "it", a=int)


class TestTasks:
    def test_its_id_is_the_hash_of_its_fields(self) -> None:
        text = json.dumps(asdict(task(3)), sort_keys=True, separators=(",", ":"))
        assert task(3).id == sha256(text.encode()).hexdigest()

    def test_unlike_tasks_have_unlike_ids(self) -> None:
        one = task(3)
        others = [
            replace(one, federation="other"),
            replace(one, run="other"),
            replace(one, round=4),
            replace(one, phase="evaluate"),
            replace(one, client="other"),
            replace(one, request="0" * 64),
            replace(one, federation=one.run, run=one.federation),
        ]
        assert len({one.id, *(other.id for other in others)}) == 8

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *[("round", bad) for bad in (-1, True, 1.0, "1", 1 << 53, None)],
            *[("request", bad) for bad in ("", "A" * 64, "0" * 63, None)],
            *[(name, bad) for name in ("federation", "run", "phase", "client") for bad in ("", "x" * 201, None, 7)],
        ],
    )
    def test_a_field_out_of_range_is_refused_by_name(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=field):
            replace(task(), **{field: value})


class TestEntries:
    def test_its_hash_is_of_the_canonical_json_of_all_else(self) -> None:
        made = entry(x=[1, 2.5])
        rest = {
            "scope": "Klinik Süd",
            "position": 0,
            "kind": "policy",
            "time": TIME,
            "body": {"x": [1, 2.5]},
            "previous": START,
        }
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        assert made.hash == sha256(text.encode()).hexdigest()

    def test_each_carries_the_hash_of_the_one_before(self) -> None:
        first = entry()
        second = next_entry(first.anchor, first.scope, "commit", TIME, {})
        assert (second.position, second.previous) == (1, first.hash)

    def test_written_and_read(self) -> None:
        assert read_entry(entry().row()) == (entry(), True)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            (0, "Klinik Nord"),
            (1, 1),
            (2, "commit"),
            (3, "2026-01-01T00:00:00.000001Z"),
            (4, '{"x":2}'),
            (5, "1" * 64),
            (6, "1" * 64),
        ],
    )
    def test_any_field_that_is_edited_shows_in_the_hash(self, column: int, value: object) -> None:
        row = list(entry().row())
        row[column] = value
        assert read_entry(row)[1] is False

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            *[(0, bad) for bad in (None, b"Klinik", 7, "", "\udcff")],
            *[(1, bad) for bad in (None, -1, 1.0, "0", b"")],
            *[(2, bad) for bad in (None, "", "withdraw", b"policy")],
            *[(3, bad) for bad in (None, "", "yesterday", TIME + " ", TIME.replace("Z", "+00:00"))],
            *[(4, bad) for bad in (None, "", "[]", '{"x": 1}', '{"x":1,"x":1}', '{"x":NaN}', b"{}", "7")],
            *[(4, bad) for bad in ('{"x":' + "9" * 9999 + "}", "[" * 99_999, '{"x":"' + "a" * (1 << 20) + '"}')],
            *[(5, bad) for bad in (None, "", "A" * 64, "0" * 65)],
            *[(6, bad) for bad in (None, "", b"0" * 64)],
        ],
    )
    def test_what_is_no_entry_is_damage(self, column: int, value: object) -> None:
        row = list(entry().row())
        row[column] = value
        with pytest.raises(DamageError) as caught:
            read_entry(row)
        assert "\n" not in str(caught.value)

    def test_a_body_that_is_too_long_is_not_written(self) -> None:
        with pytest.raises(ValueError, match="too long"):
            entry(x="a" * (1 << 20))

    def test_times_are_utc_whatever_the_clock_says(self) -> None:
        assert time_text(Clock().time) == TIME
        assert time_text(Clock().time.astimezone(timezone(timedelta(hours=5, minutes=30)))) == TIME


def test_parse_names_a_number_that_is_none() -> None:
    with pytest.raises(ValueError, match="NaN"):
        parse('{"a":NaN}')
