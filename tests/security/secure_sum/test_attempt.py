"""What all parties of an attempt agree on: every part of it is in the digest, and nothing impossible is an attempt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from security.secure_sum.attempt import Attempt, canonical
from tests.security.secure_sum.rounds import Federation, sparse

FEDERATION = Federation(size=12)
ATTEMPT = FEDERATION.attempt()
CHANGES: list[dict[str, Any]] = [
    {"federation": "other"},
    {"run": "beef"},
    {"round": 4},
    {"purpose": "evaluate"},
    {"number": 2},
    {"nonce": b"\1" * 32},
    {"context": bytes(32)},
    {"length": 6},
    {"bits": 64},
    {"cohort": (*FEDERATION.names[:11], "d")},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_part_is_in_the_digest(change: dict[str, Any]) -> None:
    assert replace(ATTEMPT, **change).digest != ATTEMPT.digest


@pytest.mark.parametrize(
    "change", [{"holders": 10}, {"threshold": 8}, {"least": 8}, {"honest": 2}, {"corrupt": 1}], ids=str
)
def test_the_parameters_are_in_the_digest(change: dict[str, Any]) -> None:
    other = replace(ATTEMPT, parameters=replace(ATTEMPT.parameters, **{"least": 8, "threshold": 7} | change))
    base = replace(ATTEMPT, parameters=replace(ATTEMPT.parameters, least=9 if "least" in change else 8, threshold=7))
    assert other.digest != base.digest


def test_how_sure_the_parameters_are_is_not_agreed_on() -> None:
    """A logarithm may end otherwise on another machine."""
    other = replace(ATTEMPT, parameters=replace(ATTEMPT.parameters, security_bits=40.0, correctness_bits=20.0))
    assert other.digest == ATTEMPT.digest


def test_names_run_together_are_other_names() -> None:
    assert replace(ATTEMPT, federation="te", run="stscafe").digest != replace(ATTEMPT, federation="test").digest
    assert canonical("a", b"bc", b"d") != canonical("a", b"b", b"cd") != canonical("ab", b"", b"cd")


@pytest.mark.parametrize(
    "change",
    [
        {"federation": ""},
        {"run": "x" * 201},
        {"round": -1},
        {"number": 0},
        {"nonce": bytes(31)},
        {"context": b""},
        {"cohort": ("a", "a")},
        {"cohort": ("b", "a")},
        {"cohort": ("a",)},
        {"length": 0},
        {"bits": 16},
    ],
    ids=str,
)
def test_impossible_attempts_are_refused(change: dict[str, Any]) -> None:
    two = replace(Federation(size=2).attempt(), cohort=("a", "b"))
    with pytest.raises(ValueError, match=r"attempt|cohort|vectors"):
        replace(two, **change)


@pytest.mark.parametrize(
    "parameters",
    [
        sparse(11, holders=5, threshold=4),
        sparse(12, holders=5, threshold=3),
        sparse(12, holders=5, threshold=7),
        sparse(12, holders=11, threshold=6),
        replace(sparse(12, holders=11, threshold=7), least=6),
        replace(sparse(12, holders=11, threshold=7), corrupt=2),
        replace(sparse(12, holders=11, threshold=7), honest=8),
        replace(sparse(12, holders=11, threshold=7), holders=12),
    ],
    ids=["another-cohort", "low", "high", "full-low", "least", "corrupt", "honest", "holders"],
)
def test_parameters_that_cannot_be_safe_are_refused(parameters: Any) -> None:
    with pytest.raises(ValueError, match="parameters"):
        Attempt(**{**vars(replace(ATTEMPT)), "parameters": parameters})
