"""Environments that each break one promise, for the tests of check_env."""

import ctypes
import os
from typing import Any

import numba
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from rollout.envs import CompiledEnv, uniform

(
    NOTHING,
    WRITE,
    READ,
    RAISE,
    WIDE,
    FAR,
    NAN,
    INFINITE,
    LOOK,
    PARAM,
    ALIKE,
    BY_NUMBER,
    MASK,
    DIVISION,
    WRAP,
    ROUND,
    LATE,
    BY_CLOCK,
    ENDLESS,
    SHAPE,
    PAINTS,
    FAILS,
    HANG,
    HANG_IN_RESET,
) = range(24)
MULTIPLIER = 6364136223846793005  # of a linear congruential generator: fills 64 bits


class Broken(CompiledEnv):
    """Walks along a line; breaks a promise in the way `how`, often at step 6 of environment 2."""

    state = np.dtype(
        [
            ("number", "i8"),
            ("t", "i8"),
            ("looks", "i8"),
            ("place", "f8"),
            ("speed", "f8"),
            ("big", "i8"),
            ("board", "i8", (2, 3)),
        ]
    )
    params = {"how": NOTHING, "wind": 0.5}
    observation_space = Box(-10, 10, (3,), np.float32)
    action_space = MultiDiscrete([2, 3])
    max_episode_steps = 20

    def reset(state, params, draw):
        if params.how != ALIKE:
            state.number = draw.env
        start = uniform(draw, -1.0, 1.0)
        if params.how == BY_NUMBER:
            state.place = 0.1 * (draw.env % 7)
        elif params.how != ALIKE:
            state.place = start
        while params.how == HANG_IN_RESET and draw.episode == 1:
            state.looks = 0

    def step(state, params, action, draw):
        state.t += 1
        state.place = 0.9 * state.place + 0.1 * (action[0] + uniform(draw, -1.0, 1.0) * params.wind)
        reward = state.place
        is_due = state.number == 2 and state.t == 7
        if params.how == WRITE and is_due:
            state.board[2, 0] = 1
        if params.how == READ and is_due:
            reward += state.board[0, -4]
        if params.how == RAISE and is_due:
            raise ValueError("it went wrong")
        if params.how == FAR and is_due:
            state.speed = 11.0
        if params.how == NAN and is_due:
            state.speed = np.sqrt(-1.0 - abs(state.place))
        if params.how == INFINITE and is_due:
            return np.inf, False
        if params.how == PARAM:
            change(params)
        if params.how == DIVISION and is_due:
            state.speed = min(1.0, abs(state.place) / (state.t - 7))
        if params.how == WRAP:
            state.big = state.big * MULTIPLIER + 1
            state.speed = 0.5 if twice(state.big) < 0 else -0.5
        if params.how == ROUND:
            state.speed = np.exp(state.place) ** 3 / 100.0
        while params.how == HANG and is_due:
            state.looks = 0
        if params.how == LATE:
            return reward, state.t >= 20
        if params.how == BY_CLOCK:
            return reward, state.place > 0.05 or draw.t >= 19
        return reward, params.how != ENDLESS and state.place > 0.6

    def observe(state, params, observation):
        observation[0] = state.place
        observation[1] = state.speed
        observation[2] = state.t / 10.0
        if params.how == WIDE and state.number == 2 and state.t == 7:
            observation[:] = np.ones(4)
        if params.how == LOOK:
            look(state)

    def action_mask(state, params, mask):
        mask[2] = state.t % 2 == 0
        if params.how == MASK and state.number == 2 and state.t == 7:
            mask[2:] = False

    def render(state, params):
        if params.how == PAINTS:
            state.place = 0.0
        if params.how == FAILS:
            raise ValueError("no picture")
        return np.zeros((4, 5, 1 if params.how == SHAPE else 3), np.uint8)


def change(what):
    """Writes into params, where nobody reads it from the source."""
    what.wind *= 0.99


def look(what):
    what.looks += 1


def twice(x):
    return x * 2


class Good(CompiledEnv):
    """Breaks no promise; the others below differ in one thing."""

    state = np.dtype([("t", "i8"), ("x", "f8")])
    observation_space = Box(-10, 10, (1,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 20

    def reset(state, params, draw):
        state.x = uniform(draw, -1.0, 1.0)

    def step(state, params, action, draw):
        state.t += 1
        return state.x, False

    def observe(state, params, observation):
        observation[0] = state.x


class Texts(Good):
    def step(state, params, action, draw) -> Any:
        return "one", False


class Halfway(Good):
    """Its `terminated` is a number that says neither yes nor no."""

    def step(state, params, action, draw) -> Any:
        state.t += 1
        return state.x, 2 * (state.t % 7 == 0)


@numba.njit
def advance(state):
    state.t += 1


class HalfwayDecorated(Good):
    """The same, with a helper that plain Python cannot call as it is."""

    def step(state, params, action, draw) -> Any:
        advance(state)
        return state.x, 2 * (state.t % 7 == 0)


class NoLimit(Good):
    max_episode_steps = None


class SaysHidden(Good):
    has_hidden_state = True


PROCESS = int(os.environ.get("PROCESSES_ABOVE", "0"))  # a number that no two processes have
os.environ["PROCESSES_ABOVE"] = str(PROCESS + 1)


class Differing(Good):
    """Not the same in two processes."""

    def step(state, params, action, draw):
        state.x = 0.5 * state.x + PROCESS
        return state.x, False


class Crashes(Good):
    """Writes where no check of indices sees it, and takes its process with it."""

    state = np.dtype([("t", "i8"), ("x", "f8"), ("board", "i8", (3,))])

    def step(state, params, action, draw):
        state.t += 1
        if state.t == 5:
            far = np.lib.stride_tricks.as_strided(state.board, (2**40,), (2**20,))
            far[2**39] = 1
        return state.x, False


class Narrow(Good):
    """Shows integers that its dtypes do not hold, from the seventh step on."""

    observation_space = Dict(
        {
            "level": Box(0, 255, (2,), np.uint8),
            "inner": Dict({"depth": Box(-128, 127, (2, 2), np.int8)}),
            "flags": MultiBinary(2),
            "kinds": MultiDiscrete([2, 4], dtype=np.int8),
            "count": Discrete(4),
            "place": Box(-10, 10, (1,), np.float32),
        }
    )
    params = {"level": 0, "depth": 0, "flag": 0, "kind": 0}

    def observe(state, params, observation):
        is_due = state.t >= 7
        observation.level[1] = 255 + is_due * params.level
        observation.inner.depth[1, 0] = -128 - is_due * params.depth
        observation.flags[0] = 1 + is_due * params.flag
        observation.kinds[1] = 2 + is_due * params.kind
        observation.count = 3
        observation.place[0] = state.x


class Otherwise(Good):
    """Shows what compiled code, whose integers have 64 bits, computes otherwise than Python."""

    observation_space = Box(0, 255, (1,), np.uint8)

    def observe(state, params, observation):
        observation[0] = (state.t * MULTIPLIER) % 251


c_random = ctypes.CDLL(None).rand
c_random.argtypes, c_random.restype = (), ctypes.c_int


def noise():
    """Draws from C's own generator, where nobody reads it from the source."""
    return c_random() / 2.0**31


class Hidden(Good):
    """Depends on more than its record, and does not say so."""

    def step(state, params, action, draw):
        state.t += 1
        state.x = noise()
        return state.x, False
