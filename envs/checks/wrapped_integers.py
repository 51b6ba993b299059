"""Integers that an observation's dtype does not hold: they wrap around, and still look right."""

import time
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, MultiBinary, MultiDiscrete, Space

from rollout.envs.batch import Envs
from rollout.envs.checks.elements import Outside, observation_leaves
from rollout.envs.checks.explanations import Moment
from rollout.envs.checks.trial import Trial

NUM_ENVS = 2  # plain Python is slow
NUM_STEPS = 100


def wrapped_integer(trial: Trial, limit_s: float) -> str | None:
    """The first number that `observe` writes and its array does not keep; None if there is none.

    What it writes is seen by showing it, in plain Python, an array of wider integers.
    """
    space = _widened(trial.env.observation_space)
    if space == trial.env.observation_space:
        return None
    wide_env: Any = type(trial.env.__name__, (trial.env,), {"observation_space": space})
    wide = Envs(wide_env, NUM_ENVS, trial.seed, params=trial.params, jit=False, begin=False)
    narrow = trial.envs(NUM_ENVS, jit=False, begin=False)
    playing = trial.envs(NUM_ENVS)
    player = trial.player(playing)
    end = time.monotonic() + limit_s
    for _ in range(min(NUM_STEPS, trial.num_steps)):
        wide.records[:] = narrow.records[:] = playing.records
        try:
            found = _difference(wide, narrow)
        except Exception:  # check_plain_python says so
            return None
        if found or time.monotonic() > end:
            return found
        player.step()
    return None


def _widened(space: Space) -> Space:
    """The same space with integers of 64 bits."""
    if isinstance(space, Dict):
        return Dict({name: _widened(inner) for name, inner in space.spaces.items()})
    if isinstance(space, MultiBinary):
        return Box(0, 1, space.shape, np.int64)
    if isinstance(space, MultiDiscrete):
        return MultiDiscrete(space.nvec)  # of 64 bits
    if isinstance(space, Box) and space.dtype.kind in "iu" and space.dtype.itemsize < 8:
        return Box(space.low.astype(np.int64), space.high.astype(np.int64), dtype=np.int64)
    return space


def _difference(wide: Envs, narrow: Envs) -> str | None:
    pairs = zip(
        observation_leaves(wide.env.observation_space, wide.observation()),
        observation_leaves(narrow.env.observation_space, narrow.observation()),
        strict=True,
    )
    for n, ((written, _), (kept, _)) in enumerate(pairs):
        if written.array.dtype == kept.array.dtype:
            continue
        for row, *rest in np.argwhere(written.array != kept.array).tolist():
            index, dtype = tuple(rest), kept.array.dtype
            info = np.iinfo(dtype)
            wrong = Outside(
                row,
                n,
                index,
                kept.name(index),
                written.array[row, *index],
                f"{info.min} to {info.max} of {dtype}, which keeps {kept.array[row, *index]}",
            )
            moment = Moment(wide.env, wide.records[row : row + 1].view(np.uint8), wide.params_bytes)
            line = moment.line_that_writes(wrong) or "observe"
            return f"{wrong} ({line}); {moment.place('observe')}"
    return None
