"""Audits of plans: consistent where all is sound, broken where noise is missing, and honest about their power."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from privacy.audit.coin_bounds import Claim, can_contradict
from privacy.audit.finding import FALSE_ALARMS, Finding, is_broken
from privacy.audit.guesses import mu_of
from privacy.audit.trade_off import of_gaussian
from security.errors import RunError, UsageError
from server.report import write_report
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.audit.audit import (
    MOST_CANARIES,
    Audit,
    Options,
    audit,
    audited_plan,
    claim_of,
    enough,
    keep_beside,
    plantings_of,
)
from simulations.audit.canaries import planting_for, records_of
from simulations.audit.canary_run import finite, play_with_canaries
from simulations.audit.one_round import OneRound
from simulations.run import Settings
from simulations.scenarios import find_plan

SMALL = (
    "model.name=mlp",
    "model.options.hidden=[8]",
    "federation.rounds=3",
    "training.steps=2",
    "evaluation.where=none",
)
INLINE = Settings(engine="inline")
SECRET = bytes(range(32))
ROOT = Path(__file__).parents[3]


def plan_of(scenario: str = "digits", *overrides: str) -> Plan:
    return resolve(find_plan(scenario, (*SMALL, *overrides) if scenario == "digits" else overrides))


def play(plan: Plan, out: Path, **options: Any) -> Audit:
    options = {"canaries": 200, "mislabelled": 20, "rounds": 0, "secret": SECRET, **options}
    return audit(plan, out, INLINE, Options(**options), say=lambda text: None)


def gap(scores: np.ndarray, coins: np.ndarray) -> float:
    """How many deviations planted canaries score above the others."""
    return float((scores[coins].mean() - scores[~coins].mean()) / scores[~coins].std())


BIG_STEPS = ("training.sample_rate=1", "training.expected_batch_size=140", "privacy.epsilon=20", "federation.rounds=4")


@pytest.mark.parametrize(
    ("scenario", "overrides", "count", "least"),
    [
        ("digits", (*SMALL, *BIG_STEPS), 500, 0.3),
        ("digits", ("model.name=linear", "evaluation.where=none", "training.steps=2", *BIG_STEPS), 500, 0.3),
        ("digits-secure", ("federation.rounds=4", "privacy.epsilon=20", "training.learning_rate=1e-4"), 25, 1.8),
        ("digits-central", ("federation.rounds=4", "privacy.epsilon=50", "training.learning_rate=1e-4"), 150, 0.5),
    ],
    ids=["local, by hooks", "local, in closed form", "clients, secure sum", "clients, trusted server"],
)
def test_canaries_score_higher_where_they_are_planted(
    scenario: str, overrides: tuple[str, ...], count: int, least: float, tmp_path: Path
) -> None:
    """So the way from canary to score is whole. Chance alone would reach these gaps, of n canaries with deviation
    2 / sqrt n, less than once in 100 times; and all is seeded."""
    plan = resolve(find_plan(scenario, (*overrides, "privacy.noise=reproducible")))
    options = Options(canaries=count, mislabelled=0, rounds=0)
    (planting,) = plantings_of(plan, options, SECRET)
    assert planting.count == count
    _, (seen,) = play_with_canaries(plan, (planting,), tmp_path / "run", INLINE)
    assert gap(seen.scores, seen.coins) > least


def test_wrong_labels_are_found_along_their_gradients_and_in_their_losses(tmp_path: Path) -> None:
    """Without privacy, where there is something to find: 200 of them reach .6 by chance with probability below 1e-4."""
    plan = plan_of("digits-plain", "evaluation.where=none", "federation.rounds=15")
    clients = audit_clients(plan_of())
    planting = planting_for(plan, "mislabelled", 200, clients, SECRET)
    folder, (gradient, loss) = play_with_canaries(plan, (planting,), tmp_path / "run", INLINE)
    assert (gradient.way, loss.way) == ("gradient", "loss")
    assert gap(gradient.scores, gradient.coins) > 0.6
    assert gap(loss.scores, loss.coins) > 0.6
    canaries = records_of(plan, planting)
    assert len(canaries.records) == len(canaries.owners) == len(canaries.coins) == len(gradient.scores)
    assert folder.summary.is_file()


def audit_clients(plan: Plan) -> tuple[str, ...]:
    (planting,) = plantings_of(plan, Options(canaries=10, mislabelled=0, rounds=0), SECRET)
    return planting.clients


def test_an_audit_of_a_sound_plan_is_consistent_and_written_beside_its_run(tmp_path: Path) -> None:
    plan = plan_of()
    found = play(plan, tmp_path / "run", rounds=20)
    assert not is_broken(found.findings)
    assert [(one.looked_for, one.way, one.method) for one in found.findings] == [
        ("mislabelled", "gradient", "epsilon-delta"),
        ("mislabelled", "gradient", "trade-off"),
        ("mislabelled", "loss", "epsilon-delta"),
        ("mislabelled", "loss", "trade-off"),
        ("gradients", "coordinate", "epsilon-delta"),
        ("gradients", "coordinate", "trade-off"),
        ("round", "round", "many-runs"),
        ("round", "round", "trade-off"),
    ]
    assert sum(one.alpha or 0.0 for one in found.findings) == pytest.approx(FALSE_ALARMS)
    for one in found.findings:
        assert one.epsilon <= one.claimed
        assert one.epsilon <= one.power + 1e-9
        assert one.verdict == ("uninformative" if one.power < one.claimed else "consistent")
    assert found.folder is not None
    written = json.loads(found.folder.audit.read_text())
    schema = json.loads((ROOT / "docs/schemas/audit.schema.json").read_text())
    Draft202012Validator(schema).validate(written)
    assert written["plan_digest"] == plan.digest() == found.folder.read_summary()["plan_digest"]


def test_a_report_shows_the_audit_of_its_own_plan_alone(tmp_path: Path) -> None:
    found = play(plan_of(), tmp_path / "run", mislabelled=0)
    run = RunFolder(tmp_path / "run")
    page = write_report(run).read_text()
    assert "What an adversary really found" in page
    report = json.loads((run.path / "report.json").read_text())
    assert [row["method"] for row in report["audit"]] == ["epsilon-delta", "trade-off"]
    written = json.loads(run.audit.read_text())
    run.audit.write_text(
        json.dumps({**written, "findings": [{**row, "verdict": "broken"} for row in written["findings"]]})
    )
    write_report(run)
    assert json.loads((run.path / "report.json").read_text())["status"] == "withdrawn"
    run.audit.write_text(json.dumps({**written, "plan_digest": "0" * 64}))
    with pytest.raises(UsageError, match=r"audit\.json: is of another plan"):
        write_report(run)
    row = written["findings"][0]
    for damaged in ([{**row, "epsilon": float("nan")}], [{**row, "claimed": "8"}], ["no row"], [{}]):
        run.audit.write_text(json.dumps({**written, "findings": damaged}))
        with pytest.raises(UsageError, match=r"audit\.json: is damaged"):
            write_report(run)
    run.audit.write_text("[]")
    with pytest.raises(UsageError, match=r"audit\.json: is no audit"):
        write_report(run)
    keep_beside(run, found)
    write_report(run)


FULL = ("training.sample_rate=1", "training.expected_batch_size=10")


@pytest.mark.parametrize(
    ("scenario", "overrides"),
    [
        ("digits", ()),
        ("digits", ("privacy.clipping=per-layer",)),
        (
            "digits",
            ("privacy.trust=distributed", "federation.strategy=fedavgm", "training.momentum=0", "training.steps=1"),
        ),
    ],
)
def test_one_rounds_release_moves_by_the_canary_and_its_noise_by_no_more(
    scenario: str, overrides: tuple[str, ...]
) -> None:
    """With next to no noise, a round's movement is what clipping leaves of the canary."""
    plan = plan_of(scenario, *overrides, "privacy.epsilon=400", *FULL)
    releases = OneRound(plan)
    planted = np.array([releases.moved(planted=True, coordinate=3, seed=s) for s in range(12)])
    without = np.array([releases.moved(planted=False, coordinate=3, seed=s + 100) for s in range(12)])
    assert planted.mean() - without.mean() > 3 * without.std() / np.sqrt(6)  # of two means over 12
    assert len(set(without)) == 12, "each release has noise of its own"


def test_what_claims_nothing_or_can_not_be_audited_is_refused() -> None:
    for plan, problem in (
        (plan_of("digits-plain"), "claims nothing"),
        (plan_of("digits", "personal.kind=head", "evaluation.where=clients", "evaluation.every=3"), "personal"),
    ):
        with pytest.raises(UsageError, match=problem):
            audit(plan, Path("nowhere"), INLINE, Options(), say=lambda text: None)
    with pytest.raises(UsageError, match="one round can be audited"):
        OneRound(plan_of("digits-central"))
    for few, problem in (
        ({"rounds": 1}, "at least 2 rounds"),
        ({"shadows": 3}, "at least 4"),
        ({"shadows": 4, "candidates": 19}, "at least 20"),
    ):
        with pytest.raises(UsageError, match=problem):
            play(plan_of(), Path("nowhere"), **few)
    assert not Path("nowhere").exists(), "found out before the run was played"
    with pytest.raises(UsageError, match="nothing was asked for"):
        play(plan_of(), Path("nowhere"), canaries=0, mislabelled=0)


def test_a_run_that_released_nothing_or_diverged_is_no_audit(tmp_path: Path) -> None:
    """Nothing would be found in it, and that would look like a claim that holds."""
    with pytest.raises(RunError, match=r"budget.*: no round was played"):
        play(plan_of("digits", "privacy.budget=0.5"), tmp_path / "budget")
    judged = ("evaluation.where=server", "federation.rounds=1", "training.learning_rate=1e30")
    with pytest.raises(RunError, match=r"judged: "):
        play(plan_of("digits", *judged), tmp_path / "judged")
    with pytest.raises(RunError, match="diverged"):
        finite(np.array([0.0, np.nan]))


def test_a_person_is_as_many_records_as_they_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its canary moves a round's release that much further than a record's, and so tells whether that is charged."""
    shifts = []
    for most in (1, 4):
        plan = plan_of("digits", "training.steps=1", "privacy.epsilon=400", *FULL)
        releases = OneRound(plan)
        people = plan.model_copy(update={"data": plan.data.model_copy(update={"max_rows_per_person": most})})
        monkeypatch.setattr(releases, "_place", replace(releases._place, plan=people))
        planted, without = (
            np.mean([releases.moved(planted=there, coordinate=0, seed=s) for s in range(8)]) for there in (True, False)
        )
        shifts.append(planted - without)
    assert shifts[1] > 3 * shifts[0] > 0


def test_a_run_is_audited_by_its_own_plan(tmp_path: Path) -> None:
    play(plan_of(), tmp_path / "run", mislabelled=0)
    plan, run = audited_plan(str(tmp_path / "run"), ())
    assert plan.digest() == plan_of().digest()
    assert run is not None
    with pytest.raises(UsageError, match="--set: a run has the plan"):
        audited_plan(str(tmp_path / "run"), ("training.steps=1",))
    assert audited_plan("digits", SMALL)[1] is None


def test_claims_are_the_ledgers_own() -> None:
    plan = plan_of()
    claim = claim_of(plan)
    assert claim.epsilon == pytest.approx(8.0, rel=1e-3)
    assert claim.delta == plan.privacy.delta


def test_unasked_as_many_canaries_as_can_contradict_the_claim() -> None:
    for epsilon in (1.0, 4.0, 8.0):
        curve = of_gaussian(mu_of(epsilon, 1e-5))
        claim = Claim(trust="local", epsilon=epsilon, delta=1e-5, curve=curve)
        count = enough(claim, alpha=1e-4)
        assert can_contradict(count, claim, alpha=1e-4)
        assert count == 500 or not can_contradict(round(count / 1.6), claim, alpha=1e-4)
    assert enough(replace(claim, epsilon=1.0), alpha=1e-4) == count, "its own curve is to be ruled out, too"
    assert enough(replace(claim, epsilon=50.0), alpha=1e-4) == MOST_CANARIES


def test_verdicts() -> None:
    base: dict[str, Any] = {
        "looked_for": "gradients",
        "way": "coordinate",
        "method": "trade-off",
        "trust": "local",
        "claim": "run",
        "epsilon": 2.0,
        "claimed": 8.0,
        "delta": 1e-5,
        "alpha": 1e-3,
        "power": 9.0,
        "trials": 10,
        "guesses": 10,
        "correct": 9,
    }
    assert Finding(**base).verdict == "consistent"
    assert Finding(**{**base, "power": 7.9}).verdict == "uninformative"
    assert Finding(**{**base, "contradicted": True}).verdict == "broken"
    above = {**base, "epsilon": 8.1}
    assert Finding(**above).verdict == "consistent", "another mechanism's epsilon, while its own curve isn't ruled out"
    assert Finding(**above, contradicted=True).verdict == "broken"
    for method in ("epsilon-delta", "many-runs"):
        assert Finding(**{**above, "method": method}).verdict == "broken"
        assert Finding(**{**base, "method": method}).verdict == "consistent"
    estimate = Finding(**{**base, "epsilon": 80.0, "method": "one-shot", "alpha": None, "power": 90.0})
    assert estimate.verdict == "consistent", "an estimate never breaks a claim"
    assert is_broken([Finding(**base), Finding(**{**above, "method": "many-runs"})])
    assert not is_broken([Finding(**base), estimate])
