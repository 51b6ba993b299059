"""Recurrent layers with torch: T steps of C columns, one after the other, and back through time.

Autograd would record a dozen small operations for each step, and add up the weights' gradients step
by step. Here a step back is a product and what carries on: all else, the weights' gradients too, is
done for all steps together, before or after.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from rollout.learners.layers import Core, Lstm


def run_core(
    layer: Core,
    source: torch.Tensor,
    parameters: list[torch.Tensor],
    core_state: torch.Tensor,
    is_first: torch.Tensor,
) -> torch.Tensor:
    """The core states [T·C, core_size] after each row of source [T·C, inputs], in (t, column).

    They begin with what the layer writes.

    parameters: in the order of `layer.shapes()`. core_state: [C, core_size], before step 0.
    is_first: bool [T·C], where it is zeros instead.
    """
    columns = len(core_state)
    input_weight, hidden_weight, bias, *others = parameters
    sums = torch.addmm(bias, source, input_weight).view(-1, columns, input_weight.shape[1])
    resets = is_first.view(-1, columns, 1)
    function = _Lstm if isinstance(layer, Lstm) else _Gru
    states: Any = function.apply(sums, core_state, resets, hidden_weight, *others)
    return states.flatten(0, 1)


class _Lstm(torch.autograd.Function):
    """(sums [T, C, 4H], core_state [C, 2H], resets [T, C, 1], hidden_weight) → states [T, C, 2H].

    By the equations of layers.Lstm. tanh(x) is 2 σ(2x) - 1, so that one σ does for all gates.
    """

    @staticmethod
    def forward(ctx, sums, core_state, resets, hidden_weight):
        size = len(hidden_weight)
        factors = sums.new_ones(4, size)
        factors[2] = 2.0
        gates, weight = sums * factors.view(-1), hidden_weight * factors.view(-1)
        states = sums.new_empty(*sums.shape[:2], 2 * size)
        squashed = sums.new_empty(*sums.shape[:2], size)
        before = core_state
        steps = gates, *gates.chunk(4, dim=2), states, *states.chunk(2, dim=2), squashed, resets
        for gates_t, i, f, g, o, state, new_hidden, new_cell, tanh, reset in _each(*steps):
            hidden, cell = before.masked_fill(reset, 0.0).split(size, dim=1)
            gates_t.addmm_(hidden, weight).sigmoid_()
            g.mul_(2.0).sub_(1.0)
            torch.mul(f, cell, out=new_cell).addcmul_(i, g)
            torch.mul(new_cell, 2.0, out=tanh).sigmoid_().mul_(2.0).sub_(1.0)
            torch.mul(o, tanh, out=new_hidden)
            before = state
        ctx.save_for_backward(core_state, resets, hidden_weight, gates, states, squashed)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        core_state, resets, hidden_weight, gates, states, squashed = ctx.saved_tensors
        hidden, cell = _befores(core_state, states, resets).chunk(2, dim=2)
        i, f, g, o = gates.chunk(4, dim=2)
        # of h' by c'; then of c' by the sums of i, f and g, and of h' by that of o
        by_cell = o * (1.0 - squashed.square())
        by_sums = torch.stack(
            (g * i * (1.0 - i), cell * f * (1.0 - f), i * (1.0 - g.square()),
             squashed * o * (1.0 - o)),
            dim=2,
        )  # fmt: skip
        grad_sums, carried = by_sums.flatten(2), torch.zeros_like(core_state)
        grad_hidden, grad_cell = carried.chunk(2, dim=1)
        transposed = hidden_weight.t().contiguous()  # the product takes a sixth of the time then
        steps = grad_outputs[0], by_cell, by_sums[:, :, :3], by_sums[:, :, 3], grad_sums, f, resets
        for grad, cell_t, first_three, last, grad_sums_t, f_t, reset in _backwards(*steps):
            carried += grad
            grad_cell.addcmul_(grad_hidden, cell_t)
            first_three *= grad_cell.unsqueeze(1)
            last *= grad_hidden
            torch.mm(grad_sums_t, transposed, out=grad_hidden)
            grad_cell *= f_t
            carried.masked_fill_(reset, 0.0)
        grad_weight = hidden.flatten(0, 1).t() @ grad_sums.flatten(0, 1)
        return grad_sums, carried, None, grad_weight


class _Gru(torch.autograd.Function):
    """(sums [T, C, 3H], core_state [C, H], resets, hidden_weight, hidden_bias) → states [T, C, H].

    By the equations of layers.Gru.
    """

    @staticmethod
    def forward(ctx, sums, core_state, resets, hidden_weight, hidden_bias):
        size = len(hidden_weight)
        gates, states, from_hidden = sums.clone(), *sums.new_empty(2, *sums.shape[:2], size)
        before = core_state
        r_and_z, parts = gates[:, :, : 2 * size], gates.chunk(3, dim=2)
        for both, r, z, n, state, inner, reset in _each(
            r_and_z, *parts, states, from_hidden, resets
        ):
            hidden = before.masked_fill(reset, 0.0)
            products = hidden @ hidden_weight
            both.add_(products[:, : 2 * size]).sigmoid_()
            torch.add(products[:, 2 * size :], hidden_bias, out=inner)
            n.addcmul_(r, inner).mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)
            torch.lerp(n, hidden, z, out=state)
            before = state
        ctx.save_for_backward(core_state, resets, hidden_weight, gates, states, from_hidden)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        core_state, resets, hidden_weight, gates, states, from_hidden = ctx.saved_tensors
        hidden = _befores(core_state, states, resets)
        r, z, n = gates.chunk(3, dim=2)
        # of h' by the sums of r and z, by what r multiplies, and by the sum of n
        by_n = (1.0 - z) * (1.0 - n.square())
        by_all = torch.stack(
            (by_n * from_hidden * r * (1.0 - r), (hidden - n) * z * (1.0 - z), by_n * r, by_n),
            dim=2,
        )
        by_products = by_all.flatten(2)[:, :, : gates.shape[2]]
        carried, transposed = torch.zeros_like(core_state), hidden_weight.t().contiguous()
        steps = grad_outputs[0], by_all, by_products, z, resets
        for grad, by_all_t, by_products_t, z_t, reset in _backwards(*steps):
            carried += grad
            by_all_t *= carried.unsqueeze(1)
            carried = torch.addmm(carried * z_t, by_products_t, transposed)
            carried.masked_fill_(reset, 0.0)
        grad_weight = hidden.flatten(0, 1).t() @ by_products.flatten(0, 1)
        grad_sums = by_all[:, :, [0, 1, 3]].flatten(2)
        return grad_sums, carried, None, grad_weight, by_all[:, :, 2].sum((0, 1))


def _each(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """What each step has of them."""
    return zip(*(tensor.unbind() for tensor in tensors), strict=True)


def _backwards(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """What each step has of them, the last step first."""
    return zip(*(reversed(tensor.unbind()) for tensor in tensors), strict=True)


def _befores(core_state: torch.Tensor, states: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
    """The core state before each step, [T, C, core_size]: of those after each, and the first."""
    return torch.cat((core_state.unsqueeze(0), states[:-1])).masked_fill(resets, 0.0)
