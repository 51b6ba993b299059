"""Slow-v0: CartPole, number for number, at a price."""

import time

import numpy as np
import pytest

from rollout.envs import Envs, Outcome
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic import slow
from rollout.envs.diagnostic.slow import TURNS_PER_US, Slow

FREE = {"step_us": 0.0}


@pytest.mark.parametrize("params", [FREE, {"step_us": 2.0}, {"step_us": 0.5, "uneven_part": 1.0}])
def test_cost_does_not_change_an_episode(params):
    num_envs, rng = 8, np.random.default_rng(0)
    slow_envs, slow_outcome = Envs(Slow, num_envs, 3, params=params), Outcome(Slow, num_envs)
    envs, outcome = Envs(CartPole, num_envs, 3), Outcome(CartPole, num_envs)
    for _ in range(200):
        action = rng.integers(0, 2, num_envs).astype(np.int32)
        slow_envs.step(action, slow_outcome)
        envs.step(action, outcome)
        for found, expected in zip(slow_outcome.arrays, outcome.arrays, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert (envs.records["clock"]["episode"] > 3).all()


def test_share_of_the_steps_is_uneven(monkeypatch):
    turns = []
    monkeypatch.setattr(slow, "spend", lambda work, number: turns.append(number) or work)
    params = {"step_us": 10.0, "uneven_part": 0.2, "uneven_factor": 3.0}
    num_envs = 50
    envs, outcome = Envs(Slow, num_envs, 0, params=params, jit=False), Outcome(Slow, num_envs)
    for _ in range(100):
        envs.step(np.zeros(num_envs, np.int32), outcome)
    cost_us = np.reshape(turns, (100, num_envs)) / TURNS_PER_US
    assert {*np.unique(cost_us)} == {10.0, 30.0}
    is_uneven = cost_us == 30.0
    assert is_uneven.mean() == pytest.approx(0.2, abs=0.02)
    assert np.ptp(is_uneven.mean(0)) > 0.1, "every environment is as slow as the others"
    assert (is_uneven[1:] & is_uneven[:-1]).mean() == pytest.approx(0.04, abs=0.02), "they cluster"


@pytest.mark.parametrize("jit", [True, False])
def test_work_is_what_is_left_of_the_turns(jit):
    params = {"step_us": 1.0, "uneven_part": 0.0}
    envs, outcome = Envs(Slow, 1, 0, params=params, jit=jit), Outcome(Slow, 1)
    expected = 0.5
    for _ in range(4):
        envs.step(np.zeros(1, np.int32), outcome)
        for _ in range(TURNS_PER_US):
            expected = 3.99 * expected * (1.0 - expected)
        assert envs.records["state"]["work"][0] == expected
        assert 0.0 < expected < 1.0


def test_no_turn_is_left_out():
    """16 million turns of 8 cycles, one after the other, take longer than this on any machine."""
    params = {"step_us": 5000.0, "uneven_part": 0.0}
    envs, outcome = Envs(Slow, 1, 0, params=params), Outcome(Slow, 1)
    start = time.perf_counter()
    for _ in range(8):
        envs.step(np.zeros(1, np.int32), outcome)
    assert time.perf_counter() - start > 8 * 5000e-6 / 4


def test_negative_cost_is_none():
    envs, outcome = Envs(Slow, 1, 0, params={"step_us": -1.0}), Outcome(Slow, 1)
    envs.step(np.zeros(1, np.int32), outcome)
    assert envs.records["state"]["work"] == 0.5


def test_it_is_drawn_as_cartpole():
    slow_envs, envs = Envs(Slow, 1, 3, params=FREE), Envs(CartPole, 1, 3)
    np.testing.assert_array_equal(slow_envs.render(), envs.render())
