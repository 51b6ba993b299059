"""An environment that takes its actor with it, in every way a compiled one can."""
# ruff: noqa: N805, RUF012  (an environment is a namespace of plain functions)

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv

LIVE, RAISE, HANG, SEGFAULT = range(4)


class Dies(CompiledEnv):
    """Counts; environment `env` ends its actor at step `at` of its first episode."""

    state = np.dtype([("env", "i8"), ("t", "i8"), ("board", "i8", (4,))])
    params = {"how": LIVE, "env": 3, "at": 7}
    observation_space = Box(0, 2**24, (4,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 1000

    def reset(state, params, draw):
        state.env = draw.env

    def step(state, params, action, draw):
        if state.env == params.env and state.t == params.at:
            if params.how == RAISE:
                raise ValueError("the pole is broken")
            if params.how == SEGFAULT:
                state.board[state.t * 1_000_000_000_000] = 1
            while params.how == HANG:
                state.board[0] += 1
        state.t += 1
        return 1.0, False

    def observe(state, params, observation):
        observation[0], observation[1] = state.env, state.t
