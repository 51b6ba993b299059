"""Gymnasium's actions from the kit's: what the policy chose, as the environment wants it.

A Dict or Tuple of actions becomes one array of choices, or one of quantities, in the order of its
entries; both kinds in one space have no distribution of ours.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from rollout.envs.errors import EnvError
from rollout.envs.foreign.observations import entries_of, whose

Read = Callable[[np.ndarray], list[Any]]  # actions [N, …] of the kit's → N of the space


def kit_action_space(space: Any) -> Space:
    """The kit's space for actions of `space`. Raises EnvError that names what cannot be."""
    if isinstance(space, Discrete):
        return Discrete(int(space.n))
    leaves = list(_leaves(space, "action_space"))
    if all(isinstance(leaf, Box) for leaf in leaves):
        low, high = (
            np.concatenate([getattr(leaf, bound).reshape(-1) for leaf in leaves])
            for bound in ("low", "high")
        )
        with np.errstate(over="ignore"):  # bounds beyond single precision are none
            low, high = low.astype(np.float32), high.astype(np.float32)
        return Box(low, high, dtype=np.float32)
    if not any(isinstance(leaf, Box) for leaf in leaves):
        return MultiDiscrete(np.concatenate([_choices(leaf) for leaf in leaves]))
    raise EnvError(
        f"action_space is {space!r}, wanted choices (Discrete, MultiDiscrete, MultiBinary) or "
        "quantities (Box), not both in one"
    )


def _leaves(space: Any, place: str) -> Iterator[Any]:
    if isinstance(space, Dict | Tuple) and len(space.spaces):
        for key, inner in entries_of(space).items():
            yield from _leaves(inner, f"{place}[{key!r}]")
        return
    is_box = isinstance(space, Box) and np.dtype(space.dtype).kind == "f" and 0 not in space.shape
    if not (is_box or isinstance(space, Discrete | MultiDiscrete | MultiBinary)):
        raise EnvError(
            f"{place} is {space!r}, {whose(space)}wanted a Discrete, MultiDiscrete, MultiBinary or "
            "Box of floats, or a Dict or Tuple of these"
        )
    yield space


def _choices(space: Discrete | MultiDiscrete | MultiBinary) -> list[int]:
    """How many values each number of an action may have."""
    if isinstance(space, Discrete):
        return [int(space.n)]
    if isinstance(space, MultiDiscrete):
        return space.nvec.reshape(-1).tolist()
    return [2] * int(np.prod(space.shape))


def action_reader(space: Space) -> Read:
    """A function from actions [N, …] of the kit's space to N of `space`; quantities are clipped."""
    if isinstance(space, Discrete):
        start = np.int64(space.start)  # NumPy's own integers are what spaces check fastest
        return lambda actions: list(actions + start)
    read, _ = _reader(space, 0)
    return read


def _reader(space: Any, first: int) -> tuple[Read, int]:
    """Reads its own part of actions, from number `first` on; also says where the next begins."""
    if isinstance(space, Dict | Tuple):
        readers = {}
        for key, inner in entries_of(space).items():
            readers[key], first = _reader(inner, first)
        keys = list(readers) if isinstance(space, Dict) else None

        def read_entries(actions: np.ndarray) -> list[Any]:
            rows = zip(*(read(actions) for read in readers.values()), strict=True)
            return (
                list(rows) if keys is None else [dict(zip(keys, row, strict=True)) for row in rows]
            )

        return read_entries, first
    shape, dtype = space.shape, space.dtype
    stop = first + int(np.prod(shape))
    mine = slice(first, stop)
    if isinstance(space, Box):
        low, high = space.low, space.high

        def read_quantities(actions: np.ndarray) -> list[Any]:
            given = actions[:, mine].reshape(-1, *shape).astype(dtype)
            return _items(np.clip(given, low, high, out=given))

        return read_quantities, stop
    if isinstance(space, Discrete):
        start = int(space.start)
        return lambda actions: (actions[:, first] + start).tolist(), stop
    start = space.start if isinstance(space, MultiDiscrete) else 0
    return lambda actions: _items(
        (actions[:, mine].reshape(-1, *shape) + start).astype(dtype)
    ), stop


def _items(batch: np.ndarray) -> list[np.ndarray]:
    """Its rows, also where they are single numbers."""
    return list(batch) if batch.ndim > 1 else [batch[i, ...] for i in range(len(batch))]
