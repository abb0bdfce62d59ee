"""The benchmark of private steps measures what it says: every engine makes real steps, and what fails is told."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from simulations.benchmarks.dp_cases import CASES, Case
from simulations.benchmarks.dp_step import ENGINES, PARTS, Row, main, measure, part_of, peak_memory, step_of

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


def test_memory_is_that_of_tensors_alive_together() -> None:
    def step() -> None:
        for _ in range(3):
            first = torch.ones(500_000)  # 2 MB
            del first
        both = torch.ones(250_000), torch.ones(750_000)  # 4 MB
        del both

    assert peak_memory(step) == pytest.approx(4.0, rel=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cnn", "transformer", "minilm lora"])
def test_the_passes_alone_come_down_to_the_first_trained_layer_and_make_no_parameters_gradient(name: str) -> None:
    models: list[nn.Module] = []
    outputs: list[torch.Tensor] = []

    def make(kind: str) -> nn.Module:
        model = CASES[name].make(kind)
        first = next(m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False)))
        first.register_forward_hook(lambda _, __, made: outputs.append(made))
        models.append(model)
        return model

    with part_of("passes", Case(make, CASES[name].inputs, 2)) as step:
        step()
    assert outputs[0].grad is not None
    assert all(parameter.grad is None for parameter in models[0].parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cnn", "lstm"])
@pytest.mark.parametrize("part", PARTS)
def test_parts_can_be_made_again_and_again_and_leave_nothing(name: str, part: str) -> None:
    models: list[nn.Module] = []
    case = Case(lambda kind: models.append(CASES[name].make(kind)) or models[-1], CASES[name].inputs, 2)  # type: ignore[func-returns-value]
    with part_of(part, case) as step:
        step()
        step()
    for parameter in models[0].parameters():
        assert parameter.grad is None
        assert getattr(parameter, "grad_sample", None) is None


@pytest.mark.filterwarnings("ignore")
def test_the_table_and_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CASES, "mlp", SMALL)
    threads = torch.get_num_threads()
    main(["--models", "mlp", "--runs", "2", "--threads", "1", "--json", str(tmp_path / "steps.json")])
    assert torch.get_num_threads() == threads
    rows = [Row(**row) for row in json.loads((tmp_path / "steps.json").read_text())]
    assert [row.engine for row in rows] == [*ENGINES, *PARTS]
    assert all(row.cpu and row.wall and row.cpu > 0 for row in rows)
    assert all((row.memory is not None) == (row.engine in ENGINES) for row in rows)
    printed = capsys.readouterr().out
    assert "Memory of tensors" in printed
    assert "mlp" in printed
