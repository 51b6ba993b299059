"""An environment written from the tutorial in envs/README.md alone, for test_tutorial.py."""

import numpy as np
from gymnasium.spaces import Box, Dict

from rollout.envs import CompiledEnv, normal, uniform


class Reservoir(CompiledEnv):
    """Open the gate of a reservoir so far that its level becomes what is wanted, and stays.

    How much water flows in is drawn for each episode, and is not seen.
    """

    state = np.dtype([("level", "f8"), ("wanted", "f8"), ("inflow", "f8")])
    params = {"min_inflow": 0.2, "max_inflow": 0.8, "noise": 0.01}
    observation_space = Dict(
        {"level": Box(0.0, 1.0, (1,), np.float32), "wanted": Box(0.0, 1.0, (1,), np.float32)}
    )
    action_space = Box(0.0, 1.0, (1,), np.float32)
    max_episode_steps = 100

    def reset(state, params, draw):
        state.level = uniform(draw, 0.3, 0.7)
        state.wanted = uniform(draw, 0.2, 0.8)
        state.inflow = uniform(draw, params.min_inflow, params.max_inflow)

    def step(state, params, action, draw):
        state.level += 0.2 * (state.inflow - action[0]) + normal(draw, 0.0, params.noise)
        is_lost = state.level < 0.0 or state.level > 1.0
        state.level = between_0_and_1(state.level)
        return 1.0 - 2.0 * abs(state.level - state.wanted), is_lost

    def observe(state, params, observation):
        observation.level[0] = state.level
        observation.wanted[0] = state.wanted

    def render(state, params):
        picture = np.full((100, 60, 3), 255, np.uint8)
        picture[100 - int(100 * state.level) :] = (90, 110, 200)
        picture[99 - int(99 * state.wanted)] = (200, 60, 60)
        return picture


def between_0_and_1(x):
    return min(max(x, 0.0), 1.0)
