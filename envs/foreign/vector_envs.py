"""N environments that a vector environment of their own steps, such as Atari's or EnvPool's.

Whatever its autoreset mode, it becomes one of two here (see Unroll): episodes that begin in the
step that ended the last, or a step that is none in between.
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.actions import action_reader
from rollout.envs.foreign.closing import close
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.foreign_envs import ForeignEnvs, Stepped, five_values, two_values
from rollout.envs.foreign.observations import Misfit, batch_writer
from rollout.envs.foreign.parallel_games import ParallelGames

LARGEST_SEED = 2**31 - 1  # some keep it in a C int


class VectorEnvs(ForeignEnvs):
    """Its episodes are seeded where the environment begins, and go on by its own generator."""

    def __init__(
        self,
        env: ForeignEnv,
        num_envs: int,
        seed: int,
        *,
        first_env: int = 0,
        begin: bool = True,
    ) -> None:
        """begin: reset all of them; without, `restore` does."""
        super().__init__(env, num_envs, seed, first_env)
        self._env: VectorEnv = env.make_vector(num_envs)
        self._mode = self._env.metadata["autoreset_mode"]
        self._write = batch_writer(env.gym_observation_space, self._env.observation_space)
        self._read = action_reader(env.gym_action_space)
        self._is_over = np.zeros(num_envs, np.bool_)  # and the next step begins another episode
        if begin:
            try:
                self._begin_all()
            except BaseException:
                self.close()
                raise

    def restore(
        self,
        snapshot: bytes | memoryview,
        position: np.ndarray | None = None,
        stride: int = 1,
    ) -> None:
        if position is not None:
            self.say_position(position, stride)
        self.clocks[:] = np.frombuffer(snapshot, philox.CLOCK)
        self._episodes += self._t > 0
        self._begin_all()

    def close(self) -> None:
        close(self._env, self.env.__name__)

    def _say_place(self, i: int, t: int) -> None:
        """No one knows which of them is under way."""
        self.position[0] = -2 - t

    def _begin_all(self) -> None:
        self._say_place(0, 0)
        self._t[:] = self._returns[:] = 0
        self._is_over[:] = False
        seeds = [self._seed(i) & LARGEST_SEED for i in range(self.num_envs)]
        seed: Any = self.env.as_seed(seeds)
        self._put_first(self._env.reset(seed=seed))

    def _put_first(self, answer: Any) -> None:
        """What `reset` returned is what the environments show."""
        try:
            self._write(self._shown, two_values(answer, self.env.__name__)[0])
        except Misfit as error:
            raise EnvError(f"{self.env.__name__}: reset: {error}") from None

    def _step(self, action: np.ndarray, observation: np.ndarray, t: int) -> Stepped:
        name, single = self.env.__name__, self.env.gym_action_space
        batch = create_empty_array(single, self.num_envs)
        batch = concatenate(single, self._read(action), batch)
        self._say_place(0, t)
        shown, rewards, terminated, truncated, infos = five_values(self._env.step(batch), name)
        try:
            self._write(observation, shown)
        except Misfit as error:
            raise EnvError(f"{name}: {error}") from None
        is_terminated = self._flags(terminated, "terminated")
        is_truncated = self._flags(truncated, "truncated")
        no_op = None
        if self.env.has_no_ops:
            no_op = self._env.no_op if isinstance(self._env, ParallelGames) else self._is_over
            self._is_over = (is_terminated | is_truncated) & ~no_op
        return Stepped(
            rewards,
            is_terminated,
            is_truncated,
            no_op,
            lambda i: self._final(i, observation, infos),
        )

    def _flags(self, given: Any, which: str) -> np.ndarray:
        flags = np.asarray(given)
        if flags.shape != (self.num_envs,) or flags.dtype.kind not in "bui":
            raise EnvError(
                f"{self.env.__name__}: {which} is {flags.dtype} {list(flags.shape)}, wanted bool "
                f"[{self.num_envs}]"
            )
        return flags.astype(np.bool_)

    def _final(self, i: int, observation: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        """The last observation of an episode; in SAME_STEP mode the infos have it."""
        if self._mode != AutoresetMode.SAME_STEP:
            return observation[i].copy()
        row = np.zeros_like(observation[:1])
        try:
            final = _entry(infos["final_obs"], i)
            one = create_empty_array(self.env.gym_observation_space, 1)
            one = concatenate(self.env.gym_observation_space, [final], one)
            self._write(row, one)
        except (KeyError, Misfit) as error:
            raise EnvError(
                f"{self.env.__name__}: an episode was truncated and infos['final_obs'] has no "
                f"observation of environment {i} ({error}); SAME_STEP autoreset has to give it"
            ) from None
        return row[0]

    def begin_next(self, envs: list[int], t: int) -> None:
        if self._mode != AutoresetMode.DISABLED:
            return
        mask = np.zeros(self.num_envs, np.bool_)
        mask[envs] = True
        self._say_place(0, t)
        self._put_first(self._env.reset(options={"reset_mask": mask}))


def _entry(batched: Any, i: int) -> Any:
    """Environment i's part of what infos hold for all."""
    if isinstance(batched, dict):
        return {key: _entry(inner, i) for key, inner in batched.items() if key[:1] != "_"}
    if isinstance(batched, tuple):
        return tuple(_entry(inner, i) for inner in batched)
    return batched[i]
