"""The proof by chaos, at small size (`make prove-chaos` does hundreds of faults)."""

from __future__ import annotations

from pathlib import Path

from tests.proofs.chaos_campaign import campaign


def test_a_federation_that_is_harmed_in_any_way_plays_its_plan_and_charges_each_round_once(tmp_path: Path) -> None:
    counts = campaign(3, tmp_path / "pilot", style="private", faults=6, rounds=40)
    assert 3 <= sum(counts.faults.values()) <= 6  # fewer where the machine is so fast that the plan is over before
    assert counts.charged == 4 * 40
    assert counts.checks >= 4 * 3  # on the way, and twice at the end
    assert counts.epsilon <= counts.budget * (1 + 1e-9)
