"""The recurrences of LSTM and GRU over all times, each as one operation with a backward pass of its own.

Autograd would follow each time's dozen operations, and Python runs them one by one. Here a loop over time holds only
what hangs on the time before: a product of matrices and a few elementwise operations, all in place, into buffers made
before. In the backward pass all factors that don't hang on later slopes are made for all times at once, and so is the
gradient of the recurrent weight.

Gates are (T, n, columns), before their activation; no example has a part in another's. `against` runs from the last
time to the first; all tensors are in order of time all the same. Neither can be differentiated twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_sigmoid_slopes = torch.ops.aten.sigmoid_backward.grad_input  # (d, s): d s (1 - s)
_tanh_slopes = torch.ops.aten.tanh_backward.grad_input  # (d, t): d (1 - t^2)


def lstm_recurrence(
    gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, against: bool
) -> tuple[Tensor, Tensor]:
    """c_t = sigmoid(f) c_t-1 + sigmoid(i) tanh(g), h_t = sigmoid(o) tanh(c_t), with `weight` h_t-1 added to the gates.

    Args:
        gates: (T, n, 4 size), what the inputs add to i, f, g, o, biases included.
        weight: (4 size, size).
        hidden: (n, size), h before the first time.
        cell: (n, size), c before the first time.
        against: whether time runs backwards.

    Returns:
        h of all times (T, n, size), and c after the last one (n, size).
    """
    made: tuple[Tensor, Tensor] = _Lstm.apply(gates, weight, hidden, cell, against)  # type: ignore[no-untyped-call]
    return made


def gru_recurrence(gates: Tensor, weight: Tensor, hidden: Tensor, against: bool) -> Tensor:
    """h_t = (1 - z) n + z h_t-1, with r and z sigmoids and n = tanh(gates' n + r m).

    Args:
        gates: (T, n, 4 size), of n, r, z and m: what the inputs add to n, r and z, and biases to all of them.
        weight: (3 size, size); its product with h_t-1 is added to r, z and m.
        hidden: (n, size), h before the first time.
        against: whether time runs backwards.

    Returns:
        h of all times (T, n, size).
    """
    made: Tensor = _Gru.apply(gates, weight, hidden, against)  # type: ignore[no-untyped-call]
    return made


def before(hidden: Tensor, states: Tensor, against: bool) -> Tensor:
    """The state before each time: (T, n, size), of the one before the first time and of those after each."""
    return torch.cat([states[1:], hidden[None]] if against else [hidden[None], states[:-1]])


class _Lstm(Function):
    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, against: bool
    ) -> tuple[Tensor, Tensor]:
        active = gates.clone(memory_format=torch.contiguous_format)
        size = weight.shape[1]
        cells = active.new_empty(*active.shape[:2], size)
        bounded, outputs = torch.empty_like(cells), torch.empty_like(cells)  # tanh(c), h
        across, h, c = weight.t(), hidden, cell
        buffers = (active, active[..., : 2 * size], *active.chunk(4, 2), cells, bounded, outputs)
        for step, i_and_f, i, f, g, o, c_now, bounded_now, h_now in _times(buffers, against):
            step.addmm_(h, across)
            i_and_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c, out=c_now).addcmul_(i, g)
            torch.tanh(c_now, out=bounded_now)
            torch.mul(o, bounded_now, out=h_now)
            h, c = h_now, c_now
        ctx.against = against
        ctx.save_for_backward(weight, hidden, cell, active, cells, bounded, outputs)
        return outputs, c.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor, of_cell: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden, cell, active, cells, bounded, outputs = ctx.saved_tensors
        i, f, g, o = active.chunk(4, 2)
        gates = torch.empty_like(active)
        to_i, to_f, to_g, to_o = gates.chunk(4, 2)
        _sigmoid_slopes(g, i, grad_input=to_i)  # for now what the slopes of c or h are multiplied by
        _sigmoid_slopes(before(cell, cells, ctx.against), f, grad_input=to_f)
        _tanh_slopes(i, g, grad_input=to_g)
        _sigmoid_slopes(bounded, o, grad_input=to_o)
        to_cell = _tanh_slopes(o, bounded, grad_input=torch.empty_like(bounded))
        of_gates = gates.view(*gates.shape[:2], 4, -1)[:, :, :3]

        of_h, of_c = torch.zeros_like(hidden), of_cell.clone(memory_format=torch.contiguous_format)
        for_gates = of_c[:, None]
        for slope, step, ifg, out, c_now, f_now in _times((slopes, gates, of_gates, to_o, to_cell, f), not ctx.against):
            of_h.add_(slope)
            of_c.addcmul_(of_h, c_now)
            ifg.mul_(for_gates)
            out.mul_(of_h)
            of_c.mul_(f_now)
            torch.mm(step, weight, out=of_h)
        return gates, _of_weight(ctx, gates, hidden, outputs), of_h, of_c, None


class _Gru(Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, hidden: Tensor, against: bool) -> Tensor:
        active = gates.clone(memory_format=torch.contiguous_format)
        size = weight.shape[1]
        outputs = active.new_empty(*active.shape[:2], size)
        across, h = weight.t(), hidden
        buffers = (active[..., size:], active[..., size : 3 * size], *active.chunk(4, 2), outputs)
        for step, r_and_z, n, r, z, m, h_now in _times(buffers, against):
            step.addmm_(h, across)
            r_and_z.sigmoid_()
            n.addcmul_(r, m).tanh_()
            h = torch.lerp(n, h, z, out=h_now)
        ctx.against = against
        ctx.save_for_backward(weight, hidden, active, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden, active, outputs = ctx.saved_tensors
        n, r, z, m = active.chunk(4, 2)
        gates = torch.empty_like(active)
        to_n, to_r, to_z, to_m = gates.chunk(4, 2)
        _tanh_slopes(1 - z, n, grad_input=to_n)  # for now what the slopes of h are multiplied by
        _sigmoid_slopes(to_n * m, r, grad_input=to_r)
        _sigmoid_slopes(before(hidden, outputs, ctx.against) - n, z, grad_input=to_z)
        torch.mul(to_n, r, out=to_m)

        of_h = torch.zeros_like(hidden)
        for_gates = of_h[:, None]
        recurrent = gates[..., weight.shape[1] :]
        buffers = (slopes, gates.view(*gates.shape[:2], 4, -1), recurrent, z)
        for slope, step, rzm, z_now in _times(buffers, not ctx.against):
            of_h.add_(slope)
            step.mul_(for_gates)
            of_h.mul_(z_now).addmm_(rzm, weight)
        return gates, _of_weight(ctx, recurrent, hidden, outputs), of_h, None


def _times(buffers: tuple[Tensor, ...], against: bool) -> Any:
    """The parts of each time, in turn: views, made all at once."""
    steps = list(zip(*(buffer.unbind() for buffer in buffers), strict=True))
    return reversed(steps) if against else steps


def _of_weight(ctx: Any, slopes: Tensor, hidden: Tensor, outputs: Tensor) -> Tensor | None:
    """The gradient of the recurrent weight, over all examples and times; None where nobody asks for it."""
    if not ctx.needs_input_grad[1]:
        return None
    return slopes.flatten(0, 1).t() @ before(hidden, outputs, ctx.against).flatten(0, 1)
