"""Recurrent layers with torch: T steps of C columns, one after the other, and back through time."""

import torch

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
    step = _lstm_step if isinstance(layer, Lstm) else _gru_step
    states = []
    for sums_t, reset in zip(sums.unbind(), resets.unbind(), strict=True):
        core_state = core_state.masked_fill(reset, 0.0)
        core_state = step(sums_t, core_state, hidden_weight, *others)
        states.append(core_state)
    return torch.cat(states)


def _lstm_step(
    sums: torch.Tensor, core_state: torch.Tensor, hidden_weight: torch.Tensor
) -> torch.Tensor:
    hidden, cell = core_state.chunk(2, dim=1)
    i, f, g, o = torch.addmm(sums, hidden, hidden_weight).chunk(4, dim=1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat((torch.sigmoid(o) * torch.tanh(cell), cell), dim=1)


def _gru_step(
    sums: torch.Tensor,
    hidden: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
) -> torch.Tensor:
    r, z, n = sums.chunk(3, dim=1)
    r_hidden, z_hidden, n_hidden = (hidden @ hidden_weight).chunk(3, dim=1)
    r, z = torch.sigmoid(r + r_hidden), torch.sigmoid(z + z_hidden)
    n = torch.tanh(n + r * (n_hidden + hidden_bias))
    return n + z * (hidden - n)
