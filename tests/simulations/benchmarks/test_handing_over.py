"""The benchmark of handed-over models says what the files hold, and repeats no finished run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from security.errors import UsageError
from server.run_folder import RunFolder
from simulations.benchmarks.handing_over import CASES, OUTPUTS, Row, markdown, measure

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SMALL = replace(CASES["cnn"], model="linear", rounds=1, training={"steps": 20, "learning_rate": 0.01})


def test_every_form_has_its_score_size_and_difference(tmp_path: Path) -> None:
    plan = SMALL.plan("small")
    rows = measure("small", plan, tmp_path / "run")
    assert [row.output for row in rows] == ["torch", *(output.name for output in OUTPUTS)]
    assert all(not row.error for row in rows)
    whole, *others = rows
    assert whole.bytes == 4 * (64 * 10 + 10)
    final = RunFolder(tmp_path / "run").read_summary()["final"]
    assert whole.score == pytest.approx(final["accuracy"], abs=1e-9)  # the same records, before they are normalised
    for row in others:
        facts = json.loads(
            (
                tmp_path
                / "run"
                / "export"
                / row.output.replace(" ", "").replace(",", "-").replace("%", "")
                / "check.json"
            ).read_text()
        )
        assert (row.difference, row.bytes, row.milliseconds, row.batch_milliseconds) == (
            facts["largest_difference"],
            facts["bytes"],
            facts["milliseconds"],
            facts["batch_milliseconds"],
        )
    by_name = {row.output: row for row in rows}
    assert by_name["onnx"].score == whole.score
    assert by_name["onnx"].difference < 1e-5  # type: ignore[operator]
    assert by_name["onnx, 70 % pruned"].difference > by_name["onnx, 30 % pruned"].difference > 1e-3  # type: ignore[operator]

    written = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    assert measure("small", plan, tmp_path / "run", OUTPUTS[:1])[0].score == whole.score
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="holds a run of another plan"):
        measure("small", replace(SMALL, rounds=2).plan("small"), tmp_path / "run")


def test_what_cannot_be_exported_stays_in_the_table() -> None:
    rows = [
        Row(model="a", data="b", output="torch", score=0.5, bytes=4000, milliseconds=1.0, batch_milliseconds=2.0),
        Row(model="a", data="b", output="onnx", error="no"),
    ]
    lines = markdown(rows).splitlines()
    assert lines[2] == "| a (b) | torch | 0.5000 |  | 4 | 1 | 2 |"
    assert lines[3].startswith("| a (b) | onnx | can't be |")
