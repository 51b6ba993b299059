"""Foreign environments by name: of Gymnasium's registry, of other packages, or the user's own."""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import msgspec
from gymnasium.error import DependencyNotInstalled, UnregisteredEnv
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TimeLimit

from rollout.env_source import EnvSource
from rollout.envs.compiled_env import NO_LIMIT
from rollout.envs.errors import EnvError
from rollout.envs.foreign.extras import NAMESPACES, install, install_hint
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.old_gym import OldGymEnv, is_of_old_gym
from rollout.envs.foreign.parallel_games import is_parallel_env
from rollout.envs.foreign.wrapping import find_wrapper
from rollout.envs.import_path import first_on_path

GYMNASIUM, ENVPOOL, PETTINGZOO = "gymnasium:", "envpool:", "pettingzoo:"
PREFIXES = (GYMNASIUM, ENVPOOL, PETTINGZOO)


def from_package(source: EnvSource) -> ForeignEnv:
    """What is named `gymnasium:ID`, `envpool:ID` or `pettingzoo:FAMILY.GAME`."""
    find = {GYMNASIUM: _of_gymnasium, ENVPOOL: _of_envpool, PETTINGZOO: _of_pettingzoo}
    prefix, _, name = source.id.partition(":")
    return _once(source, None, lambda: find[f"{prefix}:"](source, name))


def _of_gymnasium(source: EnvSource, gym_id: str) -> ForeignEnv:
    chosen = source.max_episode_steps
    try:
        with first_on_path(source.folder):
            if package := NAMESPACES.get(gym_id.partition("/")[0]):
                importlib.import_module(package)
            spec = gymnasium.spec(gym_id)
    except Exception as error:  # of the package that it names, too
        raise EnvError(f"unknown environment {source.id!r}; {_hint(gym_id, error)}") from error
    is_vector = source.vectorization_mode == "vector_entry_point"
    if is_vector and spec.vector_entry_point is None:
        raise EnvError(
            f"environment {source.id!r} has no vector environment of its own; leave "
            "env.vectorization_mode out"
        )
    if is_vector:
        _refuse_limit(source)
    limit = spec.max_episode_steps if chosen is None else _limit(chosen)
    limits = {} if chosen is None else {"max_episode_steps": chosen}

    def make(**kwargs: Any) -> Any:
        try:
            if is_vector:
                return gymnasium.make_vec(gym_id, vectorization_mode="vector_entry_point", **kwargs)
            return gymnasium.make(gym_id, disable_env_checker=True, **limits, **kwargs)
        except (DependencyNotInstalled, ModuleNotFoundError) as error:
            raise EnvError(f"environment {source.id!r}: {error}{install_hint(error)}") from error

    return _foreign(source, make, limit, is_vector)


def _hint(env_id: str, error: Exception) -> str:
    versions = _versions(env_id)
    if versions:  # Gymnasium takes the newest that it has, another one some day
        return f"say which version: {' or '.join(f'{GYMNASIUM}{one}' for one in versions)}"
    if not isinstance(error, UnregisteredEnv):
        said = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {said}{install_hint(error)}"
    known = [known for known in sorted(gymnasium.registry) if not known.startswith("rollout/")]
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(f'{GYMNASIUM}{one}' for one in near)}?"
    return (
        "an environment that another package registers is named gymnasium:PACKAGE:ID, and the "
        "package has to be installed"
    )


def _versions(env_id: str) -> list[str]:
    """The ids that one without a version may stand for, oldest first."""
    package, colon, name = env_id.rpartition(":")
    specs = (spec for spec in gymnasium.registry.values() if spec.version is not None)
    found = sorted((s.version, s.id) for s in specs if s.id == f"{name}-v{s.version}")
    return [f"{package}{colon}{one}" for _, one in found]


def _of_envpool(source: EnvSource, task_id: str) -> ForeignEnv:
    envpool = _package("envpool", source)
    known = envpool.list_all_envs()
    if task_id not in known:
        near = difflib.get_close_matches(task_id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'{ENVPOOL}{one}' for one in near)}?" if near else ""
        raise EnvError(f"unknown environment {source.id!r}; {hint or 'EnvPool has none such'}")
    from rollout.envs.foreign.envpool_env import EnvPoolVectorEnv

    _refuse_limit(source)
    return _foreign(source, functools.partial(EnvPoolVectorEnv, task_id), None, is_vector=True)


def _of_pettingzoo(source: EnvSource, name: str) -> ForeignEnv:
    _package("pettingzoo", source)
    _refuse_limit(source)
    try:
        make = importlib.import_module(f"pettingzoo.{name}").parallel_env
    except (ImportError, AttributeError) as error:
        raise EnvError(
            f"environment {source.id!r}: {error}{install_hint(error)}; games are named by their "
            f"modules, such as {PETTINGZOO}butterfly.pistonball_v6"
        ) from error
    return _foreign(source, make, None)


def _package(name: str, source: EnvSource) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EnvError(f"environment {source.id!r} needs {name}; {install(name)}") from error


def is_maker(value: object) -> bool:
    """Whether a value may make environments: a class with `step`, or a function."""
    is_class = isinstance(value, type) and hasattr(value, "step") and hasattr(value, "reset")
    return is_class or inspect.isfunction(value) or isinstance(value, functools.partial)


def from_maker(source: EnvSource, maker: Any) -> ForeignEnv:
    """What a class or function makes, with `source.params` as its keyword arguments.

    A VectorEnv, and a function that takes num_envs, is told how many environments an actor has.
    """
    is_class = isinstance(maker, type)
    is_vector = issubclass(maker, VectorEnv) if is_class else _names_num_envs(maker)
    if is_vector:
        _refuse_limit(source)
    limit = None if source.max_episode_steps is None else _limit(source.max_episode_steps)

    @functools.wraps(maker, updated=())
    def make(**kwargs: Any) -> Any:
        env = maker(**kwargs)
        if is_of_old_gym(env):
            env = OldGymEnv(env)
        if is_parallel_env(env):
            _refuse_limit(source)
        return env if limit is None else TimeLimit(env, limit)

    return _once(source, maker, lambda: _foreign(source, make, limit, is_vector))


def _names_num_envs(maker: Callable[..., Any]) -> bool:
    return "num_envs" in inspect.signature(maker).parameters


def _limit(chosen: int) -> int | None:
    return None if chosen == NO_LIMIT else chosen


def _refuse_limit(source: EnvSource) -> None:
    if source.max_episode_steps is not None:
        raise EnvError(
            f"env.max_episode_steps={source.max_episode_steps}: {source.id} counts its steps "
            "itself; set its own limit among env.params"
        )


def _foreign(
    source: EnvSource, make: Callable[..., Any], limit: int | None, is_vector: bool = False
) -> ForeignEnv:
    """What `make` makes, in the wrappers that the source names."""
    wraps = [find_wrapper(one, source.folder, is_vector) for one in source.wrappers]

    @functools.wraps(make, updated=())  # its signature: whether it takes a render_mode
    def make_wrapped(**kwargs: Any) -> Any:
        env = make(**kwargs)
        for wrap in wraps:
            env = wrap(env)
        return env

    return ForeignEnv(source.id, make_wrapped, source.params, limit, source.folder, is_vector)


_known: dict[tuple[bytes, int], ForeignEnv] = {}


def _once(source: EnvSource, maker: Any, find: Callable[[], ForeignEnv]) -> ForeignEnv:
    """What `find` finds, once in this process: an environment has to be made to see its spaces.

    maker: of this name, today; a module may be imported anew.
    """
    key = msgspec.msgpack.encode(source), id(maker)
    if key not in _known:
        _known[key] = find()
    return _known[key]
