"""The benchmark of private steps measures what it says: every engine makes real steps, and what fails is told."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from simulations.benchmarks import dp_step
from simulations.benchmarks.dp_cases import CASES, Case
from simulations.benchmarks.dp_step import ENGINES, Row, growth, main, measure, step_of

SMALL = Case(lambda _: nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), lambda n: torch.randn(n, 4, 4), 8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["cnn", "transformer", "lstm"])
def test_every_engines_step_changes_what_is_trained_and_nothing_else(engine: str, name: str) -> None:
    made: list[nn.Module] = []
    case = Case(lambda kind: made.append(CASES[name].make(kind)) or made[-1], CASES[name].inputs, 2)  # type: ignore[func-returns-value]
    with step_of(engine, case) as step:
        before = {key: value.detach().clone() for key, value in made[0].named_parameters()}
        step()
        after = dict(made[0].named_parameters())
        assert all(torch.isfinite(value).all() for value in after.values())
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed  # not each: the bias of an attention's keys has no gradient
        assert all(after[key].requires_grad for key in changed)


def test_adapters_alone_are_trained_in_the_encoder_with_lora() -> None:
    model = CASES["minilm lora"].make("veil")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 2)[-2] for name in trained} == {"down", "up", "head"}


@pytest.mark.filterwarnings("ignore")
def test_what_an_engine_can_not_train_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        CASES,
        "mixing",
        Case(lambda _: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 10)), SMALL.inputs, 8),
    )
    rows = {row.engine: row for row in measure("mixing", runs=1, threads=1, engines=("plain", "veil"))}
    assert rows["plain"].cpu is not None
    assert rows["veil"].cpu is None
    assert "mixes examples" in str(rows["veil"].error)


def test_growth_is_of_the_steps_alone() -> None:
    assert 0 <= growth("mlp", "plain") < 200


@pytest.mark.filterwarnings("ignore")
def test_the_table_and_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CASES, "mlp", SMALL)
    monkeypatch.setattr(dp_step, "_measured_apart", lambda row: 2.0 if row.engine == "plain" else 3.0)
    threads = torch.get_num_threads()
    main(["--models", "mlp", "--runs", "2", "--threads", "1", "--json", str(tmp_path / "steps.json")])
    assert torch.get_num_threads() == threads
    rows = [Row(**row) for row in json.loads((tmp_path / "steps.json").read_text())]
    assert [row.engine for row in rows] == [*ENGINES, "noise"]
    assert all(row.cpu and row.wall and row.cpu > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "1.50 / 1.50" in printed
    assert "mlp" in printed
