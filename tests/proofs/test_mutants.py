"""Every mutant is noticed: a broken implementation never passes for a sound one. In full: `make prove-mutants`."""

from __future__ import annotations

import pytest

from privacy.audit.finding import is_broken
from tests.proofs.mutants import AUDITS, MUTANTS, broken, fails

RUNS = {"one round, local": 200, "one round, secure sum": 200, "canaries in a run, local": 300}


def test_each_mutant_has_something_that_notices_it() -> None:
    assert all(mutant.audits or mutant.tests for mutant in MUTANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 9


@pytest.mark.parametrize("name", AUDITS)
def test_no_audit_calls_the_sound_implementation_broken(name: str) -> None:
    assert not is_broken(AUDITS[name](RUNS[name]))


@pytest.mark.parametrize(
    ("mutant", "audit"),
    [pytest.param(one, audit, id=f"{one.name}: {audit}") for one in MUTANTS for audit in one.audits],
)
def test_an_audit_notices_by_a_bound_above_the_claim(mutant: object, audit: str) -> None:
    with broken(mutant):  # type: ignore[arg-type]
        assert is_broken(AUDITS[audit](RUNS[audit]))


@pytest.mark.parametrize(
    ("mutant", "test"), [pytest.param(one.name, one.tests[0], id=one.name) for one in MUTANTS if one.tests]
)
def test_a_test_notices_by_failing(mutant: str, test: str) -> None:
    assert fails(test, mutant)
