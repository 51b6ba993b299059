import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollout.learners import algorithm as algorithm_module
from rollout.learners.columns import Columns, evaluate
from rollout.learners.impala import IMPALA
from rollout.learners.impala_settings import ImpalaSettings
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.learners.optimizer import NonFiniteLossError
from rollout.learners.synthetic_batch import make_synthetic_batch
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch
from tests.learners.batches import act, end_every_step, mark_no_ops

SPEC = make_mlp((4,), CategoricalHead((2,)), (16, 16), "tanh", "shared")


def make_impala(seed: int = 1, **settings: Any) -> IMPALA:
    network = TorchNetwork(SPEC, initial_parameters(SPEC, seed))
    return IMPALA(network, ImpalaSettings(**settings), seed)


def make_batch(impala: IMPALA, unroll_length: int = 16, num_envs: int = 8, seed: int = 0) -> Batch:
    """As if an older version had acted, and had recorded no values."""
    batch = make_synthetic_batch(impala.network, unroll_length, num_envs, seed)
    random = np.random.default_rng(seed)
    batch.behavior_log_prob[:] += random.normal(0.0, 0.5, batch.behavior_log_prob.shape)
    batch.reward[:] = random.normal(0.0, 1.0, batch.reward.shape)
    batch.value, batch.final_value = batch.value[:0], batch.final_value[:0]
    return batch


def parameters(impala: IMPALA) -> np.ndarray:
    return impala.network.export()


def test_metrics_are_those_computed_by_hand() -> None:
    """With all parameters 0, both actions have probability 1/2 and every value is 0."""
    impala = make_impala(ent_coef=0.0, rho_clip=1.2)
    impala.network.flat.zero_()
    batch = make_synthetic_batch(impala.network, 2, 2)
    end_every_step(batch)  # so that a target is ρ · reward, and an advantage as much
    batch.reward[:] = [[2.0, -1.0], [3.0, 0.0]]
    ratios = np.array([[1.5, 0.5], [1.0, 1.1]])
    batch.behavior_log_prob[:] = np.log(0.5 / ratios)

    metrics = impala.update(batch, 0, fraction_done=0.0)

    learned = np.array([1.2 * 2.0, 0.5 * -1.0, 1.0 * 3.0, 0.0])
    assert metrics["losses/policy_loss"] == pytest.approx(-(learned * math.log(0.5)).mean())
    assert metrics["losses/value_loss"] == pytest.approx(0.5 * (learned**2).mean())
    assert metrics["losses/entropy"] == pytest.approx(math.log(2))
    k3 = (0.5 - math.log(1.5)) + (-0.5 - math.log(0.5)) + (0.1 - math.log(1.1))
    assert metrics["losses/approx_kl"] == pytest.approx(k3 / 4, rel=1e-5)
    assert metrics["losses/rho"] == pytest.approx((1.2 + 0.5 + 1.0 + 1.1) / 4)
    assert metrics["losses/explained_variance"] == pytest.approx(0.0)
    # only the heads' biases have a gradient where every activation is 0
    value_gradient = -0.5 * learned.mean()
    sign = np.where(batch.action.reshape(-1) == 1, 1.0, -1.0)
    logit_gradient = (learned * 0.5 * sign).mean()
    expected = math.hypot(value_gradient, logit_gradient, logit_gradient)
    assert metrics["losses/grad_norm"] == pytest.approx(expected, rel=1e-5)
    assert metrics["charts/learning_rate"] == 6e-4
    assert metrics["losses/skipped_steps"] == 0.0


class PlainImpala:
    """The obvious way: modules, torch's Adam, one environment and one step after the other."""

    def __init__(self, impala: IMPALA) -> None:
        self.linears: list[nn.Linear] = []
        for layer in SPEC.layers:
            linear = nn.Linear(layer.inputs, layer.outputs)
            weights = impala.network.parameters
            linear.weight.data = weights[f"{layer.name}.weight"].detach().t().clone()
            linear.bias.data = weights[f"{layer.name}.bias"].detach().clone()
            self.linears.append(linear)
        self.parameters = [p for linear in self.linears for p in linear.parameters()]
        s = self.settings = impala.settings
        self.optimizer = torch.optim.Adam(self.parameters, lr=s.learning_rate, eps=s.adam_eps)

    def evaluate(self, observation: np.ndarray) -> tuple[torch.distributions.Categorical, Any]:
        hidden = torch.from_numpy(observation)
        for linear in self.linears[:-1]:
            hidden = torch.tanh(linear(hidden))
        heads = self.linears[-1](hidden)
        return torch.distributions.Categorical(logits=heads[..., :2]), heads[..., 2]

    def step(self, batch: Batch, columns: np.ndarray) -> None:
        s = self.settings
        losses = []
        for env in columns:
            policy, value = self.evaluate(batch.observation[:, env])
            action = torch.from_numpy(batch.action[:, env])
            log_prob = policy.log_prob(torch.cat([action, action[-1:]]))[:-1]
            entropy = policy.entropy()
            ratio = (log_prob.detach() - torch.from_numpy(batch.behavior_log_prob[:, env])).exp()
            rho, c = ratio.clamp(max=s.rho_clip), s.gae_lambda * ratio.clamp(max=s.c_clip)
            beyond = 0.0  # v_{t+1} - V(x_{t+1})
            for t in reversed(range(len(action))):
                following = value[t + 1].detach()
                if batch.truncated[t, env]:
                    (row,) = np.flatnonzero((batch.final_t == t) & (batch.final_env == env))
                    following = self.evaluate(batch.final_observation[row])[1].detach()
                if batch.terminated[t, env]:
                    following = 0.0
                if batch.truncated[t, env] or batch.terminated[t, env]:
                    beyond = 0.0
                here = value[t].detach()
                error = float(batch.reward[t, env]) + s.gamma * following - here
                advantage = rho[t] * (error + s.gamma * s.gae_lambda * beyond)
                beyond = rho[t] * error + s.gamma * c[t] * beyond
                squared = (here + beyond - value[t]) ** 2
                losses.append(
                    -advantage * log_prob[t] - s.ent_coef * entropy[t] + s.vf_coef * 0.5 * squared
                )
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(self.parameters, s.max_grad_norm)
        self.optimizer.step()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_minibatches": 4},
        {"gae_lambda": 0.8, "rho_clip": 1.5, "c_clip": 0.7, "max_grad_norm": 100.0},
        {"ent_coef": 0.3, "vf_coef": 2.0, "gamma": 0.7},
    ],
    ids=str,
)
def test_update_equals_that_of_plain_modules(settings: dict[str, Any]) -> None:
    impala = make_impala(learning_rate=0.01, **settings)
    batch = make_batch(impala)
    plain = PlainImpala(impala)
    for update_index in range(2):
        impala.update(batch, update_index, fraction_done=0.0)
        columns = Columns.of(batch, torch.device("cpu"))
        for minibatch in impala.minibatches_of_columns(columns, update_index):
            plain.step(batch, minibatch)
    for layer, linear in zip(SPEC.layers, plain.linears, strict=True):
        for name, parameter in (("weight", linear.weight.t()), ("bias", linear.bias)):
            ours = impala.network.parameters[f"{layer.name}.{name}"]
            torch.testing.assert_close(ours, parameter, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_impala_learns_which_action_each_observation_wants(seed: int) -> None:
    impala = make_impala(seed=seed, learning_rate=0.01, num_minibatches=2)
    for update_index in range(150):
        impala.update(act(impala.network, update_index), update_index, fraction_done=0.0)
    assert act(impala.network, seed=151).reward.mean() > 0.9, "an untrained policy gets 0.5"


def test_minibatches_are_whole_columns_each_once_in_an_order_of_seed_and_update() -> None:
    def shared_out(seed: int, update_index: int) -> list[list[int]]:
        impala = make_impala(seed, num_minibatches=4)
        columns = Columns.of(make_batch(impala), torch.device("cpu"))
        return [list(m) for m in impala.minibatches_of_columns(columns, update_index)]

    orders = [shared_out(*place) for place in ((1, 0), (2, 0), (1, 1))]
    for order in orders:
        assert [len(minibatch) for minibatch in order] == [2, 2, 2, 2]
        assert sorted(column for minibatch in order for column in minibatch) == list(range(8))
    assert orders[0] == shared_out(1, 0)
    assert len({str(order) for order in orders}) == 3


@pytest.mark.parametrize("max_rows", [1, 16, 40, 127])
@pytest.mark.parametrize("has_no_ops", [False, True])
def test_update_in_pieces_equals_the_update_in_one(
    max_rows: int, has_no_ops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update() -> tuple[torch.Tensor, dict[str, float]]:
        impala = make_impala()
        batch = make_batch(impala)
        if has_no_ops:
            mark_no_ops(batch)
        metrics = impala.update(batch, 0, fraction_done=0.0)
        del metrics["losses/explained_variance"]  # of each piece
        return impala.network.flat_grad.clone(), metrics

    whole, whole_metrics = update()
    monkeypatch.setitem(algorithm_module.MAX_ROWS, "cpu", max_rows)
    pieces, pieces_metrics = update()
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-6)
    assert pieces_metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)


def test_update_is_the_same_bits_each_time() -> None:
    results = []
    for _ in range(2):
        impala = make_impala(num_minibatches=2)
        metrics = impala.update(make_batch(impala), 4, fraction_done=0.0)
        results.append((metrics, parameters(impala).tobytes()))
    assert results[0] == results[1]


def test_update_leaves_the_batch_as_it_was() -> None:
    impala = make_impala()
    batch, untouched = make_batch(impala), make_batch(impala)
    impala.update(batch, 0, fraction_done=0.0)
    for name in ("observation", "action", "reward", "behavior_log_prob", "final_observation"):
        assert np.array_equal(getattr(batch, name), getattr(untouched, name)), f"{name} changed"


def test_learning_rate_falls_linearly_if_asked_to() -> None:
    for anneal_lr, expected in ((True, 0.0075), (False, 0.01)):
        impala = make_impala(learning_rate=0.01, anneal_lr=anneal_lr)
        metrics = impala.update(make_batch(impala), 0, fraction_done=0.25)
        assert metrics["charts/learning_rate"] == pytest.approx(expected)


@pytest.mark.parametrize("what", ["final_observation", "observation"])
def test_bootstrapped_values_are_the_network_s_own_and_have_no_gradient(what: str) -> None:
    """Other last observations, other targets; but no step towards them."""
    results = []
    for shift in (0.0, 3.0):
        impala = make_impala(ent_coef=0.0)
        batch = make_batch(impala)
        assert len(batch.final_t) > 0
        rows = getattr(batch, what)
        rows[-1 if what == "observation" else slice(None)] += shift
        results.append(impala.update(batch, 0, fraction_done=0.0))
    assert results[0]["losses/value_loss"] != results[1]["losses/value_loss"]
    assert results[0]["losses/entropy"] == results[1]["losses/entropy"]


def test_steps_that_are_none_do_not_reach_the_loss() -> None:
    """Whatever stands in their rows: the update is the same in every bit."""

    def update(rubbish: float) -> bytes:
        impala = make_impala(num_minibatches=3)
        batch = make_batch(impala, 40, 6)
        no_op = mark_no_ops(batch)
        assert 5 < np.count_nonzero(no_op) < 200
        for rows in (batch.observation[:-1], batch.reward, batch.behavior_log_prob):
            rows[no_op] = rubbish
        batch.action[no_op] = 0
        metrics = impala.update(batch, 0, fraction_done=0.0)
        assert all(map(math.isfinite, metrics.values()))
        return parameters(impala).tobytes() + str(metrics).encode()

    assert update(0.0) == update(1e6) == update(-1e6)


def test_step_that_is_none_neither_weighs_nor_cuts_a_trace() -> None:
    """Nobody chose, so its ratio is 1; it is a step of time, as the environment counts it."""
    impala = make_impala(gae_lambda=1.0)
    batch = make_batch(impala, 4, 1)
    batch.terminated[:] = batch.truncated[:] = False
    batch.final_t = batch.final_env = batch.final_t[:0]
    batch.final_observation = batch.final_observation[:0]
    batch.behavior_log_prob[:] = 0.0
    batch.no_op = np.array([[False], [True], [False], [False]])
    columns = Columns.of(batch, torch.device("cpu"))
    found = evaluate(impala.network, columns)
    ratio = found.log_ratio.detach().exp().flatten()
    assert ratio[1] == 1.0
    assert (ratio[[0, 2, 3]] < 1.0).all()
    target = found.corrected(gamma=1.0, gae_lambda=1.0).value_target.flatten()
    value = found.value.detach().flatten()
    torch.testing.assert_close(target[1], torch.from_numpy(batch.reward)[1, 0] + target[2])
    error = float(batch.reward[0, 0]) + target[1] - value[0]
    torch.testing.assert_close(target[0], value[0] + ratio[0] * error)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_batch_of_few_steps_is_trained_on_as_far_as_it_goes(num_steps: int) -> None:
    impala = make_impala(num_minibatches=2)
    batch = make_batch(impala, 4, 20)
    batch.no_op = np.ones((4, 20), np.bool_)
    batch.no_op.reshape(-1)[:num_steps] = False
    before = parameters(impala).tobytes()
    metrics = impala.update(batch, 0, fraction_done=0.0)
    assert metrics["losses/skipped_steps"] == 0
    assert all(math.isfinite(value) for value in metrics.values())
    assert (parameters(impala).tobytes() == before) == (num_steps == 0)


def test_steps_that_are_not_finite_are_skipped_and_counted_and_end_in_an_error() -> None:
    impala = make_impala(num_minibatches=4)
    batch = make_batch(impala)
    batch.reward[3, 3] = math.nan  # one of four minibatches
    metrics = impala.update(batch, 0, fraction_done=0.0)
    assert all(math.isfinite(metric) for metric in metrics.values())
    assert np.isfinite(parameters(impala)).all()
    assert impala.optimizer.skipped_steps == metrics["losses/skipped_steps"] == 1
    assert impala.optimizer.step_count == 3
    batch.reward[:] = math.inf
    impala.update(batch, 1, fraction_done=0.0)
    impala.update(batch, 2, fraction_done=0.0)
    with pytest.raises(NonFiniteLossError):
        impala.update(batch, 3, fraction_done=0.0)
    assert np.isfinite(parameters(impala)).all()


def test_impala_goes_on_from_its_state_bit_for_bit() -> None:
    first = make_impala(num_minibatches=2)
    batch = make_batch(first)
    first.update(batch, 0, fraction_done=0.0)
    second = make_impala(num_minibatches=2)
    second.network.load(parameters(first))
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.update(batch, 1, fraction_done=0.5)
    assert np.array_equal(parameters(first), parameters(second))
