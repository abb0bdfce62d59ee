"""Rule 7 of the design: no network trains on private data before its examples are shown to be independent."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from opacus.layers import DPLSTM
from torch import nn
from torch.nn import functional

from privacy.dpsgd.engine import DpEngine
from privacy.dpsgd.layers.recurrent import Gru, Lstm
from security.errors import UsageError
from shared_models.example_form import ExampleForm
from shared_models.private_trainable import check_private_trainable

SHAPE, CLASSES = (6,), 3
MIXES = "mixes the examples of a batch"


engines = pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])


def refusal(model: nn.Module, shape: tuple[int, ...] = SHAPE, engine: DpEngine = "bookkeeping") -> str:
    with pytest.raises(UsageError) as caught:
        check_private_trainable(model, ExampleForm(shape, CLASSES), engine)
    text = str(caught.value)
    assert "\n" not in text
    return text


class Apply(nn.Module):
    """A layer without parameters, from a function of the batch."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.function(batch)


def with_layer(layer: nn.Module) -> nn.Sequential:
    """A sound network but for the layer in its middle, which sees (batch, 8)."""
    return nn.Sequential(
        OrderedDict(first=nn.Linear(6, 8), features=nn.Sequential(OrderedDict(odd=layer)), last=nn.Linear(8, CLASSES))
    )


def image_model(norm: nn.Module) -> nn.Module:
    features = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3), bn1=norm, act=nn.ReLU()))
    return nn.Sequential(
        OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(4, CLASSES))
    )


# --- what passes ------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = DPLSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(series)[0][:, -1])


class Scaled(nn.Module):
    """Holds a constant in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((8,), 0.5))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * self.scale


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.Dropout(0.5), nn.Softmax(dim=1), Scaled()]
)
def test_layers_that_treat_examples_one_by_one_pass(layer: nn.Module) -> None:
    check_private_trainable(with_layer(layer), ExampleForm(SHAPE, CLASSES))


def test_a_layer_used_twice_passes() -> None:
    shared = nn.Linear(8, 8)
    check_private_trainable(with_layer(nn.Sequential(shared, nn.Tanh(), shared)), ExampleForm(SHAPE, CLASSES))


@engines
def test_opacus_lstm_passes(engine: DpEngine) -> None:
    check_private_trainable(Recurrent(), ExampleForm((4, 3), CLASSES), engine)


@pytest.mark.parametrize("layer", [Lstm, Gru])
def test_veils_own_recurrent_layers_pass(layer: type[nn.Module]) -> None:
    model = Recurrent()
    model.lstm = layer(3, 5)
    check_private_trainable(model, ExampleForm((4, 3), CLASSES))


def test_group_and_instance_norm_pass_where_batch_norm_does_not() -> None:
    check_private_trainable(image_model(nn.GroupNorm(2, 4)), ExampleForm((1, 8, 8), CLASSES))
    check_private_trainable(image_model(nn.InstanceNorm2d(4, affine=True)), ExampleForm((1, 8, 8), CLASSES))


# --- known offenders --------------------------------------------------------------------------------------------


class OwnNorm(nn.BatchNorm2d):
    """A subclass: Opacus looks types up exactly and would let it pass."""


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False), OwnNorm(4)],
)
def test_batch_norm_is_refused_in_every_guise_with_its_path_and_the_mend(norm: nn.Module) -> None:
    assert refusal(image_model(norm), (1, 8, 8)) == (
        f"layer 'features.bn1' ({type(norm).__name__}) mixes the examples of a batch; use GroupNorm"
    )


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.MultiheadAttention(8, 2), "hides its weights; use Linear layers and scaled_dot_product_attention"),
        (nn.LSTM(8, 8), "hides its weights; use Lstm of privacy.dpsgd.layers.recurrent"),
        (nn.GRU(8, 8), "hides its weights; use Gru of privacy.dpsgd.layers.recurrent"),
    ],
)
def test_layers_without_per_example_gradients_are_refused_with_the_mend(layer: nn.Module, reason: str) -> None:
    assert refusal(with_layer(layer)) == f"layer 'features.odd' ({type(layer).__name__}) {reason}"


def test_running_statistics_of_instance_norm_are_refused() -> None:
    assert refusal(image_model(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), (1, 8, 8)) == (
        "layer 'features.bn1' (InstanceNorm2d) keeps statistics of the data; use track_running_stats=False"
    )


# --- examples that depend on each other ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(dim=0),
        lambda x: x - x.mean(dim=0).detach(),
        lambda x: x + 1e-6 * x.mean(dim=0),
        lambda x: x / (1 + x.abs().max()),
        lambda x: x / len(x),
        lambda x: x + x.roll(1, dims=0),
        lambda x: x * torch.arange(1, len(x) + 1, dtype=x.dtype).unsqueeze(1),
        lambda x: functional.normalize(x, dim=0),
        lambda x: torch.cat([x[:1], torch.zeros_like(x[1:])]),
    ],
    ids=["mean", "detached-mean", "a-little-mean", "max", "size", "neighbour", "position", "norm", "first-only"],
)
def test_a_layer_that_mixes_examples_is_caught_and_named(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert refusal(with_layer(Apply(function))).startswith(f"layer 'features.odd' (Apply) {MIXES}")


class MeanInBackward(torch.autograd.Function):
    """Passes values on untouched and mixes the gradients of a batch."""

    @staticmethod
    def forward(_ctx: Any, batch: torch.Tensor) -> torch.Tensor:
        return batch.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].mean(dim=0, keepdim=True).expand_as(gradients[0])


def test_mixed_gradients_are_caught_where_losses_are_independent() -> None:
    text = refusal(with_layer(Apply(MeanInBackward.apply)))
    assert text.startswith(f"the model {MIXES}")


# --- memory and chance ------------------------------------------------------------------------------------------


class RunningMean(nn.Module):
    """Updates a buffer in training and does nothing with it: the buffer alone would carry data out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 0.1 * (batch.mean(dim=0).detach() - self.seen)
        return batch


def test_a_buffer_that_the_forward_pass_updates_is_refused() -> None:
    assert refusal(with_layer(RunningMean())) == (
        "layer 'features.odd' (RunningMean) changes 'seen' in its forward pass, which carries data past the "
        "clipping; keep no running statistics"
    )


class LateBuffer(nn.Module):
    """Makes its buffer in the first forward pass."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.register_buffer("seen", batch.detach())
        return batch


def test_a_buffer_that_the_forward_pass_makes_is_refused() -> None:
    assert refusal(with_layer(LateBuffer())).startswith("layer 'features.odd' (LateBuffer) changes 'seen'")


class Drift(nn.Module):
    """Decays its weight whenever it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        output = self.inner(batch)
        self.inner.weight.data.mul_(0.9)
        return output


def test_a_weight_that_the_forward_pass_changes_is_refused() -> None:
    assert refusal(with_layer(Drift())).startswith("layer 'features.odd.inner' (Linear) changes 'weight'")


class LargestSeen(nn.Module):
    """Remembers in a plain attribute, which no list of buffers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 1.0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, float(batch.detach().abs().max()))
        return batch / self.largest


def test_a_model_that_remembers_outside_its_buffers_is_refused() -> None:
    assert refusal(with_layer(LargestSeen())) == (
        "the model remembers earlier batches; keep nothing from one forward pass to the next"
    )


@pytest.mark.parametrize(
    "function", [lambda x: functional.dropout(x, 0.5), lambda x: x + torch.randn_like(x)], ids=["dropout", "noise"]
)
def test_chance_outside_dropout_layers_is_refused(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    text = refusal(with_layer(Apply(function)))
    assert text.startswith("the model gives another loss or gradient each time it sees the same example; ")
    assert "nn.Dropout" in text


class GreedyDropout(nn.Dropout):
    """Called dropout, but mixes; only the library's own layers are trusted with chance."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch - batch.mean(dim=0) if self.training else batch


def test_a_layer_that_only_pretends_to_be_dropout_is_caught() -> None:
    assert refusal(with_layer(GreedyDropout())).startswith(f"layer 'features.odd' (GreedyDropout) {MIXES}")


# --- parameters without per-example gradients -----------------------------------------------------------------------


class BareShift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch + self.shift


def test_a_bare_parameter_passes_with_veils_engine_and_is_named_with_opacus() -> None:
    check_private_trainable(with_layer(BareShift()), ExampleForm(SHAPE, CLASSES))
    assert refusal(with_layer(BareShift()), engine="opacus") == (
        "parameter 'features.odd.shift' of layer 'features.odd' (BareShift) has no per-example gradients; "
        "make it the weight of a supported layer, such as Linear, Conv2d or Embedding, or set "
        "training.dp_engine = 'bookkeeping'"
    )


@engines
def test_frozen_parameters_pass_as_long_as_one_is_trained(engine: DpEngine) -> None:
    model = with_layer(nn.Linear(8, 8)).requires_grad_(False)
    assert "has no parameter to train" in refusal(model, engine=engine)
    model.last.bias.requires_grad_(True)
    check_private_trainable(model, ExampleForm(SHAPE, CLASSES), engine)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch


def test_an_unused_parameter_is_named() -> None:
    assert refusal(with_layer(Idle())) == (
        "parameter 'features.odd.unused.weight' is not used by every example; use it in each forward pass or remove it"
    )


def test_a_layer_cut_off_by_detach_is_named() -> None:
    assert refusal(with_layer(Apply(lambda x: x.detach()))).startswith("parameter 'first.weight' is not used by every")


class Borrowed(nn.Module):
    """Uses a layer's weight without calling the layer, where hooks can't see it."""

    def __init__(self, also_call: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, bias=False)
        self.also_call = also_call

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.also_call:
            batch = self.inner(batch)
        return functional.linear(batch, self.inner.weight)


@pytest.mark.parametrize("also_call", [False, True])
def test_a_weight_used_behind_the_hooks_back_is_named(also_call: bool) -> None:
    assert refusal(with_layer(Borrowed(also_call))) == (
        "parameter 'features.odd.inner.weight' gets wrong per-example gradients, or none, from its layer's hooks; "
        "use it only by calling its layer, with the batch as first dimension"
    )


def test_writing_into_a_layers_output_passes_with_veils_engine_and_is_refused_with_opacus() -> None:
    check_private_trainable(with_layer(nn.ReLU(inplace=True)), ExampleForm(SHAPE, CLASSES))
    assert refusal(with_layer(nn.ReLU(inplace=True)), engine="opacus").startswith(
        "the model fails in a forward pass on a batch of shape"
    )


def test_a_model_without_parameters_is_refused() -> None:
    assert refusal(Apply(lambda x: x[:, :CLASSES])) == "the model (Apply) has no parameter to train"


# --- models that can't be tested --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "given"), [(nn.Linear(6, 4), "(4, 4)"), (nn.Sequential(nn.Linear(6, 3), Apply(torch.mean)), "()")]
)
def test_wrong_logits_are_refused(model: nn.Module, given: str) -> None:
    assert refusal(model) == f"the model gives {given} for a batch of shape (4, 6), not logits (4, 3)"


def test_a_model_that_fails_is_refused_with_its_own_words() -> None:
    def fail(_batch: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such vocabulary\nsecond line")

    text = refusal(with_layer(Apply(fail)))
    assert text.startswith("the model fails in a forward pass on a batch of shape (4, 6): KeyError: ")
    assert "no such vocabulary" in text


def test_a_model_whose_loss_is_not_finite_is_refused() -> None:
    assert refusal(with_layer(Apply(lambda x: x / 0))) == "the model's loss is not finite on random inputs"


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Uncopyable:
        raise RuntimeError("holds a lock")


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    assert refusal(Uncopyable(6, 3)) == "the model (Uncopyable) can't be copied: holds a lock"


# --- the model is left as it was ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sound", [True, False])
def test_the_check_leaves_no_trace(sound: bool) -> None:
    model = with_layer(nn.Dropout(0.5) if sound else RunningMean())
    model.first.eval()
    model.last.register_forward_hook(lambda _module, _inputs, _output: None)
    model.register_buffer("constant", torch.arange(3))
    functional.cross_entropy(model(torch.randn(2, 6)), torch.tensor([0, 1])).backward()
    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    attributes = [set(vars(m)) for m in model.modules()]
    parameter_attributes = [set(vars(p)) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    random_state = torch.get_rng_state()

    with torch.no_grad():  # whatever the caller's gradient mode
        if sound:
            check_private_trainable(model, ExampleForm(SHAPE, CLASSES))
        else:
            refusal(model)
        assert not torch.is_grad_enabled()

    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert [set(vars(p)) for p in model.parameters()] == parameter_attributes
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()] == hooks
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_verdict_does_not_depend_on_the_global_random_state() -> None:
    verdicts = set()
    for seed in range(3):
        torch.manual_seed(seed)
        verdicts.add(refusal(with_layer(Apply(lambda x: x - x.mean(dim=0)))))
    assert len(verdicts) == 1


# --- networks that look at what they are given ------------------------------------------------------------------


class SortedByLength(nn.Module):
    """Puts examples in order of length before a layer and back after it, as one does to pack sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        order = (batch != 0).sum(1).argsort()
        return self.head(torch.tanh(self.inner(batch[order]))[order.argsort()])


class SortedByPadding(SortedByLength):
    """Likewise by how many zeros stand before the first value."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        order = (batch != 0).float().argmax(1).argsort()
        return self.head(torch.tanh(self.inner(batch[order]))[order.argsort()])


class SomeOfThem(nn.Module):
    """Runs a layer on those examples only that hold a large value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        chosen = batch.abs().amax(1) > 5
        made = torch.zeros_like(batch)
        made[chosen] = self.inner(batch[chosen])
        return self.head(made + batch)


@engines
@pytest.mark.parametrize("model", [SortedByLength, SortedByPadding, SomeOfThem])
def test_a_network_that_moves_examples_about_by_what_they_hold_is_refused(
    model: type[nn.Module], engine: DpEngine
) -> None:
    assert "gets wrong per-example gradients" in refusal(model(), engine=engine)


class BareMask(nn.Module):
    """A bare parameter and a mask of zeros, kept on the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = BareShift(), nn.Linear(6, CLASSES)
        self.inner.shift = nn.Parameter(torch.zeros(6))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.inner.mask = (batch != 0).to(batch)
        shifted = self.inner(batch) * self.inner.mask
        return self.head(shifted)


def test_a_mask_made_outside_of_the_layer_that_it_is_for_passes() -> None:
    check_private_trainable(BareMask(), ExampleForm(SHAPE, CLASSES))


class OnSign(nn.Module):
    """Adds the batch's mean wherever any example holds a sign: what a random text never does."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.embed, self.head, self.sign = nn.Embedding(5000, 4), nn.Linear(4, CLASSES), sign

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        tokens = examples.long()
        states = self.embed(tokens).mean(1)
        if (tokens == self.sign).any():
            states = states + states.mean(0)
        logits: torch.Tensor = self.head(states)
        return logits


TOKENS = ExampleForm((6,), CLASSES, vocabulary=5000)


@pytest.mark.parametrize("sign", [0, 3, 102, 1023, 4999])
def test_a_network_that_mixes_examples_at_a_token_is_refused(sign: int) -> None:
    with pytest.raises(UsageError, match="mixes the examples of a batch"):
        check_private_trainable(OnSign(sign), TOKENS)


def test_a_token_that_is_no_sign_is_beyond_this_check() -> None:
    """It is a test on examples, not a proof: what hangs on one of five thousand tokens may pass."""
    check_private_trainable(OnSign(2500), TOKENS)


def test_a_sparse_embedding_is_judged_like_another() -> None:
    model = nn.Sequential(Tokens(), nn.Embedding(50, 3, sparse=True), nn.Flatten(), nn.Linear(18, CLASSES))
    check_private_trainable(model, ExampleForm((6,), CLASSES, vocabulary=50))


class Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()
