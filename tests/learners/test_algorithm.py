import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from rollout.learners import algorithm as algorithm_module
from rollout.learners.algorithm import (
    Algorithm,
    Inputs,
    Metrics,
    explained_variance,
    mean_metrics,
)
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.learners.optimizer import NonFiniteLossError
from rollout.learners.settings import AlgorithmSettings
from rollout.learners.synthetic_batch import make_synthetic_batch
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch

SPEC = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared")


class ReinforceSettings(AlgorithmSettings):
    learning_rate: float = 0.01


class Rows(NamedTuple):
    inputs: Inputs
    action: torch.Tensor
    reward: torch.Tensor


class Reinforce(Algorithm[ReinforceSettings]):
    """What a user may write: each step as a bandit of its own."""

    Settings = ReinforceSettings

    def update(self, batch: Batch, update_index: int, fraction_done: float) -> dict[str, float]:
        rows = Rows(self.inputs(batch), self.as_rows(batch.action), self.as_rows(batch.reward))
        steps = [
            self.step(self.loss, minibatch, self.settings.learning_rate, max_grad_norm=1.0)
            for minibatch in self.minibatches(rows, 4, update_index, epoch=0)
        ]
        return mean_metrics(steps)

    def loss(self, rows: Rows) -> tuple[torch.Tensor, Metrics]:
        policy, _ = self.network(*rows.inputs)
        loss = -(policy.log_prob(rows.action) * rows.reward).mean()
        return loss, {"losses/policy_loss": loss}


def make_reinforce(seed: int = 1) -> Reinforce:
    network = TorchNetwork(SPEC, initial_parameters(SPEC, 0))
    return Reinforce(network, ReinforceSettings(), seed)


def numbered_rows(count: int) -> Rows:
    numbers = torch.arange(count)
    nothing, never = torch.zeros(count, 0), torch.zeros(count, dtype=torch.bool)
    inputs = Inputs(numbers[:, None] * torch.ones(4), nothing.bool(), nothing, never)
    return Rows(inputs, numbers, numbers.float())


def test_algorithm_of_ones_own_learns_from_a_batch() -> None:
    reinforce = make_reinforce()
    batch = make_synthetic_batch(reinforce.network, 16, 8)
    batch.reward[:] = batch.action  # action 1 is always the better one
    before = initial_parameters(SPEC, 0)
    history = [
        reinforce.update(batch, update_index, fraction_done=0.0) for update_index in range(30)
    ]
    metrics = history[-1]
    assert set(metrics) == {"losses/policy_loss", "losses/grad_norm", "losses/skipped_steps"}
    assert all(isinstance(metric, float) for metric in metrics.values())
    assert not np.array_equal(reinforce.network.export(), before)
    logits, _ = reinforce.network.forward(torch.from_numpy(batch.observation[0]))
    assert bool((logits[:, 1] > logits[:, 0]).all())


def test_minibatches_hold_every_row_once_with_its_fields_together() -> None:
    minibatches = list(make_reinforce().minibatches(numbered_rows(24), 3, 0, 0))
    assert [len(minibatch.action) for minibatch in minibatches] == [8, 8, 8]
    for minibatch in minibatches:
        assert torch.equal(minibatch.action.float(), minibatch.reward)
        assert torch.equal(minibatch.action.float(), minibatch.inputs.observation[:, 2])
    seen = torch.cat([minibatch.action for minibatch in minibatches])
    assert seen.tolist() != list(range(24))
    assert sorted(seen.tolist()) == list(range(24))


def test_minibatches_are_shuffled_anew_for_each_seed_update_and_epoch() -> None:
    def order(seed: int, update_index: int, epoch: int) -> tuple[int, ...]:
        reinforce = make_reinforce(seed)
        minibatches = reinforce.minibatches(numbered_rows(24), 2, update_index, epoch)
        return tuple(torch.cat([minibatch.action for minibatch in minibatches]).tolist())

    assert order(1, 5, 2) == order(1, 5, 2)
    assert len({order(1, 5, 2), order(2, 5, 2), order(1, 6, 2), order(1, 5, 3)}) == 4


@pytest.mark.parametrize(
    ("num_rows", "sizes"), [(24, [8, 8, 8]), (25, [9, 8, 8]), (5, [3, 2]), (2, [2])]
)
def test_every_row_is_in_one_minibatch_however_many_there_are(num_rows, sizes) -> None:
    minibatches = list(make_reinforce().minibatches(numbered_rows(num_rows), 3, 0, 0))
    assert [len(minibatch.action) for minibatch in minibatches] == sizes
    shared_out = torch.cat([minibatch.action for minibatch in minibatches])
    assert sorted(shared_out.tolist()) == list(range(num_rows))


@pytest.mark.parametrize("max_rows", [1, 7, 10, 20, 64])
def test_step_in_pieces_equals_the_step_in_one(
    max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_synthetic_batch(make_reinforce().network, 10, 2)
    whole = make_reinforce()
    rows = Rows(whole.inputs(batch), whole.as_rows(batch.action), whole.as_rows(batch.reward))
    whole_metrics = whole.step(whole.loss, rows, 0.01, 1.0)
    monkeypatch.setitem(algorithm_module.MAX_ROWS, "cpu", max_rows)
    pieces = make_reinforce()
    pieces_metrics = pieces.step(pieces.loss, rows, 0.01, 1.0)
    torch.testing.assert_close(pieces.network.flat_grad, whole.network.flat_grad)
    assert whole_metrics is not None
    assert pieces_metrics is not None
    for name, metric in whole_metrics.items():
        torch.testing.assert_close(pieces_metrics[name], metric)


def test_steps_that_are_not_finite_are_skipped_counted_and_left_out_of_the_means() -> None:
    reinforce = make_reinforce()
    batch = make_synthetic_batch(reinforce.network, 16, 8)
    batch.reward[3, 3] = math.nan  # one of four minibatches
    metrics = reinforce.update(batch, 0, fraction_done=0.0)
    assert all(math.isfinite(metric) for metric in metrics.values())
    assert np.isfinite(reinforce.network.export()).all()
    assert reinforce.optimizer.skipped_steps == metrics["losses/skipped_steps"] == 1
    assert reinforce.optimizer.step_count == 3


def test_run_of_steps_that_are_not_finite_is_an_error() -> None:
    reinforce = make_reinforce()
    batch = make_synthetic_batch(reinforce.network, 16, 8)
    batch.reward[:] = math.inf
    assert reinforce.update(batch, 0, fraction_done=0.0) == {"losses/skipped_steps": 4.0}
    reinforce.update(batch, 1, fraction_done=0.0)
    with pytest.raises(NonFiniteLossError):
        reinforce.update(batch, 2, fraction_done=0.0)


def test_rows_are_the_batchs_columns_by_name_and_what_was_computed() -> None:
    reinforce = make_reinforce()
    batch = make_synthetic_batch(reinforce.network, 16, 8)
    rows = reinforce.make_rows(Rows, batch, reward=2.0 * batch.reward)
    observation = torch.from_numpy(batch.observation[:-1].reshape(128, 4))
    assert torch.equal(rows.inputs.observation, observation)
    assert torch.equal(rows.action, torch.from_numpy(batch.action.reshape(128)))
    assert rows.reward.tolist() == [2.0] * 128


def test_optimizer_gives_up_after_as_many_skipped_steps_as_it_is_told() -> None:
    reinforce = make_reinforce()
    reinforce.optimizer.max_skipped_steps = 2
    batch = make_synthetic_batch(reinforce.network, 16, 8)
    batch.reward[:] = math.nan
    with pytest.raises(NonFiniteLossError, match="2 optimizer steps in a row"):
        reinforce.update(batch, 0, fraction_done=0.0)
    assert reinforce.skipped_steps == 2


def test_metric_that_is_no_scalar_is_refused() -> None:
    reinforce = make_reinforce()
    batch = make_synthetic_batch(reinforce.network, 16, 8)
    rows = reinforce.make_rows(Rows, batch)

    def loss(rows: Rows) -> tuple[torch.Tensor, Metrics]:
        found, _ = reinforce.loss(rows)
        return found, {"losses/rewards": rows.reward}

    with pytest.raises(ValueError, match=r"'losses/rewards' is a tensor of shape \[128\]"):
        reinforce.step(loss, rows, 0.01, 1.0)


def test_algorithm_goes_on_from_its_state_bit_for_bit() -> None:
    first = make_reinforce()
    batch = make_synthetic_batch(first.network, 16, 8)
    first.update(batch, 0, fraction_done=0.0)
    second = make_reinforce()
    second.network.load(first.network.export())
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.update(batch, 1, fraction_done=0.5)
    assert np.array_equal(first.network.export(), second.network.export())


def test_explained_variance_is_1_when_perfect_and_0_for_a_constant() -> None:
    return_ = torch.tensor([1.0, 2.0, 4.0, 7.0])
    assert explained_variance(return_, return_) == 1.0
    assert explained_variance(torch.full((4,), 3.0), return_) == pytest.approx(0.0)
    assert explained_variance(return_, torch.ones(4)) == 0.0, "equal returns explain nothing"
