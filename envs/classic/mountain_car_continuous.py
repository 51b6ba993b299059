"""MountainCarContinuous-v0: the car in the valley with a throttle, as Gymnasium has it.

Gymnasium's keeps its state in float32 and computes with it in float32; so does ours. Only the first
state of its episodes is float64, and rounded here.
"""

import math

import numpy as np
from gymnasium.spaces import Box

from rollout.envs.classic.mountain_car import MountainCar
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import uniform

MIN_POSITION = np.float32(-1.2)
MAX_POSITION = np.float32(0.6)
MAX_SPEED = np.float32(0.07)
MAX_ACTION = np.float32(1.0)
THREE = np.float32(3.0)
ZERO = np.float32(0.0)


class MountainCarContinuous(CompiledEnv):
    """Swing up to the flag with little fuel: 100 at the flag, minus a tenth of every action².

    The push is action[0] within -1, …, 1; the fuel is that of the action as it came.
    """

    state = np.dtype([("position", "f4"), ("velocity", "f4")])
    params = {"power": 0.0015, "gravity": 0.0025, "goal_position": 0.45, "goal_velocity": 0.0}
    observation_space = MountainCar.observation_space
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    max_episode_steps = 999

    def reset(state, params, draw):
        state.position = uniform(draw, -0.6, -0.4)

    def step(state, params, action, draw):
        position, velocity = np.float32(state.position), np.float32(state.velocity)
        push = min(max(np.float32(action[0]), -MAX_ACTION), MAX_ACTION)
        slope = params.gravity * math.cos(np.float64(THREE * position))
        velocity += push * np.float32(params.power) - np.float32(slope)
        velocity = min(max(velocity, -MAX_SPEED), MAX_SPEED)
        position = min(max(position + velocity, MIN_POSITION), MAX_POSITION)
        if position == MIN_POSITION and velocity < ZERO:  # a wall
            velocity = ZERO
        state.position, state.velocity = position, velocity
        arrived = position >= np.float32(params.goal_position) and velocity >= np.float32(
            params.goal_velocity
        )
        fuel = np.float64(action[0])
        return (100.0 if arrived else 0.0) - fuel * fuel * 0.1, arrived

    def observe(state, params, observation):
        observation[0] = state.position
        observation[1] = state.velocity

    render = MountainCar.render
