"""Choosing actions from logits, compiled: one choice or several.

A template like acting_kernel.py, which it precedes: it gives that one `draw_noise`, `choose` and
`for_env`. Nothing here uses Python objects.
"""

import math

import numpy as np

from rollout.envs.kernels import bound
from rollout.envs.philox import philox, unit_float32

jit = bound("jit")
CHOICES = bound("CHOICES")  # how many actions each chooses from
ACTION_SIZE = bound("ACTION_SIZE")  # how many such choices
IS_SINGLE = bound("IS_SINGLE")  # whether an environment takes one integer, not an array of them
HAS_MASK = bound("HAS_MASK")
ACTION_STREAM = bound("ACTION_STREAM")


@jit
def draw_noise(envs, start, rows, noise):
    """A float32 in [0, 1) for each choice of each environment start, …, start + rows - 1."""
    for r in range(rows):
        clock = envs[start + r].clock
        for k in range(ACTION_SIZE):
            words = philox(clock.seed, ACTION_STREAM, clock.env, clock.episode, clock.t, k)
            noise[r * ACTION_SIZE + k] = unit_float32(words[0])


@jit
def choose_one(logits, count, uniform, mask, greedy):
    """An action from softmax(logits) by inversion, or the likeliest; returns (action, log-prob).

    Raises ValueError if the mask allows none.
    """
    highest = np.float32(-np.inf)
    likeliest = last = 0
    if HAS_MASK and not mask.any():
        raise ValueError("action_mask allows no action; one of each choice must stay allowed")
    for a in range(count):
        if HAS_MASK and not mask[a]:
            continue
        last = a
        if logits[a] > highest:
            highest = logits[a]
            likeliest = a
    total = np.float32(0.0)
    for a in range(count):
        if HAS_MASK and not mask[a]:
            continue
        total += np.float32(math.exp(logits[a] - highest))
    action = likeliest
    if not greedy:
        threshold = uniform * total
        action = last
        reached = np.float32(0.0)
        for a in range(last):
            if HAS_MASK and not mask[a]:
                continue
            reached += np.float32(math.exp(logits[a] - highest))
            if threshold < reached:
                action = a
                break
    return action, logits[action] - highest - np.float32(math.log(total))


@jit
def choose(outputs, log_std, noise, mask, greedy, action):
    """Write an action [choices] for the outputs of one row; returns its log-probability."""
    log_prob = np.float32(0.0)
    first = 0
    for j in range(ACTION_SIZE):
        count = CHOICES[j]
        allowed = mask[first : first + count] if HAS_MASK else mask
        action[j], one = choose_one(
            outputs[first : first + count], count, noise[j], allowed, greedy
        )
        log_prob += one
        first += count
    return log_prob


if IS_SINGLE:

    @jit
    def for_env(action, env_action):
        """What the environment's step gets."""
        return action[0]

else:

    @jit
    def for_env(action, env_action):
        """What the environment's step gets: a copy, which it may change."""
        env_action[:] = action
        return env_action
