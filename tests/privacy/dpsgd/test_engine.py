"""A private step on real networks equals one made example by example, and leaves the model as it found it.

All of it holds for both engines: each test runs once with each.
"""

import gc
import math
import sys
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from privacy.dpsgd.clipping import clipped_sums
from privacy.dpsgd.engine import DpEngine, private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.optimizer import PrivateOptimizer, per_example_gradients
from privacy.example_sum_grid import SLACK
from privacy.noise import ReproducibleNoise
from privacy.release_grid import ReleaseGrid
from security.errors import UsageError

CLIP, N = 0.7, 5

ENGINES: tuple[DpEngine, ...] = ("bookkeeping", "opacus")


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DpEngine:
    monkeypatch.setattr(sys.modules[__name__], "ENGINE", request.param)
    chosen: DpEngine = request.param
    return chosen


ENGINE: DpEngine = "opacus"  # of the test that runs


class Silence(ReproducibleNoise):
    """A source of zeros, so that the rest of a step can be seen."""

    __slots__ = ()

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, reduction="sum")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class Scaled(nn.Module):
    """A layer that Opacus has no sampler for, and a weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()
        self.square = nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x.flatten(1))
        return self.head(self.square(torch.tanh(self.square(x))))


networks = pytest.mark.parametrize("network", [mlp, cnn, Odd])


def data(examples: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, 1, 8, 8, generator=generator, dtype=dtype)
    x *= torch.logspace(-3, 2, examples, dtype=dtype)[:, None, None, None]  # some are clipped, some are not
    return x, torch.randint(3, (examples,), generator=generator)


def optimizer_for(model: nn.Module, clipping_norm: float = CLIP) -> PrivateOptimizer:
    return PrivateOptimizer(
        SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        clipping_norm=clipping_norm,
        expected_batch_size=N,
        noise=Silence(b"zeros"),
    )


def private_update(model: nn.Module, microbatches: list[tuple[Tensor, Tensor]], clipping_norm: float = CLIP) -> Tensor:
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    with private_hooks(model, ENGINE):
        optimizer = optimizer_for(model, clipping_norm)
        private_gradient_step(model, optimizer, summed_cross_entropy, microbatches)
    return before - nn.utils.parameters_to_vector(model.parameters()).detach()


def steps_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The rounded sum of one batch."""
    parameters = list(model.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    if not len(y):
        return torch.zeros(size, dtype=torch.int64)
    with private_hooks(model, ENGINE):
        summed_cross_entropy(model(x), y).backward()
        gradients = per_example_gradients(parameters)
        grid = ReleaseGrid.of(clipping_norm=CLIP, noise_multiplier=1.0, dimensions=size)
        return torch.cat(clipped_sums(gradients, grid))


def gradients_one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of shape (examples, parameters)."""
    rows = []
    for i in range(len(x)):
        loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1], reduction="sum")
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in gradient]))
    return torch.stack(rows)


@networks
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-10)])
def test_equals_one_example_at_a_time(network: Callable[[], nn.Module], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(3)
    model = network().to(dtype)
    x, y = data(12, dtype)
    gradients = gradients_one_by_one(model, x, y)
    norms = gradients.norm(dim=1)
    clip = float(norms.median())  # half of them are clipped
    assert float(norms.max()) > 1.2 * clip
    # In float64 no coordinate rounds to another step; in float32, one in a hundred.
    grid = ReleaseGrid.of(clipping_norm=clip, noise_multiplier=1.0, dimensions=gradients.shape[1])
    clipped = (grid.norm * grid.step / norms).clamp(max=1)[:, None] * gradients
    expected = (clipped / grid.step).round().sum(0) * grid.step / N
    assert (private_update(model, [(x, y)], clip) - expected).norm() <= tolerance * expected.norm()


@networks
@pytest.mark.parametrize("size", [1, 4, 5])
def test_microbatches_change_nothing(network: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(3)
    model = network().double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = data(12)
    whole = private_update(model, [(x, y)])
    model.load_state_dict(state)
    parts = private_update(model, list(zip(x.split(size), y.split(size), strict=True)))
    assert (whole - parts).norm() <= 1e-12 * whole.norm()


@networks
@pytest.mark.parametrize("examples", [1, 2, 8, 33])
def test_rule_9_one_example_more_moves_a_real_networks_sum_by_no_more_than_the_clipping_norm(
    network: Callable[[], nn.Module], examples: int
) -> None:
    """Not proven, unlike the clipping: kernels may round one example's gradient by the size of its batch."""
    torch.manual_seed(3)
    model = network()
    x, y = data(examples, torch.float32)
    x[-1] *= 100  # the last one is clipped
    with_it, without = (steps_of(model, x[:count], y[:count]) for count in (examples, examples - 1))
    moved = (with_it - without).double().norm()
    left = values_left_as_factors(model, ENGINE)
    assert 0.99 * 2**20 < moved <= 2**20 * (1 + SLACK * bool(left))


def test_rule_1_an_empty_batch_still_makes_a_step() -> None:
    model = cnn().double()
    assert torch.equal(private_update(model, []), private_update(model, [data(0)]))
    with private_hooks(model, ENGINE):
        optimizer = PrivateOptimizer(
            SGD(model.parameters(), lr=1.0),
            noise_multiplier=1.0,
            clipping_norm=CLIP,
            expected_batch_size=N,
            noise=ReproducibleNoise(b"x"),
        )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        private_gradient_step(model, optimizer, summed_cross_entropy, [])
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_an_empty_microbatch_does_not_reach_the_model() -> None:
    class Demanding(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x)
            return super().forward(x.flatten(1))

    assert torch.equal(private_update(Demanding(64, 3).double(), [data(0)]), torch.zeros(195))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_rule_5_an_example_that_is_not_finite_contributes_nothing(bad: float) -> None:
    torch.manual_seed(3)
    model = cnn().double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = data(6)
    without = private_update(model, [(x[1:], y[1:])])
    model.load_state_dict(state)
    x[0] = bad
    model[1].eps = 0.0  # type: ignore[union-attr] # no rescue by the norm
    update = private_update(model, [(x, y)])
    model.load_state_dict(state)
    assert torch.allclose(update, private_update(model, [(x[1:], y[1:])]), rtol=1e-12)
    assert without.isfinite().all()


def traces(model: nn.Module) -> dict[str, object]:
    """Everything on a model that hooks could leave behind."""
    found: dict[str, object] = {"names": list(model.state_dict())}
    for name, module in model.named_modules():
        found[name] = {key for key in vars(module) if key != "_is_full_backward_hook"}
        found[f"{name} hooks"] = [len(value) for key, value in vars(module).items() if key.endswith("hooks")]
    for name, parameter in model.named_parameters():
        found[name] = (set(vars(parameter)), parameter.grad, parameter._backward_hooks)
    return found


@networks
def test_the_model_is_left_as_it_was_found(network: Callable[[], nn.Module]) -> None:
    model = network().double()
    before = traces(model)
    private_update(model, [data(4)])
    assert traces(model) == before


@networks
def test_the_model_is_left_as_it_was_found_after_a_failure(network: Callable[[], nn.Module]) -> None:
    model = network().double()
    x, y = data(4)
    before = traces(model)

    def fail() -> None:
        with private_hooks(model, ENGINE):
            summed_cross_entropy(model(x), y).backward()
            model(x)  # activations without a backward pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert traces(model) == before
    assert torch.isfinite(private_update(model, [(x, y)])).all()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_a_backward_pass_after_the_context_makes_no_private_gradients() -> None:
    model = mlp().double()
    x, y = data(4)
    with private_hooks(model, ENGINE):
        loss = summed_cross_entropy(model(x), y)
    before = traces(model)
    loss.backward()
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (ENGINE == "opacus")  # book-keeping's graph has no parameters
        parameter.grad = None
    assert traces(model) == before


def test_a_thousand_rounds_leave_no_growth(engine: DpEngine) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    batch = data(3)
    private_update(model, [batch])
    before = traces(model)
    gc.collect()
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    for _ in range(1000 if engine == "bookkeeping" else 50):
        private_update(model, [batch])
    assert traces(model) == before
    gc.collect()
    assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) <= tensors


def test_one_context_at_a_time() -> None:
    model = mlp().double()
    with private_hooks(model, ENGINE):
        with pytest.raises(RuntimeError, match="already"), private_hooks(nn.Sequential(model), ENGINE):
            pass
        x, y = data(2)  # the outer context goes on
        private_gradient_step(model, optimizer_for(model), summed_cross_entropy, [(x, y)])


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm1d(64), "BatchNorm1d"),
        (nn.BatchNorm1d(64, affine=False), "BatchNorm1d"),  # nothing to train, and it mixes all the same
        (nn.LSTM(64, 3), "LSTM"),
        (nn.MultiheadAttention(64, 2), "MultiheadAttention"),
        (nn.InstanceNorm1d(64, affine=True, track_running_stats=True), "InstanceNorm1d"),
    ],
)
def test_a_layer_that_mixes_examples_is_refused_by_name(layer: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(layer), nn.Linear(64, 3))
    before = traces(model)
    with (
        pytest.raises(UsageError, match=rf"layer 1\.0, a {name}, can't be trained privately"),
        private_hooks(model, ENGINE),
    ):
        pass
    assert traces(model) == before


def test_frozen_statistics_are_no_obstacle() -> None:
    features = nn.BatchNorm1d(64).double().requires_grad_(False).eval()
    model = nn.Sequential(nn.Flatten(), features, nn.Linear(64, 3).double())
    assert private_update(model, [data(4)]).norm() > 0


def test_evaluation_mode_makes_no_private_gradients() -> None:
    model = mlp().double().eval()
    with pytest.raises(RuntimeError, match=r"call model\.train\(\) first"):
        private_update(model, [data(4)])


def test_outside_the_context_there_are_no_private_gradients() -> None:
    model = mlp().double()
    with pytest.raises(RuntimeError, match=r"inside private_hooks\(\)"):
        private_gradient_step(model, optimizer_for(model), summed_cross_entropy, [data(4)])


def test_a_mean_loss_is_refused() -> None:
    model = mlp().double()
    with private_hooks(model, ENGINE), pytest.raises(UsageError, match="CrossEntropyLoss reduction='sum'"):
        private_gradient_step(model, optimizer_for(model), nn.CrossEntropyLoss(), [data(4)])


def test_an_axis_that_is_not_the_example_is_refused() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.row(x.reshape(-1, 8)).reshape(len(x), 8, 3).sum(1)  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match=r"number \[32\], examples 4"):
        private_update(Rows().double(), [data(4)])


def test_nothing_is_warned_of() -> None:
    model = cnn().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        private_update(model, [data(4)])
