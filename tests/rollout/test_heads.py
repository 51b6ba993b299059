"""Heads and observations of every kind: compiled acting against a slow twin and against torch."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.spaces import flatten as flatten_observation
from msgspec.structs import replace

from rollout.acting import UnrollActor, check_network, read_only
from rollout.envs import CompiledEnv, EnvError, Envs, Outcome, philox
from rollout.envs.layouts import action_layout, observation_layout
from rollout.errors import ConfigError
from rollout.experiment import resolve
from rollout.experiment_tables import GaussianSettings, MlpSettings
from rollout.learners.distributions import SquashedGaussian
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import (
    LOG_STD,
    LOG_STD_RANGE,
    CategoricalHead,
    GaussianHead,
    NetworkSpec,
)
from rollout.learners.torch_network import TorchNetwork
from rollout.policy import Policy
from rollout.shapes import head_of, make_schema, parts_of
from rollout.shapes import make_network as network_for
from tests.rollout.rich_envs import Arm, Choices, OneChoice, Quantities, Refuses
from tests.some_fast import slow_unless

N, T, SEED = 37, 24, 3


class Squashed(Arm):
    """Chosen between bounds, with deviations that depend on what is seen."""


class SquashedAlike(Arm):
    """Chosen between bounds, with the same deviations in every state."""

    action_space = Box(np.array([-0.5, 2.0], np.float32), np.array([1.5, 2.5], np.float32))


class Dependent(Quantities):
    """Clipped, with deviations that depend on what is seen."""


GAUSSIAN = {
    Squashed: GaussianSettings(std="dependent", squash="tanh"),
    SquashedAlike: GaussianSettings(squash="tanh"),
    Dependent: GaussianSettings(std="dependent"),
}
ENVS = [Arm, Choices, OneChoice, Quantities, *GAUSSIAN]
FAST = [Choices, Quantities, Squashed]
each_env = pytest.mark.parametrize("env", slow_unless(FAST, ENVS))


def make_network(env: type[CompiledEnv]) -> NetworkSpec:
    gaussian = GAUSSIAN.get(env)
    settings = MlpSettings(hidden_sizes=(16,), value_network="separate", gaussian=gaussian)
    return network_for(settings, env)


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


def log_std_of(network: NetworkSpec, weights: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Of outputs [..., A]: [size], or [..., size]."""
    assert isinstance(network.head, GaussianHead)
    if network.head.std == "independent":
        return network.parameter(LOG_STD).view(weights).astype(np.float64)
    output = outputs[..., network.head.size :]
    lowest, highest = LOG_STD_RANGE
    over = highest * np.tanh(output / highest)
    return np.where(output > 0, over, lowest * np.tanh(output / lowest))


def choose(env: Any, network: NetworkSpec, weights: Any, outputs: Any, mask: Any, clock: Any):
    """(action, log-probability) of one environment, as one would explain it."""
    if isinstance(network.head, GaussianHead):
        log_std = log_std_of(network, weights, outputs)
        action, log_prob = [], 0.0
        for k in range(network.head.size):
            drawn = words(clock, k)
            first = philox.unit_float64(drawn[0], drawn[1])
            second = philox.unit_float64(drawn[2], drawn[3])
            z = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            action.append(outputs[k] + math.exp(log_std[k]) * z)
            log_prob += -0.5 * z * z - log_std[k] - 0.5 * math.log(2 * math.pi)
            if network.head.bounds:
                low, high = network.head.bounds[k]
                log_prob -= math.log((high - low) / 2 / math.cosh(action[k]) ** 2)
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
    weights, space = weights_for(network), env.action_space
    layout, taken = action_layout(space), []
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
        given = unroll.action[t]
        if env in (Squashed, SquashedAlike):
            low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
            given = (low + (high - low) * (np.tanh(given.astype(np.float64)) + 1) / 2).astype("f4")
        elif layout.low:
            given = np.clip(given, space.low, space.high)
        envs.step(given.copy(), outcome)
        for name in ("reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(unroll, name)[t], getattr(outcome, name))
        taken.append(given)
    flat = np.array(taken).reshape(T * N, -1)
    if env in (Squashed, SquashedAlike):
        assert (flat >= space.low).all() and (flat <= space.high).all()
        nearest = np.minimum(flat - space.low, space.high - flat).min(0)
        assert (nearest < 0.1 * (space.high - space.low)).all()
    elif env is Arm:
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


@pytest.mark.parametrize("env", slow_unless([Squashed], GAUSSIAN))
def test_extreme_quantities_stay_finite(env):
    """Means far beyond what tanh tells apart, deviations at either end of their range."""
    network = make_network(env)
    weights = read_only(np.float32(1e4) * weights_for(network))
    if GAUSSIAN[env].std == "independent":
        weights = weights.copy()
        network.parameter(LOG_STD).view(weights)[:] = -10.0, 20.0
        weights.flags.writeable = False
    actor = UnrollActor(Envs(env, N, SEED), network, make_schema(env, T, True))
    actor.act(weights)
    unroll = actor.buffer.unroll()
    assert np.isfinite(unroll.behavior_log_prob).all() and np.isfinite(unroll.reward).all()
    assert abs(unroll.action).max() > 1e4
    torch_network = TorchNetwork(network, weights)
    policy, _ = torch_network(torch.from_numpy(unroll.observation[:T].copy()).flatten(0, 1))
    log_prob = policy.log_prob(torch.from_numpy(unroll.action.copy()).flatten(0, 1))
    entropy = policy.entropy()
    (log_prob.sum() + entropy.sum()).backward()
    for found in (log_prob, entropy, torch_network.flat_grad):
        assert found.isfinite().all()


@each_env
def test_plain_python_acts_alike(env):
    compiled, _ = act(env, num_envs=3)
    plain, _ = act(env, jit=False, num_envs=3)
    exact = ["action_mask", "terminated", "truncated", "episode_length"]
    if not issubclass(env, Arm):  # which shows a last digit of what its quantities were
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


@pytest.mark.slow
def test_greedy_takes_the_likeliest_that_is_allowed():
    unroll, _ = act(OneChoice, greedy=True)
    network = make_network(OneChoice)
    inputs = inputs_of(OneChoice, unroll.observation[:T].reshape(T * N, 1))
    outputs, _ = forward(network, weights_for(network), inputs)
    allowed = unroll.action_mask.reshape(T * N, 3)
    assert not allowed[np.arange(T * N), outputs.argmax(1)].all(), "some likeliest are forbidden"
    likeliest = np.where(allowed, outputs, -np.inf).argmax(1)
    np.testing.assert_array_equal(unroll.action.flatten(), likeliest)


@pytest.mark.parametrize("env", [Quantities, Squashed])
def test_greedy_takes_the_mean(env):
    unroll, _ = act(env, greedy=True)
    network = make_network(env)
    inputs = inputs_of(env, unroll.observation[:T].reshape(T * N, -1))
    outputs, _ = forward(network, weights_for(network), inputs)
    np.testing.assert_allclose(unroll.action.reshape(T * N, 2), outputs[:, :2], atol=1e-5)


def policy_of(env: type[CompiledEnv]) -> Policy:
    """With the network and the weights of `act`."""
    settings = {"hidden_sizes": [16], "value_network": "separate"}
    settings["gaussian"] = GAUSSIAN[env].model_dump()
    tables = {"network": settings, "stop": {"env_steps": 1}}
    experiment = resolve(tables, env=env).experiment
    return Policy(experiment, weights_for(make_network(env)))


def as_dictionary(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Observations of Arm's kind, as Gymnasium has a batch of them."""
    record = observation_layout(Arm.observation_space).record
    assert record is not None
    records = rows.view(record)[:, 0]
    return {name: records[name] for name in ("grip", "seen", "angle")}


def test_policy_gives_what_the_environment_got():
    unroll, _ = act(Squashed, greedy=True)
    observation = as_dictionary(unroll.observation[:T].reshape(T * N, -1))
    wanted = np.tanh(unroll.action.reshape(T * N, 2))  # bounds are -1 and 1
    policy = policy_of(Squashed)
    found = policy.act(observation)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    one = policy.act({name: column[5] for name, column in observation.items()})
    np.testing.assert_array_equal(one, found[5])


def test_policy_draws_around_its_mean_with_the_deviation_of_the_state():
    network, (rows, _) = make_network(Squashed), Envs(Squashed, 2, SEED).observation()
    repeated = np.repeat(rows[np.newaxis], 20_000, axis=0)
    weights = weights_for(network)
    outputs, _ = forward(network, weights, inputs_of(Squashed, repeated[:1]))
    drawn = policy_of(Squashed).act(as_dictionary(repeated), deterministic=False)
    assert (abs(drawn) <= 1.0).all()
    inside = np.clip(drawn, -0.999999, 0.999999)  # tanh rounds to 1 from 8.7 on
    z = (np.arctanh(inside) - outputs[0, :2]) / np.exp(log_std_of(network, weights, outputs)[0])
    assert scipy.stats.kstest(z[:, 0], "norm").pvalue > 1e-3
    assert scipy.stats.kstest(z[:, 1], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03


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
    assert make_network(Squashed).head == GaussianHead(2, "dependent", ((-1.0, 1.0),) * 2)
    assert make_network(Squashed).outputs.stop == 4
    assert LOG_STD not in {parameter.name for parameter in make_network(Squashed).parameters}
    assert sum(part.num_inputs for part in parts_of(Choices)) == 4 + 2 + 3 + 5
    spec = make_network(Quantities)
    assert spec.num_inputs == 5
    assert spec.parameters[-1].name == LOG_STD
    assert spec.parameters[-1].shape == (2,)


def test_first_deviation_is_1_in_every_state():
    network = make_network(Squashed)
    torch_network = TorchNetwork(network, initial_parameters(network, SEED))
    policy, _ = torch_network(torch.from_numpy(Envs(Squashed, N, SEED).observation()))
    assert isinstance(policy, SquashedGaussian)
    log_std = policy.unsquashed.log_std
    assert log_std.shape == (N, 2)
    np.testing.assert_allclose(log_std.detach(), 0.0, atol=0.05)


@pytest.mark.parametrize(
    "head",
    [
        CategoricalHead((2,)),
        GaussianHead(3),
        GaussianHead(2, "dependent", ((-1.0, 1.0), (-1.0, 2.0))),
        GaussianHead(2, bounds=((-1.0, 1.0),)),
    ],
)
def test_head_of_other_actions_is_refused(head):
    network = replace(make_network(Arm), head=head)
    with pytest.raises(EnvError, match="the network chooses by"):
        check_network(Arm, network, make_schema(Arm, T, True))


@pytest.mark.parametrize(
    ("env", "gaussian", "said"),
    [
        (OneChoice, {}, "[network.gaussian] is for quantities, a Box of actions; the actions of "),
        (OneChoice, {"squash": "tanh"}, "OneChoice are choices, Discrete(3); leave it out"),
        (Quantities, {"squash": "tanh"}, "action[1] of Quantities is from -1.0 to inf; change"),
    ],
)
def test_settings_that_do_not_fit_the_actions_are_refused(env, gaussian, said):
    tables = {"network": {"gaussian": gaussian}, "stop": {"env_steps": 1}}
    with pytest.raises(ConfigError) as caught:
        resolve(tables, env=env)
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


def test_squash_needs_a_lower_bound_below_the_upper_one():
    class Fixed(Arm):
        action_space = Box(np.array([-1.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32))

    with pytest.raises(ValueError, match=r"one below the other; action\[1\] of .*1.0 to 1.0"):
        head_of(Fixed, GaussianSettings(squash="tanh"))
    assert head_of(Fixed, GaussianSettings()) == GaussianHead(2)


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
