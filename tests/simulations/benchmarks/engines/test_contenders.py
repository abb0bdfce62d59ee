"""Contenders do the work that is asked for: each in small, as the benchmark runs it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client import company_trainer
from shared_models.mlp import Mlp
from simulations.benchmarks.engines import floor, veil
from simulations.benchmarks.engines.measure import Figures, cases, run
from simulations.benchmarks.engines.training import flat, load_arrays, network, set_flat, train
from tests.simulations.benchmarks.engines.conftest import TaskMaker, small

PFL = Path("build/engines/pfl")


def check(found: Figures, parameters: int) -> None:
    assert found.error is None
    assert found.parameters == parameters
    assert found.imports is not None
    assert found.first is not None
    assert 0 < found.imports < found.first
    assert len(found.later) == 1
    assert found.later[0] > 0
    assert found.peak is not None
    assert found.peak > 100  # torch alone takes more
    assert found.change is not None
    assert 0 < found.change < 100
    assert found.versions["torch"] == torch.__version__


def test_the_floor_in_processes_makes_the_models_of_a_loop(task_of: TaskMaker) -> None:
    task = task_of("floor", "B", rounds=3)
    x, y = load_arrays(task.data)
    model = network(task.work, seed=task.seed)
    expected = flat(model)
    for number, found in enumerate(floor.models(task), start=1):
        changes = []
        for user in floor.cohort(task, number):
            set_flat(model, expected)
            own = slice(12 * user, 12 * user + 12)
            train(model, x[own], y[own], task.work, seed=floor.seed_of(task, number, int(user)))
            changes.append(flat(model) - expected)
        expected = expected + torch.stack(changes).mean(dim=0)
        torch.testing.assert_close(found, expected)
    assert number == 3


def test_a_process_of_the_floor_that_dies_ends_it(task_of: TaskMaker) -> None:
    task = task_of("floor", "B", processes=1)
    beyond = dataclasses.replace(task, work=dataclasses.replace(task.work, shape=(65,)))  # the arrays are of 64
    with pytest.raises(RuntimeError, match="a process of the floor died"):
        list(floor.models(beyond))


def test_local_training_is_an_epoch_of_sgd(task_of: TaskMaker) -> None:
    task = task_of("floor", "B")
    x, y = (one[:12] for one in load_arrays(task.data))
    model = network(task.work, seed=1)
    by_hand = copy.deepcopy(model)
    train(model, x, y, task.work, seed=5)  # twelve records fit one batch of twenty
    loss = nn.functional.cross_entropy(by_hand(x), y)
    gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
    stepped = torch.cat([(p - 0.1 * g).flatten() for p, g in zip(by_hand.parameters(), gradients, strict=True)])
    torch.testing.assert_close(flat(model), stepped.detach())


@pytest.mark.filterwarnings("ignore")
def test_private_local_training_leaves_a_model_that_can_be_trained_again(task_of: TaskMaker) -> None:
    task = task_of("floor", "C-private")
    x, y = (one[:12] for one in load_arrays(task.data))
    model = network(task.work, seed=1)
    models = [flat(model)]
    for seed in (1, 2, 1):
        set_flat(model, models[0])
        train(model, x, y, task.work, seed=seed)
        models.append(flat(model))
    assert not any(torch.equal(one, models[0]) for one in models[1:])
    assert torch.isfinite(models[3]).all()
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_floor_and_veil_train_on_the_same_number_of_examples(
    task_of: TaskMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward, batches_of = Mlp.forward, company_trainer.batches_of

    def counted(*given: Any, **named: Any) -> Iterator[Tensor]:
        for batch in batches_of(*given, **named):
            seen.append(len(batch))
            yield batch

    monkeypatch.setattr(company_trainer, "batches_of", counted)
    task = task_of("inline", "B")
    veil.play(task)
    by_veil, asked = sum(seen), task.rounds * task.work.cohort * task.work.records
    seen.clear()
    monkeypatch.setattr(Mlp, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))  # type: ignore[func-returns-value]
    x, y = load_arrays(task.data)
    model = network(task.work, seed=1)
    for number in range(1, task.rounds + 1):
        for user in floor.cohort(task, number):
            train(model, x[12 * user : 12 * user + 12], y[12 * user : 12 * user + 12], task.work, seed=1)
    assert by_veil == sum(seen) == asked


def test_veils_plan_trains_on_all_records_by_sgd_and_judges_nothing(task_of: TaskMaker) -> None:
    plan = veil.plan_of(task_of("ray", "A"))
    assert (plan.training.epochs, plan.training.expected_batch_size, plan.training.learning_rate) == (1, 10, 0.1)
    assert (plan.training.optimizer, plan.training.momentum, plan.training.threads) == ("sgd", 0.0, 1)
    assert (plan.data.test_fraction, plan.evaluation.where) == (0.0, "none")
    assert plan.federation.cohort.model_dump() == {"sampling": "fixed", "size": 4}
    assert plan.data.partition.model_dump() == {"kind": "iid", "clients": 6}


def test_the_floor(task_of: TaskMaker) -> None:
    check(run(task_of("floor", "A", processes=1), "floor"), 1_626_442)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
def test_veil_privately_by_both_engines(task_of: TaskMaker, engine: str) -> None:
    """Here, not in a process of its own: `test_report` runs one."""
    played = veil.play(task_of("inline", "C-private", dp_engine=engine))
    assert (played.updates, played.parameters) == ([4, 4], 25_906)
    assert played.imported < played.rounds[0] < played.rounds[1]
    assert 0 < played.change < 100


@pytest.mark.ray
def test_veil_on_ray(task_of: TaskMaker) -> None:
    pytest.importorskip("ray")
    check(run(task_of("ray", "B"), "ray"), 2_410)


@pytest.mark.ray
@pytest.mark.flower
def test_flowers_engine(task_of: TaskMaker) -> None:
    pytest.importorskip("ray")
    check(run(task_of("flower", "B"), "flower"), 2_410)


@pytest.mark.skipif(not (PFL / ".finished").is_file(), reason="`make bench` installs pfl-research")
def test_pfl_research(task_of: TaskMaker) -> None:
    check(run(task_of("pfl", "B"), "pfl", folder=PFL.parent), 2_410)


def test_under_privacy_veil_takes_part_with_both_of_its_engines() -> None:
    labels = [case.label for case in cases(small("C-private"), ["floor", "inline", "flower"])]
    assert labels == ["floor", "inline, bookkeeping", "inline, opacus", "flower"]
    assert [case.label for case in cases(small("C"), ["floor", "ray"])] == ["floor", "ray"]
