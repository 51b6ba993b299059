"""Checked mode: what goes wrong in an environment is said with its place and its value.

Compiled code notices (an index outside its array, a number that is not what its space says), and
plain Python, doing the same step again from the same state, shows where.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from rollout.envs.authoring.author_lines import Traced
from rollout.envs.batch import record_dtype
from rollout.envs.checks.elements import Outside, outside
from rollout.envs.checks.explanations import Moment
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.layouts import action_layout


class Kind(StrEnum):
    """What an environment did wrong."""

    FAILURE = "failure"  # one of its functions raised something: an index outside an array, say
    OBSERVATION = "observation"  # outside its space
    REWARD = "reward"  # not a finite number
    ACTION_MASK = "action mask"  # allows nothing


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where."""

    kind: Kind
    text: str


class Faulty(EnvError):
    """An environment did something wrong in checked mode."""

    def __init__(self, env: type[CompiledEnv], *faults: Fault) -> None:
        texts = "; ".join(fault.text for fault in faults)
        super().__init__(f"environment {env.__qualname__}: {texts}")
        self.faults = faults


class CheckedKernels:
    """The entries of batch_kernel.py, which here take one environment after the other.

    kernels: those compiled with every index checked, or plain Python. All raise Faulty. Where an
    author's function failed, the environments stay as they were before the call.
    """

    def __init__(self, env: type[CompiledEnv], kernels: Any) -> None:
        self._env = env
        self._kernels = kernels
        self._size = record_dtype(env).itemsize
        self._choices = action_layout(env.action_space).choices

    def begin_all(self, env_bytes, params_bytes, seed, first_env) -> None:
        for i in self._all(env_bytes):
            self._call("begin_all", i, env_bytes, params_bytes, seed, np.uint32(first_env + i))

    def go_on_all(self, env_bytes, params_bytes, position, stride) -> None:
        for i in self._all(env_bytes):
            position[0] = i * stride
            self._call("go_on_all", i, env_bytes, params_bytes, position.copy(), stride)

    def observe_all(self, env_bytes, params_bytes, observation) -> None:
        for i in self._all(env_bytes):
            self._call("observe_all", i, env_bytes, params_bytes, observation[i : i + 1])
        wrong = outside(self._env.observation_space, observation)
        if wrong:
            shown = self._moment(wrong.row, env_bytes, params_bytes)
            raise Faulty(self._env, _observation_fault(wrong, shown))

    def mask_all(self, env_bytes, params_bytes, mask) -> None:
        for i in self._all(env_bytes):
            self._call("mask_all", i, env_bytes, params_bytes, mask[i : i + 1])
        start = 0
        for choice, size in enumerate(self._choices):
            columns = slice(start, start + size)
            allows = mask[:, columns].any(1)
            if not allows.all():
                moment = self._moment(int(np.argmin(allows)), env_bytes, params_bytes)
                line = moment.line_that_forbids(columns)
                text = f"action_mask allows no value of action choice {choice}"
                text += f" ({line or 'plain Python allows some'}); {moment.place('action_mask')}"
                raise Faulty(self._env, Fault(Kind.ACTION_MASK, text))
            start += size

    def step_all(
        self,
        env_bytes,
        params_bytes,
        action,
        observation,
        reward,
        terminated,
        truncated,
        final_env,
        final_observation,
        episode_env,
        episode_return,
        episode_length,
    ) -> tuple[int, int]:
        before = env_bytes.copy()
        finals = episodes = 0
        try:
            for i in self._all(env_bytes):
                row, final, episode = (slice(n, n + 1) for n in (i, finals, episodes))
                wrote_final, wrote_episode = self._call(
                    "step_all",
                    i,
                    env_bytes,
                    params_bytes,
                    action[row],
                    observation[row],
                    reward[row],
                    terminated[row],
                    truncated[row],
                    final_env[final],
                    final_observation[final],
                    episode_env[episode],
                    episode_return[episode],
                    episode_length[episode],
                )
                final_env[finals : finals + wrote_final] = i
                episode_env[episodes : episodes + wrote_episode] = i
                finals += wrote_final
                episodes += wrote_episode
        except Faulty:
            env_bytes[:] = before
            raise
        faults = []
        for i in np.flatnonzero(~np.isfinite(reward))[:1]:
            moment = self._moment(i, before, params_bytes)
            faults.append(_reward_fault(reward[i], moment, action[i]))
        wrong = outside(self._env.observation_space, observation)
        if wrong:
            i = wrong.row
            cause = ""
            if not (terminated[i] or truncated[i]):  # else it is what `reset` left
                moment = self._moment(i, before, params_bytes)
                cause = _cause(moment, moment.step(action[i]))
            shown = self._moment(i, env_bytes, params_bytes)
            faults.append(_observation_fault(wrong, shown, cause))
        wrong = outside(self._env.observation_space, final_observation[:finals])
        if wrong:
            i = final_env[wrong.row]
            moment = self._moment(i, before, params_bytes)
            cause = _cause(moment, moment.step(action[i]))
            faults.append(_observation_fault(wrong, moment, cause))
        if faults:
            raise Faulty(self._env, *faults)
        return finals, episodes

    def _all(self, env_bytes: np.ndarray) -> Iterator[int]:
        yield from range(len(env_bytes) // self._size)

    def _one(self, i: int, env_bytes: np.ndarray) -> np.ndarray:
        return env_bytes[i * self._size : (i + 1) * self._size]

    def _moment(self, i: int, env_bytes: np.ndarray, params_bytes: np.ndarray) -> Moment:
        return Moment(self._env, self._one(i, env_bytes), params_bytes)

    def _call(
        self, kernel: str, i: int, env_bytes: np.ndarray, params_bytes: np.ndarray, *arguments: Any
    ) -> Any:
        """Call a kernel for environment i alone."""
        one = self._one(i, env_bytes)
        before = one.copy()
        try:
            with np.errstate(all="ignore"):  # in plain Python, as in compiled code
                return getattr(self._kernels, kernel)(one, params_bytes, *arguments)
        except Exception as error:
            if isinstance(error, TypeError) and "No matching definition" in str(error):
                raise  # arguments of the wrong types, which the caller explains
            one[:] = before
            text = Moment(self._env, before, params_bytes).explain(error, kernel, *arguments)
            raise Faulty(self._env, Fault(Kind.FAILURE, text)) from error


def _reward_fault(reward: np.floating, before: Moment, action: np.ndarray) -> Fault:
    where = before.place()
    traced = before.step(action)
    line = f" ({traced.returned})" if traced.returned else ""
    return Fault(Kind.REWARD, f"reward is {reward}{line}{_cause(before, traced)}; {where}")


def _observation_fault(wrong: Outside, shown: Moment, cause: str = "") -> Fault:
    line = shown.line_that_writes(wrong)
    text = f"{wrong} ({line or 'observe leaves it so'}){'' if wrong.is_finite else cause}"
    return Fault(Kind.OBSERVATION, f"{text}; {shown.place('observe')}")


def _cause(stepped: Moment, traced: Traced) -> str:
    """Why a number may not be finite, as far as the step that was traced tells."""
    if traced.error:
        return f", where plain Python fails: {stepped.described(traced.error)}"
    if traced.became_bad:
        return f", since {stepped.not_finite()} ({traced.became_bad})"
    state = stepped.not_finite()
    return f", since {state}" if state else ""
