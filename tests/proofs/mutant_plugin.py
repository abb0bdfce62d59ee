"""A pytest plugin: the process runs as one of `tests.proofs.mutants`, named by the environment."""

from __future__ import annotations

import os

import pytest

from tests.proofs.mutants import MUTANT, MUTANTS


def pytest_configure() -> None:
    """Break the implementation before a test is imported."""
    name = os.environ.get(MUTANT)
    if name:
        (mutant,) = [one for one in MUTANTS if one.name == name]
        mutant.patch(pytest.MonkeyPatch())
