"""docs/accounting.md is believed by people who can't recompute it: its figures are those of the code."""

import math
from pathlib import Path

import pytest

from privacy.accountant import curve, epsilon, renyi
from privacy.calibration import noise_multiplier_for, rounds_affordable
from privacy.lifetime import Limit
from privacy.meaning import meaning
from privacy.mechanisms import ClientLevel, DpSgd, NoisyCounts
from privacy.rdp import ORDERS

TEXT = " ".join((Path(__file__).parents[2] / "docs" / "accounting.md").read_text(encoding="utf-8").split())

ROUND = DpSgd(noise_multiplier=1.0, sample_rate=0.032, steps=31)
PERSON = DpSgd(noise_multiplier=1.0, sample_rate=0.032, steps=31, records_per_unit=5)
COUNTS = NoisyCounts(noise=20.0)
DELTA = 1e-5


def test_the_running_example() -> None:
    rough, whole, fine = (spent.epsilon for spent in curve([ROUND] * 20, [1e-3, 1e-5, 1e-9]))
    assert f"epsilon = {whole:.3f} at delta = 1e-5" in TEXT
    assert f"also ({rough:.3f}, 1e-3) and ({fine:.3f}, 1e-9)" in TEXT
    assert f"RDP is looser: {epsilon([ROUND] * 20, DELTA).rdp_epsilon:.3f} in the example" in TEXT
    assert f"an epsilon of {whole:.1f} for a record is one of {epsilon([PERSON] * 20, DELTA).epsilon:.1f}" in TEXT
    assert f"each of {len(ORDERS)} *orders* alpha" in TEXT


def test_gdp_is_wrong() -> None:
    truth = epsilon([DpSgd(noise_multiplier=1.0, sample_rate=0.01, steps=1000)], DELTA).epsilon
    assert f"1.618 where the truth is {truth:.3f}" in TEXT


def test_cohorts() -> None:
    poisson = ClientLevel(noise_multiplier=1.0, cohort="poisson", rate=0.05, rounds=100)
    fixed = ClientLevel(noise_multiplier=1.0, cohort="fixed", size=50, of=1000, rounds=100)
    cost = [epsilon([release], 1e-4).epsilon for release in (poisson, fixed)]
    assert f"cost {cost[0]:.2f} with Poisson cohorts and {cost[1]:.0f} with fixed ones" in TEXT


def test_counts() -> None:
    alone, both = epsilon([COUNTS] * 20, DELTA).epsilon, epsilon([ROUND, COUNTS] * 20, DELTA).epsilon
    assert f"cost {alone:.2f} alone, but raise the whole from 5.133 to only {both:.3f}" in TEXT.replace(
        "5.334:", "5.334"
    )
    ask = {"epsilon": 5.0, "delta": DELTA, "sample_rate": 0.032, "steps": 620}
    without = noise_multiplier_for(**ask)  # type: ignore[arg-type]
    covered = noise_multiplier_for(**ask, also=[COUNTS] * 20)  # type: ignore[arg-type]
    assert f"the noise multiplier is {without} without the counts and {covered} with them" in TEXT


def test_the_filter_admits_fewer_rounds_than_a_plan() -> None:
    order, most = Limit(epsilon=8.0, delta=DELTA).order_and_divergence()
    filtered = math.floor(most / renyi([ROUND], order))
    planned = rounds_affordable([ROUND], epsilon=8.0, delta=DELTA)
    assert f"it admits {filtered} rounds like those of the example, where PLD alone would admit {planned}" in TEXT


@pytest.mark.parametrize("column", [0, 1])
def test_what_it_means(column: int) -> None:
    runs = [[ROUND] * 20, [DpSgd(noise_multiplier=2.5, sample_rate=0.032, steps=31)] * 20]
    found = meaning(runs[column], failure=DELTA)
    rows = [
        ("largest advantage (true positives minus false positives)", found.advantage),
        ("members found, at 1 % false accusations", found.found_at_1_percent),
        ("members found, at 0.1 % false accusations", found.found_at_0_1_percent),
        ("someone who gave 50:50 can be this sure at most", found.certainty),
    ]
    for name, value in rows:
        cells = TEXT.split(f"| {name} | ")[1].split(" |")[:2]
        assert float(cells[column].strip("| ").removesuffix(" %")) == pytest.approx(100 * value, abs=0.1)
        assert float(cells[column].strip("| ").removesuffix(" %")) >= 100 * value - 1e-9
    assert f"(epsilon {epsilon(runs[column], DELTA).epsilon:.1f})" in TEXT
