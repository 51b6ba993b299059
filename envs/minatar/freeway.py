"""Freeway of MinAtar: bring a chicken across a road of eight lanes, again and again.

Equal to the `minatar` package transition by transition, but for what board.py says of an episode's
first sticky action, and for a draw of exactly one half (once in 2⁵³), of which the package makes a
car without a direction. `difficulty_ramping` changes nothing: the game has no levels of difficulty.
"""

import numpy as np
from gymnasium.spaces import Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.minatar.board import DOWN, NOOP, SIZE, UP, board_space, picture, sticky_action
from rollout.envs.philox import integers, uniform

ACTIONS = (NOOP, UP, DOWN)  # those that matter
CHICKEN, CAR, SPEED = range(3)  # channels; SPEED + n - 1 shows, behind a car, that it has pace n
LANES = 8  # rows 1 to 8, one car in each
PACES = 5
COLUMN = 4  # the chicken's
START = SIZE - 1  # its first row
MOVE_WAIT = 3  # steps from one move of the chicken to the next
EPISODE_STEPS = 2501


class Freeway(CompiledEnv):
    """No-op (0), up (1) or down (2); reward 1 at the top, from where the chicken starts again.

    A car sends the chicken back to the start.
    """

    state = np.dtype(
        [
            ("chicken", "i1"),  # row
            ("chicken_wait", "i1"),  # steps until it can move
            ("steps_left", "i2"),
            ("last_action", "i1"),
            ("x", "i1", LANES),  # of the cars
            ("wait", "i1", LANES),  # steps in which a car stands still before it moves
            ("pace", "i1", LANES),  # the wait between two moves; negative if it goes left
        ]
    )
    params = {"sticky_action_prob": 0.1, "difficulty_ramping": True}
    observation_space = board_space(SPEED + PACES)
    action_space = Discrete(len(ACTIONS))
    max_episode_steps = None  # the game ends by itself, after EPISODE_STEPS

    def reset(state, params, draw):
        state.chicken = START
        state.chicken_wait = MOVE_WAIT
        state.steps_left = EPISODE_STEPS
        draw_paces(state, draw)

    def step(state, params, action, draw):
        return play(state, params, ACTIONS[action], draw)

    def observe(state, params, observation):
        observation[state.chicken, COLUMN, CHICKEN] = True
        for lane in range(LANES):
            x, pace = state.x[lane], state.pace[lane]
            behind = wrapped(x - 1 if pace > 0 else x + 1)
            observation[lane + 1, x, CAR] = True
            observation[lane + 1, behind, SPEED + abs(pace) - 1] = True

    def render(state, params):
        """The board, as uint8 [200, 200, 3]."""
        board = np.zeros((SIZE, SIZE, SPEED + PACES), np.bool_)
        Freeway.observe(state, params, board)
        return picture(board)


class FreewayFull(Freeway):
    """Freeway with all six actions; left, right and fire do nothing."""

    action_space = Discrete(6)

    def step(state, params, action, draw):
        return play(state, params, action, draw)


def play(state, params, action, draw):
    """One step with an action of the full set; returns (reward, terminated)."""
    action = sticky_action(state, params, action, draw)
    if state.chicken_wait == 0 and action in (UP, DOWN):
        state.chicken_wait = MOVE_WAIT
        state.chicken += 1 if action == DOWN else -1
        state.chicken = min(max(state.chicken, 0), SIZE - 1)
    if state.chicken_wait > 0:
        state.chicken_wait -= 1

    reward = 0
    if state.chicken == 0:
        reward = 1
        state.chicken = START
        draw_paces(state, draw)

    for lane in range(LANES):
        hit = state.chicken == lane + 1 and state.x[lane] == COLUMN
        if state.wait[lane] == 0:
            state.wait[lane] = abs(state.pace[lane])
            state.x[lane] = wrapped(state.x[lane] + (1 if state.pace[lane] > 0 else -1))
            hit = hit or (state.chicken == lane + 1 and state.x[lane] == COLUMN)
        else:
            state.wait[lane] -= 1
        if hit:
            state.chicken = START

    state.steps_left -= 1
    return reward, state.steps_left == 0


def draw_paces(state, draw):
    """Draw how fast each car goes, and where to; they stay where they are."""
    for lane in range(LANES):
        state.wait[lane] = integers(draw, 1, PACES + 1)
    for lane in range(LANES):
        goes_left = uniform(draw, 0.0, 1.0) < 0.5
        state.pace[lane] = -state.wait[lane] if goes_left else state.wait[lane]


def wrapped(x):
    """Cars that leave on one side come back on the other."""
    if x < 0:
        return SIZE - 1
    return 0 if x >= SIZE else x
