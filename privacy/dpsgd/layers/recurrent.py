"""LSTM and GRU for private training: each example's gradient at about the price of an ordinary step.

They compute what `nn.LSTM` and `nn.GRU` do, have parameters of the same names, and load each other's state. Torch's own
can't be trained privately, as the slopes of their gates stay inside; Opacus' replacements run a cell of several modules
for each time. Here the inputs of all times go through one product of matrices, whose result, the gates before their
activation, is handed to `tap`; their slopes are what every gradient of the layer is made of.

Sources: Hochreiter and Schmidhuber 1997, "Long short-term memory", with the forget gate of Gers et al. 2000; Cho et al.
2014, "Learning phrase representations using RNN encoder-decoder" (arXiv 1406.1078), with the reset gate after the
product as in `nn.GRU`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.layers.recurrence import before, gru_recurrence, lstm_recurrence
from privacy.dpsgd.layers.tapped import Tapped


class _Weights(NamedTuple):
    """Parameters of one direction of one layer."""

    inputs: nn.Parameter
    hidden: nn.Parameter
    inputs_bias: nn.Parameter | None
    hidden_bias: nn.Parameter | None


class _Recurrent(Tapped):
    """Layers of one or two directions each, over sequences of one length.

    Args:
        input_size: features of an input.
        hidden_size: features of a state.
        num_layers: each takes the outputs of the one before.
        bias: whether both products have one.
        dropout: rate of elements that are set to zero between layers, in training.
        bidirectional: whether each layer also runs from the last time to the first; the outputs of both stand side by
            side.
    """

    _blocks: ClassVar[int]  # of rows in a weight

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if min(input_size, hidden_size, num_layers) < 1:
            raise ValueError("input_size, hidden_size and num_layers are at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError("dropout is a rate from 0 to 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.dropout, self.bidirectional = bias, dropout, bidirectional
        bound, rows = 1 / math.sqrt(hidden_size), self._blocks * hidden_size
        for number in range(num_layers):
            features = hidden_size * self._directions if number else input_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features), "weight_hh": (rows, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for against in range(self._directions):
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                    self.register_parameter(name + _suffix(number, bool(against)), parameter)

    def extra_repr(self) -> str:
        """Sizes and options, for the module's text."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}, "
            f"dropout={self.dropout}, bidirectional={self.bidirectional}"
        )

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _run(self, inputs: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers.

        Args:
            inputs: (n, T, input size).
            states: one (layers · directions, n, hidden size) for each kind of state; none: zeros.
        """
        if inputs.ndim != 3 or inputs.shape[1] == 0 or inputs.shape[2] != self.input_size:
            raise ValueError(f"inputs are (n, T, {self.input_size}) with T > 0, not {tuple(inputs.shape)}")
        shape = (self.num_layers * self._directions, len(inputs), self.hidden_size)
        if any(state.shape != shape for state in states):
            raise ValueError(f"initial states are {shape}, not {[tuple(state.shape) for state in states]}")
        if inputs.device.type == "meta" or not torch.is_autocast_enabled(inputs.device.type):
            return self._layers(inputs, states)
        # In bfloat16 the rounding of a state would go into all later ones.
        precision = self._weights(0, against=False).inputs.dtype
        with torch.autocast(inputs.device.type, enabled=False):
            return self._layers(inputs.to(precision), tuple(state.to(precision) for state in states))

    def _layers(self, inputs: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        finals: list[tuple[Tensor, ...]] = []
        for number in range(self.num_layers):
            outputs = []
            for against in range(self._directions):
                first = tuple(state[len(finals)] for state in states)
                made, final = self._direction(self._weights(number, bool(against)), inputs, first, bool(against))
                outputs.append(made)
                finals.append(final)
            inputs = (torch.cat(outputs, 2) if self.bidirectional else outputs[0]).transpose(0, 1)
            if self.dropout and number < self.num_layers - 1:
                inputs = functional.dropout(inputs, self.dropout, self.training)
        return inputs, tuple(torch.stack(states) for states in zip(*finals, strict=True))

    def _weights(self, number: int, against: bool) -> _Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return _Weights(*(getattr(self, name + _suffix(number, against), None) for name in names))  # type: ignore[arg-type]

    def _direction(
        self, weights: _Weights, inputs: Tensor, first: tuple[Tensor, ...], against: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs (T, n, hidden size) and last states (n, hidden size) of one direction of one layer."""
        n, steps, _ = inputs.shape
        gates = self._gates(weights, inputs.transpose(0, 1).flatten(0, 1))
        use = _Use(self, weights, inputs.detach(), against)
        if self.tap is not None:
            gates = self.tap(gates, use.gradients)
        outputs, final = self._recur(gates.view(steps, n, gates.shape[1]), weights.hidden, first, against)
        use.done(first[0], outputs)
        return outputs, (outputs[0 if against else -1], *final)

    @abstractmethod
    def _gates(self, weights: _Weights, inputs: Tensor) -> Tensor:
        """Of inputs (T n, features): what the recurrence takes, (T n, ...)."""

    @abstractmethod
    def _recur(
        self, gates: Tensor, weight: Tensor, first: tuple[Tensor, ...], against: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs, and the last states other than h."""

    @abstractmethod
    def slopes(self, of_gates: Tensor) -> tuple[Tensor, Tensor]:
        """Of slopes of the gates (T, n, ...): those of W x + b, x the input and x the state, each (n, T, rows of W)."""


class Lstm(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), equal to `nn.LSTM(..., batch_first=True)`.

    Raises:
        ValueError: a size below 1, or a dropout that is no rate.
    """

    _blocks = 4

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs of all times, and the last states.

        Args:
            inputs: (n, T, input_size).
            state: h and c before the first time, each (num_layers · directions, n, hidden_size); None: zeros.

        Returns:
            (n, T, hidden_size · directions), and h and c, shaped as `state`.

        Raises:
            ValueError: inputs or states of another shape.
        """
        shape = (self.num_layers * self._directions, len(inputs), self.hidden_size)
        states = (inputs.new_zeros(shape), inputs.new_zeros(shape)) if state is None else state
        outputs, (hidden, cell) = self._run(inputs, states)
        return outputs, (hidden, cell)

    def _gates(self, weights: _Weights, inputs: Tensor) -> Tensor:
        if weights.inputs_bias is None or weights.hidden_bias is None:
            return functional.linear(inputs, weights.inputs)
        return functional.linear(inputs, weights.inputs, weights.inputs_bias + weights.hidden_bias)

    def _recur(
        self, gates: Tensor, weight: Tensor, first: tuple[Tensor, ...], against: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, cell = first
        outputs, cell = lstm_recurrence(gates, weight, hidden, cell, against)
        return outputs, (cell,)

    def slopes(self, of_gates: Tensor) -> tuple[Tensor, Tensor]:
        """Both products are added up: they have the same slopes."""
        slopes = of_gates.transpose(0, 1).contiguous()
        return slopes, slopes


class Gru(_Recurrent):
    """Gated recurrent units (Cho et al. 2014), equal to `nn.GRU(..., batch_first=True)`.

    Raises:
        ValueError: a size below 1, or a dropout that is no rate.
    """

    _blocks = 3

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs of all times, and the last state.

        Args:
            inputs: (n, T, input_size).
            state: h before the first time, (num_layers · directions, n, hidden_size); None: zeros.

        Returns:
            (n, T, hidden_size · directions), and h, shaped as `state`.

        Raises:
            ValueError: inputs or a state of another shape.
        """
        shape = (self.num_layers * self._directions, len(inputs), self.hidden_size)
        outputs, (hidden,) = self._run(inputs, (inputs.new_zeros(shape) if state is None else state,))
        return outputs, hidden

    def _gates(self, weights: _Weights, inputs: Tensor) -> Tensor:
        bias, of_m = None, inputs.new_zeros(self.hidden_size)
        if weights.inputs_bias is not None and weights.hidden_bias is not None:
            of_r_and_z, of_m = torch.split(weights.hidden_bias, [2 * self.hidden_size, self.hidden_size])
            bias = weights.inputs_bias + functional.pad(of_r_and_z, (0, self.hidden_size))
        made = functional.linear(inputs, weights.inputs, bias)
        r_and_z, n = torch.split(made, [2 * self.hidden_size, self.hidden_size], 1)
        return torch.cat([n, r_and_z, of_m.expand(len(inputs), -1)], 1)

    def _recur(
        self, gates: Tensor, weight: Tensor, first: tuple[Tensor, ...], against: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return gru_recurrence(gates, weight, first[0], against), ()

    def slopes(self, of_gates: Tensor) -> tuple[Tensor, Tensor]:
        """Of n, r, z, m: the inputs' product has r, z, n, the state's r, z, m."""
        size = self.hidden_size
        n, r_and_z, m = torch.split(of_gates.transpose(0, 1), [size, 2 * size, size], 2)
        return torch.cat([r_and_z, n], 2), torch.cat([r_and_z, m], 2)


@dataclass(eq=False)
class _Use:
    """One use of one direction of one layer: what its gradients are made of once its gates' slopes are known."""

    layer: _Recurrent
    weights: _Weights
    inputs: Tensor
    against: bool
    _states: tuple[Tensor, Tensor] | None = None
    _versions: tuple[int, ...] = field(init=False)

    def done(self, first: Tensor, outputs: Tensor) -> None:
        """Keep the state before the first time (n, hidden size) and those of all times (T, n, hidden size)."""
        self._states = first.detach(), outputs.detach()  # with their graph they would hold themselves alive
        self._versions = self._versions_now()

    def gradients(self, slopes: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Of slopes (T n, ...) of the gates: the per-example gradients of all trained parameters."""
        assert self._states is not None
        if self._versions != self._versions_now():
            raise RuntimeError(f"a {type(self.layer).__name__}'s input or state was changed in place after it was used")
        first, states = self._states
        of_inputs, of_hidden = self.layer.slopes(slopes.view(*states.shape[:2], slopes.shape[1]))
        weights = self.weights
        if weights.inputs.requires_grad:
            yield weights.inputs, torch.bmm(of_inputs.transpose(1, 2), self.inputs.contiguous())
        if weights.hidden.requires_grad:
            hidden = before(first, states, self.against).transpose(0, 1).contiguous()
            yield weights.hidden, torch.bmm(of_hidden.transpose(1, 2), hidden)
        if weights.inputs_bias is not None and weights.inputs_bias.requires_grad:
            yield weights.inputs_bias, of_inputs.sum(1)
        if weights.hidden_bias is not None and weights.hidden_bias.requires_grad:
            yield weights.hidden_bias, of_hidden.sum(1)

    def _versions_now(self) -> tuple[int, ...]:
        """Autograd counts changes of a tensor; its own check doesn't see what no parameter's gradient hangs on."""
        assert self._states is not None
        return tuple(value._version for value in (self.inputs, *self._states) if not value.is_inference())


def _suffix(number: int, against: bool) -> str:
    return f"_l{number}_reverse" if against else f"_l{number}"
