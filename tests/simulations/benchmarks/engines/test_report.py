"""Tables, file and drawing of the engines' figures."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from simulations.benchmarks.engines import __main__ as command
from simulations.benchmarks.engines import measure as module
from simulations.benchmarks.engines.chart import draw
from simulations.benchmarks.engines.measure import Figures
from simulations.benchmarks.engines.tables import rows, tables
from simulations.benchmarks.engines.works import WORKS
from tests.simulations.benchmarks.engines.conftest import small

FOUND = [
    Figures(work="B", contender="floor", first=5.0, later=[1.0, 3.0], peak=100.0),
    Figures(work="B", contender="ray", first=20.0, later=[4.0, 8.0], peak=900.0),
    Figures(work="B", contender="floor", repeat=2, first=7.0, later=[2.0, 2.0], peak=90.0),
    Figures(work="B", contender="ray", repeat=2, error="it fell over"),
    Figures(work="C", contender="flower", first=9.0, later=[1.0], peak=50.0),
    Figures(work="C", contender="pfl", error="it can't"),
]


def test_a_row_is_of_medians_over_all_runs_and_the_ratio_is_to_the_floors() -> None:
    floor, ray, flower, pfl = rows(FOUND)
    assert (floor.round, floor.ratio, floor.start_up, floor.peak, floor.error) == (2.0, 1.0, 6.0, 100.0, None)
    assert (ray.round, ray.ratio, ray.start_up, ray.peak, ray.error) == (6.0, 3.0, 20.0, 900.0, "it fell over")
    assert (flower.round, flower.ratio) == (1.0, None)  # nothing to compare with
    assert (pfl.round, pfl.start_up, pfl.peak, pfl.error) == (None, None, None, "it can't")


def test_a_table_has_a_line_a_contender() -> None:
    console = Console(width=120, no_color=True)
    with console.capture() as shown:
        for table in tables(FOUND, [WORKS["A"], WORKS["B"], WORKS["C"]]):
            console.print(table)
    text = shown.get()
    assert "A: " not in text  # nobody played it
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert lines == [
        ["floor", "2.000", "1.00", "6.0", "100"],
        ["ray", "6.000", "3.00", "20.0", "900"],
        ["flower", "1.000", "-", "9.0", "50"],
        ["pfl", "-", "-", "-", "-"],
    ]


def test_the_drawing_has_a_bar_for_each_ratio_but_the_floors() -> None:
    root = ET.fromstring(str(draw(rows(FOUND))))
    spaced = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in root.iter(f"{spaced}text")]
    assert len(list(root.iter(f"{spaced}rect"))) == 1
    assert {"work B", "work C", "ray", "3.00", "pfl"} <= set(texts)
    assert "floor" not in texts
    height = float(root.attrib["height"])
    assert all(0 <= float(one.attrib["y"]) <= height for one in root.iter(f"{spaced}text"))


def test_a_drawing_of_nothing_is_a_drawing() -> None:
    assert "<svg" in draw([])


def test_the_command_writes_table_file_and_drawing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WORKS, "B", small("B"))
    given = ["--works", "B", "--contenders", "floor", "inline", "--rounds", "3", "--repeats", "1", "--processes", "1"]
    out = ["--json", str(tmp_path / "new" / "e.json"), "--plot", str(tmp_path / "e.svg"), "--folder", str(tmp_path)]
    command.main([*given, *out])
    kept = json.loads((tmp_path / "new" / "e.json").read_text())
    found = [Figures(**one) for one in kept["figures"]]
    assert [(one.contender, one.error, len(one.later)) for one in found] == [("floor", None, 2), ("inline", None, 2)]
    assert kept["cores"] >= 1
    assert kept["versions"]["torch"]
    assert kept["data"] == {"B": "digits"}
    assert kept["works"]["B"]["users"] == 6
    assert (kept["rounds"], kept["repeats"], kept["processes"]) == (3, 1, 1)
    assert ET.parse(tmp_path / "e.svg").getroot().tag.endswith("svg")
    printed = capsys.readouterr().out
    assert "over floor" in printed
    assert "6 users x 12 records" in printed


def test_a_failing_contender_is_told_below_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WORKS, "B", small("B"))
    failed = Figures(work="B", contender="floor", error="it fell over")
    monkeypatch.setattr(module, "run", lambda *_, **__: failed)
    command.main(["--works", "B", "--contenders", "floor", "--repeats", "1", "--folder", str(tmp_path)])
    assert "B, floor: it fell over" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--rounds", "1"], ["--repeats", "0"], ["--works", "Z"], ["--contenders", "me"]])
def test_what_cannot_be_measured_is_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(given)
