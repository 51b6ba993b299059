"""What policies remember of the episodes that they are in: core states, and the last frames."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rollout.learners.unroll import FLOAT32, UnrollSchema


class PolicyMemory(NamedTuple):
    """Of N policies, each in an episode of its own; all zeros where one begins.

    core_state: float32 [N, core_size]. frames: [N, (frame_stack - 1) * numbers of an observation]
    in its dtype, the observations before, oldest first.
    """

    core_state: np.ndarray
    frames: np.ndarray

    @classmethod
    def at_start(cls, schema: UnrollSchema, num_envs: int) -> "PolicyMemory":
        """Of policies at the beginning of their episodes."""
        size = (schema.frame_stack - 1) * math.prod(schema.observation_shape)
        return cls(
            np.zeros((num_envs, schema.core_size), np.float32),
            np.zeros((num_envs, size), schema.observation_dtype),
        )

    @classmethod
    def from_bytes(cls, schema: UnrollSchema, rows: np.ndarray) -> "PolicyMemory":
        """A copy of what `to_bytes` returned, uint8 [N, memory_bytes]."""
        memory = cls.at_start(schema, len(rows))
        stop = FLOAT32.itemsize * schema.core_size
        memory.core_state.view(np.uint8)[:] = rows[:, :stop]
        memory.frames.view(np.uint8)[:] = rows[:, stop:]
        return memory

    def to_bytes(self) -> np.ndarray:
        """A copy, uint8 [N, memory_bytes]."""
        return np.concatenate([part.view(np.uint8) for part in self], axis=1)

    def pick(self, rows: Sequence[int] | np.ndarray) -> "PolicyMemory":
        """A copy of these policies'."""
        return PolicyMemory(*(part[rows] for part in self))

    def clear(self, rows: np.ndarray | int) -> None:
        """Begin an episode for these. rows: an index, or bool [N]."""
        for part in self:
            part[rows] = 0
