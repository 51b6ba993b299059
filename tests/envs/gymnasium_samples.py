"""Environments of Gymnasium's kind, as people bring them."""

import functools
import os
import shutil
import signal
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import SyncVectorEnv


class Walk(gymnasium.Env):
    """Walks along a line to `goal`; every kind of observation is in it.

    how: what goes wrong at step `at` of each episode, or of those with one of `seeds`. length: of
    an episode, at most.
    """

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = Dict(
        {
            "place": Box(-100, 100, (), np.float64),
            "seen": Tuple([Discrete(3, start=-1), MultiBinary((2, 2))]),
            "my-key": MultiDiscrete(np.array([[2, 3]])),
        }
    )
    action_space = Discrete(3, start=-1)

    def __init__(
        self,
        goal: float = 3.0,
        how: str = "",
        at: int = 4,
        label: str = "a",
        marks: tuple = (),
        length: int = 9,
        seeds: tuple[int, ...] = (),
        render_mode: str | None = None,
    ) -> None:
        self.goal, self.how, self.at = goal, how, at
        self.label, self.marks = label, marks
        self.length, self.seeds = length, seeds
        self.render_mode = render_mode
        self.x, self.t = 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        self.is_to_fail = not self.seeds or seed in self.seeds
        if self.how == "reset":
            return self.observe()
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.x += float(action) + self.np_random.normal(0, 0.1)
        self.t += 1
        is_over, reward = abs(self.x) > self.goal, 1.0 if self.x > self.goal else -0.1
        answer = self.observe(), reward, is_over, self.t >= self.length, {}
        if self.t == self.at and self.is_to_fail:
            answer = self.go_wrong(answer)
        return answer

    def go_wrong(self, answer: tuple) -> Any:
        observation, *rest = answer
        if self.how == "raise":
            raise RuntimeError("the walker fell")
        if self.how == "four":
            return observation, rest[0], rest[1], {}
        if self.how == "nan":
            return ({**observation, "place": np.float64(np.nan)}, *rest)
        if self.how == "nan reward":
            return (observation, np.nan, *rest[1:])
        if self.how == "no reward":
            return (observation, None, *rest[1:])
        if self.how == "no end":
            return (observation, rest[0], None, *rest[2:])
        if self.how == "info first":
            return (observation, rest[0], {}, *rest[1:3])
        if self.how == "text":
            return (observation, "one", *rest[1:])
        if self.how == "shape":
            return ({**observation, "place": np.zeros(2)}, *rest)
        if self.how == "missing":
            return ({"place": observation["place"]}, *rest)
        if self.how == "category":
            return ({**observation, "seen": (7, observation["seen"][1])}, *rest)
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "hang":
            time.sleep(1000)
        return answer

    def observe(self):
        return {
            "place": np.float64(self.x),
            "seen": (int(np.sign(round(self.x))), np.full((2, 2), self.t % 2, np.int8)),
            "my-key": np.array([[self.t % 2, self.t % 3]]),
        }

    def render(self):
        return np.full((8, 8, 3), min(255, max(0, int(20 * self.x) + 100)), np.uint8)


def make_walk(goal: float = 2.0):
    """A function that makes an environment."""
    return Walk(goal)


def make_walks(num_envs: int, **params: Any):
    """A function that makes a vector environment."""
    return SyncVectorEnv([functools.partial(Walk, **params) for _ in range(num_envs)])


class Reach(gymnasium.Env):
    """A Box of actions in double precision, whose bounds single precision does not hold."""

    observation_space = Box(-np.inf, np.inf, (2, 3), np.float32)
    action_space = Box(-0.1, 0.1, (2, 1), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=(2, 3)).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action) -> Any:
        assert self.action_space.contains(action), action
        self.place += action.astype(np.float32)
        is_over = bool(np.abs(self.place).max() > 3)
        return self.place.copy(), -float(np.abs(self.place).sum()), is_over, False, {}


class Leaks(gymnasium.Env):
    """Keeps megabytes for each step. length: of an episode."""

    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)
    kept: ClassVar = []

    def __init__(self, megabytes: float = 1.0, length: int = 20) -> None:
        self.size_bytes, self.length = int(megabytes * 2**20), length

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(1, np.float32), {}

    def step(self, action) -> Any:
        self.kept.append(b"x" * self.size_bytes)
        self.t += 1
        is_over = self.t == self.length
        return self.np_random.random(1, np.float32), float(action), is_over, False, {}


class Seedless(gymnasium.Env):
    """Its `reset` is of another time."""

    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)

    def reset(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.zeros(1, np.float32), {}


class Speaking(gymnasium.Env):
    """Observes text."""

    observation_space = gymnasium.spaces.Text(5)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        return "a", {}


class Mixing(gymnasium.Env):
    """Chooses and measures at once."""

    observation_space = Box(0, 1, (1,))
    action_space = Dict({"choice": Discrete(2), "force": Box(-1, 1, (1,))})

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}


class Broken(gymnasium.Env):
    """Cannot be made."""

    def __init__(self) -> None:
        raise FileNotFoundError("no map.txt here")


def give_size():
    """A function that makes something else."""
    return shutil.get_terminal_size()
