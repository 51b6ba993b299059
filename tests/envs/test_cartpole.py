"""CartPole-v1 against Gymnasium's."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rollout.envs.classic.cartpole import THETA_LIMIT, X_LIMIT, CartPole
from tests.envs.gymnasium_judge import Judge

JUDGE = Judge(CartPole, "CartPole-v1")
ATOL = 1e-14


def random_states(num: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (num, 4)) * [2.5, 3, 0.22, 3], rng.integers(0, 2, num)


def test_transitions_from_random_states_are_gymnasiums():
    answers = JUDGE.check_transitions(*random_states(1000), atol=ATOL)
    assert 20 < answers.terminated.sum() < 500


number = st.floats(-5, 5, allow_subnormal=False)


@settings(max_examples=200)
@given(st.tuples(number, number, st.floats(-0.5, 0.5), number), st.integers(0, 1))
def test_transition_from_any_state_is_gymnasiums(state, action):
    state, action = np.array([state]), np.array([action])
    x, _, theta, _ = JUDGE.gymnasiums(state, action).state[0]
    assume(abs(abs(x) - X_LIMIT) > 1e-12)  # else a last bit decides
    assume(abs(abs(theta) - THETA_LIMIT) > 1e-12)
    JUDGE.check_transitions(state, action, atol=ATOL)


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
    state = np.array([[x, 0.0, theta, 0.0]])  # positions move by velocities, which are zero
    assert JUDGE.check_transitions(state, np.array([action]), atol=ATOL).terminated[0] == ends


@pytest.mark.parametrize("seed", range(3))
def test_whole_episodes_are_gymnasiums(seed):
    def balance(state, rng):
        """Some fall soon, some last to the limit."""
        is_random = rng.random(8) < np.linspace(0, 0.7, 8)
        return np.where(is_random, rng.integers(0, 2, 8), state[:, 2] + state[:, 3] > 0)

    ends = JUDGE.check_episodes(balance, seed=seed, atol=1e-6)
    assert (500, False) in ends, "the time limit was never reached"
    assert min(ends)[0] < 200, "no pole fell"


def test_pole_that_falls_at_the_limit_is_terminated_and_truncated_as_gymnasiums():
    state = np.array([0.0, 0.0, THETA_LIMIT, 1.0])
    env: Any = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    for _ in range(499):
        env.unwrapped.state = np.zeros(4)
        assert env.step(0)[2:4] == (False, False)
    env.unwrapped.state = state
    assert env.step(0)[2:4] == (True, True)
    ours = JUDGE.ours(state[None], np.array([0]))  # the last step it may take: truncated
    assert ours.terminated[0]
    assert ours.observation[0, 2] > THETA_LIMIT


def test_force_is_gymnasiums():
    JUDGE.check_params(*random_states(300), {"force": 20.0}, {"force_mag": 20.0}, atol=ATOL)


def test_first_states_are_spread_as_gymnasiums():
    JUDGE.check_first_states()


def test_spaces_are_gymnasiums():
    JUDGE.check_spaces()


def test_cart_is_drawn_where_it_is():
    JUDGE.check_render(np.array([-1.0, 0.0, 0.1, 0.0]), np.array([1.0, 0.0, -0.1, 0.0]))
