"""Choosing quantities from a diagonal Gaussian, perhaps squashed, compiled.

A template like acting_kernel.py, which it precedes: it gives that one `draw_noise`, `choose` and
`for_env`. Nothing here uses Python objects.
"""

import math

import numpy as np

from rollout.envs.kernels import bound
from rollout.envs.philox import philox, unit_float64

jit = bound("jit")
ACTION_SIZE = bound("ACTION_SIZE")  # how many quantities
LOW, HIGH = bound("LOW"), bound("HIGH")  # the action space's bounds
IS_DEPENDENT, IS_SQUASHED = bound("IS_DEPENDENT"), bound("IS_SQUASHED")  # see GaussianHead
LOG_SCALE, LOG_STD_RANGE = bound("LOG_SCALE"), bound("LOG_STD_RANGE")
ACTION_STREAM = bound("ACTION_STREAM")
HALF_LOG_2PI = np.float32(0.5 * math.log(2.0 * math.pi))
LOG_2 = np.float32(math.log(2.0))


@jit
def draw_noise(envs, start, rows, noise):
    """A standard normal for each quantity of each environment start, …, start + rows - 1."""
    for r in range(rows):
        clock = envs[start + r].clock
        for k in range(ACTION_SIZE):
            words = philox(clock.seed, ACTION_STREAM, clock.env, clock.episode, clock.t, k)
            radius = math.sqrt(-2.0 * math.log(1.0 - unit_float64(words[0], words[1])))
            angle = 2.0 * math.pi * unit_float64(words[2], words[3])
            noise[r * ACTION_SIZE + k] = radius * math.cos(angle)


@jit
def limited(output):
    """An output as the logarithm of a deviation; network.LOG_STD_RANGE says how."""
    limit = np.float32(LOG_STD_RANGE[1] if output > 0.0 else -LOG_STD_RANGE[0])
    return limit * np.float32(math.tanh(output / limit))


@jit
def log_slope_of_tanh(u):
    """log(1 - tanh²(u)), also where tanh(u) rounds to 1."""
    twice = np.float32(2.0) * abs(u)
    return np.float32(2.0) * LOG_2 - twice - np.float32(2.0 * math.log1p(math.exp(-twice)))


@jit
def choose(outputs, log_std, noise, mask, greedy, action):
    """Write an action [quantities], or the mean, unsquashed; returns its log-probability."""
    log_prob = np.float32(-LOG_SCALE)
    for j in range(ACTION_SIZE):
        log_deviation = limited(outputs[ACTION_SIZE + j]) if IS_DEPENDENT else log_std[j]
        deviation = np.float32(math.exp(log_deviation))
        action[j] = outputs[j] if greedy else outputs[j] + deviation * noise[j]
        distance = (action[j] - outputs[j]) / deviation
        log_prob -= np.float32(0.5) * distance * distance + log_deviation + HALF_LOG_2PI
        if IS_SQUASHED:
            log_prob -= log_slope_of_tanh(action[j])
    return log_prob


@jit
def for_env(action, env_action):
    """What the environment's step gets: the action squashed or clipped, in `env_action`."""
    for j in range(ACTION_SIZE):
        if IS_SQUASHED:  # in float64: the float32 that comes of it is anybody's
            low, high = np.float64(LOW[j]), np.float64(HIGH[j])
            squashed = low + (high - low) * 0.5 * (1.0 + math.tanh(np.float64(action[j])))
            env_action[j] = min(max(squashed, low), high)  # beyond them by rounding
        else:
            env_action[j] = min(max(action[j], LOW[j]), HIGH[j])
    return env_action
