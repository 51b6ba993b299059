"""Pendulum-v1 against Gymnasium's, whose torque is float32 and whose state is float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs.classic.pendulum import MAX_SPEED, Pendulum
from tests.envs.gymnasium_judge import Judge

JUDGE = Judge(Pendulum, "Pendulum-v1")
ATOL = 1e-14


def random_states(num: int, reach: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """reach: the greatest torque."""
    rng = np.random.default_rng(0)
    state = np.stack([rng.uniform(-10, 10, num), rng.uniform(-MAX_SPEED, MAX_SPEED, num)], 1)
    return state, rng.uniform(-reach, reach, (num, 1)).astype(np.float32)


@pytest.mark.parametrize("reach", [2.0, 6.0])  # a greater torque is clipped
def test_transitions_from_random_states_are_gymnasiums(reach):
    answers = JUDGE.check_transitions(*random_states(1000, reach), atol=ATOL)
    assert (abs(answers.state[:, 1]) == MAX_SPEED).sum() > 20, "no speed was bounded"


@settings(max_examples=200)
@given(
    st.floats(-100, 100, allow_subnormal=False),
    st.floats(-20, 20, allow_subnormal=False),
    st.floats(-5, 5, width=32),
)
def test_transition_from_any_state_is_gymnasiums(theta, theta_dot, torque):
    state, action = np.array([[theta, theta_dot]]), np.array([[torque]], np.float32)
    JUDGE.check_transitions(state, action, atol=ATOL)


@pytest.mark.parametrize("seed", range(2))
def test_whole_episodes_are_gymnasiums(seed):
    def pump(state, rng):
        """Energy into the swing, some more than others; out of bounds, too."""
        torque = np.sign(state[:, 1]) * np.linspace(0, 3, 8) + rng.normal(0, 0.5, 8)
        return torque[:, None].astype(np.float32)

    ends = JUDGE.check_episodes(pump, seed=seed, atol=1e-6)
    assert ends == [(200, False)] * 8


@pytest.mark.parametrize(
    ("params", "attributes"),
    [({"gravity": 9.81}, {"g": 9.81}), ({"mass": 1.3}, {"m": 1.3}), ({"length": 0.7}, {"l": 0.7})],
)
def test_params_are_gymnasiums_attributes(params, attributes):
    JUDGE.check_params(*random_states(300), params, attributes, atol=ATOL)


def test_first_states_are_spread_as_gymnasiums():
    JUDGE.check_first_states()


def test_spaces_are_gymnasiums():
    JUDGE.check_spaces()


def test_rod_is_drawn_where_it_is():
    JUDGE.check_render(np.array([0.1, 0.0]), np.array([2.0, 0.0]))
