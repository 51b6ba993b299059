"""Environments with what CartPole has not: Dicts, several choices, masks, quantities."""

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from rollout.envs import CompiledEnv, integers, uniform


def spoil(action):
    """The unroll must not notice."""
    mine = action
    mine[0] = 7


class Choices(CompiledEnv):
    """A Dict to see, two choices to make, not all of them allowed."""

    state = np.dtype([("x", "f8"), ("way", "i4")])
    observation_space = Dict(
        way=Discrete(4),
        place=Box(-np.inf, np.inf, (2,), np.float32),
        inner=Dict(seen=MultiBinary(3), tools=MultiDiscrete([2, 3])),
    )
    action_space = MultiDiscrete([2, 3])
    max_episode_steps = 10

    def reset(state, params, draw):
        state.x = uniform(draw, 0, 1)
        state.way = integers(draw, 0, 4)

    def step(state, params, action, draw):
        state.x += action[0] - 0.5
        state.way = (state.way + action[1] + 1) % 4
        spoil(action)
        return state.x, state.x < -1

    def observe(state, params, observation):
        observation.way = state.way
        observation.place[0] = state.x
        observation.inner.seen[state.way % 3] = 1
        observation.inner.tools[1] = state.way % 3

    def action_mask(state, params, mask):
        if state.way == 0:
            mask[1] = False
            mask[4] = False


class OneChoice(Choices):
    """One choice, of which one action is often forbidden; sees an integer."""

    observation_space = Discrete(4)
    action_space = Discrete(3)

    def step(state, params, action, draw):
        state.x += action - 0.9
        state.way = (state.way + action + 1) % 4
        return state.x, state.x < -1

    def observe(state, params, observation):
        observation[0] = state.way

    def action_mask(state, params, mask):
        mask[state.way % 3] = False


class Quantities(CompiledEnv):
    """Rewards what it was given, so that clipping shows. One bound is missing."""

    state = np.dtype([("x", "f8")])
    observation_space = MultiDiscrete([3, 2])
    action_space = Box(np.array([-0.5, -1.0], np.float32), np.array([0.5, np.inf], np.float32))
    max_episode_steps = 7

    def reset(state, params, draw):
        state.x = uniform(draw, -1, 1)

    def step(state, params, action, draw):
        state.x = 0.5 * state.x + action[0]
        return action[0] + 1000 * action[1], abs(state.x) > 0.95

    def observe(state, params, observation):
        observation[0] = 1 + (state.x > 0.2) - (state.x < -0.2)
        observation[1] = state.x > 0


class Arm(CompiledEnv):
    """A Dict to see, quantities to choose; a mixture of types that lie at odd places."""

    state = np.dtype([("angle", "f8", 2), ("grip", "u1")])
    observation_space = Dict(
        grip=Discrete(3, dtype=np.int32),
        seen=Box(0, 255, (3,), np.uint8),
        angle=Box(-np.inf, np.inf, (2,), np.float64),
    )
    action_space = Box(-1, 1, (2,), np.float32)
    max_episode_steps = 9

    def reset(state, params, draw):
        state.angle[0] = uniform(draw, -1, 1)
        state.grip = integers(draw, 0, 3)

    def step(state, params, action, draw):
        for j in range(2):
            state.angle[j] += 0.3 * action[j]
        state.grip = (state.grip + 1) % 3
        return -abs(state.angle[0]) - abs(state.angle[1]), abs(state.angle[0]) > 1.5

    def observe(state, params, observation):
        observation.grip = state.grip
        observation.seen[state.grip] = 200
        for j in range(2):
            observation.angle[j] = state.angle[j]


class Refuses(OneChoice):
    """Its mask, or what it shows, fails for one environment at one step of its first episode."""

    state = np.dtype([("x", "f8"), ("way", "i4"), ("env", "i4"), ("t", "i4")])
    params = {"env": 3, "step": 2, "in_mask": True}

    def reset(state, params, draw):
        state.way, state.env, state.t = 0, draw.env, 0

    def step(state, params, action, draw):
        state.t += 1
        return 0.0, False

    def observe(state, params, observation):
        if not params.in_mask and state.env == params.env and state.t == params.step:
            raise ValueError("nothing to see")

    def action_mask(state, params, mask):
        if params.in_mask and state.env == params.env and state.t == params.step:
            mask[:] = False
