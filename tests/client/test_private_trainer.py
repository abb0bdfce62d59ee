"""Private local training: a round is what the accountant prices, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.datasets.records import Records
from client.private_trainer import gradient_sum, train_private
from client.trainer import torch_threads
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from shared_models.example_form import ExampleForm
from shared_models.parameters import Parameters, get_parameters, set_parameters
from shared_models.plan import Plan
from shared_models.plan_adaptive import AdaptivePlan
from shared_models.registry import build
from tests.client.local_training import (
    OPTIMISERS,
    Batch,
    Scripted,
    assert_close,
    flat,
    global_randomness_untouched,
    network,
    optimiser,
    private,
    records,
    seed_everything,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def example_gradient(model: nn.Module, own: Records, i: int) -> list[Tensor]:
    loss = nn.functional.cross_entropy(model(own.x[i : i + 1]), own.y[i : i + 1])
    return list(torch.autograd.grad(loss, list(model.parameters())))


def clipped_sum(model: nn.Module, own: Records, batch: Batch, clip: float) -> list[Tensor]:
    """One example at a time, in float64: the definition."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    for i in batch:
        gradient = [g.double() for g in example_gradient(model, own, i)]
        norm = torch.sqrt(torch.stack([(g * g).sum() for g in gradient]).sum())
        for summed, g in zip(total, gradient, strict=True):
            summed.add_(g, alpha=min(1.0, clip / float(norm)))
    return total


def private_by_hand(
    model: nn.Module, start: Parameters, own: Records, plan: Plan, batches: Sequence[Batch], noise: float = 0.0
) -> Parameters:
    set_parameters(model, start)
    anchor = [p.detach().clone() for p in model.parameters()]
    training, privacy = plan.training, plan.privacy
    assert privacy.noise_multiplier is not None
    optimizer = optimiser(model, plan, training.learning_rate)
    for batch in batches:
        total = clipped_sum(model, own, batch, privacy.clipping_norm)
        for p, part, a in zip(model.parameters(), total, anchor, strict=True):
            released = (part + privacy.noise_multiplier * privacy.clipping_norm * noise) / training.expected_batch_size
            p.grad = (released + training.proximal_mu * (p.detach() - a)).float()
        optimizer.step()
    return {name: value - start[name] for name, value in get_parameters(model).items()}


BATCHES: list[Batch] = [[0, 2, 3, 7, 8], [], [1], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize("training", OPTIMISERS)
@pytest.mark.parametrize("clip", [0.05, 1.0, 10.0])
def test_rule_1_a_private_round_is_clipped_sums_over_a_public_number(training: dict[str, Any], clip: float) -> None:
    plan, own, start = private(clip=clip, **{"steps": 4, **training}), records(10), get_parameters(network())
    found = train_private(network(), start, own, plan, round_number=1, noise=Scripted(*BATCHES))
    assert_close(found, private_by_hand(network(), start, own, plan, BATCHES), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "linear"])
@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_both_engines_make_the_same_round_however_gradients_are_clipped(kind: str, clipping: str) -> None:
    shape = (1, 12, 12) if kind == "cnn" else (4,)
    own = records(20, shape)
    changes = []
    for engine in ("bookkeeping", "opacus"):
        plan = private(sigma=0.5, clip=0.3, steps=3, dp_engine=engine)
        plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"clipping": clipping})})
        model = build(kind, {}, form=ExampleForm(shape, 3), seed=1)
        start = get_parameters(model)
        # Without noise: what is left as factors is noised for a sensitivity a little larger.
        noise = Scripted(range(12), [], range(5, 20))
        changes.append(train_private(model, start, own, plan, round_number=1, noise=noise))
        assert_bare(model)
    assert_close(*changes)
    assert np.linalg.norm(flat(changes[0])) > 0.01


@pytest.mark.parametrize("kind", ["cnn", "linear"])
@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
def test_a_round_in_bfloat16_is_nearly_that_in_float32_and_leaves_the_parameters_precise(
    kind: str, engine: str
) -> None:
    own, changes = records(40, (1, 12, 12)), {}
    for precision in ("float32", "bfloat16"):
        plan = private(sigma=0.5, clip=0.3, steps=3, dp_engine=engine, precision=precision)
        model = build(kind, {}, form=ExampleForm((1, 12, 12), 3), seed=1)
        start = get_parameters(model)
        noise = Scripted(range(30), [], range(5, 40))
        found = train_private(model, start, own, plan, round_number=1, noise=noise)
        assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
        changes[precision] = flat(found)
        assert_bare(model)
    apart = np.linalg.norm(changes["bfloat16"] - changes["float32"]) / np.linalg.norm(changes["float32"])
    assert apart < 0.05
    assert (apart > 0) == (kind == "cnn")  # a linear head's gradients are made in closed form, in float64


def test_a_norm_that_adapts_begins_where_the_plan_says_and_follows_the_gradients() -> None:
    own, model = records(20), network()
    start = get_parameters(model)
    changes = {}
    for name, table in (("fixed", None), ("still", {"rate": 1e-9}), ("moving", {"rate": 2.0})):
        plan = private(sigma=0.5, clip=1e-3, steps=6, expected_batch_size=16)
        given = None if table is None else AdaptivePlan(count_noise=1.0, **table)
        plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"adaptive": given})})
        noise = Scripted(*[range(16)] * 6)
        changes[name] = flat(train_private(model, start, own, plan, round_number=1, noise=noise))
    assert changes["still"] == pytest.approx(changes["fixed"], rel=1e-3, abs=1e-7)
    assert np.linalg.norm(changes["moving"]) > 3 * np.linalg.norm(changes["still"])


def test_rule_1_the_same_holds_for_a_network_with_convolutions() -> None:
    plan, own, start = private(clip=0.3, steps=4), records(10, (1, 8, 8)), get_parameters(network("cnn"))
    found = train_private(network("cnn"), start, own, plan, round_number=1, noise=Scripted(*BATCHES))
    assert_close(found, private_by_hand(network("cnn"), start, own, plan, BATCHES), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_rule_1_noise_of_the_planned_size_is_added_before_the_division_and_the_pull_after_it(mu: float) -> None:
    plan = private(sigma=3.0, clip=0.2, steps=4, proximal_mu=mu)
    own, start = records(10), get_parameters(network())
    found = train_private(network(), start, own, plan, round_number=1, noise=Scripted(*BATCHES, noise=0.7))
    assert_close(found, private_by_hand(network(), start, own, plan, BATCHES, noise=0.7), rtol=1e-4, atol=2e-6)


def test_the_pull_is_not_clipped() -> None:
    # One noisy step away, one pull back: mu times the way, however small the clipping norm.
    plan = private(sigma=1e4, clip=1e-3, steps=2, proximal_mu=0.5, learning_rate=1.0, expected_batch_size=1)
    found = train_private(
        network(), get_parameters(network()), records(0), plan, round_number=1, noise=Scripted([], [], noise=1.0)
    )
    np.testing.assert_allclose(flat(found), -10 - 10 + 0.5 * 10, rtol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 10, 500])
def test_rule_1_steps_and_rate_are_the_plans_whatever_the_number_of_records(n: int) -> None:
    source = Scripted(*[[]] * 6, noise=1.0)
    plan = private(sigma=2.0, clip=0.5, steps=6, sample_rate=0.3)
    found = train_private(network(), get_parameters(network()), records(n), plan, round_number=1, noise=source)
    assert source.asked == [(n, 0.3)] * 6
    np.testing.assert_allclose(flat(found), -6 * 0.5 * (2.0 * 0.5 / 8), rtol=1e-5)


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("training", OPTIMISERS[1:])
def test_memory_limits_change_only_the_rounding(most: int, training: dict[str, Any]) -> None:
    own, start = records(10), get_parameters(network())
    plan = private(**{"steps": 4, **training})
    limited = private(max_physical_batch=most, **{"steps": 4, **training})
    whole = train_private(network(), start, own, plan, round_number=1, noise=Scripted(*BATCHES))
    parts = train_private(network(), start, own, limited, round_number=1, noise=Scripted(*BATCHES))
    assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("size", [1e30, 3e38])
@pytest.mark.parametrize("most", [None, 1])
def test_rule_5_a_record_that_breaks_the_arithmetic_contributes_nothing(
    kind: str, size: float, most: int | None
) -> None:
    own = records(6, (1, 8, 8) if kind == "cnn" else (4,))
    own.x[5] = torch.where(own.x[5] > 0, size, -size)
    model, start = network(kind), get_parameters(network(kind))
    broken = example_gradient(model, own, 5)
    plan = private(steps=2, max_physical_batch=most, clip=10.0)
    with_it = train_private(model, start, own, plan, round_number=1, noise=Scripted([0, 1, 5], [5]))
    without = train_private(model, start, own, plan, round_number=1, noise=Scripted([0, 1], []))
    assert list(with_it) == list(without)
    assert np.isfinite(flat(with_it)).all()
    if not all(torch.isfinite(g).all() and g.abs().max() < 1e15 for g in broken):
        assert_close(with_it, without)
    else:  # group normalisation mends the cnn's; then the record counts like any other, up to the clipping norm
        assert kind == "cnn"


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rule_1_one_record_more_moves_a_step_by_no_more_than_the_clipping_norm(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 5), label="records of the others")
    clip = data.draw(st.sampled_from([1e-3, 0.5, 20.0]), label="clipping norm")
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    own = records(n + 1)
    own.x[n] = torch.tensor(data.draw(st.lists(value, min_size=4, max_size=4), label="the one's features"))
    own.y[n] = data.draw(st.integers(0, 2), label="the one's class")
    plan, start = private(clip=clip), get_parameters(network())
    changes = [
        flat(train_private(network(), start, own, plan, round_number=1, noise=Scripted(batch)))
        for batch in (range(n), range(n + 1))
    ]
    bound = plan.training.learning_rate * clip / plan.training.expected_batch_size
    assert np.linalg.norm(changes[1] - changes[0]) <= bound * (1 + 1e-5) + 1e-6  # float32 parameters round, too


def test_where_the_bound_is_reached_it_is_the_clipping_norm_and_not_more() -> None:
    own, plan, start = records(1), private(clip=1e-2), get_parameters(network())
    own.x[0] *= 100
    own.y[0] = network()(own.x)[0].argmin()  # as wrong as can be
    change = flat(train_private(network(), start, own, plan, round_number=1, noise=Scripted([0])))
    assert np.linalg.norm(change) == pytest.approx(0.5 * 1e-2 / 8, rel=1e-3)


def test_no_seed_of_torch_numpy_or_python_has_any_influence_on_a_private_round() -> None:
    own, plan = records(20), private(steps=3, sample_rate=0.5)

    def change(seed: int, noise: NoiseSource, dropout: float) -> list[float]:
        seed_everything(seed)
        model = network(dropout=dropout)
        with global_randomness_untouched():
            found = train_private(model, get_parameters(model), own, plan, round_number=1, noise=noise)
        return list(flat(found))

    for dropout in (0.0, 0.5):
        assert change(1, ReproducibleNoise(b"a"), dropout) == change(2, ReproducibleNoise(b"a"), dropout)
        assert change(1, ReproducibleNoise(b"a"), dropout) != change(1, ReproducibleNoise(b"b"), dropout)
        assert change(1, SecretNoise(), dropout) != change(1, SecretNoise(), dropout)


def test_dropout_masks_come_from_the_clients_own_source() -> None:
    own, plan, start = records(4), private(), get_parameters(network(dropout=0.5))

    def change(uniform: float) -> list[float]:
        source = Scripted([0, 1, 2, 3], uniform=uniform)
        return list(flat(train_private(network(dropout=0.5), start, own, plan, round_number=1, noise=source)))

    assert change(0.1) == change(0.1)
    assert change(0.1) != change(0.2)


@pytest.mark.parametrize("make", [lambda i: SecretNoise(), lambda i: ReproducibleNoise(b"client %d" % i)])
def test_the_noise_of_two_clients_is_independent_and_of_the_claimed_size(make: Callable[[int], NoiseSource]) -> None:
    model = build("mlp", {"hidden": [100]}, form=ExampleForm((100,), 10), seed=1)
    plan, start = private(sigma=1.5, clip=0.2, learning_rate=0.1), get_parameters(model)
    one, other = (
        flat(train_private(model, start, records(0, (100,)), plan, round_number=1, noise=make(i))) for i in range(2)
    )
    assert len(one) > 10_000
    for change in (one, other):
        assert change.std() == pytest.approx(0.1 * 1.5 * 0.2 / 8, rel=0.05)
    assert abs(np.corrcoef(one, other)[0, 1]) < 6 / np.sqrt(len(one))


class Failing(nn.Module):
    """Fails in the second forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 2:
            raise RuntimeError("broken")
        logits: Tensor = self.linear(x)
        return logits


def assert_bare(model: nn.Module) -> None:
    """An ordinary module: no hook, no activation, no gradient."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "hook" in name and not isinstance(value, bool):
                assert not value, name
        assert not {"activations", "max_batch_len"} & vars(module).keys()
    for parameter in model.parameters():
        assert parameter.grad is None
        assert vars(parameter) == {}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_nothing_of_the_data_stays_on_the_network(kind: str) -> None:
    model = network(kind)
    own = records(10, (1, 8, 8) if kind == "cnn" else (4,))
    train_private(model, get_parameters(model), own, private(steps=2), round_number=1, noise=Scripted([0, 1], [2]))
    assert_bare(model)
    train_private(model, get_parameters(model), own, private(steps=1), round_number=2, noise=Scripted([0, 1]))
    assert_bare(model)


def test_nothing_stays_on_the_network_after_a_failure_either() -> None:
    model, own = Failing(), records(4)
    with global_randomness_untouched(), pytest.raises(RuntimeError, match="broken"):
        train_private(
            model, get_parameters(model), own, private(steps=2), round_number=1, noise=Scripted([0, 1], [2, 3])
        )
    assert_bare(model)
    model.passes = 10
    train_private(model, get_parameters(model), own, private(), round_number=1, noise=Scripted([0, 1]))


@pytest.mark.parametrize("kind", ["mlp", "cnn", "linear"])
@pytest.mark.parametrize("own", [0, 10])
def test_rule_12_where_nobody_was_drawn_the_network_is_run_all_the_same_and_nothing_comes_of_it(
    kind: str, own: int
) -> None:
    """Or the time of a step would say that its batch was empty."""
    shape = (1, 8, 8) if kind == "cnn" else (4,)
    model = build("linear", {}, form=ExampleForm((4,), 3), seed=1) if kind == "linear" else network(kind)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    plan, start = private(steps=2, sample_rate=0.5), get_parameters(model)
    train_private(model, start, records(10, shape), plan, round_number=1, noise=Scripted([3], [8]))
    drawn, seen[:] = list(seen), []
    change = train_private(model, start, records(own, shape), plan, round_number=1, noise=Scripted([], []))
    assert seen == drawn
    assert drawn.count(1) >= 2
    assert all((value == 0).all() for value in change.values())


@pytest.mark.parametrize("kind", ["mlp", "cnn", "linear"])
def test_rule_12_a_joint_sum_of_nobody_runs_the_network_too(kind: str) -> None:
    shape = (1, 8, 8) if kind == "cnn" else (4,)
    model = build("linear", {}, form=ExampleForm((4,), 3), seed=1) if kind == "linear" else network(kind)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    plan, start = private(steps=1, sample_rate=0.5), get_parameters(model)
    found = [gradient_sum(model, start, records(10, shape), plan, noise=Scripted(drawn)) for drawn in ([3], [])]
    assert seen == 2 * seen[: len(seen) // 2] != []
    assert found[0].any()
    assert not found[1].any()
