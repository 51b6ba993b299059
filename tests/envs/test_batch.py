import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import CompiledEnv, EnvError, Envs, Outcome, find_env, philox
from rollout.envs.batch import env_bindings
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from rollout.envs.records import RecordsView
from tests.envs.nasty import Nasty, Pixels

ENVS = [CartPole, Counting, Nasty, Pixels]
ROOT = Path(__file__).parents[2]


def random_actions(env: Any, T: int, N: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, env.action_space.n, (T, N)).astype(np.int32)


def run(envs: Envs, actions: np.ndarray) -> list[tuple]:
    """What every step answered, tails cut to their length and all copied."""
    outcome = Outcome(envs.env, envs.num_envs)
    answers = []
    for action in actions:
        envs.step(np.ascontiguousarray(action), outcome)
        F, E = outcome.num_finals, outcome.num_episodes
        lengths = (None, None, None, None, F, F, E, E, E)
        answers.append(tuple(a[:n].copy() for a, n in zip(outcome.arrays, lengths, strict=True)))
    return answers


class Twin:
    """One environment, in plain Python, as one would explain it."""

    def __init__(self, env: Any, seed: int, number: int) -> None:
        self.env = env
        self.memory = np.zeros(1, env.state)
        self.place = np.zeros(1, philox.CLOCK)
        self.draw = RecordsView(self.place)[0]
        self.params = RecordsView(env.make_params())[0]
        self.draw.seed, self.draw.env = seed, number
        self.begin_episode(0)

    def begin_episode(self, episode: int) -> None:
        self.episode, self.t, self.total = episode, 0, 0.0
        self.memory[:] = np.zeros(1, self.env.state)
        self.state = RecordsView(self.memory)[0]
        self.draw.stream, self.draw.episode, self.draw.t, self.draw.k = 0, episode, 0, 0
        self.env.reset(self.state, self.params, self.draw)

    def observation(self) -> np.ndarray:
        observation = np.zeros(self.env.observation_space.shape, self.env.observation_space.dtype)
        self.env.observe(self.state, self.params, observation)
        return observation

    def step(self, action: int):
        """(observation, reward, terminated, truncated, final observation, (return, length))."""
        self.draw.stream, self.draw.t, self.draw.k = 1, self.t, 0
        reward, terminated = self.env.step(self.state, self.params, action, self.draw)
        self.t += 1
        self.total += reward
        truncated = self.t == self.env.max_episode_steps
        final = episode = None
        if terminated or truncated:
            final = self.observation() if truncated else None
            episode = (self.total, self.t)
            self.begin_episode(self.episode + 1)
        return self.observation(), reward, terminated, truncated, final, episode


@pytest.mark.parametrize("env", [CartPole, Counting, Nasty], ids=lambda env: env.__name__)
def test_batch_equals_single_environments_in_plain_python(env):
    """Time limit, SAME_STEP autoreset, final observations and episode statistics."""
    N, T = 4, 120
    envs, outcome = Envs(env, N, seed=11, first_env=5), Outcome(env, N)
    twins = [Twin(env, 11, 5 + i) for i in range(N)]
    seen_truncated = seen_terminated = 0
    np.testing.assert_array_equal(envs.observation(), [twin.observation() for twin in twins])
    for action in random_actions(env, T, N):
        envs.step(action, outcome)
        answers = [twin.step(int(a)) for twin, a in zip(twins, action, strict=True)]
        observation, reward, terminated, truncated, final, episode = zip(*answers, strict=True)
        np.testing.assert_array_equal(outcome.observation, observation)
        np.testing.assert_array_equal(outcome.reward, np.array(reward, np.float32))
        np.testing.assert_array_equal(outcome.terminated, terminated)
        np.testing.assert_array_equal(outcome.truncated, truncated)
        ends = [i for i in range(N) if episode[i] is not None]
        cuts = [i for i in range(N) if final[i] is not None]
        F, E = outcome.num_finals, outcome.num_episodes
        assert (len(cuts), len(ends)) == (F, E)
        assert outcome.final_env[:F].tolist() == cuts
        for row, i in enumerate(cuts):
            np.testing.assert_array_equal(outcome.final_observation[row], final[i])
        assert outcome.episode_env[:E].tolist() == ends
        assert outcome.episode_return[:E].tolist() == [episode[i][0] for i in ends]
        assert outcome.episode_length[:E].tolist() == [episode[i][1] for i in ends]
        seen_truncated += F
        seen_terminated += sum(terminated)
    assert seen_terminated, "the test would say nothing about terminations"
    assert seen_truncated or env is CartPole, "the test would say nothing about truncations"


def test_counting_shows_where_every_step_belongs():
    """Even episodes are truncated after 5 steps, odd ones terminate after 3."""
    envs = Envs(Counting, 2, seed=0, first_env=3)
    answers = run(envs, np.tile(np.array([0, 2], np.int32), (8, 1)))
    shown = [observation.tolist() for observation, *_ in answers]
    episode_and_t = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert shown == [[[3, e, t], [4, e, t]] for e, t in episode_and_t]
    rewards = np.array([answer[1] for answer in answers])
    np.testing.assert_array_equal(rewards[:, 0], [0, 1, 2, 3, 4, 0, 1, 2])
    np.testing.assert_allclose(rewards[:, 1] - rewards[:, 0], 0.2, rtol=1e-6)
    terminated = [answer[2].tolist() for answer in answers]
    truncated = [answer[3].tolist() for answer in answers]
    assert terminated == [[t == 7] * 2 for t in range(8)]
    assert truncated == [[t == 4] * 2 for t in range(8)]
    _, _, _, _, final_env, final_observation, episode_env, returns, lengths = answers[4]
    assert final_env.tolist() == episode_env.tolist() == [0, 1]
    assert final_observation.tolist() == [[3, 0, 5], [4, 0, 5]], "the true last observation"
    np.testing.assert_allclose(returns, [10.0, 11.0])
    assert lengths.tolist() == [5, 5]
    assert answers[7][4].size == 0, "a terminated row has no final observation"
    np.testing.assert_allclose(answers[7][7], [3.0, 3.6])


def test_end_at_the_time_limit_is_both_terminated_and_truncated():
    envs, outcome = Envs(Counting, 1, seed=0, params={"length": 5}), Outcome(Counting, 1)
    flags = []
    for _ in range(10):
        envs.step(np.zeros(1, np.int32), outcome)
        flags.append((bool(outcome.terminated[0]), bool(outcome.truncated[0])))
    assert flags[4] == (False, True)
    assert flags[9] == (True, True), "an odd episode terminates at its fifth step, the last one"
    assert outcome.num_finals == 1
    assert outcome.final_observation[0].tolist() == [0, 1, 5]


class Unhappy(Counting):
    def step(state, params, action, draw):
        if action == 2:
            raise TypeError("my own")
        return 0.0, False


@pytest.mark.parametrize("jit", [True, False])
def test_type_error_of_the_authors_is_not_taken_for_a_wrong_call(jit):
    envs, outcome = Envs(Unhappy, 2, seed=0, jit=jit), Outcome(Unhappy, 2)
    with pytest.raises(TypeError, match="my own"):
        envs.step(np.array([0, 2], np.int32), outcome)
    with pytest.raises(EnvError, match="got actions int64"):
        envs.step(np.array([0, 2]), outcome)


class OneStep(Counting):
    max_episode_steps = 1


class Endless(Counting):
    max_episode_steps = None


def test_time_limit_of_one_makes_every_step_an_episode():
    answers = run(Envs(OneStep, 3, seed=0), np.zeros((4, 3), np.int32))
    for t, answer in enumerate(answers):
        assert answer[0].tolist() == [[i, t + 1, 0] for i in range(3)]
        assert answer[3].all()
        assert answer[5].tolist() == [[i, t, 1] for i in range(3)]
        assert answer[8].tolist() == [1, 1, 1]


def test_without_a_time_limit_nothing_is_truncated():
    answers = run(Envs(Endless, 1, seed=0), np.zeros((600, 1), np.int32))
    assert not any(answer[3].any() for answer in answers)
    assert answers[-1][0].tolist() == [[0, 0, 600]]


class Forgetful(CompiledEnv):
    """Its reset sets nothing: what a state held before must not be seen."""

    state = np.dtype([("a", "i4"), ("b", "u1", (7,)), ("c", "f8")])
    observation_space = Counting.observation_space
    action_space = Counting.action_space
    max_episode_steps = 3

    def reset(state, params, draw):
        pass

    def step(state, params, action, draw):
        state.a += 1
        state.b[:] = 9
        state.c = 1.5
        return 0.0, False

    def observe(state, params, observation):
        observation[0], observation[1], observation[2] = state.a, state.b[6], state.c


@pytest.mark.parametrize("jit", [True, False])
def test_state_is_zero_before_every_reset(jit):
    envs, outcome = Envs(Forgetful, 2, seed=0, jit=jit), Outcome(Forgetful, 2)
    for _ in range(3):
        envs.step(np.zeros(2, np.int32), outcome)
    assert outcome.final_observation.tolist() == [[3.0, 9.0, 1.5]] * 2
    assert not outcome.observation.any()
    assert not any(envs.records["state"][name].any() for name in ("a", "b", "c"))


@pytest.mark.parametrize("env", ENVS, ids=lambda env: env.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_any_split_over_batches_gives_the_same_environments(env, data):
    """However environments are shared out, every bit of every answer is the same."""
    N, T = 7, 60
    cuts = data.draw(st.sets(st.integers(1, N - 1)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    first_env = data.draw(st.integers(0, 2**32 - N))
    edges = [0, *sorted(cuts), N]
    actions = random_actions(env, T, N, seed)
    whole = Envs(env, N, seed, first_env=first_env)
    together = run(whole, actions)
    parts = []
    records = []
    for start, stop in itertools.pairwise(edges):
        part = Envs(env, stop - start, seed, first_env=first_env + start)
        parts.append(run(part, actions[:, start:stop]))
        records.append(part.snapshot())
    assert b"".join(records) == whole.snapshot()
    for t in range(T):
        for column in range(4):
            joined = np.concatenate([part[t][column] for part in parts])
            assert joined.tobytes() == together[t][column].tobytes()
        for column in range(4, 9):
            is_env = column in (4, 6)
            joined = np.concatenate(
                [part[t][column] + (edges[i] if is_env else 0) for i, part in enumerate(parts)]
            )
            np.testing.assert_array_equal(joined, together[t][column])


@pytest.mark.parametrize("env", ENVS, ids=lambda env: env.__name__)
def test_snapshot_in_the_middle_of_an_episode_continues_exactly(env):
    actions = random_actions(env, 40, 3)
    envs = Envs(env, 3, seed=5)
    run(envs, actions[:17])
    snapshot = envs.snapshot()
    observation = envs.observation()
    wanted = run(envs, actions[17:])
    other = Envs(env, 3, seed=999, first_env=50)  # all of that comes with the snapshot
    run(other, actions[:3])
    other.restore(snapshot)
    np.testing.assert_array_equal(other.observation(), observation)
    for one, two in zip(run(other, actions[17:]), wanted, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))
    assert other.snapshot() == envs.snapshot()


CONTINUE = """
import sys
import numpy as np
from rollout.envs import Envs, Outcome, find_env
env = find_env(sys.argv[1])
envs, outcome = Envs(env, 3, seed=0), Outcome(env, 3)
envs.restore(sys.stdin.buffer.read())
for t in range(30):
    envs.step(np.full(3, t % 2, np.int32), outcome)
sys.stdout.buffer.write(envs.snapshot() + outcome.observation.tobytes())
"""


@pytest.mark.parametrize("env_id", ["CartPole-v1", "tests.envs.nasty:Nasty"])
def test_snapshot_continues_exactly_in_another_process(env_id):
    env = find_env(env_id)
    envs, outcome = Envs(env, 3, seed=21), Outcome(env, 3)
    run(envs, random_actions(env, 9, 3))
    command = [sys.executable, "-c", CONTINUE, env_id]
    result = subprocess.run(
        command, input=envs.snapshot(), capture_output=True, check=True, cwd=ROOT
    )
    for t in range(30):
        envs.step(np.full(3, t % 2, np.int32), outcome)
    assert result.stdout == envs.snapshot() + outcome.observation.tobytes()


@pytest.mark.parametrize("change", [-1, 1, -64])
def test_snapshot_of_another_length_is_refused_and_changes_nothing(change):
    envs = Envs(CartPole, 2, seed=0)
    before = envs.snapshot()
    other = bytes(len(before) + change)
    with pytest.raises(EnvError, match=f"{len(other)} bytes; 2 environments CartPole have 128"):
        envs.restore(other)
    assert envs.snapshot() == before


@pytest.mark.parametrize(
    ("action", "found"),
    [
        (np.zeros(2, np.int32), r"int32 \[2\]"),
        (np.zeros(4, np.int32), r"int32 \[4\]"),
        (np.zeros(3, np.int64), r"int64 \[3\]"),
        (np.zeros(3, np.float32), r"float32 \[3\]"),
        (np.zeros((3, 1), np.int32), r"int32 \[3, 1\]"),
        (np.zeros(6, np.int32)[::2], r"int32 \[3\], not contiguous"),
        ([0, 1, 0], "list"),
        (1, "int"),
        (None, "NoneType"),
    ],
)
def test_actions_of_another_kind_are_refused(action, found):
    envs, outcome = Envs(CartPole, 3, seed=0), Outcome(CartPole, 3)
    before = envs.snapshot()
    with pytest.raises(EnvError, match=rf"CartPole got actions {found}, wanted int32 \[3\]"):
        envs.step(action, outcome)
    assert envs.snapshot() == before


def test_outcome_of_another_size_or_environment_is_refused():
    envs, action = Envs(CartPole, 3, seed=0), np.zeros(3, np.int32)
    with pytest.raises(EnvError, match=r"stepped with Outcome\(CartPole, num_envs=2\)"):
        envs.step(action, Outcome(CartPole, 2))
    with pytest.raises(EnvError, match=r"stepped with Outcome\(Pixels, num_envs=3\)"):
        envs.step(action, Outcome(Pixels, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0, "seed": 0}, "num_envs=0, wanted an integer from 1"),
        ({"num_envs": -3, "seed": 0}, "num_envs=-3"),
        ({"num_envs": 2.0, "seed": 0}, r"num_envs=2\.0"),
        ({"num_envs": 1, "seed": -1}, "seed=-1, wanted an integer from 0 to 4294967295"),
        ({"num_envs": 1, "seed": 2**32}, "seed=4294967296"),
        ({"num_envs": 2, "seed": 0, "first_env": 2**32 - 1}, "first_env=4294967295"),
    ],
)
def test_counts_and_seeds_out_of_range_are_refused(arguments, message):
    with pytest.raises(EnvError, match=message):
        Envs(CartPole, **arguments)


def test_params_reach_the_environment():
    weak, strong = (Envs(CartPole, 1, seed=0, params={"force": f}) for f in (1.0, 30.0))
    for envs in (weak, strong):
        envs.step(np.ones(1, np.int32), Outcome(CartPole, 1))
    assert strong.records["state"]["x_dot"] - weak.records["state"]["x_dot"] > 0.5


def test_render_draws_the_chosen_environment():
    envs = Envs(CartPole, 2, seed=0)
    envs.records["state"]["x"] = [0.0, 1.5]
    left, right = envs.render(0), envs.render(1)
    assert left.shape == (200, 300, 3)
    assert left.dtype == np.uint8
    assert (left != right).any()
    with pytest.raises(EnvError, match="i=2, wanted an integer from 0 to 1"):
        envs.render(2)
    with pytest.raises(EnvError, match="Pixels has no render"):
        Envs(Pixels, 1, seed=0).render()


def test_long_lived_objects_have_a_repr_of_one_line():
    assert repr(Envs(CartPole, 2, seed=0)) == "Envs(CartPole, num_envs=2, jit=True)"
    assert repr(Outcome(CartPole, 2)) == "Outcome(CartPole, num_envs=2)"


def test_disabled_numba_says_to_ask_for_plain_python():
    program = "from rollout.envs import Envs, find_env; Envs(find_env('CartPole-v1'), 1, 0)"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "EnvError: NUMBA_DISABLE_JIT is set" in result.stderr


@pytest.mark.parametrize("names", ["draw", ("action", "draw"), ("draw", "params")])
def test_draws_are_noticed_however_python_loads_them(monkeypatch, names):
    """One instruction of Python 3.13 loads two variables."""
    from types import SimpleNamespace

    loads = [SimpleNamespace(argval=None), SimpleNamespace(argval=names)]
    monkeypatch.setattr("dis.get_instructions", lambda function: loads)
    assert env_bindings(CartPole, True)["STEP_DRAWS"]
    loads[1].argval = ("action", "params")
    assert not env_bindings(CartPole, True)["STEP_DRAWS"]


def test_arrays_of_another_environment_are_refused():
    envs = Envs(CartPole, 4, seed=0)
    with pytest.raises(EnvError, match="stepped with Outcome"):
        envs.step(np.zeros(4, np.int32), Outcome(Counting, 4))
    with pytest.raises(EnvError, match=r"got actions int32 \[4, 1\], wanted int32 \[4\]"):
        envs.step(np.zeros((4, 1), np.int32), Outcome(CartPole, 4))
