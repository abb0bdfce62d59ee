"""Lstm and Gru compute what Torch's own do, and each example's gradient is the one that it has alone."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.dpsgd.engine import private_hooks
from privacy.dpsgd.layers.recurrent import Gru, Lstm
from privacy.dpsgd.layers.tapped import Gradients

Layer = Lstm | Gru
KINDS = pytest.mark.parametrize("kind", [Lstm, Gru])


@dataclass(frozen=True)
class Case:
    """A layer, and sequences for it."""

    kind: type[Layer]
    n: int
    steps: int
    inputs: int
    hidden: int
    options: dict[str, Any]
    with_state: bool

    def layer(self) -> Layer:
        torch.manual_seed(self.steps + self.hidden)
        return self.kind(self.inputs, self.hidden, **self.options).double()

    def torchs(self) -> nn.RNNBase:
        kind = nn.LSTM if self.kind is Lstm else nn.GRU
        return kind(self.inputs, self.hidden, batch_first=True, **self.options).double()

    def data(self) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Sequences, and initial states if there are any."""
        torch.manual_seed(self.n)
        states = self.options["num_layers"] * (1 + self.options["bidirectional"])
        sequences = torch.randn(self.n, self.steps, self.inputs).double()
        kinds = 2 if self.kind is Lstm else 1
        state = tuple(torch.randn(states, self.n, self.hidden).double() for _ in range(kinds))
        return sequences, state if self.with_state else None


def cases(**fixed: Any) -> st.SearchStrategy[Case]:
    options = st.fixed_dictionaries(
        {"num_layers": st.integers(1, 3), "bias": st.booleans(), "bidirectional": st.booleans()}
    )
    return st.builds(
        Case,
        kind=st.sampled_from([Lstm, Gru]),
        n=st.integers(1, 5),
        steps=st.integers(1, 9),
        inputs=st.integers(1, 6),
        hidden=st.integers(1, 7),
        options=options,
        with_state=st.booleans(),
        **fixed,
    )


ONE_LAYER: dict[str, Any] = {"num_layers": 1, "bias": True, "bidirectional": False}


def outputs(layer: nn.Module, sequences: Tensor, state: tuple[Tensor, ...] | None) -> list[Tensor]:
    """All that a layer returns, states last."""
    given_state = state if state is None or isinstance(layer, Lstm | nn.LSTM) else state[0]
    made, final = layer(sequences, given_state)
    return [made, *final] if isinstance(final, tuple) else [made, final]


def loss(made: list[Tensor]) -> Tensor:
    """A sum over examples, to which each element of outputs and states matters differently.

    Outputs are (n, T, features), states (layers, n, features): what weighs doesn't hang on the example.
    """
    total = torch.zeros((), dtype=made[0].dtype)
    for value, axis in zip(made, [0, 1, 1], strict=False):
        of_one = value.movedim(axis, 0)
        weights = torch.linspace(-1, 2, of_one[0].numel(), dtype=value.dtype).view(of_one[0].shape)
        total = total + (of_one * weights + of_one.square()).sum()
    return total


@dataclass
class Collected:
    """A tap as an engine has it: the layer's parameters ask for no gradient while it runs, the gates do."""

    layer: Layer
    rows: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    uses: list[weakref.ref[Any]] = field(default_factory=list)

    def run(self, sequences: Tensor, state: tuple[Tensor, ...] | None = None) -> list[Tensor]:
        trained = [parameter for parameter in self.layer.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        self.layer.tap = self._tap
        made = outputs(self.layer, sequences, state)
        self.layer.tap = None
        for parameter in trained:
            parameter.requires_grad_(True)
        return made

    def _tap(self, gates: Tensor, gradients: Gradients) -> Tensor:
        watched = gates if gates.requires_grad else gates.clone().requires_grad_()
        self.uses.append(weakref.WeakMethod(gradients))
        watched.register_hook(partial(self._came_back, gradients))
        return watched

    def _came_back(self, gradients: Gradients, slopes: Tensor) -> None:
        for parameter, found in gradients(slopes):
            assert isinstance(found, Tensor)
            assert parameter not in self.rows
            self.rows[parameter] = found


def one_by_one(layer: Layer, sequences: Tensor, state: tuple[Tensor, ...] | None) -> list[Tensor]:
    """The gradients of the trained parameters, each example run alone: (n, *shape)."""
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    alone = []
    for number in range(len(sequences)):
        only = slice(number, number + 1)
        own = None if state is None else tuple(value[:, only] for value in state)
        alone.append(torch.autograd.grad(loss(outputs(layer, sequences[only], own)), trained))
    return [torch.stack(rows) for rows in zip(*alone, strict=True)]


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Apart by no more than a part of the largest value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item())


@given(cases())
@settings(max_examples=30, deadline=None)
def test_outputs_and_gradients_are_those_of_torchs_own(case: Case) -> None:
    ours, theirs = case.layer(), case.torchs()
    theirs.load_state_dict(ours.state_dict())
    sequences, state = case.data()
    leaves = []
    for layer in (ours, theirs):
        own = [sequences.clone().requires_grad_(), *(value.clone().requires_grad_() for value in state or ())]
        made = outputs(layer, own[0], tuple(own[1:]) or None)
        loss(made).backward()
        leaves.append([*made, *(leaf.grad for leaf in [*own, *layer.parameters()])])
    for found, expected in zip(*leaves, strict=True):
        assert_close(found, expected, 1e-10)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_rows_are_the_gradients_that_each_example_has_alone(case: Case) -> None:
    layer = case.layer()
    sequences, state = case.data()
    collected = Collected(layer)
    loss(collected.run(sequences, state)).backward()
    assert set(collected.rows) == set(layer.parameters())
    for parameter, expected in zip(layer.parameters(), one_by_one(layer, sequences, state), strict=True):
        assert_close(collected.rows[parameter], expected, 1e-10)
        assert parameter.grad is None


@given(cases(), st.data())
@settings(max_examples=20, deadline=None)
def test_only_what_is_trained_has_rows(case: Case, data: st.DataObject) -> None:
    layer = case.layer()
    for parameter in layer.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    next(layer.parameters()).requires_grad_(True)
    sequences, state = case.data()
    collected = Collected(layer)
    loss(collected.run(sequences, state)).backward()
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    assert set(collected.rows) == set(trained)
    for parameter, expected in zip(trained, one_by_one(layer, sequences, state), strict=True):
        assert_close(collected.rows[parameter], expected, 1e-10)


@KINDS
@pytest.mark.parametrize("steps", [1, 200])
def test_rows_of_single_precision(kind: type[Layer], steps: int) -> None:
    case = Case(kind, 4, steps, 12, 20, ONE_LAYER | {"bidirectional": True}, with_state=True)
    exact, layer = case.layer(), case.layer().float()
    sequences, state = case.data()
    assert state is not None
    collected = Collected(layer)
    loss(collected.run(sequences.float(), tuple(value.float() for value in state))).backward()
    for parameter, expected in zip(layer.parameters(), one_by_one(exact, sequences, state), strict=True):
        assert_close(collected.rows[parameter].double(), expected, 1e-5)


@KINDS
def test_slopes_reach_what_lies_below(kind: type[Layer]) -> None:
    case = Case(kind, 3, 5, 4, 6, ONE_LAYER | {"num_layers": 2}, with_state=True)
    layer = case.layer()
    sequences, state = case.data()
    assert state is not None
    leaves = [value.requires_grad_() for value in (sequences, *state)]
    plain = torch.autograd.grad(loss(outputs(layer, sequences, state)), leaves)
    tapped = torch.autograd.grad(loss(Collected(layer).run(sequences, state)), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, tapped, strict=True))


@KINDS
def test_an_example_that_is_not_finite_spoils_no_other(kind: type[Layer]) -> None:
    case = Case(kind, 4, 6, 3, 5, ONE_LAYER | {"num_layers": 2, "bidirectional": True}, with_state=False)
    layer = case.layer()
    sequences, _ = case.data()
    rows = []
    for value in (0.0, float("nan")):
        sequences[2] = value
        collected = Collected(layer)
        loss(collected.run(sequences)).backward()
        rows.append([collected.rows[parameter] for parameter in layer.parameters()])
    for without, spoiled in zip(*rows, strict=True):
        assert torch.equal(spoiled[[0, 1, 3]], without[[0, 1, 3]])
        assert not spoiled[2].isfinite().all()


@KINDS
def test_state_dicts_go_both_ways(kind: type[Layer]) -> None:
    case = Case(kind, 2, 3, 4, 5, ONE_LAYER | {"num_layers": 2, "bidirectional": True}, with_state=False)
    ours, theirs = case.layer(), case.torchs()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    before = copy.deepcopy(theirs.state_dict())
    ours.load_state_dict(before)
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


@KINDS
def test_it_begins_as_torchs_own(kind: type[Layer]) -> None:
    torch.manual_seed(5)
    ours = kind(4, 6, 2, bidirectional=True)
    torch.manual_seed(5)
    theirs = (nn.LSTM if kind is Lstm else nn.GRU)(4, 6, 2, bidirectional=True)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@KINDS
def test_dropout_is_between_layers_and_in_training_only(kind: type[Layer]) -> None:
    case = Case(kind, 2, 3, 4, 5, ONE_LAYER | {"num_layers": 2, "dropout": 1.0}, with_state=False)
    ours, theirs = case.layer(), case.torchs()
    theirs.load_state_dict(ours.state_dict())
    sequences, _ = case.data()
    other = torch.randn_like(sequences)
    assert_close(ours(sequences)[0], theirs(sequences)[0], 1e-12)
    assert torch.equal(ours(sequences)[0], ours(other)[0])  # all of the first layer's outputs are dropped
    ours.eval()
    theirs.eval()
    assert_close(ours(sequences)[0], theirs(sequences)[0], 1e-12)
    assert not torch.equal(ours(sequences)[0], ours(other)[0])


@KINDS
def test_rows_with_dropout_are_those_of_the_mask_that_was_drawn(kind: type[Layer]) -> None:
    case = Case(kind, 3, 4, 4, 5, ONE_LAYER | {"num_layers": 2, "dropout": 0.5}, with_state=False)
    layer = case.layer()
    sequences, _ = case.data()
    collected = Collected(layer)
    torch.manual_seed(8)
    loss(collected.run(sequences)).backward()
    torch.manual_seed(8)
    loss(outputs(layer, sequences, None)).backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert_close(collected.rows[parameter].sum(0), parameter.grad, 1e-10)


@KINDS
@pytest.mark.parametrize("which", ["inputs", "state", "outputs"])
def test_a_change_in_place_is_found_out(kind: type[Layer], which: str) -> None:
    case = Case(kind, 2, 1, 3, 4, ONE_LAYER, with_state=True)  # of one time: the layer has no copy of its inputs
    sequences, state = case.data()
    assert state is not None
    made = Collected(case.layer()).run(sequences, state)
    total = loss(made)
    with torch.no_grad():
        {"inputs": sequences, "state": state[0], "outputs": made[0]}[which].mul_(2)
    with pytest.raises(RuntimeError, match=r"in place|inplace"):
        total.backward()


@KINDS
def test_nothing_outlives_a_run(kind: type[Layer]) -> None:
    """Memory goes with the last reference, not when the collector of cycles comes by, of which GPUs know nothing."""
    case = Case(kind, 2, 3, 3, 4, ONE_LAYER | {"num_layers": 2}, with_state=False)
    collected = Collected(case.layer())
    gc.disable()
    try:
        made = collected.run(case.data()[0])
        assert [use() is None for use in collected.uses] == [False, False]
        del made
        assert [use() is None for use in collected.uses] == [True, True]
    finally:
        gc.enable()


class LastOutput(nn.Module):
    """Tokens to classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.lstm, self.gru, self.head = nn.Embedding(11, 4), Lstm(4, 5), Gru(5, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        made: Tensor = self.head(self.gru(self.lstm(self.embed(tokens))[0])[1][-1])
        return made


@pytest.mark.parametrize("frozen", [[], ["embed"], ["embed", "lstm"], ["gru", "head"]], ids="-".join)
def test_inside_private_hooks(frozen: list[str]) -> None:
    model = LastOutput()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tokens, classes = torch.randint(0, 11, (5, 7)), torch.tensor([0, 2, 1, 1, 0])
    cost = nn.CrossEntropyLoss(reduction="sum")
    alone = [
        torch.autograd.grad(cost(model(tokens[k : k + 1]), classes[k : k + 1]), trained) for k in range(len(tokens))
    ]
    with private_hooks(model):
        cost(model(tokens), classes).backward()
        for parameter, *rows in zip(trained, *alone, strict=True):
            assert_close(parameter.grad_sample, torch.stack(rows), 1e-10)
    assert model.lstm.tap is None


@KINDS
@pytest.mark.parametrize("shape", [(2, 4), (2, 0, 4), (2, 3, 5), (2, 3, 4, 1)])
def test_inputs_of_another_shape_are_refused(kind: type[Layer], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs are \(n, T, 4\)"):
        kind(4, 6)(torch.zeros(shape))


@KINDS
def test_states_of_another_shape_are_refused(kind: type[Layer]) -> None:
    state = torch.zeros(1, 3, 6)  # of three examples
    with pytest.raises(ValueError, match="initial states"):
        outputs(kind(4, 6), torch.zeros(2, 3, 4), (state, state))


@KINDS
@pytest.mark.parametrize("wrong", [{"hidden_size": 0}, {"input_size": 0}, {"num_layers": 0}, {"dropout": 1.5}])
def test_sizes_and_rates_are_checked(kind: type[Layer], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|a rate"):
        kind(**{"input_size": 4, "hidden_size": 6} | wrong)


@KINDS
def test_recurrent_layers_stay_in_their_own_precision_under_autocast(kind: type[Layer]) -> None:
    layer, inputs = kind(3, 4), torch.randn(2, 5, 3)
    expected = layer(inputs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(inputs)[0], expected)
        assert layer(inputs.bfloat16())[0].dtype == torch.float32
