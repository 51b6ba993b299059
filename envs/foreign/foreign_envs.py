"""N foreign environments in one process, stepped one after the other."""

import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.actions import action_reader
from rollout.envs.foreign.foreign_env import PICTURES, ForeignEnv
from rollout.envs.foreign.observations import Misfit, observation_writer
from rollout.envs.layouts import action_layout, observation_layout


@dataclass(frozen=True)
class EpisodeEnd:
    """An episode that has ended in a step: of which environment, its return, its length in steps.

    final_observation: what was shown last if it was truncated, [*layout.shape]; else None.
    """

    env: int
    episode_return: float
    episode_length: int
    final_observation: np.ndarray | None


class ForeignEnvs:
    """Environments of a run, by the calls that Envs has; what is known of them are their clocks.

    clocks: [N] of philox.CLOCK. Episode e of environment i is reset with a seed that is drawn for
    (i, e), so that one that keeps all its randomness by it begins alike wherever it is acted.
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
    ) -> None:
        """begin: reset all of them; without, `restore` does. pictures: `render` will be asked."""
        self.env = env
        self.num_envs = num_envs
        self.clocks = np.zeros(num_envs, philox.CLOCK)
        self.clocks["seed"], self.clocks["env"] = seed, first_env + np.arange(num_envs)
        self._t, self._episodes = self.clocks["t"], self.clocks["episode"]  # views
        self._returns = self.clocks["episode_return"]
        layout = observation_layout(env.observation_space)
        self._shown = np.zeros((num_envs, *layout.shape), layout.dtype)
        self._write = observation_writer(env.gym_observation_space)
        self._read = action_reader(env.gym_action_space)
        self.position, self._stride = np.zeros(1, np.int64), 1
        self._envs = [env.make(PICTURES if pictures else None) for _ in range(num_envs)]
        if begin:
            self._begin_all()

    def __repr__(self) -> str:
        return f"ForeignEnvs({self.env.__name__}, num_envs={self.num_envs})"

    def snapshot(self) -> bytes:
        """The clocks, which is all that is known."""
        return self.clocks.tobytes()

    def restore(
        self,
        snapshot: bytes | memoryview,
        position: np.ndarray | None = None,
        stride: int = 1,
    ) -> None:
        """Go on from clocks; an episode that was under way gives way to the next.

        position, stride: as for `say_position`.
        """
        if position is not None:
            self.say_position(position, stride)
        self.clocks[:] = np.frombuffer(snapshot, philox.CLOCK)
        self._episodes += self._t > 0
        self._begin_all()

    def say_position(self, position: np.ndarray, stride: int) -> None:
        """Let position[0], int64, be i * stride + t when environment i is at step t of an unroll.

        For whoever has to know where it failed, or hangs.
        """
        self.position, self._stride = position, stride

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
        t: int = 0,
    ) -> list[EpisodeEnd]:
        """Step all environments once, with SAME_STEP autoreset; returns the episodes that ended.

        action: [N, *layout.shape] of the kit's space. Writes observation [N, *layout.shape] (of the
        next episode where one ended), which stays what is shown; reward, terminated, truncated [N].
        t: the step of the unroll, for `position`. Raises EnvError for what cannot be.
        """
        position, stride, write = self.position, self._stride, self._write
        rewards, terminations, truncations, ended = [], [], [], []
        steps = zip(range(self.num_envs), self._envs, self._read(action), observation, strict=True)
        try:
            for i, env, chosen, row in steps:
                position[0] = i * stride + t
                answer = env.step(chosen)
                try:
                    shown, gained, is_terminated, is_truncated, _ = answer
                except (TypeError, ValueError):
                    raise self._not_five_values(answer) from None
                write(row, shown)
                rewards.append(gained)
                terminations.append(bool(is_terminated))
                truncations.append(bool(is_truncated))
                if is_terminated or is_truncated:
                    ended.append(i)
        except Misfit as error:
            raise EnvError(f"{self.env.__name__}: {error}") from None
        self._shown = observation
        terminated[:], truncated[:] = terminations, truncations
        numbers = self._numbers(rewards, t)
        reward[:] = numbers
        self._t += 1
        self._returns += numbers
        return [self._end_episode(i, bool(truncated[i]), t) for i in ended]

    def render(self, i: int = 0) -> Any:
        """Environment i as a picture; the environments were made to give some."""
        if not self.env.renders:
            raise EnvError(f"{self.env.__name__} has no render mode {PICTURES!r}")
        return self._envs[i].render()

    def close(self) -> None:
        """Let go of the environments."""
        for env in self._envs:
            env.close()

    def _end_episode(self, i: int, is_truncated: bool, t: int) -> EpisodeEnd:
        """Tell of an episode that has ended, and begin the next one."""
        final = self._shown[i].copy() if is_truncated else None
        end = EpisodeEnd(i, float(self._returns[i]), int(self._t[i]), final)
        self._episodes[i] += 1
        self._begin(i, t)
        return end

    def _begin_all(self) -> None:
        for i in range(self.num_envs):
            self._begin(i)

    def _begin(self, i: int, t: int = 0) -> None:
        """Begin the episode that the clock of environment i names."""
        self.position[0] = i * self._stride + t
        self._t[i] = self._returns[i] = 0
        clock = self.clocks[i]
        seed, env, episode = int(clock["seed"]), int(clock["env"]), int(clock["episode"])
        word, *_ = philox.philox(seed, philox.RESET, env, episode, 0, 0)
        answer = self._envs[i].reset(seed=word)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise EnvError(
                f"{self.env.__name__}: reset returned {_kinds(answer)}, wanted (observation, info)"
            )
        try:
            self._write(self._shown[i], answer[0])
        except Misfit as error:
            raise EnvError(f"{self.env.__name__}: reset: {error}") from None

    def _numbers(self, rewards: list[Any], t: int) -> np.ndarray:
        """Rewards as float64 [N]."""
        try:
            return np.array(rewards, np.float64).reshape(self.num_envs)
        except (TypeError, ValueError):
            i, wrong = next(pair for pair in enumerate(rewards) if not _is_number(pair[1]))
            self.position[0] = i * self._stride + t
            raise EnvError(
                f"{self.env.__name__}: the reward is {wrong!r}, wanted a number"
            ) from None

    def _not_five_values(self, answer: Any) -> EnvError:
        hint = ""
        if isinstance(answer, tuple) and len(answer) == 4:
            hint = "; four are the old gym's: split `done` into terminated and truncated"
        return EnvError(
            f"{self.env.__name__}: step returned {_kinds(answer)}, wanted (observation, reward, "
            f"terminated, truncated, info){hint}"
        )


def try_out(env: ForeignEnv, seed: int) -> None:
    """Reset and step one environment. Raises EnvError for what it does wrong at once."""
    layout = action_layout(env.action_space)
    action = np.clip(np.zeros((1, *layout.shape)), layout.low or 0, layout.high or 0)
    numbers = np.zeros(1, np.float32), np.zeros(1, np.bool_), np.zeros(1, np.bool_)
    envs = ForeignEnvs(env, 1, seed, begin=False)
    try:
        envs.restore(envs.snapshot())
        envs.step(action.astype(layout.dtype), envs.observation().copy(), *numbers)
    except EnvError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise EnvError(
            f"environment {env.__name__!r} fails in its first reset or step, at {last.filename}:"
            f"{last.lineno}: {type(error).__name__}: {error}"
        ) from error
    finally:
        envs.close()


def _kinds(answer: Any) -> str:
    """What was returned, in few words: `(ndarray, float, bool, dict)`."""
    if isinstance(answer, tuple):
        return f"({', '.join(type(one).__name__ for one in answer)})"
    return type(answer).__name__


def _is_number(reward: Any) -> bool:
    try:
        return np.ndim(reward) == 0 and isinstance(float(reward), float)
    except (TypeError, ValueError):
        return False
