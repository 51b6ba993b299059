"""MountainCar-v0 against Gymnasium's: equal to the bit, both compute cos with the C library."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs.classic.mountain_car import MAX_POSITION, MAX_SPEED, MIN_POSITION, MountainCar
from tests.envs.gymnasium_judge import Judge

JUDGE = Judge(MountainCar, "MountainCar-v0")


def random_states(num: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    positions = rng.uniform(MIN_POSITION - 0.01, MAX_POSITION + 0.01, num)
    return np.stack([positions, rng.uniform(-0.08, 0.08, num)], 1), rng.integers(0, 3, num)


def test_transitions_from_random_states_are_gymnasiums():
    answers = JUDGE.check_transitions(*random_states(1000))
    assert 20 < answers.terminated.sum() < 500
    assert (answers.state == [MIN_POSITION, 0.0]).all(1).any(), "no car hit the wall"


@settings(max_examples=200)
@given(
    st.floats(MIN_POSITION, MAX_POSITION) | st.floats(-1e3, 1e3),
    st.floats(-MAX_SPEED, MAX_SPEED) | st.floats(-1e3, 1e3),
    st.integers(0, 2),
)
def test_transition_from_any_state_is_gymnasiums(position, velocity, action):
    JUDGE.check_transitions(np.array([[position, velocity]]), np.array([action]))


@pytest.mark.parametrize("seed", range(2))
def test_whole_episodes_are_gymnasiums(seed):
    def swing_up(state, rng):
        """Along with its motion, some cars more often than others."""
        with_motion = np.where(state[:, 1] >= 0, 2, 0)
        is_random = rng.random(8) < np.linspace(0, 1, 8)
        return np.where(is_random, rng.integers(0, 3, 8), with_motion)

    ends = JUDGE.check_episodes(swing_up, seed=seed)
    assert (200, False) in ends, "no car was late"
    assert any(terminated and length < 200 for length, terminated in ends), "no car arrived"


@pytest.mark.parametrize(
    "params",
    [{"force": 0.003}, {"gravity": 0.001}, {"goal_position": 0.1}, {"goal_velocity": 0.03}],
)
def test_params_are_gymnasiums_attributes(params):
    JUDGE.check_params(*random_states(300), params)


def test_goal_begins_at_its_position_and_velocity():
    state, action = np.array([[0.3, 0.05]]), np.array([2])
    position, velocity = JUDGE.ours(state, action).state[0].tolist()
    at = {"goal_position": position, "goal_velocity": velocity}
    further = {"goal_position": np.nextafter(position, 1.0)}
    faster = {"goal_velocity": np.nextafter(velocity, 1.0)}
    for other, arrives in (({}, True), (further, False), (faster, False)):
        theirs = JUDGE.gymnasiums(state, action, **at | other)
        assert JUDGE.ours(state, action, **at | other).terminated == theirs.terminated == arrives


def test_first_states_are_spread_as_gymnasiums():
    JUDGE.check_first_states()


def test_spaces_are_gymnasiums():
    JUDGE.check_spaces()


def test_car_is_drawn_where_it_is():
    JUDGE.check_render(np.array([-1.1, 0.0]), np.array([0.3, 0.0]))
