"""Heads and observations of every kind: compiled acting against a slow twin and against torch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Dict
from gymnasium.spaces import flatten as flatten_observation

from rollout.acting import UnrollActor, read_only
from rollout.envs import CompiledEnv, Envs, Outcome, philox
from rollout.envs.layouts import action_layout, observation_layout
from rollout.learners.network import LOG_STD, CategoricalHead, GaussianHead, NetworkSpec
from rollout.learners.torch_network import TorchNetwork
from rollout.shapes import head_of, make_schema, parts_of
from rollout.shapes import make_network as network_for
from tests.rollout.rich_envs import Arm, Choices, OneChoice, Quantities, Refuses

N, T, SEED = 37, 24, 3


ENVS = [Arm, Choices, OneChoice, Quantities]
each_env = pytest.mark.parametrize("env", ENVS)


def make_network(env: type[CompiledEnv]) -> NetworkSpec:
    from rollout.experiment import MlpSettings

    return network_for(MlpSettings(hidden_sizes=(16,), value_network="separate"), env)


def weights_for(network: NetworkSpec) -> np.ndarray:
    """Random enough that all actions are chosen."""
    flat = 0.5 * np.random.default_rng(0).standard_normal(network.num_parameters)
    return read_only(flat.astype(np.float32))


def act(env: type[CompiledEnv], greedy: bool = False, jit: bool = True, num_envs: int = N) -> Any:
    network = make_network(env)
    actor = UnrollActor(Envs(env, num_envs, SEED, jit=jit), network, make_schema(env, T, True))
    actor.act(weights_for(network), greedy)
    return actor.buffer.unroll(), actor


def inputs_of(env: type[CompiledEnv], rows: np.ndarray) -> np.ndarray:
    """What a network reads: Gymnasium's own way to flatten, leaf by leaf in our order."""
    layout = observation_layout(env.observation_space)
    if layout.record is None:
        space = env.observation_space
        values = rows if rows.shape[-1] > 1 else rows[:, 0]
        return np.array([flatten_observation(space, value) for value in values], np.float32)
    records = rows.view(layout.record)[:, 0]
    return np.array([_flat(env.observation_space, record) for record in records], np.float32)


def _flat(space: Any, value: Any) -> list[Any]:
    if isinstance(space, Dict):
        return [x for name, inner in space.spaces.items() for x in _flat(inner, value[name])]
    return list(np.asarray(flatten_observation(space, value)))


def forward(network: NetworkSpec, weights: np.ndarray, inputs: np.ndarray):
    """The separate torsos in float64: (outputs, value)."""
    results = []
    for prefix, last in (("policy_torso_0", "policy"), ("value_torso_0", "value")):
        x = inputs.astype(np.float64)
        for layer in (prefix, last):
            weight = network.parameter(f"{layer}.weight").view(weights).astype(np.float64)
            bias = network.parameter(f"{layer}.bias").view(weights)
            x = x @ weight + bias
            x = np.tanh(x) if layer == prefix else x
        results.append(x)
    return results[0], results[1][:, 0]


def words(clock: np.void, k: int) -> list[int]:
    env, episode, t = (int(clock[name]) for name in ("env", "episode", "t"))
    return [int(word) for word in philox.philox(SEED, philox.ACTION, env, episode, t, k)]


def choose(env: Any, network: NetworkSpec, weights: Any, outputs: Any, mask: Any, clock: Any):
    """(action, log-probability) of one environment, as one would explain it."""
    if isinstance(network.head, GaussianHead):
        log_std = network.parameter(LOG_STD).view(weights).astype(np.float64)
        action, log_prob = [], 0.0
        for k in range(network.head.size):
            drawn = words(clock, k)
            first = philox.unit_float64(drawn[0], drawn[1])
            second = philox.unit_float64(drawn[2], drawn[3])
            z = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            action.append(outputs[k] + math.exp(log_std[k]) * z)
            log_prob += -0.5 * z * z - log_std[k] - 0.5 * math.log(2 * math.pi)
        return action, log_prob
    action, log_prob, start = [], 0.0, 0
    for k, count in enumerate(network.head.choices):
        left = np.flatnonzero(mask[start : start + count])
        p = np.exp(outputs[start + left])
        p /= p.sum()
        uniform = float(philox.unit_float32(words(clock, k)[0]))
        place = min(int((np.cumsum(p) <= uniform).sum()), len(left) - 1)
        action.append(int(left[place]))
        log_prob += math.log(p[place])
        start += count
    return (action if action_layout(env.action_space).shape else action[0]), log_prob


@each_env
def test_unroll_equals_its_slow_twin(env):
    unroll, _ = act(env)
    network, envs, outcome = make_network(env), Envs(env, N, SEED), Outcome(env, N)
    weights, layout = weights_for(network), action_layout(env.action_space)
    taken = []
    for t in range(T):
        np.testing.assert_array_equal(unroll.observation[t], envs.observation())
        outputs, value = forward(network, weights, inputs_of(env, unroll.observation[t]))
        mask, clock = envs.action_mask(), envs.records["clock"]
        np.testing.assert_allclose(unroll.value[t], value, atol=1e-5)
        for i in range(N):
            action, log_prob = choose(env, network, weights, outputs[i], mask[i], clock[i])
            np.testing.assert_allclose(unroll.action[t, i], action, atol=1e-5)
            assert unroll.behavior_log_prob[t, i] == pytest.approx(log_prob, abs=2e-5)
        if unroll.action_mask.size:
            np.testing.assert_array_equal(unroll.action_mask[t], mask)
        clipped = unroll.action[t]
        if layout.low:
            clipped = np.clip(clipped, env.action_space.low, env.action_space.high)
        envs.step(clipped.copy(), outcome)
        for name in ("reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(unroll, name)[t], getattr(outcome, name))
        taken.append(clipped)
    flat = np.array(taken).reshape(T * N, -1)
    if env is Arm:
        assert (flat.min(0) == -1).all() and (flat.max(0) == 1).all()
    elif layout.low:
        assert (flat.min(0) == layout.low).all(), "both lower bounds were met"
        assert flat[:, 0].max() == np.float32(0.5)
        assert flat[:, 1].max() > 1.5, "no bound, no clipping"
        assert unroll.action.min() < -1.0, "the unroll has what the policy chose"
    else:
        for j, count in enumerate(layout.choices):
            assert set(flat[:, j]) == set(range(count))


@each_env
def test_recorded_log_probs_and_values_agree_with_the_learners_network(env):
    unroll, _ = act(env)
    spec = make_network(env)
    network = TorchNetwork(spec, weights_for(spec))
    observation = torch.from_numpy(unroll.observation[:T].copy()).flatten(0, 1)
    expected = inputs_of(env, unroll.observation[:T].reshape(T * N, -1))
    np.testing.assert_array_equal(network.inputs(observation).numpy(), expected)
    mask = torch.from_numpy(unroll.action_mask.copy()).flatten(0, 1)
    with torch.no_grad():
        policy, value = network(observation, mask)
        log_prob = policy.log_prob(torch.from_numpy(unroll.action.copy()).flatten(0, 1))
    np.testing.assert_allclose(unroll.behavior_log_prob.flatten(), log_prob, atol=3e-5)
    np.testing.assert_allclose(unroll.value[:T].flatten(), value, atol=1e-5)


@each_env
def test_plain_python_acts_alike(env):
    compiled, _ = act(env, num_envs=3)
    plain, _ = act(env, jit=False, num_envs=3)
    exact = ["action_mask", "terminated", "truncated", "episode_length"]
    if env is not Arm:  # which shows a last digit of what its quantities were
        exact.append("observation")
    for name in exact:
        np.testing.assert_array_equal(getattr(compiled, name), getattr(plain, name))
    np.testing.assert_allclose(compiled.action, plain.action, atol=1e-5)
    np.testing.assert_allclose(compiled.behavior_log_prob, plain.behavior_log_prob, atol=1e-5)


@each_env
def test_sharing_out_changes_no_bit(env):
    """The first environments alone do what they do among many."""
    many, _ = act(env)
    few, _ = act(env, num_envs=5)
    for name in ("observation", "action", "behavior_log_prob", "value", "reward"):
        assert getattr(many, name)[:, :5].tobytes() == getattr(few, name).tobytes(), name


def test_greedy_takes_the_likeliest_that_is_allowed():
    unroll, _ = act(OneChoice, greedy=True)
    network = make_network(OneChoice)
    inputs = inputs_of(OneChoice, unroll.observation[:T].reshape(T * N, 1))
    outputs, _ = forward(network, weights_for(network), inputs)
    allowed = unroll.action_mask.reshape(T * N, 3)
    assert not allowed[np.arange(T * N), outputs.argmax(1)].all(), "some likeliest are forbidden"
    likeliest = np.where(allowed, outputs, -np.inf).argmax(1)
    np.testing.assert_array_equal(unroll.action.flatten(), likeliest)


def test_greedy_takes_the_mean():
    unroll, _ = act(Quantities, greedy=True)
    network = make_network(Quantities)
    inputs = inputs_of(Quantities, unroll.observation[:T].reshape(T * N, 2))
    outputs, _ = forward(network, weights_for(network), inputs)
    np.testing.assert_allclose(unroll.action.reshape(T * N, 2), outputs, atol=1e-5)


def test_noise_is_normal_and_that_of_one_quantity_is_not_that_of_another():
    unroll, _ = act(Quantities, num_envs=1000)
    network = make_network(Quantities)
    weights = weights_for(network)
    inputs = inputs_of(Quantities, unroll.observation[:T].reshape(T * 1000, 2))
    outputs, _ = forward(network, weights, inputs)
    deviation = np.exp(network.parameter(LOG_STD).view(weights))
    z = (unroll.action.reshape(-1, 2) - outputs) / deviation
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.03)
    assert abs((z**4).mean() - 3) < 0.15


def test_head_and_parts_follow_the_spaces():
    assert head_of(Choices) == CategoricalHead((2, 3))
    assert head_of(OneChoice) == CategoricalHead((3,))
    assert head_of(Quantities) == GaussianHead(2)
    assert sum(part.num_inputs for part in parts_of(Choices)) == 4 + 2 + 3 + 5
    spec = make_network(Quantities)
    assert spec.num_inputs == 5
    assert spec.parameters[-1].name == LOG_STD
    assert spec.parameters[-1].shape == (2,)


@pytest.mark.parametrize(
    ("place", "value"), [("action", 3), ("action", -1), ("action_mask", 2), ("terminated", 2)]
)
def test_unroll_with_what_cannot_be_an_action_is_not_sound(place, value):
    unroll, _ = act(OneChoice)
    assert unroll.is_sound((3,))
    array = getattr(unroll, place)
    array.view(f"i{array.itemsize}")[2, 5] = value
    assert not unroll.is_sound((3,))


def test_every_choice_of_an_unroll_is_looked_at():
    unroll, _ = act(Choices)
    assert unroll.is_sound((2, 3))
    unroll.action[3, 4, 0] = 2  # which only the second choice has
    assert not unroll.is_sound((2, 3))


def test_quantities_may_be_anything():
    unroll, _ = act(Quantities)
    unroll.action[:] = np.nan
    assert unroll.is_sound(())


@pytest.mark.parametrize(("in_mask", "step", "t"), [(True, 2, 2), (True, 0, 0), (False, 0, 0)])
def test_what_fails_before_a_step_is_of_that_environment(in_mask, step, t):
    """A mask that allows nothing, or an `observe` that fails as an unroll begins."""
    params = {"env": 3, "step": step, "in_mask": in_mask}
    network = make_network(Refuses)
    envs = Envs(Refuses, N, SEED, params=params)
    actor = UnrollActor(envs, network, make_schema(Refuses, T, True))
    error = "allows no action" if in_mask else "nothing to see"
    with pytest.raises(ValueError, match=error):
        actor.act(weights_for(network))
    assert divmod(int(actor.position[0]), T) == (3, t)


@pytest.mark.parametrize("rows", [1, 2])
def test_single_rows_of_records_are_read_too(rows):
    spec = make_network(Arm)
    observation = Envs(Arm, rows, SEED).observation()
    inputs = TorchNetwork(spec, weights_for(spec)).inputs(torch.from_numpy(observation))
    np.testing.assert_array_equal(inputs.numpy(), inputs_of(Arm, observation))
