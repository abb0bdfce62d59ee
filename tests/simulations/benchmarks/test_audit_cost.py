"""The table of what audits cost has a line for each plan; how fast a busy machine is, no test can say."""

from __future__ import annotations

import pytest

from shared_models.resolve import resolve
from simulations.audit.audit import Options
from simulations.benchmarks.audit_cost import Cost, line, main, measure
from simulations.scenarios import find_plan

SMALL = ("model.name=linear", "federation.rounds=1", "training.steps=1", "evaluation.where=none")


def test_plain_and_audited_runs_take_turns() -> None:
    found = measure(resolve(find_plan("digits", SMALL)), 2, Options(canaries=30, mislabelled=20))
    assert (found.canaries, found.mislabelled) == (30, 20)
    assert len(found.plain) == len(found.audited) == len(found.wall) == 2
    assert min(found.plain + found.audited + found.wall) > 0


def test_a_ratio_is_the_pairs_median() -> None:
    cost = Cost(canaries=5000, mislabelled=200, plain=(10.0, 20.0, 10.0), audited=(11.0, 30.0, 11.5), wall=(1, 2, 3))
    assert cost.ratio == pytest.approx(1.15)
    assert line("digits", cost).split() == ["digits", "5,000", "200", "10.0", "11.5", "1.15", "2.00"]


def test_a_plan_is_changed_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    main(["digits-central", "--pairs", "1", "--set", "federation.rounds=1", "--set", "data.partition.clients=20"])
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["digits-central", "10", "0"]
