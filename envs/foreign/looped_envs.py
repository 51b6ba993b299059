"""N single environments, stepped one after the other in this process."""

import logging
from typing import Any

import numpy as np

from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.actions import action_reader
from rollout.envs.foreign.closing import close
from rollout.envs.foreign.foreign_env import PICTURES, ForeignEnv
from rollout.envs.foreign.foreign_envs import (
    ForeignEnvs,
    Stepped,
    five_values,
    flag,
    two_values,
)
from rollout.envs.foreign.observations import Misfit, observation_writer
from rollout.envs.foreign.plain_data import NotPlain
from rollout.envs.foreign.saved_state import StateSaver

log = logging.getLogger(__name__)


class LoopedEnvs(ForeignEnvs):
    """With SAME_STEP autoreset: a step that ends an episode shows the first of the next one.

    A snapshot holds, for each environment, its clock, and behind it what it shows and its saved
    state (ForeignEnv.state_dtype) where it can be saved.
    """

    def __init__(
        self,
        env: ForeignEnv,
        num_envs: int,
        seed: int,
        *,
        first_env: int = 0,
        begin: bool = True,
        pictures: bool = False,
        state_bytes: int = philox.CLOCK.itemsize,
    ) -> None:
        """begin: reset all of them; without, `restore` does. pictures: `render` will be asked.

        state_bytes: of one environment in a snapshot (env.state_bytes, or a clock's).
        """
        super().__init__(env, num_envs, seed, first_env)
        self._write = observation_writer(env.gym_observation_space)
        self._read = action_reader(env.gym_action_space)
        self._envs = []
        self._is_seeded = [False] * num_envs
        self._has_told = False
        self._state_dtype = env.state_dtype(state_bytes)
        self._savers = None
        try:
            for _ in range(num_envs):
                self._envs.append(env.make(PICTURES if pictures else None))
            if self._state_dtype != philox.CLOCK:
                self._savers = [StateSaver(one) for one in self._envs]
            if begin:
                for i in range(num_envs):
                    self._begin(i)
        except BaseException:
            self.close()
            raise

    def snapshot(self) -> bytes:
        if self._savers is None:
            return super().snapshot()
        states = np.zeros(self.num_envs, self._state_dtype)
        states["clock"], states["shown"] = self.clocks, self._shown
        room = self._state_dtype["saved"].itemsize
        for i, saver in enumerate(self._savers):
            saved = self._saved(saver, room)
            states["length"][i] = len(saved)
            states["saved"][i, : len(saved)] = np.frombuffer(saved, np.uint8)
        return states.tobytes()

    def _saved(self, saver: StateSaver, room: int) -> bytes:
        """A state, or nothing where that is no longer possible, which is logged once."""
        try:
            saved = saver.save()
            if len(saved) <= room:
                return saved
            why = f"it takes {len(saved):,} bytes, and there is room for {room:,}"
        except NotPlain as error:
            why = str(error)
        if not self._has_told:
            self._has_told = True
            log.warning(
                "environment %r: a state cannot be saved any more: %s; if its actor dies, its "
                "episode begins anew",
                self.env.__name__,
                why,
            )
        return b""

    def restore(
        self,
        snapshot: bytes | memoryview,
        position: np.ndarray | None = None,
        stride: int = 1,
    ) -> None:
        if position is not None:
            self.say_position(position, stride)
        states = np.frombuffer(snapshot, self._state_dtype)
        self.clocks[:] = states if self._savers is None else states["clock"]
        for i in range(self.num_envs):
            if self._savers is None or not states["length"][i]:
                self._episodes[i] += self._t[i] > 0
                self._t[i] = self._returns[i] = 0
                self._begin(i)
                continue
            self._say_place(i, 0)
            self._shown[i] = states["shown"][i]
            self._is_seeded[i] = True
            try:
                self._savers[i].restore(states["saved"][i, : states["length"][i]].tobytes())
            except Exception as error:
                raise EnvError(
                    f"{self.env.__name__}: restoring a saved state fails: "
                    f"{type(error).__name__}: {error}"
                ) from error

    def render(self, i: int = 0) -> Any:
        if not self.env.renders:
            return super().render(i)
        return self._envs[i].render()

    def close(self) -> None:
        for env in self._envs:
            close(env, self.env.__name__)

    def _step(self, action: np.ndarray, observation: np.ndarray, t: int) -> Stepped:
        position, stride, write, name = self.position, self._stride, self._write, self.env.__name__
        rewards, terminations, truncations = [], [], []
        episode, is_seeded = self.episode, self.has_seeded_episodes
        numbers, done = self._episodes.tolist(), self._t.tolist()
        steps = zip(range(self.num_envs), self._envs, self._read(action), observation, strict=True)
        try:
            for i, env, chosen, row in steps:
                position[0] = i * stride + t
                if is_seeded:
                    episode[0], episode[1] = numbers[i], done[i]
                answer = env.step(chosen)
                shown, reward, is_terminated, is_truncated, _ = five_values(answer, name)
                write(row, shown)
                rewards.append(reward)
                terminations.append(flag(is_terminated, "terminated", name))
                truncations.append(flag(is_truncated, "truncated", name))
        except Misfit as error:
            raise EnvError(f"{name}: {error}") from None
        return Stepped(rewards, terminations, truncations, None, lambda i: observation[i].copy())

    def begin_next(self, envs: list[int], t: int) -> None:
        for i in envs:
            self._begin(i, t)

    def _begin(self, i: int, t: int = 0) -> None:
        """Begin the episode that the clock of environment i names."""
        self._say_place(i, t)
        self.say_episode(int(self._episodes[i]), 0)
        if self.env.is_seeded_once and self._is_seeded[i]:
            answer = self._envs[i].reset()
        else:
            answer = self._envs[i].reset(seed=self._seed(i))
            self._is_seeded[i] = True
        try:
            self._write(self._shown[i], two_values(answer, self.env.__name__)[0])
        except Misfit as error:
            raise EnvError(f"{self.env.__name__}: reset: {error}") from None
