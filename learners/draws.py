"""The learner's own randomness, drawn like the environments' (rollout.envs.philox), stream LEARNER.

Counter: (block of four words, a, b, purpose), where (a, b) is the place of the draw: the layer and
column for initialisation, the update and epoch for the order of minibatches.
"""

import math

import numpy as np

from rollout.envs.philox import LEARNER, philox, unit_float64

INITIALISATION, MINIBATCH_ORDER = range(2)


def words(seed: int, count: int, purpose: int, place: tuple[int, int]) -> np.ndarray:
    """`count` uint32 words, as uint64 [count]."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    return np.stack(philox(seed, LEARNER, blocks, *place, purpose), axis=1).reshape(-1)[:count]


def normal(seed: int, shape: tuple[int, ...], place: tuple[int, int]) -> np.ndarray:
    """Standard normal numbers, float64 (Box and Muller; the sine half is not used)."""
    size = math.prod(shape)
    drawn = words(seed, 4 * size, INITIALISATION, place).reshape(size, 4)
    radius = np.sqrt(-2.0 * np.log(1.0 - unit_float64(drawn[:, 0], drawn[:, 1])))
    angle = 2.0 * np.pi * unit_float64(drawn[:, 2], drawn[:, 3])
    return (radius * np.cos(angle)).reshape(shape)


def permutation(seed: int, size: int, update: int, epoch: int) -> np.ndarray:
    """The numbers 0, …, size - 1, shuffled anew for each (update, epoch); int64 [size].

    The order of `size` words, equal ones as they come. Sorted by halves, because a stable sort of
    16 bits is a radix sort: twice as fast as one sort of the whole words, and the same everywhere.
    """
    keys = words(seed, size, MINIBATCH_ORDER, (update, epoch))
    order = (keys & np.uint64(0xFFFF)).astype(np.uint16).argsort(kind="stable")
    high = (keys >> np.uint64(16)).astype(np.uint16)
    return order[high[order].argsort(kind="stable")]
