"""Pendulum-v1: a pendulum to be swung up and held, with a motor too weak to lift it at once.

As Gymnasium has it, whose torque is float32 and whose state is float64.
"""

import math

import numpy as np
from gymnasium.spaces import Box

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import uniform

MAX_SPEED = 8.0
MAX_TORQUE = 2.0  # newton metres
TORQUE_COST = np.float32(0.001)
TAU = 0.05  # seconds between two steps
HIGH = np.array([1.0, 1.0, MAX_SPEED], np.float32)


class Pendulum(CompiledEnv):
    """Hold the pendulum up by a torque of action[0] within -2, …, 2; there is no end but time's.

    The cost is the squared angle, plus a tenth of the squared speed, plus little for the torque;
    theta is zero where it stands upright, and it is not wrapped.
    """

    state = np.dtype([("theta", "f8"), ("theta_dot", "f8")])
    params = {"gravity": 10.0, "mass": 1.0, "length": 1.0}
    observation_space = Box(-HIGH, HIGH)
    action_space = Box(-2.0, 2.0, (1,), np.float32)
    max_episode_steps = 200

    def reset(state, params, draw):
        state.theta = uniform(draw, -math.pi, math.pi)
        state.theta_dot = uniform(draw, -1.0, 1.0)

    def step(state, params, action, draw):
        torque = np.float32(min(max(action[0], -MAX_TORQUE), MAX_TORQUE))
        angle = (state.theta + math.pi) % (2 * math.pi) - math.pi
        effort = np.float64(TORQUE_COST * (torque * torque))
        cost = angle * angle + 0.1 * (state.theta_dot * state.theta_dot) + effort
        pull = 3 * params.gravity / (2 * params.length) * math.sin(state.theta)
        lever = np.float32(3.0 / (params.mass * (params.length * params.length)))
        push = np.float64(lever * torque)
        theta_dot = min(max(state.theta_dot + (pull + push) * TAU, -MAX_SPEED), MAX_SPEED)
        state.theta += theta_dot * TAU
        state.theta_dot = theta_dot
        return -cost, False

    def observe(state, params, observation):
        observation[0] = math.cos(state.theta)
        observation[1] = math.sin(state.theta)
        observation[2] = state.theta_dot

    def render(state, params):
        """The rod on its axle, as uint8 [200, 200, 3]."""
        from PIL import Image, ImageDraw  # only who looks needs it

        size, length = 200, 70
        middle = size / 2
        picture = Image.new("RGB", (size, size), "white")
        pen = ImageDraw.Draw(picture)
        # Gymnasium's angles grow against the clock
        end = (middle - length * math.sin(state.theta), middle - length * math.cos(state.theta))
        pen.line([(middle, middle), end], fill=(200, 120, 60), width=13)
        for x, y in ((middle, middle), end):
            pen.ellipse([x - 6, y - 6, x + 6, y + 6], fill=(200, 120, 60))
        pen.ellipse([middle - 3, middle - 3, middle + 3, middle + 3], fill=(60, 60, 60))
        return np.asarray(picture)
