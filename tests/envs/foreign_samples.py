"""Environments that save their state, are of several agents, are vectors, or are of old."""

import json
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv


class Drift(gymnasium.Env):
    """Drifts at random, where the actions push; can be saved.

    forgets: what its snapshot leaves out: "place", "generator" or "nothing".
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(3)

    def __init__(self, forgets: str = "nothing", limit: int = 13, grows: bool = False) -> None:
        self.forgets, self.limit, self.grows = forgets, limit, grows
        self.t, self.place, self.past = 0, 0.0, ""

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.t, self.place = 0, float(self.np_random.normal())
        return self._observe(), {}

    def step(self, action) -> Any:
        self.t += 1
        self.place += 0.3 * (int(action) - 1) + 0.1 * self.np_random.normal()
        self.past += "x" * 1000 if self.grows else ""
        is_over = abs(self.place) > 3
        return self._observe(), -abs(self.place), is_over, self.t >= self.limit, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.place, self.t], np.float32)

    def snapshot(self) -> bytes:
        place = 0.0 if self.forgets == "place" else self.place
        generator = self.np_random.bit_generator.state
        state = self.t, place, None if self.forgets == "generator" else generator, self.past
        return json.dumps(state).encode()

    def restore(self, snapshot: bytes) -> None:
        self.t, self.place, generator, self.past = json.loads(snapshot)
        if generator is not None:
            self.np_random.bit_generator.state = generator


class Kept(gymnasium.Wrapper):
    """A wrapper with a memory of its own: how much was gained, and the last observations."""

    def __init__(self, env: gymnasium.Env, keeps: Any = None) -> None:
        super().__init__(env)
        self.gained, self.last, self.keeps = 0.0, np.zeros(2, np.float32), keeps

    def reset(self, **kwargs: Any):
        observation, info = self.env.reset(**kwargs)
        self.gained, self.last = 0.0, observation
        return observation, info

    def step(self, action) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.gained += float(reward)
        shown, self.last = observation + self.last, observation
        return shown.astype(np.float32), self.gained, terminated, truncated, info


def make_vector(num_envs: int, mode: str = "NextStep", limit: int = 13) -> VectorEnv:
    """Drifts, by Gymnasium's own vector environment."""
    return SyncVectorEnv(
        [lambda: Drift(limit=limit)] * num_envs, autoreset_mode=AutoresetMode(mode)
    )


def make_unsaid(num_envs: int) -> VectorEnv:
    """A vector environment that does not tell its mode."""
    envs = make_vector(num_envs)
    envs.metadata = {}
    return envs


class Race:
    """Three runners, by PettingZoo's parallel interface; who has arrived leaves.

    Each observes its place and the step; 0 rests, 1 runs, faster for those further back in line.
    """

    metadata = {"name": "race_v0"}
    possible_agents = ["ann", "bob", "cyd"]

    def __init__(self, limit: int = 9, speeds: tuple = (1.0, 2.0, 3.0), differ: bool = False):
        self.limit, self.speeds, self.differ = limit, list(speeds), differ
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Box:
        return Box(-9, 99, (3 if self.differ and agent == "bob" else 2,), np.float32)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None):
        self.random = np.random.default_rng(seed) if seed is not None else self.random
        self.agents, self.t = list(self.possible_agents), 0
        self.places = dict.fromkeys(self.agents, float(self.random.normal()))
        return self._observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]):
        assert actions.keys() == set(self.agents), actions
        self.t += 1
        acting = self.agents
        for agent in acting:
            speed = self.speeds[self.possible_agents.index(agent)]
            self.places[agent] += speed * int(actions[agent]) + 0.01 * self.random.normal()
        there = {agent: self.places[agent] > 8 for agent in acting}
        late = dict.fromkeys(acting, self.t >= self.limit)
        rewards = {agent: float(there[agent]) - 0.1 for agent in acting}
        self.agents = [agent for agent in acting if not (there[agent] or late[agent])]
        return self._observe(acting), rewards, there, late, {agent: {} for agent in acting}

    def _observe(self, agents: list[str]) -> dict[str, np.ndarray]:
        return {agent: np.array([self.places[agent], self.t], np.float32) for agent in agents}

    def close(self) -> None:
        pass


class OldDrift:
    """With the interface of the old package gym."""

    observation_space = Box(-9, 9, (1,), np.float32)
    action_space = Discrete(2)
    metadata = {"render.modes": []}

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit

    def seed(self, seed: int) -> list[int]:
        self.random = np.random.default_rng(seed)
        return [seed]

    def reset(self) -> np.ndarray:
        self.t, self.place = 0, self.random.normal()
        return np.array([self.place], np.float32)

    def step(self, action):
        self.t, self.place = self.t + 1, self.place + int(action)
        is_late = self.t >= self.limit
        done = bool(self.place > 4 or is_late)
        return np.array([self.place], np.float32), 1.0, done, {"TimeLimit.truncated": is_late}


class Unseeded(Drift):
    """Its randomness is not that of its seed."""

    def reset(self, *, seed: int | None = None, options: Any = None):
        return super().reset(seed=None)


class Shared(Drift):
    """All of them in a process draw from one generator."""

    generator = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None):
        if seed is not None and self.t == 0:
            Shared.generator = np.random.default_rng(7)
        observation, info = super().reset(seed=seed)
        self.np_random = Shared.generator
        return observation, info


class Outside(Drift):
    """Says that it stays where it does not."""

    observation_space = Box(-0.1, 0.1, (2,), np.float32)


class Leaving(Drift):
    """Leaves the space that it says after some steps."""

    observation_space = Box(-99, 4, (2,), np.float32)


class NewSeeded:
    """As gym was at last: not of Gymnasium's, and `reset` takes the seed."""

    observation_space, action_space = Box(-99, 99, (1,), np.float32), Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None):
        self.random = np.random.default_rng(seed) if seed is not None else self.random
        return np.array([self.random.normal()], np.float32), {}

    def step(self, action):
        return np.array([self.random.normal()], np.float32), 0.0, False, False, {}


class Unseedable(NewSeeded):
    """Takes no seed at all."""

    def reset(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.zeros(1, np.float32)


class Thinning(Drift):
    """Becomes more than data after some steps."""

    thought: Any = None

    def step(self, action) -> Any:
        self.thought = object() if self.t > 40 else None
        return super().step(action)


class ClosingBadly(Drift):
    """Its `close` raises."""

    def close(self) -> None:
        raise RuntimeError("viewer")


class Late(Race):
    """The last runner only comes with the second step."""

    def reset(self, seed: int | None = None, options: Any = None):
        super().reset(seed, options)
        self.agents = ["ann", "bob"]
        return self._observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]):
        answer = super().step(actions)
        if self.t == 1:
            self.agents = [*self.agents, "cyd"]
        return answer
