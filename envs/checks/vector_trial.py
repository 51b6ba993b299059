"""A vector environment that plays at random, to be checked."""

import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from rollout.envs.checks.nested_arrays import kind_of

LIMIT_S = 10.0  # a check is content with fewer steps by then


class Broken(Exception):
    """What a vector environment answered is of no use."""


@dataclass
class Taken:
    """One step.

    waiting: bool [N], whose episodes had ended before it and had not been reset. reset: where some
    were reset before it (DISABLED): (which, what all showed before, what they showed afterwards).
    """

    waiting: np.ndarray
    observations: Any
    rewards: Any
    terminated: Any
    truncated: Any
    infos: dict[str, Any]
    reset: tuple[np.ndarray, Any, Any] | None = None

    @property
    def ended(self) -> np.ndarray:
        return np.asarray(self.terminated) | np.asarray(self.truncated)

    def outcome(self) -> dict[str, Any]:
        """What the same seed and actions give again."""
        names = ("observations", "rewards", "terminated", "truncated")
        return {name: getattr(self, name) for name in names}


@dataclass
class VectorTrial:
    """A vector environment on trial. steps: those of `check_step`, copied."""

    envs: VectorEnv
    seed: int
    num_steps: int
    steps: list[Taken] = field(default_factory=list)
    first_infos: dict[str, Any] = field(default_factory=dict)

    @property
    def mode(self) -> AutoresetMode:
        return self.envs.metadata["autoreset_mode"]

    def rows(self, observations: Any) -> list[Any]:
        """A batch of observations, one by one."""
        return list(iterate(self.envs.observation_space, observations))

    def play(self, with_other_actions_while_waiting: bool = False) -> Iterator[Taken]:
        """Play at random from a reset; what is yielded is what the environments answered."""
        envs, count = self.envs, self.envs.num_envs
        usual, unusual = (RandomBatches(envs, seed) for seed in (self.seed, self.seed + 1))
        observations, infos = self.pair(envs.reset(seed=self.seed))
        waiting = np.zeros(count, np.bool_)
        end = time.monotonic() + LIMIT_S
        for _ in range(self.num_steps):
            reset = None
            if self.mode is AutoresetMode.DISABLED and waiting.any():
                before = deepcopy(observations)
                options = {"reset_mask": waiting.copy()}
                observations, infos = self.pair(envs.reset(options=options))
                reset = (waiting, before, deepcopy(observations))
                waiting = np.zeros(count, np.bool_)
            one_by_one = usual.sample(infos)
            if with_other_actions_while_waiting:
                others = unusual.sample(infos)
                one_by_one = [
                    other if is_waiting else one
                    for one, other, is_waiting in zip(one_by_one, others, waiting, strict=True)
                ]
            answer = envs.step(usual.batch(one_by_one))
            if not (isinstance(answer, tuple) and len(answer) == 5):
                raise Broken(
                    f"step returned {kind_of(answer)}, wanted observations, rewards, terminations, "
                    "truncations and infos"
                )
            taken = Taken(waiting, *answer, reset)
            observations, infos = taken.observations, taken.infos
            waiting = taken.ended.copy()
            yield taken
            if time.monotonic() > end:
                return

    @staticmethod
    def pair(answer: Any) -> tuple[Any, dict[str, Any]]:
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise Broken(f"reset returned {kind_of(answer)}, wanted observations and infos")
        return answer


class RandomBatches:
    """Random actions of each environment, by generators of their own."""

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        self._space: Any = envs.single_action_space
        self._spaces = [deepcopy(self._space) for _ in range(envs.num_envs)]
        for i, space in enumerate(self._spaces):
            space.seed(seed + i)

    def sample(self, infos: Mapping[str, Any]) -> list[Any]:
        masks = infos.get("action_mask")
        if masks is None or not isinstance(self._space, Discrete | MultiDiscrete):
            return [space.sample() for space in self._spaces]
        return [
            space.sample(self._mask(mask)) for space, mask in zip(self._spaces, masks, strict=True)
        ]

    def _mask(self, mask: np.ndarray) -> Any:
        mask = np.asarray(mask, np.int8)
        if isinstance(self._space, Discrete):
            return mask
        return tuple(np.split(mask, np.cumsum(self._space.nvec)[:-1]))

    def batch(self, one_by_one: list[Any]) -> Any:
        empty = create_empty_array(self._space, len(one_by_one))
        return concatenate(self._space, one_by_one, empty)
