"""Memory-v0: a T-maze without a choice of way, which only a policy that remembers can solve.

Bakker, "Reinforcement learning with long short-term memory" (2001), has the T-maze: a signal at the
start of a corridor tells which arm of the junction at its end holds the goal. Here the corridor
moves the agent, as in the memory length task of Osband et al., "Behaviour suite for reinforcement
learning" (2020): a place that the agent chose could hold the cue in memory's stead.
"""

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import integers


class Memory(CompiledEnv):
    """After `length` steps turn left (0) or right (1), as the first observation said: 1, else -1.

    Observes (cue, junction). The cue is -1 (left) or 1 (right) at the start, and 0 after it; the
    other number is 1 where to turn, and 0 before. What is done before has no effect. Without memory
    the best mean return is 0, with memory it is 1. An episode has `length` + 1 steps; a corridor of
    length 0 leaves nothing to remember.
    """

    state = np.dtype([("cue", "i1"), ("place", "i4")])
    params = {"length": 8}
    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def reset(state, params, draw):
        state.cue = 2 * integers(draw, 0, 2) - 1

    def step(state, params, action, draw):
        if state.place < params.length:
            state.place += 1
            return 0.0, False
        return 1.0 if (action == 1) == (state.cue == 1) else -1.0, True

    def observe(state, params, observation):
        if state.place == 0:
            observation[0] = state.cue
        observation[1] = state.place >= params.length

    def render(state, params):
        """The corridor, its junction, the agent, and the cue as long as it shows."""
        from PIL import Image, ImageDraw  # only who looks needs it

        cell, top = 16, 32
        width, height = cell * (max(params.length, 0) + 3), 2 * top + cell
        junction = width - 2 * cell
        picture = Image.new("RGB", (width, height), (60, 60, 60))
        pen = ImageDraw.Draw(picture)
        pen.rectangle([cell, top, junction + cell - 1, top + cell - 1], fill="white")
        pen.rectangle([junction, cell, junction + cell - 1, height - cell - 1], fill="white")
        x = cell * (1 + state.place)
        pen.ellipse([x + 2, top + 2, x + cell - 3, top + cell - 3], fill=(200, 120, 60))
        if state.place == 0:  # left is up
            y = top - cell if state.cue < 0 else top + cell
            pen.rectangle([x, y, x + cell - 1, y + cell - 1], fill=(90, 110, 200))
        return np.asarray(picture)
