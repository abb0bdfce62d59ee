"""The study of engines: the same plan with each of them, and a table that says what was asked."""

from __future__ import annotations

from simulations.studies.engines import ENGINES, cells, report
from simulations.studies.study import Result


def test_engines_take_turns_on_plans_that_differ_in_nothing_else() -> None:
    made = cells([1, 2])
    assert [(cell.seed, cell.name) for cell in made] == [(seed, engine) for seed in (1, 2) for engine in ENGINES]
    plans = [cell.resolved() for cell in made if cell.seed == 1]
    assert [plan.training.dp_engine for plan in plans] == list(ENGINES)
    same = [
        plan.model_copy(update={"training": plan.training.model_copy(update={"dp_engine": "opacus"})}) for plan in plans
    ]
    assert same[0] == same[1]
    assert same[0].is_private


def test_the_table_has_means_times_and_the_difference() -> None:
    def result(name: str, seed: int, accuracy: float, seconds: float) -> Result:
        facts = {"digest": "", "epsilon": 8.0, "noise_multiplier": 1.0, "up": 0, "down": 0}
        return Result(name=name, seed=seed, final={"accuracy": accuracy}, seconds=seconds, **facts)  # type: ignore[arg-type]

    text = report(
        [
            *(result("bookkeeping", seed, 0.80 + seed / 100, 100.0 * seed) for seed in (1, 2, 3)),
            *(result("opacus", seed, 0.81 + seed / 100, 150.0 * seed) for seed in (1, 2, 3)),
        ]
    )
    assert text.splitlines()[1].split() == ["bookkeeping", "82.00", "81.00", "83.00", "200"]
    assert "opacus takes 1.50 times as long" in text
    assert "less that of opacus: -1.00 [-1.00, -1.00]" in text
