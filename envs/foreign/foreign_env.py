"""An environment that is only known as something that makes a `gymnasium.Env`.

It trains in the same fleet as a compiled one. Its state is hidden: where another process takes it
over, its episode is begun anew, and that is counted.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from rollout.envs.errors import EnvError
from rollout.envs.foreign.actions import kit_action_space
from rollout.envs.foreign.observations import kit_observation_space
from rollout.envs.import_path import first_on_path

PICTURES = "rgb_array"


class ForeignEnv:
    """What the fleet needs to know of such an environment, by the names that CompiledEnv has.

    gym_observation_space, gym_action_space: the environment's own. observation_space, action_space:
    the kit's spaces that stand for them. renders: whether it can be asked for pictures.
    """

    has_hidden_state = True

    def __init__(
        self,
        env_id: str,
        make: Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        folder: str = "",
    ) -> None:
        """make: called with `params`, and with render_mode where pictures are wanted.

        max_episode_steps: what `make` sees to, None for no limit. folder: where modules that it
        imports are looked for first. Makes an environment and closes it. Raises EnvError where it
        cannot be had, or not be trained in.
        """
        self.__name__ = self.__qualname__ = env_id
        self.params = dict(params or {})
        self.max_episode_steps = max_episode_steps
        self._make, self._folder = make, folder
        env = self.make()
        self.__doc__ = env.unwrapped.__doc__
        try:
            self.gym_observation_space = env.observation_space
            self.gym_action_space = env.action_space
            has_mode = PICTURES in (env.metadata.get("render_modes") or ())
            self.renders = has_mode and _takes(make, "render_mode")
            self.observation_space = kit_observation_space(self.gym_observation_space)
            self.action_space = kit_action_space(self.gym_action_space)
            _check_reset(env)
        except (EnvError, AttributeError) as error:
            raise EnvError(f"environment {env_id!r}: {error}") from None
        finally:
            env.close()

    def __repr__(self) -> str:
        return f"ForeignEnv({self.__name__})"

    def make(self, render_mode: str | None = None) -> gymnasium.Env:
        """A new environment. Raises EnvError with what its own constructor says."""
        kwargs = self.params | ({"render_mode": render_mode} if render_mode else {})
        try:
            with first_on_path(self._folder) if self._folder else contextlib.nullcontext():
                env = self._make(**kwargs)
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(
                f"environment {self.__name__!r} cannot be made: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(env, gymnasium.Env):
            raise EnvError(f"environment {self.__name__!r} is {env!r}, wanted a gymnasium.Env")
        return env


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function takes a keyword argument of this name."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == keyword or one.kind is one.VAR_KEYWORD for one in parameters)


def _check_reset(env: gymnasium.Env) -> None:
    if not _takes(env.unwrapped.reset, "seed"):
        parameters = inspect.signature(env.unwrapped.reset).parameters.values()
        file = inspect.getsourcefile(type(env.unwrapped))
        raise EnvError(
            f"reset({', '.join(map(str, parameters))}) takes no seed ({file}); write it as "
            "def reset(self, *, seed=None, options=None) and return (observation, info)"
        )
