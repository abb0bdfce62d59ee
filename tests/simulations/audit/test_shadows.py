"""Shadow models: members are told from others where a model remembers its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.audit import shadows
from simulations.audit.audit import Options, as_json_of, audit
from simulations.audit.shadows import Inference, infer_membership
from simulations.run import Settings
from simulations.scenarios import find_plan

INLINE = Settings(engine="inline")
SECRET = bytes(range(32))


def plan_of(scenario: str, *overrides: str) -> Plan:
    return resolve(find_plan(scenario, ("evaluation.where=none", *overrides)))


def infer(plan: Plan, models: int) -> Inference:
    from client.datasets.partition import client_ids
    from client.workplace import split_key

    return infer_membership(
        plan,
        candidates=400,
        models=models,
        clients=client_ids(plan.data, seed=plan.seed, split_key=split_key(plan)),
        secret=SECRET,
        settings=INLINE,
        say=lambda text: None,
    )


def test_a_model_without_privacy_remembers_its_records() -> None:
    """400 records, some 200 members: chance alone keeps the area below .585 but once in 1,000 times."""
    plan = plan_of(
        "digits-plain",
        "model.name=mlp",
        "model.options.hidden=[64]",
        "federation.rounds=30",
        "training.learning_rate=0.3",
    )
    found = infer(plan, 6)
    assert found.curve.area > 0.585
    assert 350 < len(found.seen.scores) <= 400
    assert found.seen.coins.any()
    assert not found.seen.coins.all()


def test_an_audit_tells_what_shadow_models_found(tmp_path: Path) -> None:
    plan = plan_of("digits", "model.name=mlp", "model.options.hidden=[8]", "federation.rounds=2", "training.steps=2")
    options = Options(canaries=0, mislabelled=0, rounds=0, shadows=4, candidates=60, secret=SECRET)
    found = audit(plan, tmp_path / "run", INLINE, options, say=lambda text: None)
    assert [(one.looked_for, one.way) for one in found.findings] == [("records", "shadow")] * 2
    assert "broken" not in {one.verdict for one in found.findings}
    told = as_json_of(found)["membership"]
    assert told["shadow_models"] == 4
    assert 0 <= told["found_at_0_1_percent"] <= told["found_at_1_percent"] <= 1
    assert json.loads(found.folder.audit.read_text()) == as_json_of(found)
    assert not found.folder.plan.exists(), "no run of it was played"


def test_shadows_do_not_know_the_noise_of_the_run_that_is_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in a plan whose noise follows from its seed, and is the same in each of its runs."""
    played: list[str] = []
    whole = shadows.play_through

    def play(plan: Plan, *given: Any) -> Any:
        played.append(plan.privacy.noise)
        return whole(plan, *given)

    monkeypatch.setattr(shadows, "play_through", play)
    small = ("model.name=linear", "federation.rounds=1", "training.steps=1", "privacy.noise=reproducible")
    infer(plan_of("digits", *small), 4)
    assert played == ["secret"] * 5


def test_too_few_shadows_and_claims_of_clients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give at least 4"):
        infer(plan_of("digits"), 3)
    options = Options(canaries=0, mislabelled=0, rounds=0, shadows=4)
    with pytest.raises(UsageError, match="this plan's claim is of clients"):
        audit(plan_of("digits-secure"), tmp_path, INLINE, options, say=lambda text: None)
