"""An environment that is only known as something that makes one of Gymnasium's kind.

It trains in the same fleet as a compiled one. Most hide their state: where another process takes
one over, its episode is begun anew, and that is counted.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.actions import kit_action_space
from rollout.envs.foreign.closing import close
from rollout.envs.foreign.observations import kit_observation_space
from rollout.envs.foreign.parallel_games import ParallelGames, is_parallel_env
from rollout.envs.import_path import first_on_path
from rollout.envs.layouts import observation_layout

PICTURES = "rgb_array"


class ForeignEnv:
    """What the fleet needs to know of such an environment, by the names that CompiledEnv has.

    gym_observation_space, gym_action_space: the environment's own, of a single one.
    observation_space, action_space: the kit's spaces that stand for them. renders: whether it can
    be asked for pictures. is_vector: whether it steps all environments of an actor itself (see
    `make_vector`). has_no_ops: whether there are steps that are none (see Unroll). group: how many
    environments, side by side, only go together: the agents of a game. as_seed: N seeds, as its
    vector environment takes them. is_seeded_once: whether a
    seed is for its first episode only, as it costs too much.
    """

    def __init__(
        self,
        env_id: str,
        make: Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        folder: str = "",
        is_vector: bool = False,
    ) -> None:
        """make: called with `params`; with render_mode where pictures are wanted; with num_envs if
        `is_vector`.

        max_episode_steps: what `make` sees to, None for no limit. folder: where modules that it
        imports are looked for first. Makes an environment and closes it. Raises EnvError where it
        cannot be had, or not be trained in.
        """
        self.__name__ = self.__qualname__ = env_id
        self.params = dict(params or {})
        self.max_episode_steps = max_episode_steps
        self._make, self._folder = make, folder
        self.is_vector, self._is_game, self.group = is_vector, False, 1
        self.has_no_ops = self.renders = self.is_seeded_once = False
        env = self._made(num_envs=1) if is_vector else self._made()
        try:
            if is_parallel_env(env):
                self.is_vector = self._is_game = True
                env = ParallelGames([env])
                self.group = env.num_envs
            if isinstance(env, VectorEnv):
                self._see_vector(env)
            else:
                self._see_single(env)
            self.observation_space = kit_observation_space(self.gym_observation_space)
            self.action_space = kit_action_space(self.gym_action_space)
        except (EnvError, AttributeError) as error:
            raise EnvError(f"environment {env_id!r}: {error}") from None
        finally:
            close(env, env_id)

    def __repr__(self) -> str:
        return f"ForeignEnv({self.__name__})"

    def _see_single(self, env: gymnasium.Env) -> None:
        self.__doc__ = env.unwrapped.__doc__
        self.gym_observation_space, self.gym_action_space = env.observation_space, env.action_space
        has_mode = PICTURES in (env.metadata.get("render_modes") or ())
        self.renders = has_mode and _takes(self._make, "render_mode")
        self.is_seeded_once = type(env.unwrapped).__module__ == "ale_py.env"  # 0.2 s each time
        _check_reset(env)

    def _see_vector(self, env: VectorEnv) -> None:
        self.__doc__ = env.unwrapped.__doc__
        self.gym_observation_space = env.single_observation_space
        self.gym_action_space = env.single_action_space
        mode = (env.metadata or {}).get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise EnvError(
                f"metadata['autoreset_mode'] is {mode!r}, wanted one of {', '.join(_MODES)} "
                "(gymnasium.vector.AutoresetMode), so that no row is taken for what it is not"
            )
        self.has_no_ops = mode == AutoresetMode.NEXT_STEP
        self.as_seed = _seed_form(env)

    def make(self, render_mode: str | None = None) -> gymnasium.Env:
        """A new environment. Raises EnvError with what its own constructor says."""
        return self._made(**({"render_mode": render_mode} if render_mode else {}))

    def make_vector(self, num_envs: int) -> VectorEnv:
        """A new vector environment of so many, or of the games of so many agents."""
        if not self._is_game:
            return self._made(num_envs=num_envs)
        return ParallelGames([self._made() for _ in range(num_envs // self.group)])

    def _made(self, **others: Any) -> Any:
        try:
            with first_on_path(self._folder) if self._folder else contextlib.nullcontext():
                env = self._make(**self.params, **others)
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(
                f"environment {self.__name__!r} cannot be made: {type(error).__name__}: {error}"
            ) from error
        if self.is_vector and not self._is_game:
            if not isinstance(env, VectorEnv):
                raise EnvError(
                    f"environment {self.__name__!r} is {env!r}, wanted a VectorEnv of Gymnasium's "
                    "from what takes num_envs"
                )
            return env
        if isinstance(env, VectorEnv):
            raise EnvError(
                f"environment {self.__name__!r} is {env!r}; what makes a VectorEnv has to take "
                "num_envs"
            )
        if not (isinstance(env, gymnasium.Env) or is_parallel_env(env)):
            raise EnvError(f"environment {self.__name__!r} is {env!r}, wanted a gymnasium.Env")
        return env

    # Its state, where it can be saved

    @functools.cached_property
    def _saving(self) -> tuple[int, str]:
        from rollout.envs.foreign.trying_out import try_saving  # which makes some of these

        if self.is_vector:
            return 0, "a vector environment hides its state"
        return try_saving(self)  # pyright: ignore[reportArgumentType]  # it is, through the link

    @property
    def has_hidden_state(self) -> bool:
        """Whether its state cannot be saved; found out by trying."""
        return not self._saving[0]

    @property
    def hides_state_because(self) -> str:
        """Why its state cannot be saved, for people; empty if it can be."""
        return self._saving[1]

    @property
    def state_bytes(self) -> int:
        """Length of one environment's part of a snapshot."""
        room = self._saving[0]
        return self.state_record(room).itemsize if room else philox.CLOCK.itemsize

    @property
    def length_at(self) -> int:
        """Where in a saved state, in bytes, its length is; 0 there says that none was saved."""
        fields = self.state_record(0).fields
        assert fields is not None
        return fields["length"][1]

    def state_dtype(self, state_bytes: int) -> np.dtype:
        """What is in a part of a snapshot of so many bytes: a clock, or more."""
        if state_bytes == philox.CLOCK.itemsize:
            return philox.CLOCK
        return self.state_record(state_bytes - self.state_record(0).itemsize)

    def state_record(self, room: int) -> np.dtype:
        """The clock; what is shown; of the saved state its length, and room for so many bytes."""
        layout = observation_layout(self.observation_space)
        return np.dtype(
            [
                ("clock", philox.CLOCK),
                ("shown", layout.dtype, layout.shape),
                ("length", np.uint32),
                ("saved", np.uint8, (room,)),
            ]
        )


def _seed_form(env: VectorEnv) -> Callable[[list[int]], Any]:
    """How it takes seeds: as a list, as an array, or only one for all. Raises EnvError."""
    refusal = None
    forms: tuple[Callable[[list[int]], Any], ...] = (list, np.array, lambda seeds: seeds[0])
    for form in forms:
        seed: Any = form([0] * env.num_envs)
        try:
            env.reset(seed=seed)
            return form
        except Exception as error:
            refusal = refusal or error
    raise EnvError(f"reset(seed=[0, …]) fails: {type(refusal).__name__}: {refusal}")


_MODES = [str(mode) for mode in AutoresetMode]


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function takes a keyword argument of this name."""
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == keyword or one.kind is one.VAR_KEYWORD for one in parameters)


def _check_reset(env: gymnasium.Env) -> None:
    if not _takes(env.unwrapped.reset, "seed"):
        parameters = inspect.signature(env.unwrapped.reset).parameters.values()
        code = getattr(inspect.unwrap(env.unwrapped.reset), "__code__", None)
        file = f" ({code.co_filename})" if code else ""
        raise EnvError(
            f"reset({', '.join(map(str, parameters))}) takes no seed{file}; write it as "
            "def reset(self, *, seed=None, options=None) and return (observation, info)"
        )
