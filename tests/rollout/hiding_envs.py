"""An environment that hides something, so that a dead actor takes the episode with it."""

import numpy as np

from rollout.envs.diagnostic.counting import Counting


class Hiding(Counting):
    """Counting-v0, with rewards from a generator that nobody can save."""

    has_hidden_state = True

    def step(state, params, action, draw):  # noqa: N805  (an environment is plain functions)
        reward = np.random.random()
        state.t += 1
        return reward, state.episode % 2 == 1 and state.t >= params.length
