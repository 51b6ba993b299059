"""What philox.py's functions are in compiled code: the same numbers from uint32 arithmetic.

Imported by kernels.py, so that an environment's file can be read without loading Numba.
"""

import numpy as np
from numba.extending import overload, register_jitable

from rollout.envs import philox

# The arithmetic must stay unsigned throughout: Numba turns int64 with uint64 into float64.
_M0, _M1 = np.uint64(philox.MULTIPLIER_0), np.uint64(philox.MULTIPLIER_1)
_W0, _W1 = np.uint32(philox.WEYL_0), np.uint32(philox.WEYL_1)
_ROUNDS = philox.ROUNDS
_HALF = np.uint64(32)


@overload(philox.philox)
def _philox(seed, stream, env, episode, t, k):
    def compiled(seed, stream, env, episode, t, k):
        key_0, key_1 = np.uint32(seed), np.uint32(stream)
        word_0, word_1 = np.uint32(env), np.uint32(episode)
        word_2, word_3 = np.uint32(t), np.uint32(k)
        for _ in range(_ROUNDS):
            product_0 = _M0 * np.uint64(word_0)
            product_1 = _M1 * np.uint64(word_2)
            word_0 = np.uint32(product_1 >> _HALF) ^ word_1 ^ key_0
            word_1 = np.uint32(product_1)
            word_2 = np.uint32(product_0 >> _HALF) ^ word_3 ^ key_1
            word_3 = np.uint32(product_0)
            key_0 = np.uint32(key_0 + _W0)
            key_1 = np.uint32(key_1 + _W1)
        return word_0, word_1, word_2, word_3

    return compiled


@overload(philox.unit_float64)
def _unit_float64(word_0, word_1):
    def compiled(word_0, word_1):
        return np.float64(word_0 >> np.uint32(5)) * 2.0**-27 + (
            np.float64(word_1 >> np.uint32(6)) * 2.0**-53
        )

    return compiled


@overload(philox.unit_float32)
def _unit_float32(word):
    return lambda word: np.float32(word >> np.uint32(8)) * np.float32(2.0**-24)


for _function in (philox.next_unit_float64, philox.uniform, philox.integers, philox.normal):
    register_jitable(_function)
