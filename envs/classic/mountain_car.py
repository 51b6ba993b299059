"""MountainCar-v0: Moore's car in a valley, too weak for the slope, as Gymnasium has it.

Moore, "Efficient memory-based learning for robot control" (1990).
"""

import math

import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import uniform

MIN_POSITION = -1.2
MAX_POSITION = 0.6
MAX_SPEED = 0.07


class MountainCar(CompiledEnv):
    """Swing up to the flag by driving left (0), not at all (1) or right (2); reward -1 per step."""

    state = np.dtype([("position", "f8"), ("velocity", "f8")])
    params = {"force": 0.001, "gravity": 0.0025, "goal_position": 0.5, "goal_velocity": 0.0}
    observation_space = Box(
        np.array([MIN_POSITION, -MAX_SPEED], np.float32),
        np.array([MAX_POSITION, MAX_SPEED], np.float32),
    )
    action_space = Discrete(3)
    max_episode_steps = 200

    def reset(state, params, draw):
        state.position = uniform(draw, -0.6, -0.4)

    def step(state, params, action, draw):
        slope = math.cos(3 * state.position)
        velocity = state.velocity + ((action - 1) * params.force + slope * -params.gravity)
        velocity = min(max(velocity, -MAX_SPEED), MAX_SPEED)
        state.position = min(max(state.position + velocity, MIN_POSITION), MAX_POSITION)
        if state.position == MIN_POSITION and velocity < 0:  # a wall
            velocity = 0.0
        state.velocity = velocity
        arrived = state.position >= params.goal_position and velocity >= params.goal_velocity
        return -1.0, arrived

    def observe(state, params, observation):
        observation[0] = state.position
        observation[1] = state.velocity

    def render(state, params):
        """The car in its valley and the flag, as uint8 [200, 300, 3]."""
        from PIL import Image, ImageDraw  # only who looks needs it

        width, height = 300, 200
        pixels_per_unit = width / (MAX_POSITION - MIN_POSITION)

        def place(position):
            """Where the ground is, in pixels; its slope is cos(3 position)."""
            ground = height - (math.sin(3 * position) * 0.45 + 0.55) * pixels_per_unit
            return (position - MIN_POSITION) * pixels_per_unit, ground

        picture = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(picture)
        ground = [place(position) for position in np.linspace(MIN_POSITION, MAX_POSITION, 100)]
        pen.line(ground, fill="black", width=1)
        x, y = place(params.goal_position)
        pen.line([(x, y), (x, y - 25)], fill="black", width=1)
        pen.polygon([(x, y - 25), (x + 12, y - 22), (x, y - 19)], fill=(200, 120, 60))
        x, y = place(state.position)
        tilt = math.atan(1.35 * math.cos(3 * state.position))

        def on_car(along, above):
            """A point of the car in pixels, from where it stands."""
            return (
                x + along * math.cos(tilt) - above * math.sin(tilt),
                y - along * math.sin(tilt) - above * math.cos(tilt),
            )

        body = [on_car(-10, 4), on_car(-10, 13), on_car(10, 13), on_car(10, 4)]
        pen.polygon(body, fill=(60, 60, 60))
        for wheel in (-6, 6):
            x_wheel, y_wheel = on_car(wheel, 4)
            pen.ellipse([x_wheel - 4, y_wheel - 4, x_wheel + 4, y_wheel + 4], fill=(90, 110, 200))
        return np.asarray(picture)
