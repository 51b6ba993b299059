"""An environment of each kind; tests also run this text as a script and as a notebook's cell."""

# ruff: noqa: N805, RUF012
import functools

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, integers

SIZE = 4


class Guess(CompiledEnv):
    """Say the number that is shown."""

    state = np.dtype([("number", "i4")])
    params = {"gain": 1.0}
    observation_space = Box(0, 1, (SIZE,), np.float32)
    action_space = Discrete(SIZE)
    max_episode_steps = 10

    def reset(state, params, draw):
        state.number = integers(draw, 0, SIZE)

    def step(state, params, action, draw):
        is_right = is_same(action, state.number)
        state.number = integers(draw, 0, SIZE)
        return params.gain if is_right else 0.0, False

    def observe(state, params, observation):
        observation[state.number] = 1.0

    def render(state, params):
        return np.full((8, 8, 3), Guess.max_episode_steps, np.uint8)


def is_same(a, b):
    return a == b


@functools.cache
def row(number):
    return np.eye(SIZE, dtype=np.float32)[number]


class SlowGuess(gymnasium.Env):
    """The same of Gymnasium's kind; each right guess is worth `gain`."""

    observation_space = Box(0, 1, (SIZE,), np.float32)
    action_space = Discrete(SIZE)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.show(), {}

    def step(self, action):
        gained = self.gain * (action == self.number)
        self.t += 1
        return self.show(), gained, False, self.t >= 10, {}

    def show(self):
        self.number = int(self.np_random.integers(SIZE))
        return row(self.number)
