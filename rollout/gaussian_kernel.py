"""Choosing quantities from a diagonal Gaussian, compiled.

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
ACTION_STREAM = bound("ACTION_STREAM")
HALF_LOG_2PI = np.float32(0.5 * math.log(2.0 * math.pi))


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
def choose(outputs, log_std, noise, mask, greedy, action):
    """Write an action [quantities], or the mean; returns its log-probability."""
    log_prob = np.float32(0.0)
    for j in range(ACTION_SIZE):
        deviation = np.float32(math.exp(log_std[j]))
        action[j] = outputs[j] if greedy else outputs[j] + deviation * noise[j]
        distance = (action[j] - outputs[j]) / deviation
        log_prob -= np.float32(0.5) * distance * distance + log_std[j] + HALF_LOG_2PI
    return log_prob


@jit
def for_env(action, env_action):
    """What the environment's step gets: the action within its bounds, in `env_action`."""
    for j in range(ACTION_SIZE):
        env_action[j] = min(max(action[j], LOW[j]), HIGH[j])
    return env_action
