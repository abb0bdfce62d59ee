"""The ledger's proof by killing, at small size (`make prove-ledger` runs hundreds)."""

from __future__ import annotations

from pathlib import Path

from tests.proofs.ledger import campaign


def test_what_left_a_killed_client_is_charged_once_and_the_plan_finishes(tmp_path: Path) -> None:
    counts = campaign(5, tmp_path, kills=8, rounds=2)
    assert counts.kills >= 8
    assert counts.releases == counts.charged == 3  # two rounds of training, one evaluation
