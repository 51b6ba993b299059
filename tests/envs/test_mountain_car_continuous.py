"""MountainCarContinuous-v0 against Gymnasium's, which keeps its state in float32: equal to the bit.

Gymnasium computes in float64 where an action is out of bounds, and in the first step after its own
reset; there the last digit of a float32 may differ.
"""

import math
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import continuous_mountain_car
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import Envs, Outcome
from rollout.envs.classic.mountain_car_continuous import MountainCarContinuous
from tests.envs.gymnasium_judge import Judge

JUDGE = Judge(MountainCarContinuous, "MountainCarContinuous-v0")


def random_states(num: int, reach: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    state = np.stack([rng.uniform(-1.21, 0.61, num), rng.uniform(-0.08, 0.08, num)], 1)
    action = rng.uniform(-reach, reach, (num, 1))
    return state.astype(np.float32), action.astype(np.float32)


def test_transitions_from_random_states_are_gymnasiums():
    answers = JUDGE.check_transitions(*random_states(1000))
    assert 20 < answers.terminated.sum() < 500
    assert (answers.state == np.array([-1.2, 0.0], np.float32)).all(1).any(), "no car hit the wall"


def test_action_out_of_bounds_is_clipped_but_its_fuel_is_not():
    state, action = random_states(1000, reach=30.0)
    theirs, ours = JUDGE.gymnasiums(state, action), JUDGE.ours(state, action)
    np.testing.assert_array_equal(ours.reward, theirs.reward)
    np.testing.assert_array_equal(ours.terminated, theirs.terminated)
    np.testing.assert_allclose(ours.observation, theirs.observation, rtol=2e-7, atol=1e-8)
    assert ours.reward.min() < -80


single = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=200)
@given(
    st.floats(-1.25, 0.625, width=32) | single,  # bounds that are float32s
    st.floats(-0.078125, 0.078125, width=32) | single,
    st.floats(-1, 1, width=32),
)
def test_transition_from_any_state_is_gymnasiums(position, velocity, action):
    state = np.array([[position, velocity]], np.float32)
    JUDGE.check_transitions(state, np.array([[action]], np.float32))


def swing_up(state, rng):
    """Along with its motion, some cars less than others."""
    with_motion = np.where(state[:, 1] >= 0, 1.0, -1.0) * np.linspace(0, 1, len(state))
    return (with_motion * rng.random(len(state)))[:, None].astype(np.float32)


@pytest.mark.parametrize("seed", range(2))
def test_whole_episodes_are_gymnasiums(seed):
    ends = JUDGE.check_episodes(swing_up, seed=seed)
    assert (999, False) in ends, "no car was late"
    assert any(terminated and length < 999 for length, terminated in ends), "no car arrived"


def test_episodes_from_gymnasiums_own_first_states_are_gymnasiums_but_for_last_digits():
    theirs = gymnasium.make(JUDGE.env_id)
    rng = np.random.default_rng(0)
    for seed in range(3):
        observation, _ = theirs.reset(seed=seed)
        envs, outcome = Envs(MountainCarContinuous, 1, seed=0), Outcome(MountainCarContinuous, 1)
        JUDGE.put(envs, observation[None])
        terminated = False
        while not terminated:
            action = np.where(observation[1:] >= 0, 1, -1) * rng.random(1).astype(np.float32)
            observation, _, terminated, truncated, _ = theirs.step(action)
            assert not truncated
            envs.step(action[None].astype(np.float32), outcome)
            assert outcome.terminated[0] == terminated
            if not terminated:
                np.testing.assert_allclose(outcome.observation[0], observation, atol=2e-6)


@pytest.mark.parametrize(
    "params", [{"power": 0.003}, {"goal_position": 0.1}, {"goal_velocity": 0.03}]
)
def test_params_are_gymnasiums_attributes(params):
    JUDGE.check_params(*random_states(300), params)


def test_goal_begins_at_its_position_and_velocity():
    state, action = np.array([[0.3, 0.05]], np.float32), np.ones((1, 1), np.float32)
    position, velocity = JUDGE.ours(state, action).state[0]
    at = {"goal_position": float(position), "goal_velocity": float(velocity)}
    further = {"goal_position": float(np.nextafter(position, np.float32(1)))}
    faster = {"goal_velocity": float(np.nextafter(velocity, np.float32(1)))}
    for other, arrives in (({}, True), (further, False), (faster, False)):
        params: dict[str, Any] = at | other
        theirs = JUDGE.gymnasiums(state, action, **params)
        assert JUDGE.ours(state, action, **params).terminated == theirs.terminated == arrives


def test_gravity_is_the_number_in_gymnasiums_step(monkeypatch):
    twice = SimpleNamespace(cos=lambda x: 2 * math.cos(x), pow=math.pow)
    monkeypatch.setattr(continuous_mountain_car, "math", twice)
    theirs = JUDGE.gymnasiums(*random_states(300))
    ours = JUDGE.ours(*random_states(300), gravity=2 * 0.0025)
    np.testing.assert_array_equal(ours.observation, theirs.observation)


def test_first_states_are_spread_as_gymnasiums():
    JUDGE.check_first_states()


def test_spaces_are_gymnasiums():
    JUDGE.check_spaces()


def test_car_is_drawn_where_it_is():
    JUDGE.check_render(np.array([-1.1, 0.0]), np.array([0.3, 0.0]))
