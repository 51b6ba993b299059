"""CartPole-v1: Barto, Sutton and Anderson's pole on a cart, as Gymnasium has it."""

import math

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import uniform

THETA_LIMIT = 12 * 2 * math.pi / 360
X_LIMIT = 2.4
GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = 1.0 + POLE_MASS
HALF_LENGTH = 0.5
POLE_MASS_LENGTH = POLE_MASS * HALF_LENGTH
TAU = 0.02  # seconds between two steps


class CartPole(CompiledEnv):
    """Keep the pole up by pushing the cart left (0) or right (1); reward 1 for every step."""

    state = np.dtype([("x", "f8"), ("x_dot", "f8"), ("theta", "f8"), ("theta_dot", "f8")])
    params = {"force": 10.0}  # newtons
    # Twice the limits, as Gymnasium: the observation that ends an episode lies outside them.
    observation_space = Box(
        -np.array([2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf], np.float32),
        np.array([2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf], np.float32),
    )
    action_space = Discrete(2)
    max_episode_steps = 500
    render_fps = 50

    def reset(state, params, draw):
        state.x = uniform(draw, -0.05, 0.05)
        state.x_dot = uniform(draw, -0.05, 0.05)
        state.theta = uniform(draw, -0.05, 0.05)
        state.theta_dot = uniform(draw, -0.05, 0.05)

    def step(state, params, action, draw):
        force = params.force if action == 1 else -params.force
        cos_theta, sin_theta = math.cos(state.theta), math.sin(state.theta)
        # Florian, "Correct equations for the dynamics of the cart-pole system" (2007)
        pull = (
            force + POLE_MASS_LENGTH * (state.theta_dot * state.theta_dot) * sin_theta
        ) / TOTAL_MASS
        theta_acc = (GRAVITY * sin_theta - cos_theta * pull) / (
            HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * (cos_theta * cos_theta) / TOTAL_MASS)
        )
        x_acc = pull - POLE_MASS_LENGTH * theta_acc * cos_theta / TOTAL_MASS
        state.x += TAU * state.x_dot
        state.x_dot += TAU * x_acc
        state.theta += TAU * state.theta_dot
        state.theta_dot += TAU * theta_acc
        return 1.0, abs(state.x) > X_LIMIT or abs(state.theta) > THETA_LIMIT

    def observe(state, params, observation):
        observation[0] = state.x
        observation[1] = state.x_dot
        observation[2] = state.theta
        observation[3] = state.theta_dot

    def render(state, params):
        """The cart on its track, as uint8 [200, 300, 3]."""
        from PIL import Image, ImageDraw  # only who looks needs it

        width, height, ground = 300, 200, 150
        pixels_per_metre = width / (2 * X_LIMIT)
        picture = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(picture)
        pen.line([(0, ground), (width, ground)], fill="black", width=1)
        cart = width / 2 + state.x * pixels_per_metre
        axle = ground - 15
        pen.rectangle([cart - 20, ground - 22, cart + 20, ground - 8], fill=(60, 60, 60))
        tip = 2 * HALF_LENGTH * pixels_per_metre * 1.6
        end = (cart + tip * math.sin(state.theta), axle - tip * math.cos(state.theta))
        pen.line([(cart, axle), end], fill=(200, 120, 60), width=7)
        pen.ellipse([cart - 4, axle - 4, cart + 4, axle + 4], fill=(90, 110, 200))
        return np.asarray(picture)
