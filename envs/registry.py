"""Environments by name."""

import difflib
import os
import sys
from typing import Any, TypeGuard

import gymnasium

from rollout.env_source import OBJECT, EnvSource
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.foreign.finding import GYMNASIUM, PREFIXES, from_maker, from_package, is_maker
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.import_path import ImportFailed, import_named, is_named

AnyEnv = type[CompiledEnv] | ForeignEnv

BUNDLED = {
    "CartPole-v1": "rollout.envs.classic.cartpole:CartPole",
    "Acrobot-v1": "rollout.envs.classic.acrobot:Acrobot",
    "MountainCar-v0": "rollout.envs.classic.mountain_car:MountainCar",
    "MountainCarContinuous-v0": (
        "rollout.envs.classic.mountain_car_continuous:MountainCarContinuous"
    ),
    "Pendulum-v1": "rollout.envs.classic.pendulum:Pendulum",
    "Asterix-MinAtar": "rollout.envs.minatar.asterix:Asterix",
    "Asterix-MinAtar-full": "rollout.envs.minatar.asterix:AsterixFull",
    "Breakout-MinAtar": "rollout.envs.minatar.breakout:Breakout",
    "Breakout-MinAtar-full": "rollout.envs.minatar.breakout:BreakoutFull",
    "Freeway-MinAtar": "rollout.envs.minatar.freeway:Freeway",
    "Freeway-MinAtar-full": "rollout.envs.minatar.freeway:FreewayFull",
    "Seaquest-MinAtar": "rollout.envs.minatar.seaquest:Seaquest",
    "Seaquest-MinAtar-full": "rollout.envs.minatar.seaquest:SeaquestFull",
    "SpaceInvaders-MinAtar": "rollout.envs.minatar.space_invaders:SpaceInvaders",
    "SpaceInvaders-MinAtar-full": "rollout.envs.minatar.space_invaders:SpaceInvadersFull",
    "Counting-v0": "rollout.envs.diagnostic.counting:Counting",
    "Memory-v0": "rollout.envs.diagnostic.memory:Memory",
    "Slow-v0": "rollout.envs.diagnostic.slow:Slow",
}


def as_env(env: type[CompiledEnv] | str) -> type[CompiledEnv]:
    """A definition itself, or the one of that name (find_env). Raises EnvError for all else."""
    if isinstance(env, str):
        return find_env(env)
    if not _is_definition(env):
        raise EnvError(
            f"environment {env!r}; wanted a subclass of rollout.envs.CompiledEnv, a bundled id, or "
            "package.module:Name"
        )
    return env


def find_env(
    env_id: str, folder: str | None = None, max_episode_steps: int | None = None
) -> type[CompiledEnv]:
    """The compiled environment of a bundled id (`CartPole-v1`) or of `package.module:Name`.

    folder: where modules are looked for first; by default the current folder. max_episode_steps:
    in place of the environment's own limit, unless None; -1 for no limit. Raises EnvError that says
    what is missing and which id is nearest, and for one that is not compiled.
    """
    folder = folder or os.getcwd()
    env = find_any_env(EnvSource(id=env_id, max_episode_steps=max_episode_steps, folder=folder))
    if isinstance(env, ForeignEnv):
        raise EnvError(
            f"environment {env_id!r} is a gymnasium.Env; wanted a subclass of "
            "rollout.envs.CompiledEnv (gymnasium.utils.env_checker checks others)"
        )
    return env


def find_any_env(source: EnvSource, given: Any = None) -> AnyEnv:
    """The environment; one of Gymnasium's is made once, to see its spaces.

    given: the environment itself, a class or a function that makes one, where `source` tells no
    more than that it was an object. Raises EnvError that says what is missing and which id is
    nearest.
    """
    if source.id.startswith(PREFIXES):
        return from_package(source)
    value = _given(source.id, given) if source.is_object else _named(source.id, source.folder)
    limit = source.max_episode_steps
    if source.vectorization_mode != "sync":
        raise EnvError(
            f"env.vectorization_mode={source.vectorization_mode!r} is for ids of Gymnasium's, "
            f"gymnasium:ID; {source.id} is none"
        )
    if _is_definition(value):
        if source.wrappers:
            raise EnvError(f"env.wrappers are for environments of Gymnasium's; {source.id} is none")
        return value if limit is None else value.with_time_limit(limit)
    if is_maker(value) and _is_of_python(value) and not source.is_object:
        raise EnvError(f"environment {source.id!r} is a part of Python, and makes no environment")
    if is_maker(value):
        return from_maker(source, value)
    raise EnvError(
        f"environment {source.id!r} is {value!r}; wanted a subclass of rollout.envs.CompiledEnv or "
        "of gymnasium.Env or VectorEnv, or a function that makes one"
    )


def _is_of_python(value: Any) -> bool:
    """Whether it is of the standard library, which has much that should not be called by files."""
    return value.__module__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}


def _given(env_id: str, given: Any) -> Any:
    """What was given as an object, if it was."""
    if given is None:
        name = env_id.removeprefix(OBJECT)
        raise EnvError(
            f"environment {env_id!r} was an object, of which no file holds more than the name; in "
            f"Python, rollout.load_policy(RUN, env={name}) and rollout.train(resume=RUN, "
            f"env={name}) go on with it (commands need one named package.module:Name)"
        )
    if not isinstance(given, type) and hasattr(given, "step") and hasattr(given, "reset"):
        raise EnvError(
            f"environment {env_id!r} is an instance of {type(given).__name__}, a fleet needs many; "
            "give the class, or a function that makes one: env=lambda: …"
        )
    if isinstance(given, str):
        raise EnvError(
            f"environment {given!r} is a name, which the experiment says: "
            f'{{"env": {{"id": "{given}"}}, …}}; env= takes a class, or a function that makes one'
        )
    return given


def _named(env_id: str, folder: str) -> Any:
    """What a bundled id, or `package.module:Name`, is the name of."""
    named = BUNDLED.get(env_id, env_id)
    if not is_named(named):
        raise EnvError(
            f"unknown environment {env_id!r}; {_nearest(env_id, folder)} "
            "(an environment of your own is named package.module:Name)"
        )
    try:
        return import_named(named, folder, "environment", _is_env)
    except ImportFailed as failed:
        if isinstance(failed.__cause__, EnvError):  # a definition that is wrong says so best itself
            raise failed.__cause__ from failed.__cause__.__cause__
        raise EnvError(f"environment {env_id!r}: {failed}") from failed.__cause__


def _nearest(env_id: str, folder: str) -> str:
    """What may have been meant: a file of the folder's, or a bundled id."""
    path = os.path.relpath(os.path.join(folder, env_id.partition(":")[0]), folder)
    module = path.removesuffix(".py").replace("/", ".")
    file = os.path.join(*module.split(".")) + ".py" if module.strip(".") else ""
    if not path.startswith("..") and os.path.isfile(os.path.join(folder, file)):
        return f"which environment of {file}? say {module}:{env_id.partition(':')[2] or 'Name'}"
    if env_id in gymnasium.registry:
        return f"did you mean {GYMNASIUM}{env_id}?"
    near = difflib.get_close_matches(env_id, BUNDLED, n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else f"bundled are {', '.join(BUNDLED)}"


def can_render(env: AnyEnv) -> bool:
    """Whether there are pictures of an environment."""
    return env.renders if isinstance(env, ForeignEnv) else hasattr(env, "render")


def _is_env(value: object) -> bool:
    is_foreign = isinstance(value, type) and issubclass(value, gymnasium.Env)
    return _is_definition(value) or (is_foreign and value is not gymnasium.Env)


def _is_definition(value: object) -> TypeGuard[type[CompiledEnv]]:
    return isinstance(value, type) and issubclass(value, CompiledEnv) and value is not CompiledEnv
