"""Breakout of MinAtar: keep the ball in play with the paddle, and take away three rows of bricks.

Equal to the `minatar` package transition by transition, but for what board.py says of an episode's
first sticky action. `difficulty_ramping` changes nothing: the game has no levels of difficulty.
"""

import numpy as np
from gymnasium.spaces import Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.minatar.board import LEFT, NOOP, RIGHT, SIZE, board_space, picture, sticky_action
from rollout.envs.philox import integers

ACTIONS = (NOOP, LEFT, RIGHT)  # those that matter
PADDLE, BALL, TRAIL, BRICK = range(4)  # channels
FIRST_BRICK_ROW, BRICK_ROWS = 1, 3
BOTTOM = SIZE - 1  # the paddle's row


class Breakout(CompiledEnv):
    """No-op (0), left (1) or right (2); reward 1 for every brick, the end when the ball is lost."""

    state = np.dtype(
        [
            ("paddle", "i1"),  # column
            ("x", "i1"),  # of the ball
            ("y", "i1"),
            ("dx", "i1"),  # -1 or 1
            ("dy", "i1"),
            ("last_x", "i1"),  # where the ball was: its trail
            ("last_y", "i1"),
            ("in_brick", "?"),  # a ball takes one brick, then none until it is out of the bricks
            ("last_action", "i1"),
            ("bricks", "i1", (BRICK_ROWS, SIZE)),  # 1 or 0
        ]
    )
    params = {"sticky_action_prob": 0.1, "difficulty_ramping": True}
    observation_space = board_space(4)
    action_space = Discrete(len(ACTIONS))
    max_episode_steps = 10_000  # who never misses would play for ever

    def reset(state, params, draw):
        from_right = integers(draw, 0, 2) == 1
        state.paddle = 4
        state.x = SIZE - 1 if from_right else 0
        state.y = 3
        state.dx = -1 if from_right else 1
        state.dy = 1
        state.last_x = state.x
        state.last_y = state.y
        lay_bricks(state)

    def step(state, params, action, draw):
        return play(state, params, ACTIONS[action], draw)

    def observe(state, params, observation):
        observation[state.y, state.x, BALL] = True
        observation[state.last_y, state.last_x, TRAIL] = True
        observation[BOTTOM, state.paddle, PADDLE] = True
        for row in range(BRICK_ROWS):
            for column in range(SIZE):
                is_there = state.bricks[row, column] == 1
                observation[FIRST_BRICK_ROW + row, column, BRICK] = is_there

    def render(state, params):
        """The board, as uint8 [200, 200, 3]."""
        board = np.zeros((SIZE, SIZE, 4), np.bool_)
        Breakout.observe(state, params, board)
        return picture(board)


class BreakoutFull(Breakout):
    """Breakout with all six actions; up, down and fire do nothing."""

    action_space = Discrete(6)

    def step(state, params, action, draw):
        return play(state, params, action, draw)


def play(state, params, action, draw):
    """One step with an action of the full set; returns (reward, terminated)."""
    action = sticky_action(state, params, action, draw)
    # Without branches: which way an action goes is hard to foresee, for a processor too.
    way = (action == RIGHT) - (action == LEFT)
    state.paddle = min(max(state.paddle + way, 0), SIZE - 1)

    state.last_x = state.x
    state.last_y = state.y
    if not 0 <= state.x + state.dx < SIZE:  # along a wall for a step, then away from it
        state.dx = -state.dx
    else:
        state.x += state.dx
    if state.y + state.dy < 0:
        state.dy = 1
        state.in_brick = False
        return 0, False
    state.y += state.dy

    row = state.y - FIRST_BRICK_ROW
    if 0 <= row < BRICK_ROWS and state.bricks[row, state.x] == 1:
        if state.in_brick:
            return 0, False
        state.in_brick = True
        state.bricks[row, state.x] = 0
        bounce(state)
        return 1, False
    state.in_brick = False
    if state.y < BOTTOM:
        return 0, False

    if not has_bricks(state):
        lay_bricks(state)
    if state.paddle == state.last_x:
        bounce(state)
    elif state.paddle == state.x:  # hit at the corner: back where it came from
        bounce(state)
        state.dx = -state.dx
    else:
        return 0, True
    return 0, False


def bounce(state):
    """Turn the ball around in its row."""
    state.y = state.last_y
    state.dy = -state.dy


def has_bricks(state):
    for row in range(BRICK_ROWS):
        for column in range(SIZE):
            if state.bricks[row, column] == 1:
                return True
    return False


def lay_bricks(state):
    for row in range(BRICK_ROWS):
        for column in range(SIZE):
            state.bricks[row, column] = 1
