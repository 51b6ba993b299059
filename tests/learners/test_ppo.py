import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollout.learners import algorithm as algorithm_module
from rollout.learners.gae import gae
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.learners.ppo import PPO, normalized
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.synthetic_batch import make_synthetic_batch
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch
from rollout.learners.vtrace import vtrace
from tests.learners.batches import act, end_every_step, mark_no_ops

SPEC = make_mlp((4,), CategoricalHead((2,)), (16, 16), "tanh", "shared")


def make_ppo(seed: int = 1, **settings: Any) -> PPO:
    network = TorchNetwork(SPEC, initial_parameters(SPEC, seed))
    return PPO(network, PpoSettings(**settings), seed)


def make_batch(ppo: PPO, unroll_length: int = 16, num_envs: int = 8, seed: int = 0) -> Batch:
    """As if an older version had acted: ratios leave 1, and rewards differ."""
    batch = make_synthetic_batch(ppo.network, unroll_length, num_envs, seed)
    random = np.random.default_rng(seed)
    batch.behavior_log_prob[:] += random.normal(0.0, 0.2, batch.behavior_log_prob.shape)
    batch.reward[:] = random.normal(0.0, 1.0, batch.reward.shape)
    batch.value[:] += random.normal(0.0, 0.3, batch.value.shape)
    return batch


def test_metrics_are_those_computed_by_hand() -> None:
    """With all parameters 0, both actions have probability 1/2 and every value is 0."""
    ppo = make_ppo(update_epochs=1, num_minibatches=1, norm_adv=False, ent_coef=0.0)
    ppo.network.flat.zero_()
    batch = make_synthetic_batch(ppo.network, 2, 2)
    end_every_step(batch)  # so that an advantage is reward - value
    batch.reward[:] = [[2.0, -1.0], [3.0, 0.0]]
    batch.value[:2] = [[1.0, 1.0], [0.0, 0.0]]  # advantages 1, -2, 3, 0; returns are the rewards
    ratios = np.array([[1.5, 0.5], [1.0, 1.1]])
    batch.behavior_log_prob[:] = np.log(0.5 / ratios)

    metrics = ppo.update(batch, 0, fraction_done=0.0)

    surrogates = [1 * 1.2, -2 * 0.8, 3 * 1.0, 0.0]  # clipped: 1.5 to 1.2, 0.5 to 0.8
    assert metrics["losses/policy_loss"] == pytest.approx(-sum(surrogates) / 4)
    assert metrics["losses/value_loss"] == pytest.approx(0.5 * (4 + 1 + 9 + 0) / 4)
    assert metrics["losses/entropy"] == pytest.approx(math.log(2))
    k3 = (0.5 - math.log(1.5)) + (-0.5 - math.log(0.5)) + (0.1 - math.log(1.1))
    assert metrics["losses/approx_kl"] == pytest.approx(k3 / 4, rel=1e-5)
    assert metrics["losses/clipfrac"] == 0.5
    residual, returns = np.array([1.0, -2.0, 3.0, 0.0]), np.array([2.0, -1.0, 3.0, 0.0])
    expected = 1.0 - residual.var() / returns.var()
    assert metrics["losses/explained_variance"] == pytest.approx(expected)
    # only the heads' biases have a gradient where every activation is 0: of the value's,
    # 0.5 · mean(0 - return); of the logits', only the third row is not clipped
    value_gradient = -0.5 * 4.0 / 4
    logit_gradient = 3.0 * 0.5 / 4
    expected = math.hypot(value_gradient, logit_gradient, logit_gradient)
    assert metrics["losses/grad_norm"] == pytest.approx(expected, rel=1e-5)
    assert metrics["charts/learning_rate"] == 2.5e-4


class PlainPPO:
    """The obvious way: modules, torch's Adam, one loss."""

    def __init__(self, ppo: PPO) -> None:
        self.linears: list[nn.Linear] = []
        for layer in SPEC.layers:
            linear = nn.Linear(layer.inputs, layer.outputs)
            linear.weight.data = ppo.network.parameters[f"{layer.name}.weight"].detach().t().clone()
            linear.bias.data = ppo.network.parameters[f"{layer.name}.bias"].detach().clone()
            self.linears.append(linear)
        self.parameters = [p for linear in self.linears for p in linear.parameters()]
        s = self.settings = ppo.settings
        self.optimizer = torch.optim.Adam(self.parameters, lr=s.learning_rate, eps=s.adam_eps)

    def step(
        self, observation, action_mask, action, old_log_prob, old_value, advantage, return_
    ) -> None:
        s = self.settings
        hidden = observation
        for linear in self.linears[:-1]:
            hidden = torch.tanh(linear(hidden))
        heads = self.linears[-1](hidden)
        policy = torch.distributions.Categorical(logits=heads[:, :2])
        value = heads[:, 2]
        if s.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = (policy.log_prob(action) - old_log_prob).exp()
        clipped = torch.clamp(ratio, 1 - s.clip_coef, 1 + s.clip_coef)
        policy_loss = torch.max(-advantage * ratio, -advantage * clipped).mean()
        squared = (value - return_) ** 2
        if s.clip_vloss:
            near = old_value + torch.clamp(value - old_value, -s.clip_coef, s.clip_coef)
            squared = torch.max(squared, (near - return_) ** 2)
        entropy = policy.entropy().mean()
        loss = policy_loss - s.ent_coef * entropy + s.vf_coef * 0.5 * squared.mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, s.max_grad_norm)
        self.optimizer.step()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_vloss": True},
        {"norm_adv": False, "max_grad_norm": 100.0},
        {"ent_coef": 0.3, "vf_coef": 2.0, "clip_coef": 0.05},
    ],
    ids=str,
)
def test_update_equals_that_of_plain_modules(settings: dict[str, Any]) -> None:
    ppo = make_ppo(learning_rate=0.01, update_epochs=2, num_minibatches=4, **settings)
    batch = make_batch(ppo)
    plain = PlainPPO(ppo)
    ppo.update(batch, 0, fraction_done=0.0)
    for epoch in range(2):
        for minibatch in ppo.minibatches(ppo.rows(batch), 4, 0, epoch):
            plain.step(*minibatch.inputs[:2], *minibatch[1:])
    for layer, linear in zip(SPEC.layers, plain.linears, strict=True):
        for name, parameter in (("weight", linear.weight.t()), ("bias", linear.bias)):
            ours = ppo.network.parameters[f"{layer.name}.{name}"]
            torch.testing.assert_close(ours, parameter, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ppo_learns_which_action_each_observation_wants(seed: int) -> None:
    ppo = make_ppo(seed=seed, learning_rate=0.01, num_minibatches=2)
    history = [
        ppo.update(act(ppo.network, update_index), update_index, fraction_done=0.0)
        for update_index in range(40)
    ]
    assert act(ppo.network, seed=41).reward.mean() > 0.9, "an untrained policy gets 0.5"
    assert history[-1]["losses/entropy"] < 0.5


def test_update_is_the_same_bits_each_time() -> None:
    results = []
    for _ in range(2):
        ppo = make_ppo(update_epochs=3)
        metrics = ppo.update(make_batch(ppo), 4, fraction_done=0.0)
        results.append((metrics, ppo.network.export().tobytes()))
    assert results[0] == results[1]


def test_update_depends_on_the_order_of_its_index() -> None:
    results = set()
    for update_index in (0, 1):
        ppo = make_ppo()
        ppo.update(make_batch(ppo), update_index, fraction_done=0.0)
        results.add(ppo.network.export().tobytes())
    assert len(results) == 2


def test_update_leaves_the_batch_as_it_was() -> None:
    ppo = make_ppo()
    batch, untouched = make_batch(ppo), make_batch(ppo)
    ppo.update(batch, 0, fraction_done=0.0)
    for name in ("observation", "action", "reward", "value", "behavior_log_prob", "final_value"):
        assert np.array_equal(getattr(batch, name), getattr(untouched, name)), f"{name} changed"


def test_large_step_ends_the_epochs_once_target_kl_is_passed() -> None:
    steps = {}
    for target_kl in (None, 1e-3, 1e9):
        ppo = make_ppo(learning_rate=0.05, update_epochs=10, num_minibatches=2, target_kl=target_kl)
        ppo.update(make_synthetic_batch(ppo.network, 16, 8), 0, fraction_done=0.0)
        steps[target_kl] = ppo.optimizer.step_count
    assert steps[None] == steps[1e9] == 20
    assert steps[1e-3] == 2, "the passes did not stop after the first epoch"


def test_rows_are_the_steps_of_the_batch_with_advantages_by_the_settings() -> None:
    ppo = make_ppo(gamma=0.7, gae_lambda=0.4)
    batch = make_batch(ppo)
    rows = ppo.rows(batch)
    advantage = gae(
        reward=batch.reward,
        value=batch.value,
        terminated=batch.terminated,
        truncated=batch.truncated,
        final_t=batch.final_t,
        final_env=batch.final_env,
        final_value=batch.final_value,
        gamma=0.7,
        gae_lambda=0.4,
    )
    expected = (
        batch.action,
        batch.behavior_log_prob,
        batch.value[:-1],
        advantage,
        advantage + batch.value[:-1],
    )
    for name, row, column in zip(rows._fields[1:], rows[1:], expected, strict=True):
        found = row.numpy().reshape(column.shape)
        assert np.array_equal(found, column), f"{name} differs"
    shown = rows.inputs.observation.numpy()
    assert np.array_equal(shown.reshape(batch.observation[:-1].shape), batch.observation[:-1])


def test_synthetic_batch_is_as_if_the_network_had_acted() -> None:
    ppo = make_ppo(update_epochs=1, num_minibatches=1)
    batch = make_synthetic_batch(ppo.network, 32, 8)
    metrics = ppo.update(batch, 0, fraction_done=0.0)
    assert metrics["losses/clipfrac"] == 0.0
    assert metrics["losses/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["losses/policy_loss"] == pytest.approx(0.0, abs=1e-6)
    assert len(batch.final_t) > 0
    assert len(batch.episode_t) > len(batch.final_t)


def test_learning_rate_falls_linearly_if_asked_to() -> None:
    for progress, expected in ((0.0, 0.01), (0.25, 0.0075), (1.0, 0.0)):
        ppo = make_ppo(learning_rate=0.01, anneal_lr=True)
        metrics = ppo.update(make_batch(ppo), 0, progress)
        assert metrics["charts/learning_rate"] == pytest.approx(expected)
    ppo = make_ppo(learning_rate=0.01)
    metrics = ppo.update(make_batch(ppo), 0, fraction_done=0.5)
    assert metrics["charts/learning_rate"] == 0.01


def test_annealed_to_nothing_a_step_changes_nothing() -> None:
    ppo = make_ppo(anneal_lr=True)
    before = ppo.network.export()
    ppo.update(make_batch(ppo), 0, fraction_done=1.0)
    assert np.array_equal(ppo.network.export(), before)


def test_truncated_steps_learn_from_their_final_value() -> None:
    results = []
    for final_value in (0.0, 50.0):
        ppo = make_ppo(norm_adv=False)
        batch = make_batch(ppo)
        assert len(batch.final_value) > 0
        batch.final_value[:] = final_value
        results.append(ppo.update(batch, 0, fraction_done=0.0)["losses/value_loss"])
    assert results[1] > results[0] + 1.0


def test_normalized_advantages_have_mean_0_and_deviation_1() -> None:
    result = normalized(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert result.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert result.std().item() == pytest.approx(1.0)


def test_steps_that_are_none_do_not_reach_the_loss() -> None:
    """Whatever stands in their rows: the update is the same in every bit."""

    def update(rubbish: float) -> np.ndarray:
        ppo = make_ppo(update_epochs=2, num_minibatches=3)
        batch = make_batch(ppo, 40, 6)
        no_op = mark_no_ops(batch)
        assert 5 < np.count_nonzero(no_op) < 200
        for rows in (batch.observation[:-1], batch.reward, batch.behavior_log_prob):
            rows[no_op] = rubbish
        batch.action[no_op] = 0
        ppo.update(batch, 0, fraction_done=0.0)
        return ppo.network.flat.detach().numpy().copy()

    np.testing.assert_array_equal(update(0.0), update(1e6))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_batch_of_few_steps_is_trained_on_as_far_as_it_goes(num_steps) -> None:
    ppo = make_ppo(update_epochs=1, num_minibatches=4)
    batch = make_batch(ppo, 4, 2)
    batch.no_op = np.ones((4, 2), np.bool_)
    batch.no_op.reshape(-1)[:num_steps] = False
    before = ppo.network.export().tobytes()
    metrics = ppo.update(batch, 0, fraction_done=0.0)
    assert metrics["losses/skipped_steps"] == 0
    assert all(math.isfinite(value) for value in metrics.values())
    assert (ppo.network.export().tobytes() == before) == (num_steps == 0)


# With vtrace


def act_off_policy(ppo: PPO, seed: int = 0) -> Batch:
    """As another version acted and recorded: ratios leave 1, values are not the network's."""
    batch = make_batch(ppo, 16, 8, seed)
    batch.final_value[:] += 1.0
    return batch


def test_with_vtrace_steps_of_the_newest_policy_are_learned_from_as_without() -> None:
    """Its ratios are 1, and then V-trace is GAE; up to rounding."""
    found = []
    for is_on in (False, True):
        ppo = make_ppo(vtrace=is_on, update_epochs=2)
        batch = make_synthetic_batch(ppo.network, 16, 8)
        ppo.update(batch, 0, fraction_done=0.0)
        found.append(ppo.network.flat.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    assert not torch.equal(found[0], torch.from_numpy(initial_parameters(SPEC, 1)))


def test_with_vtrace_rows_are_those_of_the_newest_policy_corrected_for_the_one_that_acted() -> None:
    ppo = make_ppo(vtrace=True, gamma=0.7, gae_lambda=0.4)
    batch = act_off_policy(ppo)
    assert len(batch.final_t) > 0
    with torch.no_grad():
        rows = torch.from_numpy(batch.observation).flatten(0, 1)
        policy, _ = ppo.network(rows[:-8])
        log_prob = policy.log_prob(torch.from_numpy(batch.action).flatten()).view(16, 8)
        _, values = ppo.network(rows)
        _, final_value = ppo.network(torch.from_numpy(batch.final_observation))
    value = values.view(17, 8).numpy()
    expected = vtrace(
        ratio=np.exp(log_prob.numpy() - batch.behavior_log_prob),
        reward=batch.reward,
        value=value,
        terminated=batch.terminated,
        truncated=batch.truncated,
        final_t=batch.final_t,
        final_env=batch.final_env,
        final_value=final_value.numpy(),
        gamma=0.7,
        gae_lambda=0.4,
    )
    rows = ppo.rows(batch)
    for found, column in (
        (rows.old_log_prob, log_prob.numpy()),
        (rows.value, value[:-1]),
        (rows.advantage, expected.advantage),
        (rows.return_, expected.value_target),
    ):
        np.testing.assert_allclose(found.numpy().reshape(16, 8), column, rtol=1e-4, atol=1e-5)


def test_with_vtrace_the_first_step_has_nothing_to_clip_whoever_acted() -> None:
    clipped = {}
    for is_on in (False, True):
        ppo = make_ppo(vtrace=is_on, update_epochs=1, num_minibatches=1)
        clipped[is_on] = ppo.update(act_off_policy(ppo), 0, 0.0)["losses/clipfrac"]
    assert clipped[False] > 0.1
    assert clipped[True] == 0.0


def test_with_vtrace_actors_record_no_values() -> None:
    assert PpoSettings().needs_value
    assert not PpoSettings(vtrace=True).needs_value
    ppo = make_ppo(vtrace=True)
    batch = act_off_policy(ppo)
    batch.value, batch.final_value = batch.value[:0], batch.final_value[:0]
    ppo.update(batch, 0, fraction_done=0.0)
    assert ppo.optimizer.step_count == 16


def test_with_vtrace_no_piece_is_larger_than_what_a_pass_may_take(monkeypatch) -> None:
    results = []
    for max_rows in (8192, 40, 1):
        monkeypatch.setitem(algorithm_module.MAX_ROWS, "cpu", max_rows)
        ppo = make_ppo(vtrace=True)
        results.append(ppo.rows(act_off_policy(ppo)))
    for pieces in results[1:]:
        for one, other in zip(results[0], pieces, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_with_vtrace_steps_that_are_none_do_not_reach_the_loss() -> None:
    def update(rubbish: float) -> np.ndarray:
        ppo = make_ppo(vtrace=True, update_epochs=2, num_minibatches=3)
        batch = make_batch(ppo, 40, 6)
        no_op = mark_no_ops(batch)
        for rows in (batch.observation[:-1], batch.reward, batch.behavior_log_prob):
            rows[no_op] = rubbish
        batch.action[no_op] = 0
        ppo.update(batch, 0, fraction_done=0.0)
        return ppo.network.flat.detach().numpy().copy()

    np.testing.assert_array_equal(update(0.0), update(1e6))
