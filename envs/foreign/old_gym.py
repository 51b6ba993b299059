"""Environments with the interface of the old package gym, by today's calls.

Then, `reset()` returned an observation, `seed(seed)` seeded, and `step` returned four values.
"""

import inspect
from typing import Any, TypeGuard

import gymnasium

from rollout.envs.errors import EnvError


def is_of_old_gym(env: Any) -> TypeGuard[Any]:
    """Whether it has what environments have, without being one of Gymnasium's."""
    is_new = isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv)
    if is_new or hasattr(env, "possible_agents"):
        return False
    return all(
        hasattr(env, name) for name in ("reset", "step", "observation_space", "action_space")
    )


class OldGymEnv(gymnasium.Env):
    """One such environment. Of an end, `info["TimeLimit.truncated"]` says whether it is by time.

    Raises EnvError for one that takes no seed in either way.
    """

    def __init__(self, env: Any) -> None:
        self.old = env
        self.__doc__ = env.__doc__
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata = dict(getattr(env, "metadata", None) or {})
        self._takes_seed = "seed" in inspect.signature(env.reset).parameters
        if not (self._takes_seed or hasattr(env, "seed")):
            raise EnvError(
                f"{type(env).__name__} takes no seed, neither by seed(seed) nor by "
                "reset(seed=seed); write it as def reset(self, *, seed=None, options=None) of a "
                "gymnasium.Env"
            )

    def __repr__(self) -> str:
        return f"OldGymEnv({self.old!r})"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._takes_seed:
            answer = self.old.reset(seed=seed)
        else:
            if seed is not None:
                self.old.seed(seed)
            answer = self.old.reset()
        is_new = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)
        return answer if is_new else (answer, {})

    def step(self, action: Any) -> Any:
        answer = self.old.step(action)
        if not (isinstance(answer, tuple) and len(answer) == 4):
            return answer
        observation, reward, done, info = answer
        is_by_time = bool(done) and bool(info.get("TimeLimit.truncated", False))
        return observation, reward, bool(done) and not is_by_time, is_by_time, info

    def render(self) -> Any:
        return self.old.render()

    def close(self) -> None:
        if hasattr(self.old, "close"):
            self.old.close()
