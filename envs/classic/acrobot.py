"""Acrobot-v1: Sutton's two-link pendulum with a motor in its elbow, as Gymnasium has it.

Sutton, "Generalization in reinforcement learning: successful examples using sparse coarse coding"
(1996); the equations of motion are those of Sutton and Barto's book, section 11.3 of its first
edition.
"""

import math

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import uniform

LINK_LENGTH = 1.0  # metres
LINK_CENTER = 0.5  # where a link's center of mass is, metres from its upper end
LINK_INERTIA = 1.0
MAX_VELOCITY_1 = 4 * math.pi
MAX_VELOCITY_2 = 9 * math.pi
TAU = 0.2  # seconds between two steps
HIGH = np.array([1, 1, 1, 1, MAX_VELOCITY_1, MAX_VELOCITY_2], np.float32)


class Acrobot(CompiledEnv):
    """Swing the tip above `goal_height` by a torque of -1 (0), 0 (1) or 1 (2) at the elbow.

    The reward is -1 for every step but the one that gets there. theta1 is zero where the upper link
    hangs down; theta2 is the lower link's angle to the upper one.
    """

    state = np.dtype(
        [("theta1", "f8"), ("theta2", "f8"), ("theta1_dot", "f8"), ("theta2_dot", "f8")]
    )
    params = {
        "gravity": 9.8,
        "torque": 1.0,  # newton metres
        "link_mass_1": 1.0,  # kilograms
        "link_mass_2": 1.0,
        "goal_height": 1.0,  # metres above the shoulder
    }
    observation_space = Box(-HIGH, HIGH)
    action_space = Discrete(3)
    max_episode_steps = 500
    render_fps = 15

    def reset(state, params, draw):
        state.theta1 = uniform(draw, -0.1, 0.1)
        state.theta2 = uniform(draw, -0.1, 0.1)
        state.theta1_dot = uniform(draw, -0.1, 0.1)
        state.theta2_dot = uniform(draw, -0.1, 0.1)

    def step(state, params, action, draw):
        theta1, theta2, theta1_dot, theta2_dot = swing(state, params, params.torque * (action - 1))
        state.theta1 = wrapped(theta1)
        state.theta2 = wrapped(theta2)
        state.theta1_dot = min(max(theta1_dot, -MAX_VELOCITY_1), MAX_VELOCITY_1)
        state.theta2_dot = min(max(theta2_dot, -MAX_VELOCITY_2), MAX_VELOCITY_2)
        height = -math.cos(state.theta1) - math.cos(state.theta2 + state.theta1)
        terminated = height > params.goal_height
        return 0.0 if terminated else -1.0, terminated

    def observe(state, params, observation):
        observation[0] = math.cos(state.theta1)
        observation[1] = math.sin(state.theta1)
        observation[2] = math.cos(state.theta2)
        observation[3] = math.sin(state.theta2)
        observation[4] = state.theta1_dot
        observation[5] = state.theta2_dot

    def render(state, params):
        """The two links and the height to reach, as uint8 [300, 300, 3]."""
        from PIL import Image, ImageDraw  # only who looks needs it

        size, pixels_per_metre = 300, 65
        middle = size / 2
        picture = Image.new("RGB", (size, size), "white")
        pen = ImageDraw.Draw(picture)
        goal = middle - params.goal_height * pixels_per_metre
        pen.line([(0, goal), (size, goal)], fill="black", width=1)
        x, y = middle, middle
        for angle in (state.theta1, state.theta1 + state.theta2):
            end_x = x + LINK_LENGTH * pixels_per_metre * math.sin(angle)
            end_y = y + LINK_LENGTH * pixels_per_metre * math.cos(angle)
            pen.line([(x, y), (end_x, end_y)], fill=(200, 120, 60), width=9)
            pen.ellipse([x - 6, y - 6, x + 6, y + 6], fill=(90, 110, 200))
            x, y = end_x, end_y
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=(60, 60, 60))
        return np.asarray(picture)


def swing(state, params, torque):
    """The state's four numbers after TAU seconds: one step of Runge and Kutta's 4th order.

    a and b are the two angles, u and v their velocities, du and dv their accelerations.
    """
    a0, b0, u0, v0 = state.theta1, state.theta2, state.theta1_dot, state.theta2_dot
    half = TAU / 2.0
    du0, dv0 = accelerations(params, torque, a0, b0, u0, v0)
    u1, v1 = u0 + half * du0, v0 + half * dv0
    du1, dv1 = accelerations(params, torque, a0 + half * u0, b0 + half * v0, u1, v1)
    u2, v2 = u0 + half * du1, v0 + half * dv1
    du2, dv2 = accelerations(params, torque, a0 + half * u1, b0 + half * v1, u2, v2)
    u3, v3 = u0 + TAU * du2, v0 + TAU * dv2
    du3, dv3 = accelerations(params, torque, a0 + TAU * u2, b0 + TAU * v2, u3, v3)
    return (
        a0 + TAU / 6.0 * (u0 + 2 * u1 + 2 * u2 + u3),
        b0 + TAU / 6.0 * (v0 + 2 * v1 + 2 * v2 + v3),
        u0 + TAU / 6.0 * (du0 + 2 * du1 + 2 * du2 + du3),
        v0 + TAU / 6.0 * (dv0 + 2 * dv1 + 2 * dv2 + dv3),
    )


def accelerations(params, torque, theta1, theta2, theta1_dot, theta2_dot):
    """Of both angles, in the book's terms: d1, d2, phi1, phi2."""
    mass_1, mass_2, gravity = params.link_mass_1, params.link_mass_2, params.gravity
    cos_2, sin_2 = math.cos(theta2), math.sin(theta2)
    lower = LINK_CENTER * LINK_CENTER
    coupling = LINK_LENGTH * LINK_CENTER
    d1 = (
        mass_1 * lower
        + mass_2 * (LINK_LENGTH * LINK_LENGTH + lower + 2 * coupling * cos_2)
        + LINK_INERTIA
        + LINK_INERTIA
    )
    d2 = mass_2 * (lower + coupling * cos_2) + LINK_INERTIA
    phi2 = mass_2 * LINK_CENTER * gravity * math.cos(theta1 + theta2 - math.pi / 2)
    phi1 = (
        -mass_2 * coupling * (theta2_dot * theta2_dot) * sin_2
        - 2 * mass_2 * coupling * theta2_dot * theta1_dot * sin_2
        + (mass_1 * LINK_CENTER + mass_2 * LINK_LENGTH) * gravity * math.cos(theta1 - math.pi / 2)
        + phi2
    )
    theta2_acc = (
        torque + d2 / d1 * phi1 - mass_2 * coupling * (theta1_dot * theta1_dot) * sin_2 - phi2
    ) / (mass_2 * lower + LINK_INERTIA - d2 * d2 / d1)
    theta1_acc = -(d2 * theta2_acc + phi1) / d1
    return theta1_acc, theta2_acc


def wrapped(angle):
    """The same angle within -π, …, π. (NaN where it is infinite: a loop would not end.)"""
    if angle > math.pi:
        return angle - 2 * math.pi * math.ceil((angle - math.pi) / (2 * math.pi))
    if angle < -math.pi:
        return angle + 2 * math.pi * math.ceil((-math.pi - angle) / (2 * math.pi))
    return angle
