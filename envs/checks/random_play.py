"""Environments that play at random, and two of them side by side, compared bit for bit."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Space

from rollout.envs.batch import Envs, Outcome
from rollout.envs.checks.elements import Difference, Leaf, differences, leaves, observation_leaves
from rollout.envs.layouts import action_layout


class RandomActions:
    """Actions of N environments, a function of a seed and the step."""

    def __init__(self, space: Space, num_envs: int, seed: int) -> None:
        self._layout = action_layout(space)
        self._num_envs = num_envs
        self._seed = seed

    def at(self, t: int, mask: np.ndarray | None = None) -> np.ndarray:
        """[N, …] of the layout; mask: bool [N, mask_size], what is allowed."""
        layout = self._layout
        rng = np.random.default_rng((self._seed, t))
        if not layout.choices:
            return self._quantities(rng)
        preference = rng.random((self._num_envs, layout.mask_size))
        if mask is not None:
            preference[~mask] = -1.0
        ends = np.cumsum(layout.choices)[:-1]
        chosen = [part.argmax(1) for part in np.split(preference, ends, axis=1)]
        return np.stack(chosen, 1).reshape(self._num_envs, *layout.shape).astype(layout.dtype)

    def _quantities(self, rng: np.random.Generator) -> np.ndarray:
        """Uniform between bounds; beyond a single one exponential, without any normal."""
        low, high = np.array(self._layout.low), np.array(self._layout.high)
        has_low, has_high = np.isfinite(low), np.isfinite(high)
        size = (self._num_envs, len(low))
        chosen = rng.normal(size=size)
        away = rng.exponential(size=size)
        chosen = np.where(has_low, low + away, chosen)
        chosen = np.where(has_high, high - away, chosen)
        with np.errstate(invalid="ignore"):  # of bounds that are infinite
            between = low + (high - low) * rng.random(size)
        chosen = np.where(has_low & has_high, between, chosen)
        return chosen.astype(self._layout.dtype)


class Player:
    """Environments of one kind, perhaps split over several `Envs`, that play at random together."""

    def __init__(self, parts: Sequence[Envs], seed: int, t: int = 0) -> None:
        """t: the step whose actions are played next."""
        env = parts[0].env
        self.parts = parts
        self.outcomes = [Outcome(env, part.num_envs) for part in parts]
        self.t = t
        self.steps = 0
        self._env = env
        self._ends = np.cumsum([part.num_envs for part in parts])
        self._actions = RandomActions(env.action_space, int(self._ends[-1]), seed)
        self._has_mask = hasattr(env, "action_mask")

    def action(self) -> np.ndarray:
        """What is played next: [N, …]."""
        mask = None
        if self._has_mask:
            mask = np.concatenate([part.action_mask() for part in self.parts])
        return self._actions.at(self.t, mask)

    def step(self) -> None:
        for part, outcome, action in zip(
            self.parts, self.outcomes, np.split(self.action(), self._ends[:-1]), strict=True
        ):
            part.step(action, outcome)
        self.t += 1
        self.steps += 1

    def records(self) -> np.ndarray:
        return np.concatenate([part.records for part in self.parts])

    def seen(self) -> dict[str, np.ndarray]:
        """What the last step wrote, a row per environment: those of endings are zero elsewhere."""
        found: dict[str, list[np.ndarray]] = {}
        for outcome in self.outcomes:
            rows = {
                "observation": outcome.observation,
                "reward": outcome.reward,
                "terminated": outcome.terminated,
                "truncated": outcome.truncated,
            }
            finals = outcome.final_env[: outcome.num_finals]
            rows["final_observation"] = _spread(outcome.final_observation, finals)
            ended = outcome.episode_env[: outcome.num_episodes]
            rows["episode_return"] = _spread(outcome.episode_return, ended)
            rows["episode_length"] = _spread(outcome.episode_length, ended)
            for name, array in rows.items():
                found.setdefault(name, []).append(array)
        return {name: np.concatenate(arrays) for name, arrays in found.items()}

    def in_bytes(self) -> list[bytes]:
        """All that `leaves` has, to see quickly that nothing differs."""
        seen = self.seen().values() if self.steps else ()
        return [array.tobytes() for array in (self.records(), *seen)]

    def leaves(self) -> Iterator[Leaf]:
        """Everything there is to compare, before the first step or after any."""
        records = self.records()
        yield from leaves(records["state"], "state")
        yield from leaves(records["clock"], "draw")
        if not self.steps:
            return
        for name, array in self.seen().items():
            if name.endswith("observation"):
                for leaf, _ in observation_leaves(self._env.observation_space, array):
                    yield Leaf(((name, leaf.path[0][1]), *leaf.path[1:]), leaf.array)
            else:
                yield Leaf(((name, 0),), array)


def _spread(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The first rows at their places, zeros elsewhere."""
    spread = np.zeros_like(rows)
    spread[places] = rows[: len(places)]
    return spread


@dataclass(frozen=True)
class Comparison:
    """Two players side by side, for some steps; difference: the first there was, and where."""

    steps: int
    difference: str | None = None


def compare(one: Player, other: Player, num_steps: int, limit_s: float) -> Comparison:
    """Step both until they differ, enough steps are done, or time is up."""
    end = time.monotonic() + limit_s
    steps = 0
    for difference in differences_of(one, other):
        clock = one.records()["clock"][difference.row]
        return Comparison(steps, f"{difference}; {place(clock)}")
    while steps < num_steps and time.monotonic() < end:
        clocks = one.records()["clock"]
        one.step()
        other.step()
        steps += 1
        for difference in differences_of(one, other):
            return Comparison(steps, f"{difference}; {place(clocks[difference.row])}")
    return Comparison(steps)


def differences_of(one: Player, other: Player) -> Iterator[Difference]:
    """What is not the same after a step."""
    if one.in_bytes() == other.in_bytes():
        return
    for pair in zip(one.leaves(), other.leaves(), strict=True):
        yield from differences(*pair)


def record_differences(one: np.ndarray, other: np.ndarray) -> Iterator[Difference]:
    """What is not the same in the records of N environments."""
    for name, shown in (("state", "state"), ("clock", "draw")):
        for pair in zip(leaves(one[name], shown), leaves(other[name], shown), strict=True):
            yield from differences(*pair)


def place(clock: np.void) -> str:
    """`environment 3, episode 0, step 17`."""
    return f"environment {clock['env']}, episode {clock['episode']}, step {clock['t']}"
