"""Randomness without a generator: every draw is a function of where it happens.

Draw k of step t of episode e of environment i of stream s in a run with a given seed is

    Philox4x32-10(key=(seed, s), counter=(i, e, t, k))

(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). All six words are uint32.
Nothing has to be carried along, so any process computes the same numbers for an environment, in
any order. An environment receives its place in this space as `draw`, a record with the fields of
`CLOCK`; each call below takes the next k.

The functions here work on Python integers and, the first three, on arrays of uint64. For compiled
code philox_compiled.py gives the same names bodies on uint32.
"""

import math

import numpy as np

# Streams of draws. New ones go at the end: a number, once used, keeps its meaning for ever.
RESET, STEP, ACTION, EVALUATION, LEARNER = range(5)

# Where an environment stands in the space of draws, and what the kit counts for it.
# t is the number of steps done in this episode; episode_return the sum of its rewards.
CLOCK = np.dtype(
    [
        ("seed", np.uint32),
        ("stream", np.uint32),
        ("env", np.uint32),
        ("episode", np.uint32),
        ("t", np.uint32),
        ("k", np.uint32),
        ("episode_return", np.float64),
    ]
)

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, as the paper has them
ROUNDS = 10


def philox(seed, stream, env, episode, t, k):
    """Four uint32 words for one place: Python integers, or uint64 arrays if any argument is one."""
    key_0, key_1 = seed, stream
    word_0, word_1, word_2, word_3 = env, episode, t, k
    for _ in range(ROUNDS):
        product_0 = MULTIPLIER_0 * word_0
        product_1 = MULTIPLIER_1 * word_2
        word_0 = (product_1 >> 32) ^ word_1 ^ key_0
        word_1 = product_1 & 0xFFFFFFFF
        word_2 = (product_0 >> 32) ^ word_3 ^ key_1
        word_3 = product_0 & 0xFFFFFFFF
        key_0 = (key_0 + WEYL_0) & 0xFFFFFFFF
        key_1 = (key_1 + WEYL_1) & 0xFFFFFFFF
    return word_0, word_1, word_2, word_3


def episode_seed(seed: int, env: int, episode: int) -> int:
    """The word that an environment of Gymnasium's is reset with for this episode."""
    return philox(seed, RESET, env, episode, 0, 0)[0]


def unit_float64(word_0, word_1):
    """A float64 in [0, 1) from 53 bits of two words."""
    return (word_0 >> 5) * 2.0**-27 + (word_1 >> 6) * 2.0**-53


def unit_float32(word):
    """A float32 in [0, 1) from a word's top 24 bits (all 32 would round up to 1.0)."""
    return np.float32(word >> 8) * np.float32(2.0**-24)


def next_unit_float64(draw):
    words = philox(draw.seed, draw.stream, draw.env, draw.episode, draw.t, draw.k)
    draw.k += 1
    return unit_float64(words[0], words[1])


def uniform(draw, low, high):
    """A float64, uniform in [low, high)."""
    return low + (high - low) * next_unit_float64(draw)


def integers(draw, low, high):
    """An integer, uniform in low, …, high - 1."""
    return low + int(next_unit_float64(draw) * (high - low))


def normal(draw, mean, standard_deviation):
    """A float64 from the normal distribution (Box and Muller; the sine half is not used)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - next_unit_float64(draw)))
    angle = 2.0 * math.pi * next_unit_float64(draw)
    return mean + standard_deviation * radius * math.cos(angle)
