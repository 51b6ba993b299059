"""N environments of Gymnasium's kind in one process, by the calls that Envs has.

Here is what all of them share: clocks, episodes, checks. How they are stepped, one after the other
or by a vector environment of their own, is in looped_envs.py and vector_envs.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.layouts import observation_layout


@dataclass(frozen=True)
class EpisodeEnd:
    """An episode that has ended in a step: of which environment, its return, its length in steps.

    final_observation: what was shown last if it was truncated, [*layout.shape]; else None.
    """

    env: int
    episode_return: float
    episode_length: int
    final_observation: np.ndarray | None


@dataclass(frozen=True)
class Stepped:
    """What N environments answered in one step.

    rewards: [N], anything that should be numbers. terminated, truncated: [N] bools. no_op: [N]
    bool, whose step was none (see Unroll); None: nobody's. final: the last observation of
    environment i's episode, which this step ended, [*layout.shape].
    """

    rewards: Any
    terminated: Sequence[bool] | np.ndarray
    truncated: Sequence[bool] | np.ndarray
    no_op: np.ndarray | None
    final: Callable[[int], np.ndarray]


class ForeignEnvs(ABC):
    """Environments first_env, …, first_env + num_envs - 1 of a run.

    clocks: [N] of philox.CLOCK. position[0] tells whoever has to know where it failed, or hangs;
    episode, int32 [2], the number of the episode there and the steps of it that are done, or -1
    where an episode has no seed of its own.
    """

    def __init__(self, env: ForeignEnv, num_envs: int, seed: int, first_env: int) -> None:
        self.env = env
        self.num_envs = num_envs
        self.clocks = np.zeros(num_envs, philox.CLOCK)
        self.clocks["seed"], self.clocks["env"] = seed, first_env + np.arange(num_envs)
        self._t, self._episodes = self.clocks["t"], self.clocks["episode"]  # views
        self._returns = self.clocks["episode_return"]
        layout = observation_layout(env.observation_space)
        self._shown = np.zeros((num_envs, *layout.shape), layout.dtype)
        self.position, self._stride = np.zeros(1, np.int64), 1
        self.episode = np.full(2, -1, np.int32)
        self.has_seeded_episodes = not (env.is_vector or env.is_seeded_once)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.env.__name__}, num_envs={self.num_envs})"

    def snapshot(self) -> bytes:
        """The clocks, which is all that is known of most."""
        return self.clocks.tobytes()

    @abstractmethod
    def restore(
        self,
        snapshot: bytes | memoryview,
        position: np.ndarray | None = None,
        stride: int = 1,
    ) -> None:
        """Go on from a snapshot; an episode that was under way, and not saved, gives way to the
        next. position, stride: as for `say_position`.
        """

    def say_position(self, position: np.ndarray, stride: int) -> None:
        """Let position[0], int64, be i * stride + t when environment i is at step t of an unroll,
        and -2 - t when nobody can tell which.
        """
        self.position, self._stride = position, stride

    def say_episode(self, number: int, done: int) -> None:
        """Let `episode` be the number of an episode, and the steps of it that are done."""
        if self.has_seeded_episodes:
            self.episode[:] = number, done

    def observation(self) -> np.ndarray:
        """What the environments show now: [N, *layout.shape]; not a copy."""
        return self._shown

    def step(
        self,
        action: np.ndarray,
        observation: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        no_op: np.ndarray | None = None,
        t: int = 0,
    ) -> list[EpisodeEnd]:
        """Step all environments once; returns the episodes that ended.

        action: [N, *layout.shape] of the kit's space. Writes observation [N, *layout.shape], which
        stays what is shown: where an episode ended the next one's first, or for environments that
        have no_op, once more the last (Unroll tells of both). Also reward, terminated, truncated,
        and no_op [N] where `env.has_no_ops`. t: the step of the unroll, for `position`. Raises
        EnvError for what cannot be.
        """
        stepped = self._step(action, observation, t)
        self._shown = observation
        terminated[:], truncated[:] = stepped.terminated, stepped.truncated
        numbers = self._numbers(stepped.rewards, t)
        if stepped.no_op is None:
            self._t += 1
        else:
            assert no_op is not None
            no_op[:] = stepped.no_op
            for outcome in (numbers, terminated, truncated):
                outcome[no_op] = 0
            self._t += ~no_op
        reward[:] = numbers
        self._returns += numbers
        ends = [
            self._episode_end(int(i), bool(truncated[i]), stepped)
            for i in np.flatnonzero(terminated | truncated)
        ]
        if ends:
            self.begin_next([end.env for end in ends], t)
        return ends

    def render(self, i: int = 0) -> Any:
        """Environment i as a picture; the environments were made to give some."""
        raise EnvError(f"{self.env.__name__} has no render mode 'rgb_array'")

    @abstractmethod
    def close(self) -> None:
        """Let go of the environments."""

    @abstractmethod
    def _step(self, action: np.ndarray, observation: np.ndarray, t: int) -> Stepped:
        """Step all of them once, and write what they show."""

    @abstractmethod
    def begin_next(self, envs: list[int], t: int) -> None:
        """Begin the next episode of those whose last one has ended, unless they have themselves."""

    def _episode_end(self, i: int, is_truncated: bool, stepped: Stepped) -> EpisodeEnd:
        final = stepped.final(i) if is_truncated else None
        end = EpisodeEnd(i, float(self._returns[i]), int(self._t[i]), final)
        self._episodes[i] += 1
        self._t[i] = self._returns[i] = 0
        return end

    def _say_place(self, i: int, t: int) -> None:
        self.position[0] = i * self._stride + t

    def _seed(self, i: int) -> int:
        """Of the episode that the clock of environment i names: drawn for (environment, episode),
        so that it begins alike wherever it is acted.
        """
        clock = self.clocks[i]
        seed, env, episode = int(clock["seed"]), int(clock["env"]), int(clock["episode"])
        return philox.episode_seed(seed, env, episode)

    def _numbers(self, rewards: Any, t: int) -> np.ndarray:
        """Rewards as float64 [N]."""
        try:
            return np.array(rewards, np.float64).reshape(self.num_envs)
        except (TypeError, ValueError):
            pairs = enumerate(rewards) if isinstance(rewards, list) else [(0, rewards)]
            i, wrong = next((pair for pair in pairs if not _is_number(pair[1])), (0, rewards))
            self._say_place(i, t)
            self.say_episode(int(self._episodes[i]), int(self._t[i]))
            raise EnvError(
                f"{self.env.__name__}: the reward is {wrong!r}, wanted a number"
            ) from None


def five_values(answer: Any, name: str) -> tuple[Any, Any, Any, Any, Any]:
    """What `step` of the environment of this name returned. Raises EnvError if it is not that."""
    if isinstance(answer, tuple) and len(answer) == 5:
        return answer
    hint = ""
    if isinstance(answer, tuple) and len(answer) == 4:
        hint = "; four are the old gym's: split `done` into terminated and truncated"
    raise EnvError(
        f"{name}: step returned {kinds(answer)}, wanted (observation, reward, terminated, "
        f"truncated, info){hint}"
    )


def flag(value: Any, which: str, name: str) -> bool:
    """`terminated` or `truncated`. Raises EnvError if it is neither a bool nor a number.

    Whatever else may be had as a bool, None or info, has come to the wrong place.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    found = np.asarray(value)
    if found.size != 1 or found.dtype.kind not in "biuf":
        raise EnvError(f"{name}: {which} is {value!r}, wanted a bool")
    return bool(found.item())


def two_values(answer: Any, name: str) -> tuple[Any, Any]:
    """What `reset` returned. Raises EnvError if it is not that."""
    if isinstance(answer, tuple) and len(answer) == 2:
        return answer
    raise EnvError(f"{name}: reset returned {kinds(answer)}, wanted (observation, info)")


def kinds(answer: Any) -> str:
    """What was returned, in few words: `(ndarray, float, bool, dict)`."""
    if isinstance(answer, tuple):
        return f"({', '.join(type(one).__name__ for one in answer)})"
    return type(answer).__name__


def _is_number(reward: Any) -> bool:
    try:
        return np.ndim(reward) == 0 and isinstance(float(reward), float)
    except (TypeError, ValueError):
        return False
