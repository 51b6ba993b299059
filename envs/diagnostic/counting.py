"""Counting-v0: an environment that only counts, so that a shift by one shows as a wrong number."""

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs.compiled_env import CompiledEnv


class Counting(CompiledEnv):
    """Observes (environment, episode, step). The reward of step t is t, plus a tenth of the action.

    Episodes of odd number terminate after `length` steps, those of even number go on until the time
    limit truncates them.
    """

    state = np.dtype([("env", "i4"), ("episode", "i4"), ("t", "i4")])
    params = {"length": 3}
    observation_space = Box(0, 2**24, (3,), np.float32)
    action_space = Discrete(3)
    max_episode_steps = 5

    def reset(state, params, draw):
        state.env, state.episode, state.t = draw.env, draw.episode, 0

    def step(state, params, action, draw):
        reward = state.t + 0.1 * action
        state.t += 1
        return reward, state.episode % 2 == 1 and state.t >= params.length

    def observe(state, params, observation):
        observation[0], observation[1], observation[2] = state.env, state.episode, state.t

    def render(state, params):
        """The three numbers, as uint8 [80, 160, 3]."""
        from PIL import Image, ImageDraw  # only who looks needs it

        picture = Image.new("RGB", (160, 80), "white")
        lines = f"environment {state.env}\nepisode {state.episode}\nstep {state.t}"
        ImageDraw.Draw(picture).text((10, 14), lines, fill="black")
        return np.asarray(picture)
