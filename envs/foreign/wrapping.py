"""Wrappers around foreign environments, by name: Gymnasium's, or the user's own."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from gymnasium import wrappers as single_wrappers
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import vector as vector_wrappers

from rollout.envs.errors import EnvError
from rollout.envs.foreign.extras import install_hint
from rollout.envs.import_path import first_on_path

Wrap = Callable[[Any], Any]


def find_wrapper(wrapper: str | dict[str, Any], folder: str = "", is_vector: bool = False) -> Wrap:
    """What wraps an environment in it. Raises EnvError where that cannot be.

    wrapper: a name of Gymnasium's (`FrameStackObservation`) or `package.module:Name`, or a table
    with `name` and keyword arguments. folder: where modules are looked for first. is_vector:
    whether it is to wrap a vector environment.
    """
    arguments = {"name": wrapper} if isinstance(wrapper, str) else dict(wrapper)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise EnvError(f"wrapper {wrapper!r} has no name, such as FrameStackObservation")
    found = _named(name, folder, is_vector)

    def wrap(env: Any) -> Any:
        try:
            return found(env, **arguments)
        except DependencyNotInstalled as error:
            raise EnvError(f"wrapper {name}: {error}{install_hint(error)}") from error
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise EnvError(f"wrapper {name}({given}): {type(error).__name__}: {error}") from error

    return wrap


def _named(name: str, folder: str, is_vector: bool) -> Any:
    package = vector_wrappers if is_vector else single_wrappers
    module_name, _, attribute = name.rpartition(":")
    if not module_name and attribute not in package.__all__:
        near = difflib.get_close_matches(attribute, package.__all__, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"see {package.__name__}"
        if is_vector and attribute in single_wrappers.__all__:
            hint = "it is for single environments; this is a vector environment"
        raise EnvError(
            f"unknown wrapper {name!r}; {hint} (one of your own is named package.module:Name)"
        )
    try:
        with first_on_path(folder):
            module = importlib.import_module(module_name) if module_name else package
            return getattr(module, attribute)
    except AttributeError as error:
        raise EnvError(f"wrapper {name!r}: {module_name} has no {attribute!r}") from error
    except Exception as error:
        raise EnvError(
            f"wrapper {name!r}: {type(error).__name__}: {error}{install_hint(error)}"
        ) from error
