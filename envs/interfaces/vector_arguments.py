"""What a vector environment is asked for: taken as it is meant, or refused in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from rollout.envs.compiled_env import NO_LIMIT, CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.interfaces.vector_memory import Memory
from rollout.envs.layouts import action_layout


def metadata_of(env: type[CompiledEnv]) -> dict[str, Any]:
    """Gymnasium's metadata of an environment."""
    modes = ["rgb_array"] if hasattr(env, "render") else []
    return {"render_modes": modes, "render_fps": env.render_fps}


def checked_mode(autoreset_mode: AutoresetMode | str) -> AutoresetMode:
    """The mode itself, or of that name."""
    try:
        return AutoresetMode(autoreset_mode)
    except ValueError:
        modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
        raise EnvError(f"autoreset_mode={autoreset_mode!r}, wanted one of {modes}") from None


def checked_render_mode(env: type[CompiledEnv], render_mode: str | None) -> str | None:
    """A mode that the environment has."""
    modes = metadata_of(env)["render_modes"]
    if render_mode is not None and render_mode not in modes:
        raise EnvError(
            f"{env.__qualname__} has no render_mode={render_mode!r}, wanted "
            + " or ".join(map(repr, [*modes, None]))
        )
    return render_mode


def time_limit(env: type[CompiledEnv], chosen: int | None) -> int:
    """Steps of an episode, 0 for no limit."""
    if chosen is None:
        return env.max_episode_steps or 0
    if not (isinstance(chosen, int | np.integer) and (chosen == NO_LIMIT or 0 < chosen < 2**31)):
        raise EnvError(
            f"max_episode_steps={chosen!r}, wanted a positive integer, {NO_LIMIT} for no limit, or "
            "None for the environment's own"
        )
    return 0 if chosen == NO_LIMIT else int(chosen)


def reset_mask(options: Mapping[str, Any] | None, num_envs: int) -> np.ndarray:
    """Which environments to reset: bool [N]."""
    if not isinstance(options, Mapping | None):
        raise EnvError(f"options={options!r}, wanted a dictionary, or None")
    chosen = (options or {}).get("reset_mask")
    if chosen is None:
        return np.ones(num_envs, np.bool_)
    is_mask = isinstance(chosen, np.ndarray) and chosen.dtype == np.bool_
    if not (is_mask and chosen.shape == (num_envs,) and chosen.any()):
        raise EnvError(
            f"options['reset_mask'] is {chosen!r}, wanted a bool array [{num_envs}] "
            "with at least one True"
        )
    return np.array(chosen)


def chosen_seeds(seed: int | Sequence[int | None] | None, chosen: np.ndarray) -> np.ndarray:
    """int64 [N]: the seed of each environment, or -1 to go on to its next episode."""
    num_envs = len(chosen)
    if seed is None:
        wanted: list[Any] = [None] * num_envs
    elif isinstance(seed, int | np.integer):
        wanted = [int(seed) + i for i in range(num_envs)]
    elif isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str | bytes):
        wanted = list(seed)
    else:
        raise EnvError(f"seed={seed!r}, wanted an integer, one for each environment, or None")
    if len(wanted) != num_envs:
        raise EnvError(f"{len(wanted)} seeds for {num_envs} environments")
    seeds = np.full(num_envs, -1)
    for i in np.flatnonzero(chosen):
        if wanted[i] is not None:
            if not (isinstance(wanted[i], int | np.integer) and 0 <= wanted[i] < 2**32):
                raise EnvError(
                    f"seed {wanted[i]!r} of environment {i}, wanted an integer from 0 to "
                    f"{2**32 - 1}, or None"
                )
            seeds[i] = wanted[i]
    return seeds


def step_problem(env: type[CompiledEnv], memory: Memory, is_begun: bool, actions: Any) -> str:
    """Why a step with these actions, an array or what becomes one, was refused."""
    layout, found, name = action_layout(env.action_space), np.asarray(actions), env.__qualname__
    shape = memory.action.shape
    if found.shape != shape or found.dtype.kind not in memory.action_kinds:
        kind = "integers" if layout.choices else "numbers"
        return f"{name} got actions {found.dtype} {list(found.shape)}, wanted {kind} {list(shape)}"
    if not is_begun:
        return f"{name}: call reset before step"
    if layout.choices:
        wrong = np.argwhere((found < 0) | (found >= np.array(layout.choices)))
        if len(wrong):
            place = tuple(wrong[0])
            stop = layout.choices[place[1] if layout.shape else 0]
            return (
                f"{name} got action {found[place]} for environment {place[0]}, wanted "
                f"an integer from 0 to {stop - 1}"
            )
    elif np.isnan(found).any():
        row, column = np.argwhere(np.isnan(found))[0]
        return f"{name} got action[{column}] = nan for environment {row}, wanted a number"
    waiting = ", ".join(map(str, np.flatnonzero(memory.ended)))
    return (
        f"{name}: the episode of environment {waiting} has ended; reset it before the "
        "next step (of several: options={'reset_mask': terminated | truncated})"
    )
