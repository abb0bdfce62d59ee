"""Cases, tables and drawing of the costs of scale."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from shared_models.registry import build_for
from simulations.benchmarks.engines.measure import Figures
from simulations.benchmarks.engines.playing import Task
from simulations.benchmarks.engines.veil import plan_of
from simulations.benchmarks.scaling.__main__ import main
from simulations.benchmarks.scaling.cases import Case, Measured, cases, measure
from simulations.benchmarks.scaling.chart import draw
from simulations.benchmarks.scaling.cost_model import CostModel
from simulations.benchmarks.scaling.tables import forecasts, models, tables

TRUE = CostModel(start=2.0, client=1e-3, round=0.1, client_round=2e-3, byte=1e-9, error=0.0)


def measured(case: Case) -> Measured:
    """As if each part of the model cost what it should; the second of three warm rounds was disturbed."""
    blank = Figures(work="B", contender=case.engine, first=1.0, later=[1.0])
    (first, _), (warm, _) = Measured(case=case, figures=blank).observations()
    seconds = TRUE.seconds(warm)
    figures = Figures(
        work="B",
        contender=case.engine,
        first=TRUE.seconds(first),
        later=[seconds, 9 * seconds, seconds],
        end=0.5,
        alone=300.0,
        peak=900.0,
    )
    return Measured(case=case, figures=figures)


FOUND = [measured(case) for case in cases([100, 1000, 10_000], ["inline", "ray"], cohort=100)]
FAILED = Measured(
    case=Case(engine="ray", clients=7, cohort=7), figures=Figures(work="B", contender="ray", error="it fell over")
)


def test_everybody_takes_part_with_and_without_privacy_and_a_hundred_of_more() -> None:
    found = cases([100, 1000], ["inline"], cohort=100)
    assert [(one.clients, one.cohort, one.private, one.wide) for one in found] == [
        (100, 100, False, False),
        (1000, 1000, False, False),
        (100, 100, False, True),
        (100, 100, True, False),
        (1000, 1000, True, False),
        (100, 100, True, True),
        (1000, 100, False, False),
    ]


@pytest.mark.parametrize("wide", [False, True])
def test_bytes_are_of_the_network_that_is_trained(wide: bool) -> None:
    case = Case(engine="inline", clients=8, cohort=4, wide=wide)
    plan = plan_of(Task(contender="inline", work=case.work, data="none.npz", rounds=2, processes=1))
    assert sum(value.numel() for value in build_for(plan).parameters()) == case.parameters
    assert case.round_bytes == 2 * 4 * case.parameters * 4


def test_a_client_costs_its_part_of_the_median_warm_round() -> None:
    figures = Figures(work="B", contender="inline", first=5.0, later=[2.0, 9.0, 1.0])
    found = Measured(case=Case(engine="inline", clients=50, cohort=4), figures=figures)
    assert (found.round, found.client) == (2.0, 0.5)
    (first, five), (warm, two) = found.observations()
    assert (first.starts, first.clients, first.rounds, first.client_rounds, five) == (1, 50, 1, 4, 5.0)
    assert (warm.starts, warm.clients, warm.rounds, warm.client_rounds, two) == (0, 0, 1, 4, 2.0)
    assert FAILED.observations() == []


def test_each_engine_with_and_without_privacy_has_a_model_of_its_own() -> None:
    found = models([*FOUND, FAILED])
    assert set(found) == {("inline", False), ("inline", True), ("ray", False), ("ray", True)}
    for model in found.values():
        assert model.client_round == pytest.approx(TRUE.client_round)
        assert model.start == pytest.approx(TRUE.start)
    assert models([FAILED, FOUND[0]]) == {}


def test_forecasts_are_the_models_of_ten_thousand_and_a_million_clients() -> None:
    few, many = forecasts({("ray", False): TRUE})
    assert (few.clients, many.clients) == (10_000, 1_000_000)
    each = TRUE.client_round + TRUE.byte * 2 * 4 * (65 * 32 + 33 * 10)
    assert many.everybody == pytest.approx(0.1 + 1e6 * each)
    assert few.some == pytest.approx(2 + 10_000 * 1e-3 + 100 * (0.1 + 1000 * each))


def test_tables_say_what_is_measured_and_what_is_not() -> None:
    console = Console(width=200, no_color=True)
    with console.capture() as shown:
        for table in tables([*FOUND, FAILED], models(FOUND)):
            console.print(table)
    text = shown.get()
    assert (
        text.index("Measured")
        < text.index("Cost model, fitted")
        < text.index("Extrapolated by the model, not measured")
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows[0] == ["inline", "none", "100", "100", "2,410", "0.302", "3.02", "2.4", "0.5", "300", "900"]
    assert ["ray", "none", "7", "7", "2,410", "-", "-", "-", "-", "-", "-"] in rows
    assert rows[-1][:3] == ["ray", "DP-SGD", "1,000,000"]


def test_the_drawing_has_a_line_for_each_kind_and_a_point_for_each_size() -> None:
    root = ET.fromstring(str(draw([*FOUND, FAILED])))
    space = "{http://www.w3.org/2000/svg}"
    names = {one.text for one in root.iter(f"{space}text")}
    assert {"inline", "ray", "inline, DP-SGD", "ray, DP-SGD", "100", "10,000"} <= names
    assert len(list(root.iter(f"{space}polyline"))) == 4
    with pytest.raises(ValueError, match="no figures"):
        draw([Measured(case=Case(engine="ray", clients=5, cohort=5), figures=FAILED.figures)])


def test_a_case_is_played_in_a_process_of_its_own(tmp_path: Path) -> None:
    case = Case(engine="inline", clients=3, cohort=2, private=True)
    (found,) = measure([case], rounds=2, processes=1, folder=tmp_path)
    figures = found.figures
    assert figures.error is None
    assert len(figures.later) == 1
    assert figures.parameters == case.parameters
    assert figures.end is not None
    assert figures.end > 0  # statements, summary and report
    assert figures.alone is not None
    assert figures.alone > 50  # MB: torch is in it


def test_the_command_writes_figures_models_and_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def played(task: Task, label: str, *, folder: Path) -> Figures:
        work = task.work
        wide = work.options["hidden"] != [32]
        case = Case(engine=label, clients=work.users, cohort=work.cohort, private=work.private, wide=wide)
        assert Path(task.data).is_file()
        return measured(case).figures

    monkeypatch.setattr("simulations.benchmarks.scaling.cases.run", played)
    files = ("--folder", str(tmp_path), "--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.svg"))
    main(["--clients", "3", "20", "--engine", "inline", "--rounds", "2", "--cohort", "5", *files])
    kept = json.loads((tmp_path / "x.json").read_text())
    assert len(kept["measured"]) == len(cases([3, 20], ["inline"], cohort=5))
    assert {one["figures"]["error"] for one in kept["measured"]} == {None}
    assert [(one["engine"], one["private"]) for one in kept["models"]] == [("inline", False), ("inline", True)]
    assert kept["models"][0]["client_round"] == pytest.approx(TRUE.client_round)
    assert [one["clients"] for one in kept["extrapolated"]] == [10_000, 1_000_000] * 2
    assert ET.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("wrong", [("--rounds", "1"), ("--clients", "0"), ("--cohort", "0"), ("--engine", "other")])
def test_numbers_that_make_no_sense_are_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
