"""Each kind of layer's per-example gradients equal those of one example alone, whatever its shape and options."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.engine import private_hooks, values_left_as_factors
from privacy.dpsgd.factors import Factors
from privacy.dpsgd.layers.linear import LARGE
from privacy.dpsgd.layers.registry import find_sampler
from security.errors import UsageError

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

both_precisions = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**32 - 1)


def assert_equal_to_one_at_a_time(model: nn.Module, inputs: Tensor, seed: int, *, ours: bool = True) -> None:
    """Of a loss that weighs each output differently. `ours`: no layer falls back to another way."""
    dtype = next(model.parameters()).dtype
    if ours:
        layers = [layer for layer in model.modules() if list(layer.parameters(recurse=False))]
        assert all(find_sampler(layer) for layer in layers)
    model.train()
    with torch.no_grad():
        weights = torch.randn(model(inputs).shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with private_hooks(model):
        torch.autograd.backward((torch.tanh(model(inputs)) * weights).sum())
        found = [parameter.grad_sample for parameter in parameters]  # type: ignore[attr-defined]
    rows = [part.rows() if isinstance(part, Factors) else part for part in found]
    for i in range(len(inputs)):
        loss = (torch.tanh(model(inputs[i : i + 1])) * weights[i : i + 1]).sum()
        alone = torch.autograd.grad(loss, parameters)
        whole = torch.sqrt(sum((part.double() ** 2).sum() for part in alone))  # type: ignore[call-overload]
        for part, expected in zip(rows, alone, strict=True):
            assert part[i].shape == expected.shape
            # Relative to the example's whole gradient: what clipping sees.
            assert (part[i] - expected).double().norm() <= TOLERANCE[dtype] * (whole + 1e-30)


def scaled(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    dtype=both_precisions,
    seed=seeds,
    n=st.integers(1, 5),
    places=st.lists(st.integers(1, 4), max_size=2),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
)
def test_linear(dtype: torch.dtype, seed: int, n: int, places: list[int], sizes: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(*sizes, bias=bias)).to(dtype)
    assert_equal_to_one_at_a_time(model, scaled(generator, n, *places, sizes[0], dtype=dtype), seed)


@settings(max_examples=10, deadline=None)
@given(dtype=both_precisions, seed=seeds, n=st.integers(1, 4), places=st.sampled_from([(), (1,), (3,), (2, 2), (40,)]))
def test_a_large_linear_layer_leaves_factors(dtype: torch.dtype, seed: int, n: int, places: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(256, 128)).to(dtype)
    inputs = scaled(generator, n, *places, 256, dtype=dtype)
    assert_equal_to_one_at_a_time(model, inputs, seed)
    with private_hooks(model):
        torch.autograd.backward(model(inputs).sum())
        assert isinstance(model[0].weight.grad_sample, Factors) == (places != (40,))


@pytest.mark.parametrize(
    ("size", "places", "left"), [(63, (), False), (64, (), True), (64, (1,), True), (64, (2,), False)]
)
def test_a_small_linear_layer_leaves_factors_only_for_a_single_place(
    size: int, places: tuple[int, ...], left: bool
) -> None:
    model = nn.Sequential(nn.Linear(64, size))
    assert (values_left_as_factors(model) > 0) == (size * 64 >= LARGE)
    with private_hooks(model):
        torch.autograd.backward(model(torch.randn(3, *places, 64)).sum())
        assert isinstance(model[0].weight.grad_sample, Factors) == left


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[type[nn.Module], dict[str, object], int, tuple[int, ...]]:
    dimensions = draw(st.sampled_from([1, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, out = groups * draw(st.sampled_from([1, 2, 8, 9])), groups * draw(st.integers(1, 5))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(dimensions))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(dimensions))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dimensions))
    padding: object = tuple(draw(st.integers(0, 2)) for _ in range(dimensions))
    if draw(st.booleans()) and set(stride) == {1}:
        padding = draw(st.sampled_from(["same", "valid"]))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    options = {
        "kernel_size": kernel,
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
        "in_channels": channels,
        "out_channels": out,
    }
    sides = tuple((k - 1) * d + 1 + draw(st.integers(3, 9)) for k, d in zip(kernel, dilation, strict=True))
    return (nn.Conv1d, nn.Conv2d)[dimensions - 1], options, channels, sides


@settings(max_examples=60, deadline=None)
@given(dtype=both_precisions, seed=seeds, n=st.integers(1, 4), convolution=convolutions())
def test_convolution(
    dtype: torch.dtype,
    seed: int,
    n: int,
    convolution: tuple[Callable[..., nn.Module], dict[str, object], int, tuple[int, ...]],
) -> None:
    kind, options, channels, sides = convolution
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(kind(**options)).to(dtype)
    assert_equal_to_one_at_a_time(model, scaled(generator, n, channels, *sides, dtype=dtype), seed)


@st.composite
def transposed(draw: st.DrawFn) -> tuple[type[nn.Module], dict[str, object], int, tuple[int, ...]]:
    dimensions = draw(st.sampled_from([1, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(dimensions)) for _ in range(2))
    options = {
        "kernel_size": tuple(draw(st.integers(1, 4)) for _ in range(dimensions)),
        "stride": stride,
        "dilation": dilation,
        "padding": tuple(draw(st.integers(0, 2)) for _ in range(dimensions)),
        "output_padding": tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "in_channels": groups * draw(st.integers(1, 5)),
        "out_channels": groups * draw(st.sampled_from([1, 2, 8, 9])),
    }
    sides = tuple(draw(st.integers(5, 9)) for _ in range(dimensions))
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dimensions - 1]
    return kind, options, int(str(options["in_channels"])), sides


@settings(max_examples=60, deadline=None)
@given(dtype=both_precisions, seed=seeds, n=st.integers(1, 4), convolution=transposed())
def test_transposed_convolution(
    dtype: torch.dtype,
    seed: int,
    n: int,
    convolution: tuple[Callable[..., nn.Module], dict[str, object], int, tuple[int, ...]],
) -> None:
    kind, options, channels, sides = convolution
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(kind(**options)).to(dtype)
    assert_equal_to_one_at_a_time(model, scaled(generator, n, channels, *sides, dtype=dtype), seed)


@pytest.mark.parametrize("channels", [1, 8])
def test_a_convolution_of_an_input_in_another_layout(channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 3, 3)).double()
    inputs = torch.randn(4, channels, 9, 9, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert_equal_to_one_at_a_time(model, inputs, 1)


@settings(max_examples=20, deadline=None)
@given(dtype=both_precisions, seed=seeds, n=st.integers(1, 4), places=st.integers(1, 6), padding=st.booleans())
def test_embedding(dtype: torch.dtype, seed: int, n: int, places: int, padding: bool) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=2 if padding else None)).to(dtype)
    tokens = torch.randint(5, (n, places), generator=torch.Generator().manual_seed(seed))
    assert_equal_to_one_at_a_time(model, tokens, seed)


@settings(max_examples=40, deadline=None)
@given(
    dtype=both_precisions,
    seed=seeds,
    n=st.integers(1, 4),
    sides=st.lists(st.integers(2, 5), min_size=1, max_size=2),
    layer=st.sampled_from(
        [
            lambda sides: nn.GroupNorm(2, 4),
            lambda sides: nn.GroupNorm(4, 4),
            lambda sides: (nn.InstanceNorm1d, nn.InstanceNorm2d)[len(sides) - 1](4, affine=True),
            lambda sides: nn.LayerNorm(sides[-1]),
            lambda sides: nn.LayerNorm((4, *sides)),
            lambda sides: nn.LayerNorm(sides[-1], bias=False),
            lambda sides: nn.RMSNorm(sides[-1]),
            lambda sides: nn.RMSNorm((4, *sides)),
        ]
    ),
)
def test_normalisation(
    dtype: torch.dtype, seed: int, n: int, sides: list[int], layer: Callable[[list[int]], nn.Module]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(layer(sides)).to(dtype)
    for parameter in model.parameters():  # not the identity
        torch.nn.init.normal_(parameter, generator=generator)
    assert_equal_to_one_at_a_time(model, scaled(generator, n, 4, *sides, dtype=dtype), seed)


class Attention(nn.Module):
    """Linear layers and scaled dot products, with tied weights, a weight used twice and parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(6, 6), nn.Linear(6, 6)
        self.key = nn.Linear(6, 6, bias=False)
        self.key.weight = self.query.weight
        self.places = nn.Parameter(torch.randn(4, 6))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.places
        query, key, value = self.query(tokens), self.key(tokens), self.value(self.value(tokens))
        return functional.scaled_dot_product_attention(query, key, value)


class Adapter(nn.Module):
    """A frozen weight beside two small ones (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        adapted: Tensor = self.frozen(tokens) + self.up(self.down(tokens))
        return adapted


class TiedToEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.embedding(tokens)))
        return logits


class Twice(nn.Module):
    """A large layer used twice: factors are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 192)

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = self.layer(torch.tanh(self.layer(x)))
        return twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("network", "ours"),
    [
        (lambda: nn.Sequential(Attention(), nn.ReLU(inplace=True), nn.Linear(6, 3)), False),
        (lambda: nn.Sequential(nn.Linear(6, 6), Adapter(), nn.LayerNorm(6), nn.Linear(6, 3)), True),
        (lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), Adapter(), nn.Linear(6, 3)), True),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(0.1, inplace=True), nn.Linear(6, 3)), True),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(inplace=True), nn.ConvTranspose1d(6, 2, 2)), True),
        (lambda: nn.Sequential(nn.PReLU(), nn.Linear(6, 3)), False),
    ],
    ids=["attention", "adapter", "frozen below", "in place", "transposed", "prelu"],
)
def test_networks_of_layers(network: Callable[[], nn.Module], ours: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    inputs = torch.randn(5, 4, 6, dtype=dtype)
    assert_equal_to_one_at_a_time(network().to(dtype), inputs, 2, ours=ours)


def test_weights_tied_to_an_embedding() -> None:
    torch.manual_seed(5)
    assert_equal_to_one_at_a_time(TiedToEmbedding().double(), torch.randint(7, (5, 4)), 2)


def test_a_large_layer_used_twice_joins_its_factors() -> None:
    torch.manual_seed(5)
    model = Twice().double()
    assert_equal_to_one_at_a_time(model, torch.randn(3, 192, dtype=torch.float64), 2)


def test_a_large_weight_tied_to_an_embedding_is_made_whole() -> None:
    torch.manual_seed(5)
    model = TiedToEmbedding()
    model.embedding, model.head = nn.Embedding(256, 128), nn.Linear(128, 256, bias=False)
    model.head.weight = model.embedding.weight
    assert_equal_to_one_at_a_time(model.double(), torch.randint(256, (3, 2)), 2)


def test_only_what_is_trained_gets_gradients() -> None:
    model = nn.Sequential(nn.Conv1d(4, 3, 2), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(15, 2)).double()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    assert_equal_to_one_at_a_time(model, torch.randn(3, 4, 6, dtype=torch.float64), 2)
    with private_hooks(model):
        torch.autograd.backward(model(torch.randn(3, 4, 6, dtype=torch.float64)).sum())
        assert [hasattr(p, "grad_sample") for p in model.parameters()] == [False, True, True, False, True, False]


def test_bfloat16_inside_leaves_gradients_in_the_precision_of_the_parameters() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    inputs, labels = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
    found = []
    for enabled in (False, True):
        with private_hooks(model):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = functional.cross_entropy(model(inputs), labels, reduction="sum")
            torch.autograd.backward(loss)
            found.append([parameter.grad_sample for parameter in model.parameters()])  # type: ignore[attr-defined]
    for whole, half in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert 0 < (whole - half).norm() < 0.05 * whole.norm()


def test_an_input_that_is_changed_in_place_after_it_was_used_is_an_error() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            made: Tensor = self.first(x)
            x.mul_(2)
            return self.second(made) + x

    model = Changing()
    with private_hooks(model), pytest.raises(RuntimeError, match="layer first: its input was changed in place"):
        torch.autograd.backward(model(torch.randn(3, 4)).sum())


def test_a_fallback_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.PReLU(), nn.Linear(6, 3), nn.PReLU())
    with caplog.at_level("INFO"), private_hooks(model):
        for _ in range(2):
            torch.autograd.backward(model(torch.randn(3, 6)).sum())
            for parameter in model.parameters():
                parameter.grad_sample = None  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        "layer 2: gradients of a PReLU are made one example at a time, slowly"
    ]


def test_a_layer_with_parameters_of_its_own_and_dropout_inside_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.dropout = nn.Parameter(torch.ones(4)), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.dropout(x * self.scale)
            return made

    model = nn.Sequential(nn.Linear(4, 4), Both())
    with pytest.raises(UsageError, match=r"layer 1, a Both, .* draws random numbers"), private_hooks(model):
        pass
