"""The proof by chaos, at small size (`make prove-chaos` does hundreds of faults)."""

from __future__ import annotations

from pathlib import Path

from tests.proofs.chaos_campaign import campaign

FAULTS = 6


def test_a_federation_that_is_harmed_in_any_way_plays_its_plan_and_charges_each_round_once(tmp_path: Path) -> None:
    counts = campaign(3, tmp_path / "pilot", style="private", faults=FAULTS)
    assert sum(counts.faults.values()) == FAULTS
    assert counts.charged == 4 * counts.rounds
    assert counts.checks >= 4 * FAULTS  # on the way, and then at the end
    assert counts.epsilon <= counts.budget * (1 + 1e-9)
