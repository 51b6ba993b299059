"""Acting against a slow twin: the same environments, network and draws, step by step."""

import itertools
from dataclasses import fields, replace
from typing import Any

import numba
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.acting import UnrollActor, Workspace, load_acting_kernels, read_only
from rollout.envs import EnvError, Envs, Outcome, philox
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Dense
from rollout.learners.network import CategoricalHead, NetworkSpec, make_mlp
from rollout.learners.unroll import COLUMNS, STARTS_AND_ENDS, TAILS, Unroll
from rollout.policy_kernel import BLOCK
from rollout.shapes import make_schema
from tests.some_fast import slow_unless

CARTPOLE_NETWORK = make_mlp((4,), CategoricalHead((2,)), (64, 64), "tanh", "shared")
COUNTING_NETWORK = make_mlp((3,), CategoricalHead((3,)), (8,), "relu", "separate")


class OneStep(Counting):
    """Every step is an episode: the longest tails there can be."""

    max_episode_steps = 1


class Grid(Counting):
    """Observes bytes of two dimensions."""

    observation_space = Box(0, 255, (2, 3), np.uint8)

    def observe(state, params, observation):
        for j in range(3):
            observation[0, j] = state.env + j
            observation[1, j] = state.t


CASES: dict[str, tuple[Any, NetworkSpec]] = {
    "CartPole": (CartPole, CARTPOLE_NETWORK),
    "Counting": (Counting, COUNTING_NETWORK),
    "OneStep": (OneStep, COUNTING_NETWORK),
    "Grid": (Grid, make_mlp((2, 3), CategoricalHead((3,)), (16,), "tanh", "shared")),
}
each_case = pytest.mark.parametrize("case", slow_unless(["CartPole", "Counting", "Grid"], CASES))


def weights_for(network: NetworkSpec, seed: int = 0) -> np.ndarray:
    """Random enough that all actions are chosen."""
    rng = np.random.default_rng(seed)
    flat = 0.3 * rng.standard_normal(network.num_parameters)
    return read_only(flat.astype(np.float32))


def make_actor(
    case: str, N: int, T: int, seed: int = 3, first_env: int = 0, has_value: bool = True
) -> UnrollActor:
    env, network = CASES[case]
    envs = Envs(env, N, seed, first_env=first_env)
    return UnrollActor(envs, network, make_schema(env, T, has_value))


def act(actor: UnrollActor, weights: np.ndarray, greedy: bool = False) -> Unroll:
    """An unroll of its own memory."""
    actor.act(weights, greedy)
    unroll = actor.buffer.unroll()
    return Unroll(**{field.name: getattr(unroll, field.name).copy() for field in fields(Unroll)})


class Evaluate:
    """The compiled network on any number of observations."""

    def __init__(self, case: str) -> None:
        env, self.network = CASES[case]
        self.kernels = load_acting_kernels(env, self.network, make_schema(env, 5, True))
        self.workspace = Workspace(self.network)

    def __call__(self, weights: np.ndarray, observation: np.ndarray):
        rows = len(observation)
        logits = np.zeros((rows, self.network.head.num_outputs), np.float32)
        value = np.zeros(rows, np.float32)
        work = (self.workspace.packed, self.workspace.scratch)
        rows = np.ascontiguousarray(observation)
        nothing = np.zeros((len(value), 0), np.float32), np.zeros((len(value), 0), rows.dtype)
        self.kernels.evaluate(weights, *work, rows, *nothing, logits, value)
        return logits, value


def chosen(logits: np.ndarray, uniform: np.float32) -> int:
    """Inversion, as one would explain it; in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    reached = np.cumsum(weights)
    return int(np.searchsorted(reached, float(uniform) * reached[-1], side="right"))


def slow_unroll(case: str, N: int, T: int, weights: np.ndarray, seed: int = 3) -> dict[str, Any]:
    """The same unroll through Envs.step, one environment's action at a time."""
    env, _ = CASES[case]
    envs, outcome, evaluate = Envs(env, N, seed), Outcome(env, N), Evaluate(case)
    rows: dict[str, list] = {field.name: [] for field in fields(Unroll)}
    observation = envs.observation()
    for t in range(T):
        logits, value = evaluate(weights, observation)
        clock = envs.records["clock"].copy()
        action = np.zeros(N, np.int32)
        log_prob = np.zeros(N)
        for i in range(N):
            place = (clock["env"][i], clock["episode"][i], clock["t"][i], 0)
            words = philox.philox(seed, philox.ACTION, *map(int, place))
            action[i] = chosen(logits[i], philox.unit_float32(words[0]))
            exact = logits[i].astype(np.float64)
            log_prob[i] = exact[action[i]] - np.logaddexp.reduce(exact)
        envs.step(action, outcome)
        rows["observation"].append(observation)
        rows["action"].append(action)
        rows["value"].append(value)
        rows["behavior_log_prob"].append(log_prob)
        for name in ("reward", "terminated", "truncated"):
            rows[name].append(getattr(outcome, name).copy())
        for row in range(outcome.num_finals):
            rows["final_t"].append(t)
            rows["final_env"].append(outcome.final_env[row])
            final = outcome.final_observation[row].copy()
            rows["final_observation"].append(final)
            rows["final_value"].append(evaluate(weights, final[None])[1][0])
        for row in range(outcome.num_episodes):
            rows["episode_t"].append(t)
            for name in ("episode_env", "episode_return", "episode_length"):
                rows[name].append(getattr(outcome, name)[row])
        observation = outcome.observation.copy()
    rows["observation"].append(observation)
    rows["value"].append(evaluate(weights, observation)[1])
    return {name: np.array(values) for name, values in rows.items()} | {"state": envs.snapshot()}


def in_time_order(unroll: Unroll) -> Unroll:
    """With the tails by (t, environment); an actor writes them block by block."""
    arrays = {}
    for kind in ("final", "episode"):
        order = np.lexsort((getattr(unroll, f"{kind}_env"), getattr(unroll, f"{kind}_t")))
        arrays |= {n: getattr(unroll, n)[order] for n in TAILS if n.startswith(kind)}
    return replace(unroll, **arrays)


def assert_same(one: Unroll, other: Unroll) -> None:
    """Bit for bit."""
    for field in fields(Unroll):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert a.shape == b.shape, field.name
        assert a.tobytes() == b.tobytes(), field.name


@each_case
@pytest.mark.parametrize("N", [1, 3, BLOCK, 2 * BLOCK + 5])
def test_unroll_equals_its_slow_twin(case, N):
    """Rows, tails and final values, over blocks that are whole, odd and single."""
    T = 40
    weights = weights_for(CASES[case][1])
    actor = make_actor(case, N, T)
    unroll = in_time_order(act(actor, weights))
    twin = slow_unroll(case, N, T, weights)
    for name in (*COLUMNS, *TAILS):
        found, wanted = getattr(unroll, name), twin[name]
        assert len(found) == len(wanted) or name == "action_mask", name
        if name == "behavior_log_prob":
            np.testing.assert_allclose(found, wanted, atol=2e-6)
        elif name != "action_mask" and len(wanted):
            np.testing.assert_array_equal(found, wanted.astype(found.dtype), err_msg=name)
    assert actor.envs.snapshot() == twin["state"] == unroll.env_state.tobytes()
    assert len(unroll.episode_t) > 0 or N == 1
    num_actions = CASES[case][1].head.num_outputs
    assert set(np.unique(unroll.action)) == set(range(num_actions)), "an action was never chosen"


def test_counting_pins_the_alignment_of_every_row():
    """Environment, episode and step show themselves: any shift by one is a wrong integer."""
    N, T = 3, 17
    unroll = act(make_actor("Counting", N, T, first_env=10), weights_for(COUNTING_NETWORK))
    episode = t_in_episode = 0
    finals, episodes = [], []
    for t in range(T + 1):
        for i in range(N):
            assert unroll.observation[t, i].tolist() == [10 + i, episode, t_in_episode]
        if t == T:
            break
        np.testing.assert_allclose(
            unroll.reward[t], t_in_episode + 0.1 * unroll.action[t], rtol=1e-6
        )
        t_in_episode += 1
        terminated = episode % 2 == 1 and t_in_episode == 3
        truncated = t_in_episode == 5
        assert unroll.terminated[t].tolist() == [terminated] * N
        assert unroll.truncated[t].tolist() == [truncated] * N
        if truncated:
            finals += [(t, i, [10 + i, episode, 5]) for i in range(N)]
        if terminated or truncated:
            episodes += [(t, i, t_in_episode) for i in range(N)]
            episode, t_in_episode = episode + 1, 0
    found = zip(unroll.final_t, unroll.final_env, unroll.final_observation.tolist(), strict=True)
    assert list(found) == finals
    found = zip(unroll.episode_t, unroll.episode_env, unroll.episode_length, strict=True)
    assert list(found) == episodes
    for row, (t, i, length) in enumerate(episodes):
        rewards = unroll.reward[t - length + 1 : t + 1, i]
        np.testing.assert_allclose(unroll.episode_return[row], rewards.sum(), rtol=1e-5)


@each_case
@settings(max_examples=12)
@given(data=st.data())
def test_any_split_over_actors_gives_the_same_unrolls(case, data):
    """Uneven shares too, over two unrolls with different weights, bit for bit."""
    N, T = BLOCK + 7, 11
    cuts = data.draw(st.sets(st.integers(1, N - 1), max_size=5))
    whole = make_actor(case, N, T)
    versions = [weights_for(CASES[case][1], seed) for seed in range(2)]
    together = [in_time_order(act(whole, weights)) for weights in versions]
    edges = [0, *sorted(cuts), N]
    shares = list(itertools.pairwise(edges))
    actors = [make_actor(case, stop - start, T, first_env=start) for start, stop in shares]
    for weights, wanted in zip(versions, together, strict=True):
        parts = []
        for actor, (start, _) in zip(actors, shares, strict=True):
            part = act(actor, weights)
            moved = {n: getattr(part, n) + np.int32(start) for n in ("final_env", "episode_env")}
            parts.append(replace(part, **moved))
        joined = {n: np.concatenate([getattr(p, n) for p in parts], axis=1) for n in COLUMNS}
        joined |= {
            n: np.concatenate([getattr(p, n) for p in parts]) for n in (*STARTS_AND_ENDS, *TAILS)
        }
        assert_same(in_time_order(Unroll(**joined)), wanted)
    snapshots = [actor.envs.snapshot() for actor in actors]
    assert b"".join(snapshots) == whole.envs.snapshot()


@each_case
def test_two_unrolls_are_one_of_twice_the_length(case):
    N, T = 5, 13
    weights = weights_for(CASES[case][1])
    short, long = make_actor(case, N, T), make_actor(case, N, 2 * T)
    first, second, whole = act(short, weights), act(short, weights), act(long, weights)
    for name in COLUMNS:
        one, two = getattr(first, name), getattr(second, name)
        rows = T if name in ("observation", "value") else len(one)
        joined = np.concatenate([one[:rows], two])
        assert joined.tobytes() == getattr(whole, name).tobytes(), name
    np.testing.assert_array_equal(first.observation[T], second.observation[0])
    np.testing.assert_array_equal(first.value[T], second.value[0])
    for name in TAILS:
        later = getattr(second, name) + (T if name.endswith("_t") else 0)
        joined = np.concatenate([getattr(first, name), later.astype(getattr(first, name).dtype)])
        assert joined.tobytes() == getattr(whole, name).tobytes(), name
    assert short.envs.snapshot() == long.envs.snapshot()


def test_actor_that_takes_over_from_a_snapshot_goes_on_exactly():
    weights = weights_for(CARTPOLE_NETWORK)
    actor = make_actor("CartPole", 5, 50)
    act(actor, weights)
    snapshot = actor.envs.snapshot()
    wanted = act(actor, weights)
    other = make_actor("CartPole", 5, 50, seed=77)
    other.envs.restore(snapshot)
    assert_same(act(other, weights), wanted)


def test_every_step_may_end_an_episode():
    """The tails are then as long as the unroll, and still fit the payload."""
    N, T = 2 * BLOCK + 3, 6
    actor = make_actor("OneStep", N, T)
    for unroll_index in range(2):
        payload = actor.act(weights_for(COUNTING_NETWORK))
        assert payload.nbytes == actor.buffer.schema.max_size_bytes(N)
        unroll = in_time_order(actor.buffer.unroll())
        assert unroll.truncated.all()
        assert len(unroll.final_t) == len(unroll.episode_t) == T * N
        first = unroll_index * T
        wanted = [[i, first + t, 1] for t in range(T) for i in range(N)]
        assert unroll.final_observation.tolist() == wanted


@pytest.mark.slow
def test_unroll_without_values_has_none_and_is_otherwise_the_same():
    weights = weights_for(COUNTING_NETWORK)
    with_value = act(make_actor("Counting", 4, 12), weights)
    without = act(make_actor("Counting", 4, 12, has_value=False), weights)
    assert without.value.shape == (0, 4)
    assert without.final_value.shape == (0,)
    for name in (*COLUMNS, *TAILS):
        if name not in ("value", "final_value"):
            assert getattr(without, name).tobytes() == getattr(with_value, name).tobytes(), name


@each_case
def test_recorded_log_probs_and_values_agree_with_torch(case):
    _, network = CASES[case]
    weights = weights_for(network)
    unroll = act(make_actor(case, 37, 20), weights)
    rows = unroll.observation.reshape(-1, network.num_inputs)
    logits, value = forward_in_torch(network, weights, rows)
    T, N = unroll.reward.shape
    np.testing.assert_allclose(unroll.value, value.reshape(T + 1, N), atol=1e-4, rtol=1e-5)
    log_probs = torch.log_softmax(torch.from_numpy(logits), -1).numpy().reshape(T + 1, N, -1)
    taken = np.take_along_axis(log_probs[:T], unroll.action[..., None], -1)[..., 0]
    size = np.abs(logits).max() if case != "CartPole" else 1.0  # counts are large observations
    np.testing.assert_allclose(unroll.behavior_log_prob, taken, atol=1e-5 * max(1.0, size))


def forward_in_torch(network: NetworkSpec, weights: np.ndarray, rows: np.ndarray):
    flat = torch.from_numpy(weights.copy())
    buffers = {"observation": torch.from_numpy(rows.astype(np.float32))}
    functions = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x}
    for layer in network.layers:
        assert isinstance(layer, Dense)
        weight = network.parameter(f"{layer.name}.weight").view(flat)
        bias = network.parameter(f"{layer.name}.bias").view(flat)
        buffers[layer.name] = functions[layer.activation](buffers[layer.source] @ weight + bias)
    places = (network.outputs, network.value)
    logits, value = (buffers[p.buffer][:, p.start : p.stop].numpy() for p in places)
    return logits, value[:, 0]


def test_greedy_actor_takes_the_likeliest_action():
    weights = weights_for(COUNTING_NETWORK)
    unroll = act(make_actor("Counting", 9, 30), weights, greedy=True)
    logits, _ = Evaluate("Counting")(weights, unroll.observation.reshape(-1, 3))
    likeliest = logits.argmax(-1).reshape(31, 9)
    np.testing.assert_array_equal(unroll.action, likeliest[:30])


# ---- choosing an action


def choose_for(num_actions: int):
    """The compiled `choose_one` for so many actions, over arrays."""

    class Env(Counting):
        action_space = Discrete(num_actions)

    network = make_mlp((3,), CategoricalHead((num_actions,)), (1,), "relu", "shared")
    choose = load_acting_kernels(Env, network, make_schema(Env, 1, True)).choose_one
    everything = np.ones(num_actions, np.bool_)

    @numba.njit
    def choose_all(logits, uniforms, greedy, actions, log_probs, mask):
        for i in range(len(uniforms)):
            actions[i], log_probs[i] = choose(logits[i], num_actions, uniforms[i], mask, greedy)

    def call(logits, uniforms, greedy: bool = False):
        uniforms = np.asarray(uniforms, np.float32)
        logits = np.broadcast_to(np.asarray(logits, np.float32), (len(uniforms), num_actions))
        actions, log_probs = np.zeros(len(uniforms), np.int64), np.zeros(len(uniforms), np.float32)
        choose_all(logits.copy(), uniforms, greedy, actions, log_probs, everything)
        return actions, log_probs

    return call


@pytest.fixture(scope="module")
def choose():
    return choose_for(5)


def test_actions_are_distributed_as_softmax_says(choose):
    logits = np.array([0.3, -2.0, 1.5, 0.0, -0.7])
    rng = np.random.default_rng(0)
    uniforms = (rng.integers(0, 2**24, 200_000) * 2.0**-24).astype(np.float32)
    actions, _ = choose(logits, uniforms)
    expected = 200_000 * np.exp(logits) / np.exp(logits).sum()
    counts = np.bincount(actions, minlength=5)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 99.9 % of 4 degrees of freedom


def test_uniform_numbers_map_to_actions_in_order(choose):
    """The ends of the range included: 0 takes the first action, the largest the last."""
    uniforms = np.linspace(0, 1 - 2.0**-24, 1001)
    actions, _ = choose(np.zeros(5), uniforms)
    assert actions[0] == 0
    assert actions[-1] == 4
    assert (np.diff(actions) >= 0).all()
    np.testing.assert_array_equal(np.bincount(actions), [201, 200, 200, 200, 200])


def test_action_without_probability_is_never_chosen(choose):
    uniforms = np.array([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    for impossible in range(5):
        logits = np.zeros(5)
        logits[impossible] = -np.inf
        for scale in (1.0, 0.7, 1.3):
            actions, log_probs = choose(logits * scale, uniforms)
            assert impossible not in actions
            np.testing.assert_allclose(log_probs, np.log(0.25), rtol=1e-6)


@given(st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5), st.floats(0, 1, width=32))
def test_log_prob_is_torchs_log_softmax(choose, logits, uniform):
    actions, log_probs = choose(logits, [min(uniform, 1 - 2.0**-24)])
    wanted = torch.log_softmax(torch.tensor(logits), -1)[actions[0]]
    assert abs(log_probs[0] - wanted) < 1e-5


@given(st.permutations([-1e4, 1e4, 0.0, 9800.0, -1e-4]), st.floats(0, 1, width=32))
def test_extreme_logits_choose_the_only_possible_action(choose, logits, uniform):
    actions, log_probs = choose(logits, [min(uniform, 1 - 2.0**-24)])
    assert logits[actions[0]] == 1e4
    assert log_probs[0] == 0.0


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5))
def test_greedy_is_argmax_and_the_first_of_equals(choose, logits):
    actions, log_probs = choose(logits, [0.99], greedy=True)
    assert actions[0] == np.argmax(np.float32(logits))
    assert log_probs[0] <= 0.0


@pytest.mark.parametrize("place", range(5))
def test_nan_among_the_logits_shows_in_the_log_prob(choose, place):
    logits = np.zeros(5)
    logits[place] = np.nan
    for greedy in (False, True):
        actions, log_probs = choose(logits, [0.0, 0.5, 0.99], greedy)
        assert np.isnan(log_probs).all()
        assert ((actions >= 0) & (actions < 5)).all(), "an action must stay one"


# ---- what is checked before it is compiled or called


def test_nothing_compiles_after_loading(monkeypatch):
    """An actor that compiled would stand still, and its memory grow, in each of thousands."""
    kernels = load_acting_kernels(CartPole, CARTPOLE_NETWORK, make_schema(CartPole, 9, True))
    act_unroll = kernels.act_unroll
    before = len(act_unroll.signatures)
    for N, T in ((1, 1), (7, 3), (70, 9)):
        act(make_actor("CartPole", N, T), weights_for(CARTPOLE_NETWORK), greedy=N == 7)
    assert len(act_unroll.signatures) == before == 1
    assert not act_unroll._can_compile


def test_network_that_does_not_fit_the_environment_is_refused():
    schema = make_schema(CartPole, 5, True)
    with pytest.raises(EnvError, match=r"network reads observations \(3,\), CartPole gives \(4,\)"):
        load_acting_kernels(CartPole, COUNTING_NETWORK, schema)
    many = make_mlp((4,), CategoricalHead((3,)), (8,), "tanh", "shared")
    with pytest.raises(EnvError, match=r"actions of CartPole are Discrete\(2\)"):
        load_acting_kernels(CartPole, many, schema)


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros(CARTPOLE_NETWORK.num_parameters - 1, np.float32),
        np.zeros(CARTPOLE_NETWORK.num_parameters, np.float64),
        np.zeros(2 * CARTPOLE_NETWORK.num_parameters, np.float32)[::2],
        np.zeros((1, CARTPOLE_NETWORK.num_parameters), np.float32),
    ],
)
def test_weights_of_another_shape_are_refused(weights):
    """The kernel would read beyond them."""
    actor = make_actor("CartPole", 2, 3)
    with pytest.raises(ValueError, match=rf"wanted float32 \[{CARTPOLE_NETWORK.num_parameters}\]"):
        actor.act(weights)


def test_weights_may_be_writable_or_not():
    weights = initial_parameters(CARTPOLE_NETWORK, seed=0)
    one = act(make_actor("CartPole", 2, 3), weights)
    assert_same(act(make_actor("CartPole", 2, 3), read_only(weights)), one)


def test_plain_python_acts_as_compiled_code_does():
    """With JIT off; the policy's products round once more there, so almost."""
    env, network = CASES["Counting"]
    weights = weights_for(network)
    plain = UnrollActor(Envs(env, 3, 3, jit=False), network, make_schema(env, 12, True))
    one, other = act(plain, weights), act(make_actor("Counting", 3, 12), weights)
    for name in (*COLUMNS, *TAILS):
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5, err_msg=name
        )
