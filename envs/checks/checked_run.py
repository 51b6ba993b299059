"""An environment that plays at random in checked mode: what goes wrong, the first of each kind."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rollout.envs.batch import Envs, Outcome
from rollout.envs.checks.checked import Faulty, Kind
from rollout.envs.checks.elements import differences, leaves
from rollout.envs.checks.hang_watch import HangWatch
from rollout.envs.checks.random_play import RandomActions, place, record_differences
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.layouts import action_layout

NUM_LOOKS = 50  # steps of which it is seen whether `observe` and `action_mask` only look


class CheckedRun:
    """Several environments, each on its own, so that one that hangs is known.

    faults: the first of each kind. steps: how many each did. side_effect: what a function that
    should only look has changed. allowed_share: of what masks allowed, on average.
    """

    def __init__(
        self,
        env: type[CompiledEnv],
        params: Mapping[str, Any] | None,
        num_envs: int,
        seed: int,
        watch: HangWatch,
    ) -> None:
        self.faults: dict[Kind, str] = {}
        self.steps = 0
        self.side_effect = ""
        self.allowed_share = 1.0
        self.lowest_reward, self.highest_reward = np.inf, -np.inf
        self._env = env
        self._params = env.make_params(params)
        self._watch = watch
        self._actions = RandomActions(env.action_space, num_envs, seed)
        self._envs: list[Envs] = []
        self._outcome = Outcome(env, 1)
        self._has_mask = hasattr(env, "action_mask")
        self._mask_size = action_layout(env.action_space).mask_size
        for i in range(num_envs):
            envs = Envs(env, 1, seed, first_env=i, params=params, checked=True, begin=False)
            envs.records["clock"]["seed"], envs.records["clock"]["env"] = seed, i
            begin = functools.partial(envs.restore, envs.snapshot())  # an episode that begins
            self._do(begin, envs, "go_on_all", np.zeros(1, np.int64), np.int64(1))
            self._envs.append(envs)

    @property
    def is_stuck(self) -> bool:
        """Whether it cannot go on."""
        return Kind.FAILURE in self.faults or Kind.ACTION_MASK in self.faults

    def changed_param(self) -> str | None:
        """A param that is not what it was: `params.wind was 0.5 and is 0.7`."""
        for envs in self._envs:
            both = (leaves(params, "params") for params in (self._params, envs.params))
            for changed in (
                found for pair in zip(*both, strict=True) for found in differences(*pair)
            ):
                return f"{changed.name} was {changed.one} and is {changed.other}"
        return None

    def play(self, num_steps: int, limit_s: float) -> None:
        """Play until enough steps are done, time is up, or it is stuck."""
        end = time.monotonic() + limit_s
        while not self.is_stuck and self.steps < num_steps and time.monotonic() < end:
            masks = [self._look(envs) for envs in self._envs]
            if self.is_stuck:
                return
            mask = np.concatenate(masks)
            actions = self._actions.at(self.steps, mask)
            for i, envs in enumerate(self._envs):
                self._step(envs, actions[i : i + 1])
            self.steps += 1
            if mask.size:
                self.allowed_share += (mask.mean() - self.allowed_share) / self.steps

    def _look(self, envs: Envs) -> Any:
        """What an environment allows, bool [1, mask_size]."""
        mask = np.ones((1, self._mask_size), np.bool_)
        is_watched = self.steps < NUM_LOOKS and not self.side_effect
        if not (is_watched or self._has_mask):
            return mask
        before = envs.records.copy()
        allowed = self._do(envs.action_mask, envs, "mask_all", mask)
        if is_watched:
            self._do(envs.observation, envs, "observe_all", self._outcome.observation)
            for changed in record_differences(before, envs.records):
                where = place(before["clock"][0])
                self.side_effect = f"{changed}, before and after; {where}"
        return allowed

    def _step(self, envs: Envs, action: np.ndarray) -> None:
        def step() -> None:
            envs.step(action, self._outcome)

        self._do(step, envs, "step_all", action, *self._outcome.arrays)
        reward = float(self._outcome.reward[0])
        self.lowest_reward = min(self.lowest_reward, reward)
        self.highest_reward = max(self.highest_reward, reward)

    def _do(self, call: Callable[[], Any], envs: Envs, kernel: str, *arguments: Any) -> Any:
        """Do something that may never return, or fail; kernel, arguments: to do it again."""
        call_of = (self._env, envs.record_bytes.copy(), self._params.view(np.uint8))
        with self._watch.over(*call_of, kernel, arguments):
            try:
                return call()
            except Faulty as error:
                for fault in error.faults:
                    self.faults.setdefault(fault.kind, fault.text)
        return None
