"""Compiled environments as a `gymnasium.vector.VectorEnv`: one compiled call per step."""

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from rollout.envs.batch import Envs, record_dtype, state_bytes
from rollout.envs.compiled_env import NO_LIMIT, CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.interfaces.observation_batch import first_rows, one_row
from rollout.envs.interfaces.vector_arguments import (
    checked_mode,
    checked_render_mode,
    chosen_seeds,
    metadata_of,
    reset_mask,
    step_problem,
    time_limit,
)
from rollout.envs.interfaces.vector_memory import (
    BEGAN,
    LENGTH,
    MODES,
    RETURN,
    TIME,
    Memory,
    load_vector_kernels,
)
from rollout.envs.registry import as_env


class VectorEnv(gymnasium.vector.VectorEnv):
    """N environments behind Gymnasium's interface for vectors of them.

    `step` and `reset` give what `gymnasium.vector.SyncVectorEnv` gives of single environments
    (rollout.envs.SingleEnv). Environment i of a vector that is reset with seed s is the single
    environment that is reset with seed s + i. `reset` without a seed goes on to the next episode;
    if it is the first, the system's entropy seeds it.

    infos: where an episode ended, its statistics as the wrapper RecordEpisodeStatistics has them:
    `episode` (`r`, `l`, `t`: return, length and seconds, arrays [N]) with the mask `_episode`; with
    SAME_STEP also `final_obs` and `final_info`. `action_mask`, int8 [N, mask_size], if the
    environment has one: a row is what `Discrete.sample` takes; MultiDiscrete has its choices side
    by side, and its `sample` takes `tuple(np.split(row, np.cumsum(space.nvec)[:-1]))`. An action
    that it forbids is not refused: the environment says what comes of it.
    """

    def __init__(
        self,
        env: type[CompiledEnv] | str,
        num_envs: int = 1,
        *,
        params: Mapping[str, Any] | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        copy: bool = True,
        episode_statistics: bool = True,
        jit: bool = True,
    ) -> None:
        """Make N environments that wait for their first `reset`.

        env: a definition, a bundled id, or `package.module:Name`. params: in place of the defaults.
        max_episode_steps: in place of the definition's; -1 for no limit.
        copy: whether every call gives new observations; without, all give the same arrays, which
            the next call overwrites.
        episode_statistics: whether infos have `episode`. Inside RecordEpisodeStatistics they never
            do: the wrapper brings its own and refuses others.
        jit: False runs the same code as plain Python, for a debugger.
        """
        definition = as_env(env)
        unlimited: type[CompiledEnv] | None = vars(definition).get("without_limit")
        env = unlimited or definition  # other processes can import it
        if env is not definition and max_episode_steps is None:
            max_episode_steps = definition.max_episode_steps or NO_LIMIT
        self._arguments = {
            "env": env,
            "num_envs": num_envs,
            "params": params,
            "autoreset_mode": autoreset_mode,
            "max_episode_steps": max_episode_steps,
            "render_mode": render_mode,
            "copy": copy,
            "episode_statistics": episode_statistics,
            "jit": jit,
        }
        self._envs = Envs(env, num_envs, 0, params=params, jit=jit, begin=False)
        self.num_envs = num_envs
        self.single_observation_space = deepcopy(env.observation_space)  # it has a generator
        self.single_action_space = deepcopy(env.action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.copy = copy
        self._mode = checked_mode(autoreset_mode)
        self.metadata = metadata_of(env) | {"autoreset_mode": self._mode}
        self.render_mode = checked_render_mode(env, render_mode)

        kernels = load_vector_kernels(env, jit)
        self._begin_chosen, self._step_chosen = kernels.begin_chosen, kernels.step_chosen
        self._memory = Memory(env, num_envs)
        self._reused = None if copy else self._memory.observations.allocate()
        self._has_mask = hasattr(env, "action_mask")
        self._step_arguments = (MODES.index(self._mode), time_limit(env, max_episode_steps))
        self._wants_statistics = episode_statistics
        self._gives_statistics = episode_statistics
        self._is_begun = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in all environments, or in those of options["reset_mask"] (bool [N]).

        seed: s for s, s + 1, …, or one for each environment, from 0 to 2³² - 1.
        """
        chosen = reset_mask(options, self.num_envs)
        seeds = chosen_seeds(seed, chosen)
        if not self._is_begun:
            if not chosen.all():
                raise EnvError(f"{self._name}: the first reset is of all environments")
            entropy = np.frombuffer(os.urandom(4 * self.num_envs), np.uint32)
            seeds = np.where(seeds < 0, entropy, seeds)
        self._gives_statistics = self._wants_statistics and not _is_counted_by_wrapper(self)
        self._is_begun = True
        observations, mask = self._begin(chosen, seeds)
        mask[~chosen] = False
        return observations, self._mask_infos(mask, chosen)

    def _begin(self, chosen: np.ndarray, seeds: np.ndarray) -> tuple[Any, np.ndarray]:
        """Reset the chosen ones; returns what all of them show and allow."""
        memory = self._memory
        block, observations = self._reused or memory.observations.allocate()
        mask = np.empty_like(memory.final_mask)
        self._call(
            self._begin_chosen,
            *self._envs.kernel_arguments(),
            chosen,
            seeds,
            time.perf_counter(),
            memory.ended,
            memory.episodes,
            memory.row,
            block,
            mask,
        )
        return observations, mask

    def _call(self, kernel: Any, *arguments: Any) -> Any:
        try:
            return kernel(*arguments)
        except Exception as error:
            error.add_note(
                f"raised in one of {self.num_envs:,} environments {self._name}; "
                "Envs(…, checked=True), or `rollout check-env`, says in which, when and where"
            )
            raise

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of all environments: observations, rewards, terminated, truncated, infos.

        actions: integers [N] for Discrete, [N, n] for MultiDiscrete, numbers [N, n] for Box, which
            are not clipped to its bounds. Raises EnvError, before anything is stepped, for others.
        """
        memory, N = self._memory, self.num_envs
        given = self._given(actions)
        block, observations = self._reused or memory.observations.allocate()
        mask = np.empty_like(memory.final_mask)
        rewards = np.empty(N)
        terminated, truncated = np.empty(N, np.bool_), np.empty(N, np.bool_)
        num_ended = self._call(
            self._step_chosen,
            self._envs.record_bytes,
            self._envs.params_bytes,
            given,
            memory.action,
            *self._step_arguments,
            time.perf_counter(),
            memory.ended,
            memory.episodes,
            memory.row,
            block,
            mask,
            rewards,
            terminated,
            truncated,
            memory.final_block,
            memory.final_mask,
        )
        if num_ended < 0:
            raise EnvError(step_problem(self._envs.env, memory, self._is_begun, actions))
        infos = self._mask_infos(mask, np.ones(N, np.bool_)) if self._has_mask else {}
        if num_ended:
            self._tell_ends(infos, terminated | truncated, num_ended)
        return observations, rewards, terminated, truncated, infos

    def _given(self, actions: Any) -> np.ndarray:
        """Actions as the kernel takes them: a new array, which nobody else writes or keeps."""
        memory = self._memory
        try:
            array = np.asarray(actions)
        except (TypeError, ValueError) as error:  # ragged lists, tensors on a GPU
            raise EnvError(f"{self._name} cannot read its actions: {error}") from error
        fits = array.shape == memory.action.shape and array.dtype.kind in memory.action_kinds
        if not (fits and self._is_begun):
            raise EnvError(step_problem(self._envs.env, memory, self._is_begun, actions))
        return array.astype(memory.given_dtype, "C")

    def _tell_ends(self, infos: dict[str, Any], ended: np.ndarray, num_ended: int) -> None:
        memory = self._memory
        if self._gives_statistics:
            infos["episode"] = {
                "r": memory.episodes[RETURN].copy(),
                "l": memory.episodes[LENGTH].astype(np.int64),
                "t": memory.episodes[TIME].copy(),
            }
            infos["_episode"] = ended
        if self._mode == AutoresetMode.SAME_STEP:
            last = first_rows(memory.final_seen, num_ended)
            final_obs = np.full(self.num_envs, None, object)
            for row, i in enumerate(np.flatnonzero(ended)):
                final_obs[i] = one_row(last, row)
            infos["final_obs"], infos["_final_obs"] = final_obs, ended.copy()
            infos["final_info"] = self._mask_infos(memory.final_mask.copy(), ended.copy())
            infos["_final_info"] = ended.copy()

    def _mask_infos(self, mask: np.ndarray, is_told: np.ndarray) -> dict[str, Any]:
        if not self._has_mask:
            return {}
        return {"action_mask": mask.view(np.int8), "_action_mask": is_told}

    def snapshot(self) -> bytes:
        """All that is known of what the environments will do; Envs.snapshot says how much that is.

        Raises EnvError before the first `reset`.
        """
        if not self._is_begun:
            raise EnvError(f"{self._name}: call reset before snapshot")
        is_waiting = self._memory.ended & (self._mode != AutoresetMode.SAME_STEP)
        return self._snapshot_head() + self._envs.snapshot() + is_waiting.tobytes()

    def _snapshot_head(self) -> bytes:
        """What a snapshot begins with, other for others' snapshots."""
        record = record_dtype(self._envs.env)
        of = f"{self.num_envs} {self._name} {record.descr} {record.itemsize}"
        return hashlib.sha256(of.encode()).digest()[:8]

    def restore(self, snapshot: bytes) -> tuple[Any, dict[str, Any]]:
        """Put back what `snapshot` returned; returns observations and infos as `reset` does.

        Raises EnvError for what is no snapshot of as many such environments.
        """
        memory, N, head = self._memory, self.num_envs, self._snapshot_head()
        size = len(head) + N * (state_bytes(self._envs.env) + 1)
        is_ours = isinstance(snapshot, bytes) and snapshot.startswith(head)
        if not (is_ours and len(snapshot) == size):
            raise EnvError(f"that is no snapshot of {N:,} environments {self._name}")
        self._envs.restore(snapshot[len(head) : -N])
        # what has hidden state began its next episode instead
        memory.ended[:] = np.frombuffer(snapshot[-N:], np.bool_)
        memory.ended[:] &= not self._envs.env.has_hidden_state
        memory.episodes[BEGAN] = time.perf_counter()
        self._is_begun = True
        observations, mask = self._begin(np.zeros(N, np.bool_), np.zeros(N, np.int64))
        return observations, self._mask_infos(mask, np.ones(N, np.bool_))

    def render(self) -> tuple[np.ndarray, ...] | None:
        """What the environments look like: uint8 [height, width, 3] of each."""
        if self.render_mode is None:
            gymnasium.logger.warn(f"{self._name} was made without render_mode='rgb_array'")
            return None
        return tuple(self._envs.render(i) for i in range(self.num_envs))

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": self._arguments,
            "snapshot": self.snapshot() if self._is_begun else None,
            "gives_statistics": self._gives_statistics,
            "spec": self.spec,
            "closed": self.closed,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["arguments"])
        if state["snapshot"] is not None:
            self.restore(state["snapshot"])
        self._gives_statistics = state["gives_statistics"]
        self.spec, self.closed = state["spec"], state["closed"]

    @property
    def _name(self) -> str:
        return self._envs.env.__qualname__


def _is_counted_by_wrapper(envs: VectorEnv) -> bool:
    """Whether a RecordEpisodeStatistics around `envs` is among the callers.

    It refuses infos that hold statistics, and a wrapper tells what it wraps nothing of itself.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "reset":
            caller = frame.f_locals.get("self")
            if isinstance(caller, RecordEpisodeStatistics) and caller.unwrapped is envs:
                return True
        frame = frame.f_back
    return False
