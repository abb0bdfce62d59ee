"""What the engines train: the works' sizes, and arrays that are the same for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.datasets import fashion_mnist
from shared_models.registry import build_for
from simulations.benchmarks.engines import data
from simulations.benchmarks.engines.playing import Task
from simulations.benchmarks.engines.training import load_arrays, network, rows_of
from simulations.benchmarks.engines.veil import plan_of
from simulations.benchmarks.engines.works import WORKS, scaled
from tests.simulations.benchmarks.engines.conftest import small


@pytest.mark.parametrize(("name", "parameters"), [("A", 1_626_442), ("B", 2_410), ("C", 25_906), ("C-private", 25_906)])
def test_everybody_trains_the_same_network(name: str, parameters: int) -> None:
    work = WORKS[name]
    plain = network(work, seed=1)
    veils = build_for(plan_of(Task(contender="inline", work=work, data="x.npz", rounds=2, processes=1)))
    assert sum(parameter.numel() for parameter in plain.parameters()) == parameters
    assert {key: value.shape for key, value in plain.state_dict().items()} == {
        key: value.shape for key, value in veils.state_dict().items()
    }
    veils.load_state_dict(plain.state_dict())
    x = torch.randn(2, *work.shape)
    assert torch.equal(plain.eval()(x), veils.eval()(x))  # which holds the options too, but for rates of dropout
    rates = [[m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] for model in (plain, veils)]
    assert rates == [[0.25, 0.5] if name == "A" else []] * 2


def test_a_private_epoch_has_opacus_rate_steps_and_batch() -> None:
    work = WORKS["C-private"]
    assert (work.steps, work.sample_rate, work.expected_batch) == (4, 0.25, 50)
    plan = plan_of(Task(contender="ray", work=work, data="x.npz", rounds=2, processes=1, dp_engine="opacus"))
    training = plan.training
    assert (training.steps, training.sample_rate, training.expected_batch_size) == (4, 0.25, 50)
    assert (training.dp_engine, plan.privacy.trust) == ("opacus", "local")
    assert (plan.privacy.noise_multiplier, plan.privacy.clipping_norm) == (1.0, 1.0)


def test_a_task_survives_a_command_line() -> None:
    task = Task(contender="ray", work=WORKS["A"], data="x.npz", rounds=3, processes=2, dp_engine="opacus")
    assert Task.from_text(task.to_text()) == task


@pytest.mark.parametrize("has_fashion", [True, False])
@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_arrays_have_the_works_shape_with_any_images(
    name: str, has_fashion: bool, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_fashion and not fashion_mnist.DEBIAN.is_dir():
        pytest.skip("needs Debian's dataset-fashion-mnist")
    if not has_fashion:
        monkeypatch.setattr(fashion_mnist, "DEBIAN", fashion_mnist.DEBIAN / "nowhere")
    work = small(name)
    path = data.made(work, tmp_path)  # type: ignore[arg-type]
    x, y = load_arrays(path)
    assert x.shape == (72, *work.shape)
    assert 0 <= x.min() < x.max() <= (1 if name != "B" else 1.2)
    assert set(y.tolist()) == set(range(10))
    assert x.flatten(1).std(dim=1).min() > 0.02  # no image is blank
    assert path.name.startswith("fashion-mnist" if has_fashion and name != "B" else "digits")
    written = path.stat().st_mtime_ns
    assert data.made(work, tmp_path) == path  # type: ignore[arg-type]
    assert path.stat().st_mtime_ns == written


def test_more_records_than_images_are_no_mere_copies(tmp_path: object) -> None:
    work = scaled(WORKS["B"], users=200, cohort=2)
    x, y = load_arrays(data.made(work, tmp_path))  # type: ignore[arg-type]
    assert len(x) == len(y) == 4000
    assert len(np.unique(x.numpy(), axis=0)) > 3990
    users = [rows_of(user, work) for user in range(work.users)]
    assert [one.stop for one in users[:-1]] == [one.start for one in users[1:]]
    assert users[-1].stop == len(x)
