"""A user's module as a network: its parameters in one vector, its rows at their places."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollout.learners.module_network import BLOCK, ModuleNetwork, blocks_of
from rollout.learners.network import CategoricalHead, GaussianHead, Head, ModuleSpec
from rollout.learners.optimizer import Adam
from rollout.modules import named_arrays

CHOICE = CategoricalHead((3,))


class Small(nn.Module):
    scale: torch.Tensor

    def __init__(self, num_outputs: int = 3) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 7)
        self.policy = nn.Linear(7, num_outputs)
        self.value = nn.Linear(7, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("scale", torch.full((5,), 0.5))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.hidden(observation * self.scale))
        return self.policy(hidden), self.value(hidden).squeeze(-1) + self.frozen.sum()


def make_network(head: Head = CHOICE, seed: int = 0) -> ModuleNetwork:
    torch.manual_seed(seed)
    module = Small(head.num_outputs)
    spec = ModuleSpec((5,), head, (), "x:Small", "", {}, seed, named_arrays(module))
    return ModuleNetwork(spec, module)


def test_vector_begins_as_the_module_was_made_and_is_what_it_computes_with():
    network, module = make_network(), Small()
    torch.manual_seed(0)
    made = Small()
    names = [name for name, _ in made.named_parameters()]
    assert [p.name for p in network.spec.parameters] == [*names, "scale"]
    observation = torch.randn(4, 5)
    torch.testing.assert_close(network.forward(observation), made(observation))
    module.scale.fill_(2.0)
    tensors = [*module.parameters(), module.scale]
    flat = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])
    network.load(flat)
    torch.testing.assert_close(network.forward(observation), module(observation))
    np.testing.assert_array_equal(network.export(), flat)


def test_gradients_land_in_the_flat_one_and_a_step_of_the_optimizer_moves_the_module():
    network = make_network()
    observation = torch.randn(6, 5)
    policy, value = network(observation)
    loss = value.square().mean() - policy.log_prob(torch.zeros(6, dtype=torch.int64)).mean()
    loss.backward()
    twin = {n: p.clone().detach().requires_grad_() for n, p in network.module.named_parameters()}
    outputs, twin_value = torch.func.functional_call(network.module, twin, observation)
    twin_loss = twin_value.square().mean() - outputs.log_softmax(1)[:, 0].mean()
    grads = torch.autograd.grad(twin_loss, [p for n, p in twin.items() if n != "frozen"])
    wanted = dict(zip((n for n in twin if n != "frozen"), grads, strict=True))
    for parameter in network.spec.parameters:
        expected = wanted.get(parameter.name, torch.zeros(parameter.shape))
        torch.testing.assert_close(parameter.view(network.flat_grad), expected)

    before = {n: p.detach().clone() for n, p in network.module.named_parameters()}
    Adam(network.flat, network.flat_grad).step(loss, 0.01, 1.0)
    moved = {n for n, p in network.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before) - {"frozen"}


def test_head_over_quantities_has_its_deviations_behind_the_module():
    network = make_network(GaussianHead(3))
    assert network.spec.parameters[-1].name == "log_std"
    assert network.spec.num_parameters == sum(p.numel() for p in Small(3).parameters()) + 5 + 3
    policy, _ = network(torch.zeros(2, 5))
    policy.log_prob(torch.ones(2, 3)).sum().backward()
    assert (network.flat_grad[-3:] != 0.0).all()


def test_dropout_and_batch_normalisation_stay_in_evaluation_mode():
    network = make_network()
    network.module.add_module("dropout", nn.Dropout(0.9))
    assert not network.module.training


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ([], []),
        ([0, 1, 2], [(0, 3)]),
        ([30, 31, 32, 33], [(0, 2), (2, 4)]),
        ([5, 9, 5, 6, 6], [(0, 2), (2, 4), (4, 5)]),
        ([7], [(0, 1)]),
    ],
)
def test_rows_share_a_pass_while_their_places_go_up_within_a_block(place, wanted):
    found = blocks_of(np.array(place, np.int64))
    assert [(rows.start, rows.stop) for rows in found] == wanted


class Spy(Small):
    """Remembers what its passes were of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(observation.clone())
        return super().forward(observation)


def test_row_lies_at_its_place_of_a_pass_that_always_has_as_many_rows():
    module = Spy()
    spec = ModuleSpec((5,), CHOICE, (), "x:Spy", "", {}, 0, named_arrays(module))
    network = ModuleNetwork(spec, module)
    observation = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    place = np.array([3, 29, 31, 32, 40, 3, 4, 4, 95])
    outputs, value = network.evaluate(observation, place)
    for passed in module.seen:
        assert passed.shape == (BLOCK, 5)
    told = {tuple(row.tolist()): i for seen in module.seen for i, row in enumerate(seen)}
    for row, at in zip(observation, place, strict=True):
        assert told[tuple(row.tolist())] == at % BLOCK
    with torch.no_grad():
        wanted = Small.forward(module, torch.from_numpy(observation))
    np.testing.assert_allclose(outputs, wanted[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, wanted[1].numpy(), rtol=1e-5, atol=1e-6)
    alone, _ = network.evaluate(observation[4:5], place[4:5])
    np.testing.assert_array_equal(alone, outputs[4:5])
