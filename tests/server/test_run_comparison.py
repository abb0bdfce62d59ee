"""Runs side by side: what is in the table, and that unlike runs are said to be unlike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from security.errors import UsageError
from server.run_comparison import compare
from server.run_comparison_page import html
from server.run_folder import RunFolder
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve

PRIVATE = {"trust": "local", "epsilon": 4.0}


def run(place: Path, name: str, *, plan: dict[str, Any] | None = None, **changes: Any) -> RunFolder:
    """The folder of a run that has ended, as short as can be."""
    raw = {"name": name, "model": {"name": "mlp"}, "federation": {"rounds": 2}, "privacy": {"trust": "none"}}
    for key, value in (plan or {}).items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    found = resolve(plan_from(raw, where="test"))
    folder = RunFolder(place / name)
    folder.create(found)
    privacy: dict[str, Any] = {"unit": None, "trust": "none", "claim": None, "withdrawn": [{"code": "privacy"}]}
    if found.is_private:
        privacy = {
            "unit": "record, not person", "trust": "local", "relation": "add or remove one unit", "delta": 1e-5,
            "epsilon_max": 3.9999, "claim": None, "withdrawn": [{"code": "deployed", "text": "simulated"}],
        }  # fmt: skip
    for number in (1, 2):
        line = {"round": number, "evaluation": {"accuracy": 0.4 + 0.1 * number}, "epsilon_max": 2.0 * number}
        folder.append_metrics(line)
    summary = {
        "plan_digest": found.digest(), "setting": "simulation", "rounds": 2, "stopped": None,
        "final": {"accuracy": 0.6, "loss": 1.0}, "seconds": {"total": 1.5}, "bytes": {"up": 1000, "down": 2_000_000},
        "privacy": {**privacy, **changes.pop("privacy", {})}, "faults": [],
    }  # fmt: skip
    folder.write_summary({**summary, **changes})
    return folder


def test_only_keys_that_differ_are_told_with_their_values(tmp_path: Path) -> None:
    found = compare([run(tmp_path, "a"), run(tmp_path, "b", plan={"training": {"learning_rate": 0.3}})])
    assert found.differing == ("training.learning_rate",)
    assert [row.plan for row in found.rows] == [{"training.learning_rate": 0.1}, {"training.learning_rate": 0.3}]
    assert found.notes == ()
    assert found.metrics == ("accuracy", "loss")
    assert [(point.round, point.value) for point in found.rows[0].curve] == [(1, 0.5), (2, pytest.approx(0.6))]
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("plan", "changes", "note"),
    [
        ({"data": {"name": "mnist"}}, {}, r"other data \(data\.name\)"),
        ({"seed": 8}, {}, r"judged on other records \(seed\).*whatever the seed"),
        ({"data": {"test_fraction": 0.4}}, {}, r"judged on other records \(data\.test_fraction\)"),
        ({"evaluation": {"where": "clients"}}, {}, r"judged on other records \(evaluation\.where\)"),
        ({"privacy": PRIVATE}, {}, "some runs have no privacy"),
        ({}, {"stopped": "target"}, r"stopped early: .*b \(target\)"),
        ({}, {"final": None}, "never evaluated: .*b"),
    ],
)
def test_unlike_runs_are_said_to_be_unlike(tmp_path: Path, plan: Any, changes: Any, note: str) -> None:
    found = compare([run(tmp_path, "a"), run(tmp_path, "b", plan=plan, **changes)])
    assert any(re.search(note, one) for one in found.notes), found.notes
    assert all(f'<p class="alarm">{escape(one)}' in html(found) for one in found.notes)


def test_epsilons_about_unlike_things_are_in_no_common_plot(tmp_path: Path) -> None:
    one = run(tmp_path, "one", plan={"privacy": PRIVATE})
    other = run(tmp_path, "other", plan={"privacy": PRIVATE}, privacy={"delta": 1e-6})
    found = compare([one, other])
    assert any("unlike things (delta)" in note for note in found.notes)
    page = html(found)
    assert "Left out, for their epsilons are about something else" in page
    assert "by epsilon spent" in page


def test_a_claim_is_never_shown_stronger_than_it_is(tmp_path: Path) -> None:
    simulated = run(tmp_path, "simulated", plan={"privacy": PRIVATE})
    broken = {"withdrawn": [{"code": "deployed"}, {"code": "no-client-failed"}]}
    failed = run(tmp_path, "failed", plan={"privacy": PRIVATE}, privacy=broken)
    stands = run(
        tmp_path, "stands", plan={"privacy": PRIVATE}, setting="deployment", privacy={"claim": "yes", "withdrawn": []}
    )
    endless = run(tmp_path, "endless", plan={"privacy": PRIVATE}, privacy={"epsilon_max": None})
    plain = run(tmp_path, "plain")
    found = compare([simulated, failed, stands, endless, plain])
    assert [row.claim for row in found.rows] == ["simulated", "withdrawn", "stands", "simulated", "none"]
    assert found.rows[1].conditions == ("deployed", "no-client-failed")
    page = html(found)
    assert page.count("<s>4.00</s>") == 1  # rounded up, struck out
    assert "no bound" in page
    assert page.count("<script>") == 1
    assert "style=" not in page


def test_runs_that_cannot_be_compared_at_all_are_refused(tmp_path: Path) -> None:
    one = run(tmp_path, "one")
    for folders, error in (
        ([one], "two runs or more"),
        ([one, one], "is there twice"),
        ([one, RunFolder(tmp_path / "none")], "none"),
    ):
        with pytest.raises(UsageError, match=error):
            compare(folders)
    half = run(tmp_path, "half")
    half.drop_summary()
    with pytest.raises(UsageError, match="not finished"):
        compare([one, half])


def test_the_command_writes_table_page_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.veil.test_main import run as veil

    folders = [str(run(tmp_path, name, plan={"seed": seed}).path) for name, seed in (("a", 1), ("b", 2))]
    assert veil("compare", *folders, "--html", str(tmp_path / "page.html")) == 0
    text = capsys.readouterr().out
    assert "note: the runs were judged on other records (seed)" in text
    assert str(tmp_path / "page.html") in text
    assert "AUC" not in (tmp_path / "page.html").read_text()
    assert veil("compare", *folders, "--json") == 0
    assert json.loads(capsys.readouterr().out)["differing"] == ["seed"]
    assert veil("compare", folders[0]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
