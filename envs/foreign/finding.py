"""Foreign environments by name: what Gymnasium's registry has, a class, or a function."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import msgspec
from gymnasium.error import DependencyNotInstalled, UnregisteredEnv
from gymnasium.wrappers import TimeLimit

from rollout.envs.compiled_env import NO_LIMIT
from rollout.envs.env_source import EnvSource
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.import_path import first_on_path

PREFIX = "gymnasium:"  # of ids of Gymnasium's registry


def from_registry(source: EnvSource) -> ForeignEnv:
    """What `gymnasium.make` makes of an id, `gymnasium:CartPole-v1` or `gymnasium:module:ID`."""
    return _once(source, None, lambda: _from_registry(source))


def _from_registry(source: EnvSource) -> ForeignEnv:
    gym_id, chosen = source.id.removeprefix(PREFIX), source.max_episode_steps
    try:
        with first_on_path(source.folder):
            spec = gymnasium.spec(gym_id)
    except Exception as error:  # of the package that it names, too
        raise EnvError(f"unknown environment {source.id!r}; {_hint(gym_id, error)}") from error
    limit = spec.max_episode_steps if chosen is None else _limit(chosen)
    limits = {} if chosen is None else {"max_episode_steps": chosen}

    def make(**kwargs: Any) -> Any:
        try:
            return gymnasium.make(gym_id, disable_env_checker=True, **limits, **kwargs)
        except DependencyNotInstalled as error:
            raise EnvError(f"environment {source.id!r}: {error}") from error

    return ForeignEnv(source.id, make, source.params, limit, source.folder)


def _limit(chosen: int) -> int | None:
    return None if chosen == NO_LIMIT else chosen


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


def from_maker(source: EnvSource, maker: Any) -> ForeignEnv:
    """What a class or function makes, with `source.params` as its keyword arguments."""
    limit = None if source.max_episode_steps is None else _limit(source.max_episode_steps)

    @functools.wraps(maker, updated=())  # its signature: whether it takes a render_mode
    def make(**kwargs: Any) -> Any:
        env = maker(**kwargs)
        if limit is not None and isinstance(env, gymnasium.Env):
            return TimeLimit(env, limit)
        return env

    return _once(
        source, maker, lambda: ForeignEnv(source.id, make, source.params, limit, source.folder)
    )


_known: dict[tuple[bytes, int], ForeignEnv] = {}


def _once(source: EnvSource, maker: Any, find: Callable[[], ForeignEnv]) -> ForeignEnv:
    """What `find` finds, once in this process: an environment has to be made to see its spaces.

    maker: of this name, today; a module may be imported anew.
    """
    key = msgspec.msgpack.encode(source), id(maker)
    if key not in _known:
        _known[key] = find()
    return _known[key]
