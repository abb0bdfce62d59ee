"""The proof by hostile messages, at small size (`make prove-fuzz` sends a hundred thousand)."""

from __future__ import annotations

from pathlib import Path

from tests.proofs.fuzz import OFFERS, PARSER, REPLIES, SERVER, SITE, TASKS, TLS, campaign


def test_hostile_messages_of_every_kind_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    counts = campaign(7, tmp_path, messages=1000)
    assert counts.messages >= 1000
    assert set(counts.outcomes) == {PARSER, SERVER, TLS, SITE, OFFERS, TASKS, REPLIES}
    # Both ways were tried: what is refused, and what is let through, which makes it worth refusing the rest.
    assert counts.outcomes[PARSER].keys() == {"refused", "a frame within its bounds"}
    assert {"taken", "ended the stream (malformed)"} <= counts.outcomes[SERVER].keys()
    assert {"plan-mismatch", "model-mismatch", "train answered and charged"} <= counts.outcomes[TASKS].keys()
    assert {"accepted", "plan-mismatch"} <= counts.outcomes[OFFERS].keys()
    assert {"update taken", "malformed-reply", "no message"} <= counts.outcomes[REPLIES].keys()
