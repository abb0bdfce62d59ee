"""Ways by which one example could get into another's gradient, or past the clipping: each is refused, or harmless."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from privacy.adaptive_clipping import AdaptiveClipping
from privacy.dpsgd import optimizer as optimizer_module
from privacy.dpsgd.adaptive_optimizer import AdaptiveOptimizer
from privacy.dpsgd.clipping import clipped_sums, towards
from privacy.dpsgd.engine import private_hooks, values_left_as_factors
from privacy.dpsgd.factors import Factors
from privacy.dpsgd.layers.recurrent import Lstm
from privacy.dpsgd.optimizer import PrivateOptimizer, per_example_gradients
from privacy.example_sum_grid import SLACK
from privacy.noise import NoiseSource, ReproducibleNoise
from privacy.release_grid import ReleaseGrid
from security.errors import UsageError

N = 6


def backward(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Per-example gradients of a loss that sees every output."""
    with private_hooks(model):
        torch.autograd.backward(torch.tanh(model(inputs)).sum())
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [part.rows() if isinstance(part, Factors) else part for part in per_example_gradients(parameters)]


def assert_own(model: nn.Module, inputs: Tensor) -> None:
    found = backward(model, inputs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for i in range(len(inputs)):
        alone = torch.autograd.grad(torch.tanh(model(inputs[i : i + 1])).sum(), trained)
        for rows, expected in zip(found, alone, strict=True):
            assert (rows[i].flatten() - expected.flatten()).norm() <= 1e-10 * (1 + expected.norm())


# --- layers that are given more than one tensor -------------------------------------------------------------------


class Masked(nn.Module):
    """A bare parameter, and a mask that comes beside the input."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(5, dtype=torch.float64))
        self.mask: Tensor | None = None

    def forward(self, x: Tensor, masks: tuple[Tensor, ...] = (), mask: Tensor | None = None) -> Tensor:
        chosen = mask if mask is not None else masks[0] if masks else self.mask
        return (x + self.shift) * chosen


class Giving(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer, self.head = how, Masked(), nn.Linear(5, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 0).double()
        if self.how == "by name":
            made = self.layer(x, mask=mask)
        elif self.how == "in a tuple":
            made = self.layer(x, (mask,))
        elif self.how == "first value":
            made = self.layer(x, mask=mask.sum())
        else:
            self.layer.mask = mask
            made = self.layer(x)
        logits: Tensor = self.head(made)
        return logits


def ragged() -> Tensor:
    x = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.where(torch.arange(5) < torch.arange(N)[:, None], x, 0.0)


@pytest.mark.parametrize("how", ["by name", "in a tuple"])
def test_a_mask_that_is_changed_after_it_was_used_is_an_error(how: str) -> None:
    class Changing(Giving):
        def forward(self, x: Tensor) -> Tensor:
            mask = (x != 0).double()
            made = self.layer(x, mask=mask) if how == "by name" else self.layer(x, (mask,))
            mask.mul_(2)
            logits: Tensor = self.head(made.clone())
            return logits

    with pytest.raises(RuntimeError, match="its input was changed in place"):
        backward(Changing(how), ragged())


@pytest.mark.parametrize("how", ["by name", "in a tuple"])
def test_a_mask_beside_the_input_is_each_examples_own(how: str) -> None:
    assert_own(Giving(how), ragged())


@pytest.mark.parametrize(
    ("how", "message"),
    [("on the layer", "something else of one example"), ("first value", "hasn't the examples as its first axis")],
)
def test_what_belongs_to_the_whole_batch_is_refused(how: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        backward(Giving(how), ragged())


def test_a_layer_called_by_keyword_is_an_ordinary_one() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.layer(input=x)
            return made

    assert_own(ByName().double(), ragged())


def test_a_layer_that_runs_for_one_example_after_the_other_is_refused() -> None:
    class OneByOne(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(x[i : i + 1])[0] for i in range(len(x))])

    linear = OneByOne(nn.Linear(5, 3).double())
    assert {len(rows) for rows in backward(linear, ragged())} == {1}  # a step refuses it: not as many as examples
    tokens = torch.randint(4, (N, 3))
    assert len(backward(OneByOne(nn.Embedding(4, 3)), tokens)[0]) == 1

    class Copied(OneByOne):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(x[i : i + 1].clone()).sum(0) for i in range(len(x))])

    with pytest.raises(UsageError, match="one example after the other"):
        backward(Copied(nn.Embedding(4, 3)), tokens)


# --- layers that change with what they see ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Embedding(4, 3, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.EmbeddingBag(4, 3), "use nn.Embedding and a mean"),
        (nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular"), "allowed: zeros"),
    ],
)
@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
def test_options_that_depend_on_the_batch_are_refused(layer: nn.Module, message: str, engine: str) -> None:
    with pytest.raises(UsageError, match=message), private_hooks(nn.Sequential(layer), engine):  # type: ignore[arg-type]
        pass


# --- where layers stand -------------------------------------------------------------------------------------------


class Root(nn.Module):
    """Parameters of its own, and layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(torch.tanh(x + self.shift))
        return made


class Unseen(nn.Module):
    """Uses its layer again where nothing is learnt from it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.layer(x)
        made: Tensor = self.layer(x) * target
        return made


class Passing(nn.Module):
    """Gives back what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("network", [Root, Unseen, lambda: nn.Linear(5, 3), lambda: nn.LayerNorm(5)])
def test_the_network_itself_may_have_parameters_and_use_layers_unseen(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    assert_own(network().double(), ragged())


def test_a_layer_that_returns_its_input_leaves_it_alone() -> None:
    model = nn.Sequential(Passing(), nn.Linear(5, 3)).double()
    inputs = ragged()
    before = inputs.clone()
    rows = backward(model, inputs)
    assert not rows[0].any()
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad


def test_bare_parameters_round_a_recurrent_layer_are_refused_in_one_line() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(1)), Lstm(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.layer(x * self.scale)[0]
            return made

    with pytest.raises(UsageError, match="can't be differentiated for each example") as refused:
        backward(Around(), torch.randn(N, 4, 2))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "network",
    [
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(72, 2)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 2)),
    ],
)
def test_an_empty_batch_makes_gradients_of_no_examples(network: Callable[[], nn.Module]) -> None:
    assert {len(rows) for rows in backward(network(), torch.zeros(0, 1, 5, 5))} == {0}


# --- numbers ------------------------------------------------------------------------------------------------------


class Recorder(ReproducibleNoise):
    """Draws no noise, and keeps the scale that was asked for."""

    __slots__ = ("scale",)

    def grid_normal(self, shape, scale, *, device=None):  # type: ignore[no-untyped-def]
        self.scale = scale
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def private(parameter: nn.Parameter, left: int, sigma: float = 1.5) -> tuple[PrivateOptimizer, Recorder]:
    recorder = Recorder(b"none")
    return (
        PrivateOptimizer(
            SGD([parameter], lr=1.0),
            noise_multiplier=sigma,
            clipping_norm=1.0,
            expected_batch_size=1,
            noise=recorder,
            values_left_as_factors=left,
        ),
        recorder,
    )


def test_noise_is_made_for_the_rounding_of_sums_whether_factors_come_or_not() -> None:
    model = nn.Sequential(nn.Linear(64, 128))
    left = values_left_as_factors(model)
    assert left == 64 * 128
    steps = ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=1.5 * 1.5, dimensions=left).steps
    optimizer, recorder = private(model[0].weight, left)
    optimizer.step()
    assert recorder.scale >= 1.5 * (steps * (1 + SLACK) + math.sqrt(left)) * (1 - 1e-12)
    assert recorder.scale <= 1.5 * (steps * (1 + SLACK) + math.sqrt(left) + 1)
    exact, recorder = private(model[0].weight, 0)
    exact.step()
    assert recorder.scale == 1.5 * steps


@pytest.mark.parametrize("why", ["not declared", "too many examples"])
def test_factors_that_the_noise_is_not_made_for_are_made_whole(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.zeros(4, 5))
    optimizer, _ = private(parameter, 0 if why == "not declared" else 20)
    if why == "too many examples":
        monkeypatch.setattr(optimizer_module, "MOST_EXAMPLES", 2)
    parameter.grad_sample = Factors(torch.randn(3, 1, 4), torch.randn(3, 1, 5))  # type: ignore[attr-defined]
    optimizer.accumulate()
    assert parameter.summed_grad.dtype == torch.int64  # type: ignore[attr-defined]


def test_the_count_of_examples_begins_again_with_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.zeros(4, 5))
    optimizer, _ = private(parameter, 20)
    monkeypatch.setattr(optimizer_module, "MOST_EXAMPLES", 3)
    for _ in range(3):
        parameter.grad_sample = Factors(torch.randn(3, 1, 4), torch.randn(3, 1, 5))  # type: ignore[attr-defined]
        optimizer.accumulate()
        assert parameter.summed_grad.dtype == torch.float64  # type: ignore[attr-defined]
        optimizer.step()


@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize(("small", "large"), [(1e-162, 1e154), (1e-300, 1e250), (1e154, 1e-162)])
def test_no_square_underflows_while_the_other_factor_is_large(small: float, large: float, places: int) -> None:
    slopes = torch.full((2, places, 64), small, dtype=torch.float64)
    inputs = torch.full((2, places, 128), large, dtype=torch.float64)
    grid = ReleaseGrid.of(clipping_norm=1e-9, noise_multiplier=1.0, dimensions=64 * 128)
    total = clipped_sums([Factors(slopes[:1], inputs[:1])], grid)[0].norm()
    assert total <= grid.steps * (1 + SLACK)


def test_gradients_in_half_precision_are_clipped_in_that_of_the_parameters() -> None:
    parameter = nn.Parameter(torch.zeros(300))
    parameter.grad_sample = torch.randn(2000, 300).bfloat16()  # type: ignore[attr-defined]
    (rows,) = per_example_gradients([parameter])
    assert isinstance(rows, Tensor)
    assert rows.dtype == torch.float32


def test_clipping_is_short_of_the_norm_by_what_arithmetic_may_be_off() -> None:
    found = towards([torch.ones(1, 4096)], 1.0, most=10.0)
    assert 1 - 1e-4 <= float(found[0]) * 64 <= 1 - 34 * 2.0**-23


def adaptive(values: int = 4, noise: NoiseSource | None = None, **facts: float) -> AdaptiveOptimizer:
    given = {"count_noise": 2.0, "initial_norm": 1.0, "least_norm": 1e-3, "most_norm": 1e3} | facts
    return AdaptiveOptimizer(
        SGD([nn.Parameter(torch.zeros(values))], lr=1.0),
        clipping=AdaptiveClipping(**given),
        noise_multiplier=1.0,
        expected_batch_size=10,
        noise=noise or Recorder(b"none"),
    )


def give(optimizer: AdaptiveOptimizer, gradient: Tensor) -> None:
    optimizer.params[0].grad_sample = gradient[None]
    optimizer.accumulate()


def test_rounding_does_not_lengthen_a_vector_with_its_bit() -> None:
    values, steps = 40_000, 2.0**20
    # So much for the bit that each of the equal coordinates, without the margin, would round up.
    count_noise = next(
        noise
        for noise in (1.0 + k / 1000 for k in range(1000))
        if 0.6 < math.sqrt(1 - 1 / (2 * noise) ** 2) * steps / math.sqrt(values) % 1 < 0.9
    )
    optimizer = adaptive(values, count_noise=count_noise)
    give(optimizer, torch.full((values,), 1.0))
    total = [*optimizer.params[0].summed_grad.tolist(), optimizer._bits]
    assert len(set(total[:-1])) == 1
    assert sum(k * k for k in total) <= steps**2


def test_the_bits_of_a_step_go_with_its_sum() -> None:
    optimizer = adaptive()
    for _ in range(5):  # given up and begun again
        give(optimizer, torch.full((4,), 0.1))
        optimizer.zero_grad()
    optimizer.step()
    assert optimizer.clipping_norm == 1.0  # as after an empty batch


def test_bits_do_not_outlive_a_step_that_failed() -> None:
    class Failing(Recorder):
        def grid_normal(self, shape, scale, *, device=None):  # type: ignore[no-untyped-def]
            raise OSError("no entropy")

    optimizer = adaptive(noise=Failing(b"none"))
    give(optimizer, torch.full((4,), 0.1))
    with pytest.raises(OSError, match="no entropy"):
        optimizer.step()
    optimizer.noise = Recorder(b"none")
    optimizer.step()
    assert optimizer.clipping_norm == 1.0


@pytest.mark.parametrize(
    ("facts", "values", "message"),
    [
        ({"least_norm": 1e-27}, 4, "between 1e-9 and 1e9"),
        ({"most_norm": 1e12}, 4, "between 1e-9 and 1e9"),
        ({"count_noise": 0.5 * (1 + 1e-9)}, 400_000, "leaves too little"),
    ],
)
def test_a_norm_out_of_range_or_a_bit_that_takes_all_is_refused(
    facts: dict[str, float], values: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive(values, **facts)


def test_two_passes_without_accumulate_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    inputs, labels = torch.randn(N, 5), torch.randint(3, (N,))
    optimizer, _ = private(model[0].weight, 0)
    model[0].bias.requires_grad_(False)
    with private_hooks(model):
        for _ in range(2):
            torch.autograd.backward(cross_entropy(model(inputs), labels, reduction="sum"))
        with pytest.raises(RuntimeError, match="two backward passes"):
            optimizer.accumulate()
