"""CartPole-v1 against Gymnasium's, transition by transition.

Gymnasium computes sin and cos with NumPy, whose last bit may differ from the C library's.
"""

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rollout.envs import Envs, Outcome
from rollout.envs.classic.cartpole import THETA_LIMIT, X_LIMIT, CartPole

FIELDS = ("x", "x_dot", "theta", "theta_dot")
LIMIT = 500


def in_gymnasium(state: np.ndarray, action: int):
    """(state, observation, reward, terminated) that Gymnasium's answers from `state`."""
    theirs: Any = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    theirs.state = state.copy()
    observation, reward, terminated, *_ = theirs.step(action)
    return np.array(theirs.state), observation, reward, terminated


def in_ours(state: np.ndarray, action: int, jit: bool = True):
    """The same of ours; the state and observation before an autoreset."""
    envs, outcome = Envs(CartPole, 1, seed=0, jit=jit), Outcome(CartPole, 1)
    envs.records["clock"]["t"] = LIMIT - 1  # so that the end shows itself
    for name, value in zip(FIELDS, state, strict=True):
        envs.records["state"][name] = value
    envs.step(np.array([action], np.int32), outcome)
    assert outcome.truncated[0]
    return outcome.final_observation[0], outcome.reward[0], outcome.terminated[0]


number = st.floats(-5, 5, allow_subnormal=False)


@settings(max_examples=200)
@given(st.tuples(number, number, st.floats(-0.5, 0.5), number), st.integers(0, 1))
def test_transition_from_any_state_is_gymnasiums(state, action):
    state = np.array(state)
    next_state, observation, reward, terminated = in_gymnasium(state, action)
    at_a_limit = abs(abs(next_state[0]) - X_LIMIT) < 1e-12
    assume(not at_a_limit and abs(abs(next_state[2]) - THETA_LIMIT) > 1e-12)
    found = in_ours(state, action)
    np.testing.assert_allclose(found[0], observation, rtol=2e-7, atol=1e-12)
    assert (found[1], found[2]) == (reward, terminated)


@pytest.mark.parametrize("action", [0, 1])
@pytest.mark.parametrize(
    ("x", "theta", "ends"),
    [
        (X_LIMIT, 0.0, False),  # only beyond the limit
        (np.nextafter(X_LIMIT, 3), 0.0, True),
        (-X_LIMIT, 0.0, False),
        (np.nextafter(-X_LIMIT, -3), 0.0, True),
        (0.0, THETA_LIMIT, False),
        (0.0, np.nextafter(THETA_LIMIT, 3), True),
        (0.0, -THETA_LIMIT, False),
        (0.0, np.nextafter(-THETA_LIMIT, -3), True),
    ],
)
def test_limits_belong_to_the_track(x, theta, ends, action):
    state = np.array([x, 0.0, theta, 0.0])  # positions move by velocities, which are zero
    assert in_ours(state, action)[2] == in_gymnasium(state, action)[3] == ends


@pytest.mark.parametrize("seed", range(3))
def test_whole_episodes_are_gymnasiums(seed):
    """From our first states, step by step, until both say that it ends."""
    rng = np.random.default_rng(seed)
    envs, outcome = Envs(CartPole, 8, seed=seed), Outcome(CartPole, 8)
    theirs: list[Any] = [gymnasium.make("CartPole-v1") for _ in range(8)]
    for i, env in enumerate(theirs):
        env.reset(seed=i)
        env.unwrapped.state = np.array(envs.records["state"][i].tolist())
    going = set(range(8))
    lengths = {}
    while going:
        lean = envs.records["state"]["theta"] + envs.records["state"]["theta_dot"]
        noise = rng.random(8) < np.linspace(0, 0.7, 8)  # some fall soon, some last to the limit
        action = np.where(noise, rng.integers(0, 2, 8), lean > 0).astype(np.int32)
        envs.step(action, outcome)
        rows = range(outcome.num_finals)
        finals = {int(outcome.final_env[row]): outcome.final_observation[row] for row in rows}
        for i in sorted(going):
            observation, reward, terminated, truncated, _ = theirs[i].step(int(action[i]))
            assert reward == outcome.reward[i]
            assert (terminated, truncated) == (outcome.terminated[i], outcome.truncated[i])
            if terminated or truncated:
                going.remove(i)
                row = outcome.episode_env[: outcome.num_episodes].tolist().index(i)
                lengths[i] = int(outcome.episode_length[row])
                assert outcome.episode_return[row] == lengths[i]
            shown = finals.get(i, None if terminated else outcome.observation[i])
            if shown is not None:
                np.testing.assert_allclose(shown, observation, rtol=1e-5, atol=1e-6)
    assert max(lengths.values()) == LIMIT, "the time limit was never reached"
    assert min(lengths.values()) < 200, "no pole fell"


def test_pole_that_falls_at_the_limit_is_terminated_and_truncated_as_gymnasiums():
    state = np.array([0.0, 0.0, THETA_LIMIT, 1.0])
    env: Any = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    for _ in range(499):
        env.unwrapped.state = np.zeros(4)
        assert env.step(0)[2:4] == (False, False)
    env.unwrapped.state = state
    assert env.step(0)[2:4] == (True, True)
    observation, _, terminated = in_ours(state, 0)
    assert terminated
    assert observation[2] > THETA_LIMIT


def test_first_states_are_spread_as_gymnasiums():
    envs = Envs(CartPole, 4000, seed=9)
    for name in FIELDS:
        values = envs.records["state"][name]
        assert -0.05 <= values.min() < -0.049
        assert 0.049 < values.max() < 0.05
        assert abs(values.mean()) < 0.002
    together = np.array([envs.records["state"][name] for name in FIELDS])
    assert abs(np.corrcoef(together) - np.eye(4)).max() < 0.06, "its numbers hang together"


def test_spaces_are_gymnasiums():
    theirs = gymnasium.make("CartPole-v1")
    assert CartPole.observation_space == theirs.observation_space
    assert CartPole.action_space == theirs.action_space
    assert theirs.spec is not None
    assert CartPole.max_episode_steps == theirs.spec.max_episode_steps == LIMIT
