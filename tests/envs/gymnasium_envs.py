"""Environments with every kind of space, and how to compare what they give, for the tests."""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode

from rollout.envs import CompiledEnv, integers, uniform

MODES = list(AutoresetMode)


class Maze(CompiledEnv):
    """A Dict of all kinds in an order of odd widths; several choices a step, some not allowed."""

    state = np.dtype([("place", "i4"), ("bits", "i1", (2, 3)), ("x", "f8")])
    params = {"length": 12}
    observation_space = Dict(
        {
            "wall": Box(0, 255, (3,), np.uint8),
            "place": Discrete(40),
            "inner": Dict(
                {"bits": MultiBinary([2, 3]), "exact": Box(-np.inf, np.inf, (2, 1), np.float64)}
            ),
            "counts": MultiDiscrete([40, 7]),
            "rough": Box(-np.inf, np.inf, (1,), np.float32),
        }
    )
    action_space = MultiDiscrete([3, 2])
    max_episode_steps = 9

    def reset(state, params, draw):
        state.place = integers(draw, 0, 5)
        state.x = uniform(draw, -1.0, 1.0)

    def step(state, params, action, draw):
        state.place += action[0]
        state.bits[action[1], state.place % 3] += 1
        state.bits[action[1], state.place % 3] %= 2
        state.x += uniform(draw, -0.1, 0.1)
        return state.x, state.place > params.length

    def observe(state, params, observation):
        observation.wall[1] = state.place
        observation.place = state.place
        observation.inner.bits[:] = state.bits
        observation.inner.exact[1, 0] = state.x
        observation.counts[0] = state.place
        observation.counts[1] = state.place % 7
        observation.rough[0] = state.x

    def action_mask(state, params, mask):
        mask[2] = state.place % 2 == 0
        mask[3] = state.place != 4

    def render(state, params):
        return np.full((4, 6, 3), state.place, np.uint8)


class Tiles(CompiledEnv):
    """Observes one number; forbids the action that is that number, modulo 4."""

    state = np.dtype([("tile", "i8")])
    observation_space = Discrete(10)
    action_space = Discrete(4)
    max_episode_steps = 6

    def reset(state, params, draw):
        state.tile = integers(draw, 0, 5)

    def step(state, params, action, draw):
        state.tile = (state.tile + action) % 10
        return -1, state.tile == 9

    def observe(state, params, observation):
        observation[0] = state.tile

    def action_mask(state, params, mask):
        mask[state.tile % 4] = False


class Sliders(CompiledEnv):
    """Takes quantities; observes several numbers."""

    state = np.dtype([("places", "f4", (2,))])
    observation_space = MultiDiscrete([100, 100])
    action_space = Box(-1, 1, (2,), np.float32)
    max_episode_steps = 8

    def reset(state, params, draw):
        state.places[0] = uniform(draw, 40.0, 60.0)
        state.places[1] = 50.0

    def step(state, params, action, draw):
        state.places[0] += action[0] * 2.0
        state.places[1] += action[1] * 5.0
        return -abs(state.places[0] - 50.0), abs(state.places[1] - 50.0) > 12.0

    def observe(state, params, observation):
        for j in range(2):
            observation[j] = min(99, max(0, int(state.places[j])))


def random_actions(env: Any, T: int, N: int, seed: int = 0) -> list[np.ndarray]:
    """T arrays of actions [N, …] from the environment's space."""
    rng, space = np.random.default_rng(seed), env.action_space
    if isinstance(space, Box):
        actions = rng.uniform(space.low, space.high, (T, N, *space.shape)).astype(np.float32)
    elif isinstance(space, MultiDiscrete):
        actions = rng.integers(0, space.nvec, (T, N, *space.shape))
    else:
        actions = rng.integers(0, space.n, (T, N))
    return list(actions)


def assert_same(ours: Any, theirs: Any, place: str = "") -> None:
    """The same types, dtypes, shapes, keys, and numbers to the bit."""
    assert type(ours) is type(theirs), f"{place}: {ours!r} and {theirs!r}"
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), f"{place}: {list(ours)} and {list(theirs)}"
        for key in ours:
            assert_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, tuple | list):
        assert len(ours) == len(theirs), place
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{place}[{i}]")
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        assert_same(tuple(ours), tuple(theirs), place)
    elif isinstance(ours, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype, f"{place}: {ours.dtype} and {theirs.dtype}"
        assert ours.shape == theirs.shape, f"{place}: {ours.shape} and {theirs.shape}"
        assert ours.tobytes() == theirs.tobytes(), f"{place}: {ours} and {theirs}"
    else:
        assert ours == theirs, f"{place}: {ours!r} and {theirs!r}"
