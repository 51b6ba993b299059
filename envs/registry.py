"""Environments by name."""

import difflib
import importlib

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError

BUNDLED = {
    "CartPole-v1": "rollout.envs.cartpole:CartPole",
    "Counting-v0": "rollout.envs.counting:Counting",
}


def find_env(env_id: str) -> type[CompiledEnv]:
    """The environment of a bundled id (`CartPole-v1`) or of `package.module:Name`.

    Raises EnvError that says what is missing and which bundled id is nearest.
    """
    place = BUNDLED.get(env_id, env_id)
    module_name, _, name = place.partition(":")
    if not name:
        near = difflib.get_close_matches(env_id, BUNDLED, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"bundled are {', '.join(BUNDLED)}"
        raise EnvError(
            f"unknown environment {env_id!r}; {hint} "
            "(an environment of your own is named package.module:Name)"
        )
    try:
        env = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise EnvError(
            f"environment {env_id!r}: cannot import {module_name!r} ({error}); "
            "start the command in the folder that holds it, or install it"
        ) from error
    except AttributeError as error:
        raise EnvError(f"environment {env_id!r}: {module_name} has no {name!r}") from error
    if not (isinstance(env, type) and issubclass(env, CompiledEnv)):
        raise EnvError(
            f"environment {env_id!r} is {env!r}; wanted a subclass of rollout.envs.CompiledEnv"
        )
    return env
