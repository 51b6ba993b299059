"""Asterix of MinAtar: gather gold and keep away from enemies, which cross the board in eight rows.

Equal to the `minatar` package transition by transition, but for what board.py says of an episode's
first sticky action.
"""

import numpy as np
from gymnasium.spaces import Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.minatar.board import (
    DOWN,
    LEFT,
    NOOP,
    RIGHT,
    SIZE,
    UP,
    board_space,
    picture,
    sticky_action,
)
from rollout.envs.philox import integers, uniform

ACTIONS = (NOOP, LEFT, UP, RIGHT, DOWN)  # those that matter
PLAYER, ENEMY, TRAIL, GOLD = range(4)  # channels
ROWS = 8  # rows 1 to 8, at most one thing in each
RAMP_STEPS = 100  # the game gets faster every 102 steps, until both intervals are 1
SPAWN_INTERVAL = 10  # of the first level
MOVE_INTERVAL = 5


class Asterix(CompiledEnv):
    """No-op (0), left (1), up (2), right (3) or down (4); reward 1 for gold; enemies kill."""

    state = np.dtype(
        [
            ("player_x", "i1"),
            ("player_y", "i1"),
            ("spawn_interval", "i1"),  # steps from one new thing to the next
            ("spawn_wait", "i1"),  # steps until then
            ("move_interval", "i1"),  # steps from one move of all things to the next
            ("move_wait", "i1"),
            ("ramp_wait", "i1"),
            ("ramps", "i1"),  # how often the game has become faster
            ("last_action", "i1"),
            ("x", "i1", ROWS),  # of the things
            ("direction", "i1", ROWS),  # -1 or 1; 0 where a row is empty
            ("is_gold", "i1", ROWS),  # 1 or 0
        ]
    )
    params = {"sticky_action_prob": 0.1, "difficulty_ramping": True}
    observation_space = board_space(4)
    action_space = Discrete(len(ACTIONS))
    max_episode_steps = 10_000  # who takes care need not die

    def reset(state, params, draw):
        state.player_x = 5
        state.player_y = 5
        state.spawn_interval = state.spawn_wait = SPAWN_INTERVAL
        state.move_interval = state.move_wait = MOVE_INTERVAL
        state.ramp_wait = RAMP_STEPS

    def step(state, params, action, draw):
        return play(state, params, ACTIONS[action], draw)

    def observe(state, params, observation):
        observation[state.player_y, state.player_x, PLAYER] = True
        for row in range(ROWS):
            direction = state.direction[row]
            if direction != 0:
                x, behind = state.x[row], state.x[row] - direction
                observation[row + 1, x, GOLD if state.is_gold[row] == 1 else ENEMY] = True
                if 0 <= behind < SIZE:
                    observation[row + 1, behind, TRAIL] = True

    def render(state, params):
        """The board, as uint8 [200, 200, 3]."""
        board = np.zeros((SIZE, SIZE, 4), np.bool_)
        Asterix.observe(state, params, board)
        return picture(board)


class AsterixFull(Asterix):
    """Asterix with all six actions; fire does nothing."""

    action_space = Discrete(6)

    def step(state, params, action, draw):
        return play(state, params, action, draw)


def play(state, params, action, draw):
    """One step with an action of the full set; returns (reward, terminated)."""
    action = sticky_action(state, params, action, draw)
    if state.spawn_wait == 0:
        spawn(state, draw)
        state.spawn_wait = state.spawn_interval

    # Without branches: which way an action goes is hard to foresee, for a processor too.
    x = state.player_x + (action == RIGHT) - (action == LEFT)
    y = state.player_y + (action == DOWN) - (action == UP)
    state.player_x = min(max(x, 0), SIZE - 1)
    state.player_y = min(max(y, 1), ROWS)

    reward, died = meet(state)
    if state.move_wait == 0:
        state.move_wait = state.move_interval
        move(state)
        more, died_now = meet(state)
        reward += more
        died = died or died_now

    state.spawn_wait -= 1
    state.move_wait -= 1
    if params.difficulty_ramping:
        ramp(state)
    return reward, died


def spawn(state, draw):
    """A new thing enters one of the empty rows, if there is one."""
    from_left = uniform(draw, 0.0, 1.0) < 0.5
    is_gold = uniform(draw, 0.0, 1.0) < 1 / 3
    empty = 0
    for row in range(ROWS):
        empty += state.direction[row] == 0
    if empty == 0:
        return
    skip = integers(draw, 0, empty)
    for row in range(ROWS):
        if state.direction[row] == 0:
            if skip == 0:
                state.x[row] = 0 if from_left else SIZE - 1
                state.direction[row] = 1 if from_left else -1
                state.is_gold[row] = 1 if is_gold else 0
                return
            skip -= 1


def meet(state):
    """What the player meets where it stands; returns (reward, died). Gold is taken away."""
    row = state.player_y - 1
    if state.direction[row] == 0 or state.x[row] != state.player_x:
        return 0, False
    if state.is_gold[row] == 0:
        return 0, True
    remove(state, row)
    return 1, False


def move(state):
    """All things go on by one cell, some of them off the board."""
    for row in range(ROWS):
        state.x[row] += state.direction[row]
        if not 0 <= state.x[row] < SIZE:
            remove(state, row)


def remove(state, row):
    """Empty a row."""
    state.x[row] = 0
    state.direction[row] = 0
    state.is_gold[row] = 0


def ramp(state):
    """Make the game faster every now and then, down to one step per thing and move."""
    if state.spawn_interval == 1 and state.move_interval == 1:
        return
    if state.ramp_wait >= 0:
        state.ramp_wait -= 1
        return
    if state.move_interval > 1 and state.ramps % 2 == 1:
        state.move_interval -= 1
    if state.spawn_interval > 1:
        state.spawn_interval -= 1
    state.ramps += 1
    state.ramp_wait = RAMP_STEPS
