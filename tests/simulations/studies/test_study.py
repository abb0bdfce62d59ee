"""Studies: cells are played once, kept, and told as figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from security.errors import UsageError
from shared_models.plan import Plan
from simulations.scenarios import find_plan
from simulations.studies import study
from simulations.studies.study import Cell, Result, interval, paired, play, values_of

SMALL = ("federation.rounds=2", "training.steps=1", "data.partition.clients=2", "model.name=linear", "model.options={}")


def plan(*overrides: str) -> Plan:
    return find_plan("digits-plain", (*SMALL, *overrides))


CARD = ('data.card.classes=["a", "b"]', "data.card.input_shape=[4]")
CELLS = [Cell(name="plain", plan=plan(), seed=seed) for seed in (1, 2)]


def test_cells_are_played_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = play(CELLS[:1], tmp_path)
    said: list[str] = []
    both = play(CELLS, tmp_path, say=said.append)
    assert both[0] == first[0]
    assert [one.seed for one in both] == [1, 2]
    assert len(said) == 1
    assert both[0].final["accuracy"] != both[1].final["accuracy"]
    assert both[0].digest == CELLS[0].resolved().digest()
    monkeypatch.setattr(study, "_run", lambda *_: pytest.fail("it was played already"))
    assert play(CELLS, tmp_path) == both


def test_a_cell_with_another_plan_is_another_cell(tmp_path: Path) -> None:
    before = play(CELLS[:1], tmp_path)
    after = play([Cell(name="plain", plan=plan("training.learning_rate=0.01"), seed=1)], tmp_path)
    assert after != before
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


def test_a_line_that_was_cut_off_is_played_again(tmp_path: Path) -> None:
    play(CELLS[:1], tmp_path)
    kept = tmp_path / "results.jsonl"
    kept.write_text(kept.read_text()[:-20])
    assert play(CELLS[:1], tmp_path)[0].seed == 1


def test_processes_give_the_same_figures(tmp_path: Path) -> None:
    alone, together = play(CELLS, tmp_path / "one"), play(CELLS, tmp_path / "two", processes=2)
    assert [one.final for one in alone] == [one.final for one in together]


def test_a_cell_that_fails_ends_the_study_before_the_rest_is_played(tmp_path: Path) -> None:
    broken = plan("data.name=npz", f"data.path={tmp_path / 'nothing.npz'}", *CARD)
    cells = [Cell(name="broken", plan=broken, seed=1), *(Cell(name="plain", plan=plan(), seed=n) for n in range(20))]
    with pytest.raises(UsageError, match=r"nothing\.npz"):
        play(cells, tmp_path, processes=2)
    kept = tmp_path / "results.jsonl"
    assert not kept.exists() or len(kept.read_text().splitlines()) < 20


def test_an_interval_is_students() -> None:
    values = [0.1, 0.4, 0.35, 0.8, 0.2]
    found = interval(values)
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 5)
    assert interval([0.3]).low == interval([0.3]).high == 0.3


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    found = paired({1: 0.5, 2: 0.7, 3: 0.9}, {2: 0.6, 3: 0.7, 4: 0.0})
    assert found.mean == pytest.approx(0.15)
    assert found.n == 2


def test_values_are_those_of_one_row() -> None:
    def result(name: str, seed: int, score: float) -> Result:
        return Result(
            name=name,
            seed=seed,
            digest="",
            final={"auc": score},
            epsilon=None,
            noise_multiplier=None,
            seconds=1.0,
            up=None,
            down=None,
        )

    rows = [result("a", 1, 0.5), result("b", 1, 0.6), result("a", 2, 0.7)]
    assert values_of(rows, "a", "auc") == {1: 0.5, 2: 0.7}
    assert math.isclose(interval(list(values_of(rows, "a", "auc").values())).mean, 0.6)
