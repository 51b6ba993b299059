"""Foreign environments by name: what Gymnasium's registry has, a class, or a function."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled, UnregisteredEnv
from gymnasium.wrappers import TimeLimit

from rollout.envs.compiled_env import NO_LIMIT
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.import_path import first_on_path

PREFIX = "gymnasium:"  # of ids of Gymnasium's registry


def from_registry(
    env_id: str, params: Mapping[str, Any], max_episode_steps: int | None, folder: str
) -> ForeignEnv:
    """What `gymnasium.make` makes of an id, `CartPole-v1` or `module:ID`.

    max_episode_steps: in place of the registered limit, unless None; NO_LIMIT for none. folder:
    where modules are looked for first.
    """
    name = f"{PREFIX}{env_id}"
    try:
        with first_on_path(folder):
            spec = gymnasium.spec(env_id)
    except Exception as error:  # of the package that it names, too
        raise EnvError(f"unknown environment {name!r}; {_hint(env_id, error)}") from error
    limit, chosen = spec.max_episode_steps, {}
    if max_episode_steps is not None:
        limit = None if max_episode_steps == NO_LIMIT else max_episode_steps
        chosen = {"max_episode_steps": max_episode_steps}

    def make(**kwargs: Any) -> Any:
        try:
            return gymnasium.make(env_id, disable_env_checker=True, **chosen, **kwargs)
        except DependencyNotInstalled as error:
            raise EnvError(f"environment {name!r}: {error}") from error

    key = name, repr(spec), repr(params), max_episode_steps, folder
    return _once(key, lambda: ForeignEnv(name, make, params, limit, folder))


def _hint(env_id: str, error: Exception) -> str:
    if not isinstance(error, UnregisteredEnv):
        said = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {said}"
    known = [known for known in sorted(gymnasium.registry) if not known.startswith("rollout/")]
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(f'{PREFIX}{one}' for one in near)}?"
    return (
        "an environment that another package registers is named gymnasium:PACKAGE:ID, and the "
        "package has to be installed"
    )


def is_maker(value: object) -> bool:
    """Whether a value makes environments: a class of Gymnasium's, or a function."""
    is_class = isinstance(value, type) and issubclass(value, gymnasium.Env)
    return is_class or inspect.isfunction(value)


def from_maker(
    env_id: str, maker: Any, params: Mapping[str, Any], max_episode_steps: int | None, folder: str
) -> ForeignEnv:
    """What a class or function makes, with `params` as its keyword arguments.

    The other arguments are those of `from_registry`.
    """
    limit = None if max_episode_steps == NO_LIMIT else max_episode_steps

    @functools.wraps(maker, updated=())  # its signature: whether it takes a render_mode
    def make(**kwargs: Any) -> Any:
        env = maker(**kwargs)
        if limit is not None and isinstance(env, gymnasium.Env):
            return TimeLimit(env, limit)
        return env

    key = env_id, id(maker), repr(params), max_episode_steps, folder
    return _once(key, lambda: ForeignEnv(env_id, make, params, limit, folder))


_known: dict[tuple[Any, ...], ForeignEnv] = {}


def _once(key: tuple[Any, ...], find: Callable[[], ForeignEnv]) -> ForeignEnv:
    """What `find` finds, once in this process: an environment has to be made to see its spaces."""
    if key not in _known:
        _known[key] = find()
    return _known[key]
