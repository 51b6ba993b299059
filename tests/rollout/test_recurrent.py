"""Recurrent networks: compiled acting against torch, and both against the equations, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rollout.acting import UnrollActor, read_only
from rollout.envs.batch import Envs
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.memory import Memory
from rollout.experiment import as_experiment
from rollout.learners.columns import Columns, evaluate
from rollout.learners.impala import IMPALA
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Dense, Gru, Lstm
from rollout.learners.network import CategoricalHead, NetworkSpec, make_mlp
from rollout.learners.ppo import PPO
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.torch_core import run_core
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch, Unroll
from rollout.policy import Policy
from rollout.shapes import make_network, make_schema
from tests.some_fast import slow_unless

T, N = 40, 5


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As a learner has; several would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Short(CartPole):
    """Episodes end within an unroll, some by the limit."""

    max_episode_steps = 13


def recurrent(env: Any, kind: Any, value_network: Any = "shared", size: int = 9) -> NetworkSpec:
    observations = env.observation_space.shape
    head = CategoricalHead((int(env.action_space.n),))
    return make_mlp(observations, head, (7,), "tanh", value_network, core=(kind, size))


NETWORKS = {
    "lstm": recurrent(Short, "lstm"),
    "gru": recurrent(Short, "gru"),
    "two of them": recurrent(Short, "lstm", "separate", 6),
}
each_network = pytest.mark.parametrize("name", slow_unless(["lstm"], NETWORKS))


def weights_for(network: NetworkSpec, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return read_only((0.4 * rng.standard_normal(network.num_parameters)).astype(np.float32))


def make_actor(name: str, num_envs: int = N, first_env: int = 0, length: int = T) -> UnrollActor:
    network = NETWORKS[name]
    schema = make_schema(Short, length, True, network)
    return UnrollActor(Envs(Short, num_envs, 3, first_env=first_env), network, schema)


def act(actor: UnrollActor, weights: np.ndarray) -> Unroll:
    payload = bytearray(actor.act(weights))
    buffer = actor.buffer
    return Unroll.view(
        buffer.schema, payload, buffer.num_envs, buffer.num_finals, buffer.num_episodes
    )


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


class Twin:
    """The network in float64, one observation after the other, as the equations in layers.py."""

    def __init__(self, spec: NetworkSpec, weights: np.ndarray) -> None:
        self.spec = spec
        self.parameters = {p.name: p.view(weights.astype(np.float64)) for p in spec.parameters}

    def __call__(self, observation, core_state):
        """Outputs, value, and the next core state."""
        buffers, left, states = {"observation": observation}, core_state, []
        for layer in self.spec.layers:
            mine = {n: self.parameters[f"{layer.name}.{n}"] for n, _ in layer.shapes()}
            x = buffers[layer.source]
            state, left = left[: layer.core_size], left[layer.core_size :]
            if isinstance(layer, Lstm):
                state = self.lstm(x, *np.split(state, 2), **mine)
                buffers[layer.name] = state[: layer.outputs]
            elif isinstance(layer, Gru):
                buffers[layer.name] = state = self.gru(x, state, **mine)
            else:
                assert isinstance(layer, Dense)
                out = x @ mine["weight"] + mine["bias"]
                buffers[layer.name] = np.tanh(out) if layer.activation == "tanh" else out
            states.append(state)
        outputs, value = self.spec.outputs, self.spec.value
        return (
            buffers[outputs.buffer][outputs.start : outputs.stop],
            buffers[value.buffer][value.start],
            np.concatenate(states),
        )

    @staticmethod
    def lstm(x, hidden, cell, input_weight, hidden_weight, bias):
        i, f, g, o = np.split(x @ input_weight + hidden @ hidden_weight + bias, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        return np.concatenate([sigmoid(o) * np.tanh(cell), cell])

    @staticmethod
    def gru(x, hidden, input_weight, hidden_weight, bias, hidden_bias):
        r, z, n = np.split(x @ input_weight + bias, 3)
        r_hidden, z_hidden, n_hidden = np.split(hidden @ hidden_weight, 3)
        r, z = sigmoid(r + r_hidden), sigmoid(z + z_hidden)
        return (1 - z) * np.tanh(n + r * (n_hidden + hidden_bias)) + z * hidden


@each_network
def test_unroll_is_what_the_equations_say(name):
    """Log-probabilities, values, those of truncated episodes too, and where the unroll leads."""
    spec, weights = NETWORKS[name], weights_for(NETWORKS[name])
    twin, actor = Twin(spec, weights), make_actor(name)
    core = np.zeros((N, spec.core_size))
    for _ in range(2):
        unroll = act(actor, weights)
        np.testing.assert_allclose(unroll.core_state, core, atol=1e-5)
        places = zip(unroll.final_t, unroll.final_env, strict=True)
        finals = {place: k for k, place in enumerate(places)}
        assert finals
        for t in range(T + 1):
            for i in range(N):
                outputs, value, after = twin(unroll.observation[t, i].astype(np.float64), core[i])
                np.testing.assert_allclose(unroll.value[t, i], value, atol=1e-5)
                if t == T:
                    continue
                log_probs = outputs - np.log(np.exp(outputs).sum())
                found = unroll.behavior_log_prob[t, i]
                np.testing.assert_allclose(found, log_probs[unroll.action[t, i]], atol=1e-5)
                core[i] = after
                if unroll.truncated[t, i]:
                    k = finals[t, i]
                    last = unroll.final_observation[k].astype(np.float64)
                    np.testing.assert_allclose(
                        unroll.final_value[k], twin(last, after)[1], atol=1e-5
                    )
                if unroll.truncated[t, i] or unroll.terminated[t, i]:
                    core[i] = 0.0
        ends = unroll.env_state[:, actor.buffer.schema.env_state_bytes :]
        np.testing.assert_allclose(np.ascontiguousarray(ends).view(np.float32), core, atol=1e-5)


@each_network
def test_learner_computes_what_actors_recorded(name):
    spec, weights = NETWORKS[name], weights_for(NETWORKS[name])
    actor = make_actor(name)
    act(actor, weights)
    unroll = act(actor, weights)
    algorithm = PPO(TorchNetwork(spec, weights), PpoSettings(), 0)
    inputs = algorithm.inputs(batch_of(unroll, actor))
    policy, value = algorithm.network(*inputs)
    log_prob = policy.log_prob(torch.from_numpy(unroll.action).flatten(0, 1))
    recorded = unroll.behavior_log_prob.reshape(-1)
    np.testing.assert_allclose(log_prob.detach().numpy(), recorded, atol=1e-5)
    np.testing.assert_allclose(value.detach().numpy(), unroll.value[:T].reshape(-1), atol=1e-5)


@each_network
def test_evaluation_of_columns_is_what_actors_recorded(name):
    """Also of the last observations, behind the unroll and behind truncated episodes."""
    spec, weights = NETWORKS[name], weights_for(NETWORKS[name])
    actor = make_actor(name)
    act(actor, weights)
    unroll = act(actor, weights)
    columns = Columns.of(batch_of(unroll, actor), torch.device("cpu"))
    order = np.array([3, 0, 4])
    found = evaluate(TorchNetwork(spec, weights), columns.pick(order))
    place = {env: number for number, env in enumerate(order.tolist())}
    is_picked = np.isin(unroll.final_env, order)
    assert is_picked.any()
    assert found.columns.final_env.tolist() == [place[e] for e in unroll.final_env[is_picked]]
    for mine, recorded in (
        (found.value, unroll.value[:T, order]),
        (found.bootstrap_value, unroll.value[T, order]),
        (found.final_value, unroll.final_value[is_picked]),
        (found.log_ratio, np.zeros((T, 3))),
    ):
        np.testing.assert_allclose(mine.detach().numpy(), recorded, atol=1e-5)


def batch_of(unroll: Unroll, actor: UnrollActor) -> Batch:
    batch = Batch(actor.buffer.schema, N)
    batch.put(unroll, 0, np.arange(N), 0)
    batch.seal()
    return batch


@each_network
def test_minibatches_are_whole_columns_in_the_order_of_time(name):
    spec, weights = NETWORKS[name], weights_for(NETWORKS[name])
    actor = make_actor(name)
    act(actor, weights)
    algorithm = PPO(TorchNetwork(spec, weights), PpoSettings(), 0)
    rows = algorithm.rows(batch_of(act(actor, weights), actor))
    seen = []
    for minibatch in algorithm.minibatches(rows, 2, 0, 0):
        policy, value = algorithm.network(*minibatch.inputs)
        np.testing.assert_allclose(value.detach(), minibatch.value, atol=1e-5)
        log_prob = policy.log_prob(minibatch.action).detach()
        np.testing.assert_allclose(log_prob, minibatch.old_log_prob, atol=1e-5)
        seen.append(minibatch.inputs.core_state)
    assert [len(core_state) for core_state in seen] == [3, 2]
    assert torch.equal(torch.cat(seen).sort(0).values, rows.inputs.core_state.sort(0).values)


def test_steps_that_are_none_reach_the_core_and_not_the_loss():
    """The environment slept at some rows: they say nothing, and an episode begins behind each."""
    spec, weights = NETWORKS["lstm"], weights_for(NETWORKS["lstm"])
    actor = make_actor("lstm")
    batch = batch_of(act(actor, weights), actor)
    batch.no_op = np.zeros((T, N), np.bool_)
    batch.no_op[4, 1] = batch.no_op[9, 3] = True
    algorithm = PPO(TorchNetwork(spec, weights), PpoSettings(norm_adv=False), 0)
    rows = algorithm.rows(batch)
    assert rows.inputs.is_first.view(T, N)[[5, 10], [1, 3]].all()
    (minibatch,) = algorithm.minibatches(rows, 1, 0, 0)
    assert len(minibatch.advantage) == len(minibatch.action) == T * N - 2
    before = gradient(algorithm, minibatch)
    batch.observation[4, 1] = 77.0
    batch.action[4, 1] = 1 - batch.action[4, 1]
    (changed,) = algorithm.minibatches(algorithm.rows(batch), 1, 0, 0)
    assert torch.equal(before, gradient(algorithm, changed))
    batch.observation[5, 1] = 77.0
    (changed,) = algorithm.minibatches(algorithm.rows(batch), 1, 0, 0)
    assert not torch.equal(before, gradient(algorithm, changed))


@pytest.mark.slow
def test_columns_without_a_step_make_no_minibatch():
    """Agents that wait through a whole unroll: the mean over nothing would be NaN."""
    spec, weights = NETWORKS["gru"], weights_for(NETWORKS["gru"])
    actor = make_actor("gru")
    batch = batch_of(act(actor, weights), actor)
    batch.no_op = np.zeros((T, N), np.bool_)
    batch.no_op[:, [0, 3]] = True
    algorithm = PPO(TorchNetwork(spec, weights), PpoSettings(), 0)
    minibatches = list(algorithm.minibatches(algorithm.rows(batch), N, 0, 0))
    assert [len(minibatch.action) for minibatch in minibatches] == [T] * 3
    metrics = algorithm.update(batch, 0, 0.0)
    assert metrics["losses/skipped_steps"] == 0 and np.isfinite(list(metrics.values())).all()
    batch.no_op[:] = True
    assert not list(algorithm.minibatches(algorithm.rows(batch), N, 0, 0))


@pytest.mark.slow
def test_policy_that_is_given_its_memory_acts_as_actors_do():
    tables = {
        "env": {"id": "Memory-v0"},
        "network": {"hidden_sizes": [7], "core": {"kind": "gru", "size": 5}},
        "stop": {"env_steps": 1},
    }
    experiment = as_experiment(tables)
    network = make_network(experiment.network, Memory)
    assert isinstance(network, NetworkSpec)
    policy = Policy(experiment, weights_for(network).copy())
    schema = make_schema(Memory, 30, True, network)
    acting = UnrollActor(Envs(Memory, 3, 2), network, schema)
    acting.act(weights_for(network), greedy=True)
    unroll, memory = acting.buffer.unroll(), None
    for t in range(30):
        action, memory = policy.act(unroll.observation[t], memory=memory)
        assert action.tolist() == unroll.action[t].tolist()
        memory[unroll.terminated[t] | unroll.truncated[t]] = 0
    one, memory = policy.act(unroll.observation[0, 0])
    assert one == unroll.action[0, 0] and memory.shape == (4 * network.core_size,)
    with pytest.raises(ValueError, match=r"memory is uint8 \[2\], wanted uint8 \[1, 20\]"):
        policy.act(unroll.observation[0, 0], memory=np.zeros(2, np.uint8))


def gradient(algorithm: PPO, minibatch) -> torch.Tensor:
    algorithm.network.flat_grad.zero_()
    algorithm.loss(minibatch)[0].backward()
    return algorithm.network.flat_grad.clone()


@each_network
@pytest.mark.parametrize("cut", [1, 2])
def test_bits_depend_neither_on_the_sharing_out_nor_on_a_restart(name, cut):
    weights = weights_for(NETWORKS[name])
    whole = make_actor(name)
    wanted = [act(whole, weights) for _ in range(3)]
    parts = [make_actor(name, cut), make_actor(name, N - cut, cut)]
    for u, unroll in enumerate(wanted):
        for number, (part, columns) in enumerate(
            zip(parts, (slice(cut), slice(cut, N)), strict=True)
        ):
            found = act(part, weights)
            for field in ("observation", "action", "behavior_log_prob", "value"):
                mine = getattr(unroll, field)[:, columns]
                assert getattr(found, field).tobytes() == np.ascontiguousarray(mine).tobytes(), u
            ends = np.ascontiguousarray(unroll.env_state[columns])
            assert found.env_state.tobytes() == ends.tobytes()
            another = make_actor(name, part.envs.num_envs, number * cut)
            another.restore(ends.tobytes())
            parts[number] = another


@pytest.mark.parametrize("kind", [Lstm, Gru])
def test_core_in_torch_is_torchs_own(kind):
    """nn.LSTM and nn.GRU, cut at the starts of episodes, and their gradients."""
    steps, columns, inputs, size = 12, 4, 3, 5
    generator = torch.Generator().manual_seed(1)
    module = {Lstm: nn.LSTM, Gru: nn.GRU}[kind](inputs, size)
    layer = kind("core", "observation", inputs, size)
    source = torch.randn(steps, columns, inputs, generator=generator, requires_grad=True)
    core_state = torch.randn(columns, layer.core_size, generator=generator)
    is_first = torch.rand(steps, columns, generator=generator) < 0.2
    with torch.no_grad():
        module.bias_hh_l0[: (4 if kind is Lstm else 2) * size] = 0.0
    parameters = [module.weight_ih_l0.t(), module.weight_hh_l0.t(), module.bias_ih_l0]
    if kind is Gru:
        parameters.append(module.bias_hh_l0[2 * size :])
    target = torch.randn(steps * columns, size, generator=generator)
    states = run_core(layer, source.flatten(0, 1), parameters, core_state, is_first.flatten())
    found = states[:, :size]
    found_grads = torch.autograd.grad((found * target).sum(), [source, module.weight_hh_l0])
    state, hidden = core_state, []
    for t in range(steps):
        state = state * ~is_first[t].unsqueeze(1)
        if kind is Lstm:
            h, c = (part[None].contiguous() for part in state.chunk(2, 1))
            out, (h, c) = module(source[t : t + 1], (h, c))
            state = torch.cat((h[0], c[0]), 1)
        else:
            out, h = module(source[t : t + 1], state[None].contiguous())
            state = h[0]
        hidden.append(out[0])
    wanted = torch.cat(hidden)
    wanted_grads = torch.autograd.grad((wanted * target).sum(), [source, module.weight_hh_l0])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for one, other in zip(found_grads, wanted_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [Lstm, Gru])
def test_gradients_of_a_core_are_the_slopes(kind):
    """Of every number of its states, by everything that it reads, against differences of them."""
    steps, columns, inputs, size = 4, 2, 3, 2
    generator = torch.Generator().manual_seed(2)
    layer = kind("core", "observation", inputs, size)

    def numbers(*shape):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    is_first = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 1]], dtype=torch.bool).flatten()
    read = [numbers(steps * columns, inputs), numbers(columns, layer.core_size)]
    parameters = [numbers(*shape) for _, shape in layer.shapes()]
    assert torch.autograd.gradcheck(
        lambda source, core_state, *parameters: run_core(
            layer, source, list(parameters), core_state, is_first
        ),
        (*read, *parameters),
    )


def test_forget_gates_begin_open_and_matrices_orthogonal():
    spec = NETWORKS["lstm"]
    flat = initial_parameters(spec, 3)
    bias = spec.parameter("torso_core.bias").view(flat)
    assert bias.tolist() == [0.0] * 9 + [1.0] * 9 + [0.0] * 18
    for block in np.split(spec.parameter("torso_core.hidden_weight").view(flat), 4, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(9), atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("learns", [PPO, IMPALA])
@pytest.mark.parametrize("kind", ["lstm", "gru", None])
def test_memory_is_solved_by_those_that_remember_alone(kind, learns):
    head = CategoricalHead((2,))
    core = (kind, 32) if kind else None
    spec = make_mlp((2,), head, (32,), "tanh", "shared", core=core)
    schema = make_schema(Memory, 36, True, spec)
    actor = UnrollActor(Envs(Memory, 64, 1), spec, schema)
    network = TorchNetwork(spec, initial_parameters(spec, 1))
    algorithm = learns(network, learns.Settings(learning_rate=3e-3, num_minibatches=4), 1)
    batch, returns = Batch(schema, 64), []
    for update in range(60 if learns is PPO else 150):
        actor.act(read_only(algorithm.network.export()))
        batch.clear()
        batch.put(actor.buffer.unroll(), 0, np.arange(64), update)
        batch.seal()
        returns.append(batch.episode_return.mean())
        algorithm.update(batch, update, 0.0)
    mean = np.mean(returns[-10:])
    assert mean > 0.95 if kind else mean < 0.3
