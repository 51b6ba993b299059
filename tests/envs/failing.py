"""Environments that fail in every way there is, where their params say."""

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv

NOTHING, RAISE, RAISE_IN_RESET, HANG, CRASH = range(5)
FAR = 10**12  # elements behind the end of an array, where there is no memory


class Fails(CompiledEnv):
    """Counts; environment `env` fails at step `step` of episode `episode`, in the way `how`."""

    state = np.dtype([("env", "i8"), ("episode", "i8"), ("t", "i8"), ("board", "i8", (2,))])
    params = {"how": RAISE, "env": 5, "episode": 2, "step": 3}
    observation_space = Box(0, 2**24, (3,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 7

    def reset(state, params, draw):
        state.env, state.episode = draw.env, draw.episode
        if params.how == RAISE_IN_RESET and is_due(state, params):
            raise ValueError("reset went wrong")

    def step(state, params, action, draw):
        if params.how == RAISE and is_due(state, params):
            raise ValueError("step went wrong")
        if params.how == HANG and is_due(state, params):
            print("hanging")
            while is_due(state, params):
                state.env += 0
        if params.how == CRASH and is_due(state, params):
            state.board[FAR * params.env] = 1  # in plain Python an IndexError
        state.t += 1
        return 1.0, False

    def observe(state, params, observation):
        observation[0], observation[1], observation[2] = state.env, state.episode, state.t


def is_due(state, params):
    return (
        state.env == params.env
        and state.episode == params.episode
        and (state.t == params.step or params.how == RAISE_IN_RESET)
    )


class Hidden(Fails):
    """Says that its state is not all there is."""

    has_hidden_state = True
