"""An environment that uses every odd thing an author may do, for the tests."""

import math

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, integers, normal, uniform
from tests.envs import nasty_helpers as helpers
from tests.envs.nasty_helpers import Kind, decorated, make_scaler, shuffle

twice = make_scaler(2.0)


class Nasty(CompiledEnv):
    """Wraps at 8 bits, subtracts unsigned numbers, mixes widths, draws a lot."""

    state = np.dtype(
        [
            ("small", "i1"),
            ("level", "u1"),
            ("count", "u2"),
            ("wide", "u4"),
            ("x", "f4"),
            ("y", "f4"),
            ("z", "f8"),
            ("flag", "?"),
            ("board", "i1", (3, 4)),
            ("paint", "u1", (2, 2)),
            ("track", "f4", (5,)),
            ("inner", [("a", "i2"), ("b", "f8")]),
        ]
    )
    params = {"sticky": True, "bonus": 3, "gain": 0.3}
    observation_space = Box(-np.inf, np.inf, (6, 2), np.float32)
    action_space = Discrete(4)
    max_episode_steps = 23

    def reset(state, params, draw):
        state.small = integers(draw, -128, 128)
        state.level = 250
        state.x = normal(draw, 0.0, 1.0)
        state.y = uniform(draw, 0.0, 1.0)
        state.wide = 4294967290
        state.inner.a = 30000
        shuffle(draw, state.board)

    def step(state, params, action, draw):
        state.small += 37 * (action - 1)  # wraps around
        state.level += 3
        state.count -= 1  # below zero
        state.wide += action
        if params.sticky and uniform(draw, 0.0, 1.0) < 0.25:
            action = 0
        state.inner.a += 1000
        state.inner.b += state.inner.a * params.gain
        state.x = state.x * state.y + state.x - state.y / 3.0  # float32 and float64 mixed
        state.y += state.small * state.x * state.y  # float32 throughout, an int8 included
        state.y = state.y / (1.0 + abs(state.y))
        state.z += helpers.scaled(state.level, Kind.ODD) * 1e-3 + twice(state.x)
        if state.level - state.count > 1000:  # a difference of unsigned numbers is never negative
            state.z += 0.125
        shuffle(draw, state.board)
        state.board[1, :] = state.board[2, :]
        state.board[2, action] -= 77
        state.paint[0, 1] += 200
        state.paint[1, :] = state.paint[0, 1]
        for i in range(5):
            state.track[i] = state.track[i] * state.y + state.track[i - 1] * state.x + i
            if abs(state.track[i]) > 1000:
                state.track[i] = 1.0
        state.flag = not state.flag
        state.z += normal(draw, state.z * 0.1, 0.5) + math.sqrt(abs(state.z)) + decorated(action)
        reward = state.z * 0.01 + params.bonus + state.board[2, 3] + state.flag
        total = 0
        for value in state.board[0]:
            total += value
        return reward + total, state.small > 120 and state.flag

    def observe(state, params, observation):
        observation[0, 0] = state.small
        observation[0, 1] = state.level
        observation[1, 0] = state.count
        observation[1, 1] = state.x
        observation[2, 0] = state.y
        observation[2, 1] = state.z
        observation[3] = state.track[:2]
        observation[4, :] = state.paint[1]
        observation[5, 0] = state.board[1, 2] + state.board.shape[1]
        observation[5, 1] = state.inner.b


class Pixels(CompiledEnv):
    """Observes bytes, which it writes beyond their range."""

    state = np.dtype([("t", "i4")])
    observation_space = Box(0, 255, (2, 3), np.uint8)
    action_space = Discrete(3)
    max_episode_steps = 7

    def reset(state, params, draw):
        state.t = integers(draw, 0, 1000)

    def step(state, params, action, draw):
        state.t += 111 * action
        return state.t, state.t % 5 == 0

    def observe(state, params, observation):
        observation[0, 0] = state.t
        observation[0, 1] = 255
        observation[0, 1] += state.t
        observation[1, :] = 7
        observation[1, 1] -= 9
