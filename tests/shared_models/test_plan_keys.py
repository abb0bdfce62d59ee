"""The list of keys: complete, and the same in the documentation."""

from __future__ import annotations

from pathlib import Path

from shared_models.plan import Plan
from shared_models.plan_keys import plan_keys, plan_keys_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs" / "plan.md"


def test_every_key_has_a_meaning_of_its_own() -> None:
    for key in plan_keys():
        assert len(key.meaning) > 10, key
        assert key.allowed


def test_every_leaf_of_the_default_plan_is_listed() -> None:
    def leaves(table: dict[str, object], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for name, value in table.items():
            found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}"}
        return found

    import re

    listed = {re.sub(r"\.\([a-z-]+\)", "", key.path) for key in plan_keys()}
    # Not there by default; their keys are listed.
    tables = {"data.card", "data.text", "features", "privacy.adaptive", "privacy.correlated", "secure_sum"}
    tables |= {"statistics", "data.normalisation", "training.augment", "federation.asynchronous", "personal"}
    assert leaves(Plan().model_dump()) - tables <= listed


def test_the_documentation_holds_the_same_table() -> None:
    """If this fails: replace the table of docs/plan.md by the output of `veil plan keys`."""
    assert plan_keys_markdown() in DOCS.read_text(encoding="utf-8")
