"""Arrays compute as a whole, and the same in plain Python as compiled."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, Envs, Outcome, integers, uniform
from tests.some_fast import slow_unless

CODES = ("i1", "u1", "i2", "i8", "f4", "f8")


class Arrays(CompiledEnv):
    """Arrays of many dtypes, full of large numbers; a subclass computes with them."""

    state = np.dtype(
        [(code, code, (2, 3)) for code in CODES]
        + [("out", "f8", (2, 3)), ("short", "i1"), ("single", "f4")]
    )
    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Discrete(2)

    def reset(state, params, draw):
        for i in range(2):
            for j in range(3):
                state.i1[i, j] = integers(draw, -128, 128)
                state.u1[i, j] = integers(draw, 0, 256)
                state.i2[i, j] = integers(draw, -30000, 30000)
                state.i8[i, j] = integers(draw, -(10**12), 10**12)
                state.f4[i, j] = uniform(draw, -100.0, 100.0)
                state.f8[i, j] = uniform(draw, -100.0, 100.0)
        state.short = integers(draw, -128, 128)
        state.single = uniform(draw, 0.0, 1.0)

    def step(state, params, action, draw):
        return 0.0, False

    def observe(state, params, observation):
        observation[0] = state.out[0, 0]


def with_numbers(state, params, action, draw):
    state.i8[:] = state.i8 * 3 + state.i2
    state.out[:] = state.f8 * 3 + state.i8 / 7.0
    state.out[0] += state.f8[1] - state.single
    state.out[1] += state.f4[1] * 3  # in float32
    return 0.0, False


def with_fields(state, params, action, draw):
    state.i8[:] = state.i8 + state.short
    state.out[:] = state.f8 * state.single - state.short
    state.f4[:] = state.f4 * state.single
    return 0.0, False


def in_place(state, params, action, draw):
    state.f4 += 0.1
    state.f4 *= state.single
    state.f8[0] -= state.f4[1]
    state.i8 //= 7
    state.i8[:, 1] = -state.i8[:, 2]
    return 0.0, False


def compared(state, params, action, draw):
    is_large = state.i1 > 50
    state.i8[:] = is_large
    if is_large.any() and not (state.f8 == state.f4).all():
        state.out[:] = np.abs(state.f8) + np.maximum(state.f8, 0.0)
    return (state.u1 != state.i1).sum() + np.sum(is_large), (state.i8 > 0).all()


def divided_by_zero(state, params, action, draw):
    state.out[:] = state.f8 / 0.0 - state.f8 % 0.3
    return 0.0, False


STEPS = [with_numbers, with_fields, in_place, compared, divided_by_zero]


@pytest.mark.parametrize("step", slow_unless([in_place], STEPS))
def test_arrays_compute_the_same_in_plain_python_and_compiled(step):
    env = type("Computing", (Arrays,), {"step": step})
    runs = []
    for jit in (True, False):
        envs, outcome = Envs(env, 20, seed=1, jit=jit), Outcome(env, 20)
        before = envs.snapshot()
        for _ in range(3):
            envs.step(np.zeros(20, np.int32), outcome)
        assert envs.snapshot() != before
        runs.append((envs.records["state"], outcome))
    (compiled, one), (plain, other) = runs
    for name in env.state.names or ():
        np.testing.assert_array_equal(plain[name], compiled[name], err_msg=name)
    np.testing.assert_array_equal(other.reward, one.reward)
    np.testing.assert_array_equal(other.terminated, one.terminated)
