"""`make prove-sums` at small size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import sums


@pytest.mark.parametrize("seed", [1, 2])
def test_secure_sums_are_plain_sums_or_none(seed: int) -> None:
    found = sums.hundred(seed, sums=40, largest=24)
    assert sum(found.values()) == 40
    assert {kind.partition(",")[0] for kind in found} >= {"full: the plain sum", "full: not opened"}


def test_finished_hundreds_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "hundred", lambda seed: {"full: the plain sum, nobody fell out": 100 - seed})
    results = tmp_path / "results.jsonl"
    first = sums.prove(200, 1, results)
    monkeypatch.setattr(sums, "hundred", lambda _: pytest.fail("played again"))
    assert sums.prove(200, 1, results) == first
    assert sums.describe(first, range(1, 3)).splitlines()[0] == "197 secure sums over 2 to 200 clients, seeds 1 to 2"
