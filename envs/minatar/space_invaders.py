"""Space Invaders of MinAtar: shoot a block of aliens before it reaches the ground, or you.

Equal to the `minatar` package transition by transition, but for what board.py says of an episode's
first sticky action. Aliens and bullets are kept row by row: bit x of a row is the cell in column x.
"""

import numpy as np
from gymnasium.spaces import Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.minatar.board import (
    FIRE,
    LEFT,
    NOOP,
    RIGHT,
    SIZE,
    board_space,
    picture,
    sticky_action,
)

ACTIONS = (NOOP, LEFT, RIGHT, FIRE)  # those that matter
CANNON, ALIEN, ALIEN_LEFT, ALIEN_RIGHT, FRIENDLY_BULLET, ENEMY_BULLET = range(6)  # channels
BOTTOM = SIZE - 1  # the cannon's row
LEFT_EDGE, RIGHT_EDGE = 1, 1 << (SIZE - 1)
WAVE, WAVE_ROWS = 0b0011111100, 4  # a new block of aliens: these columns of the first rows
SHOT_INTERVAL, ALIEN_SHOT_INTERVAL = 5, 10
SLOWEST, FASTEST = 12, 6  # move_interval of the first wave, and where ramping ends


class SpaceInvaders(CompiledEnv):
    """No-op (0), left (1), right (2) or fire (3); reward 1 for every alien shot.

    The episode ends when a bullet or an alien meets the cannon, or aliens in the last row would
    have to come down. Each wave moves faster than the last, if `difficulty_ramping`.
    """

    state = np.dtype(
        [
            ("x", "i1"),  # of the cannon
            ("direction", "i1"),  # of the aliens: -1 or 1
            ("move_interval", "i1"),  # aliens move every so many steps, or more often when few
            ("move_timer", "i1"),
            ("alien_shot_timer", "i1"),
            ("shot_timer", "i1"),
            ("ramps", "i1"),  # how often the game has become faster
            ("last_action", "i1"),
            ("aliens", "i2", (SIZE,)),
            ("bullets", "i2", (SIZE,)),
            ("enemy_bullets", "i2", (SIZE,)),
        ]
    )
    params = {"sticky_action_prob": 0.1, "difficulty_ramping": True}
    observation_space = board_space(6)
    action_space = Discrete(len(ACTIONS))
    max_episode_steps = 10_000  # waves come for ever, and need not become faster

    def reset(state, params, draw):
        state.x = 5
        state.direction = -1
        state.move_interval = SLOWEST
        state.move_timer = SLOWEST
        state.alien_shot_timer = ALIEN_SHOT_INTERVAL
        send_wave(state)

    def step(state, params, action, draw):
        return play(state, params, ACTIONS[action], draw)

    def observe(state, params, observation):
        observation[BOTTOM, state.x, CANNON] = True
        show(observation, ALIEN, state.aliens)
        show(observation, ALIEN_LEFT if state.direction < 0 else ALIEN_RIGHT, state.aliens)
        show(observation, FRIENDLY_BULLET, state.bullets)
        show(observation, ENEMY_BULLET, state.enemy_bullets)

    def render(state, params):
        """The board, as uint8 [200, 200, 3]."""
        board = np.zeros((SIZE, SIZE, 6), np.bool_)
        SpaceInvaders.observe(state, params, board)
        return picture(board)


class SpaceInvadersFull(SpaceInvaders):
    """Space Invaders with all six actions; up and down do nothing."""

    action_space = Discrete(6)

    def step(state, params, action, draw):
        return play(state, params, action, draw)


def play(state, params, action, draw):
    """One step with an action of the full set; returns (reward, terminated)."""
    action = sticky_action(state, params, action, draw)
    if action == LEFT:
        state.x = max(0, state.x - 1)
    elif action == RIGHT:
        state.x = min(SIZE - 1, state.x + 1)
    elif action == FIRE and state.shot_timer == 0:
        state.shot_timer = SHOT_INTERVAL
        state.bullets[BOTTOM] |= 1 << state.x  # in the cannon's own cell, which it leaves below

    for y in range(BOTTOM):
        state.bullets[y] = state.bullets[y + 1]
        state.enemy_bullets[BOTTOM - y] = state.enemy_bullets[BOTTOM - y - 1]
    state.bullets[BOTTOM] = 0
    state.enemy_bullets[0] = 0
    terminated = is_met(state, state.enemy_bullets) or is_met(state, state.aliens)

    if state.move_timer == 0:
        state.move_timer = min(count_aliens(state), state.move_interval)
        if move_aliens(state) or is_met(state, state.aliens):
            terminated = True
    if state.alien_shot_timer == 0:
        state.alien_shot_timer = ALIEN_SHOT_INTERVAL
        shoot_at_cannon(state)

    reward = 0
    for y in range(SIZE):
        hits = state.aliens[y] & state.bullets[y]
        state.aliens[y] ^= hits
        state.bullets[y] ^= hits
        reward += count_bits(hits)

    state.shot_timer -= state.shot_timer > 0
    state.move_timer -= 1
    state.alien_shot_timer -= 1
    if columns_of_aliens(state) == 0:
        if params.difficulty_ramping and state.move_interval > FASTEST:
            state.move_interval -= 1
            state.ramps += 1
        send_wave(state)
    return reward, terminated


def is_met(state, rows):
    """Whether one of `rows` is where the cannon is."""
    return rows[BOTTOM] >> state.x & 1 == 1


def move_aliens(state):
    """Move all aliens a cell aside, or down and back at an edge; returns whether they landed."""
    columns = columns_of_aliens(state)
    edge = LEFT_EDGE if state.direction < 0 else RIGHT_EDGE
    if columns & edge:
        state.direction = -state.direction
        landed = state.aliens[BOTTOM]
        for y in range(BOTTOM, 0, -1):
            state.aliens[y] = state.aliens[y - 1]
        state.aliens[0] = landed  # as the package wraps them around; the game is over then
        return landed != 0
    for y in range(SIZE):
        row = state.aliens[y]
        state.aliens[y] = row >> 1 if state.direction < 0 else row << 1
    return False


def shoot_at_cannon(state):
    """The lowest alien of the column nearest to the cannon shoots, on its left if two are."""
    columns = columns_of_aliens(state)
    for distance in range(SIZE):
        for x in (state.x - distance, state.x + distance):
            if 0 <= x < SIZE and columns >> x & 1:
                for y in range(BOTTOM, -1, -1):
                    if state.aliens[y] >> x & 1:
                        state.enemy_bullets[y] |= 1 << x
                        return


def columns_of_aliens(state):
    """The columns with an alien, as bits."""
    columns = 0
    for y in range(SIZE):
        columns |= state.aliens[y]
    return columns


def count_aliens(state):
    count = 0
    for y in range(SIZE):
        count += count_bits(state.aliens[y])
    return count


def count_bits(row):
    count = 0
    while row:
        row &= row - 1  # without its last bit
        count += 1
    return count


def send_wave(state):
    for y in range(WAVE_ROWS):
        state.aliens[y] = WAVE


def show(observation, channel, rows):
    for y in range(SIZE):
        if rows[y]:
            for x in range(SIZE):
                observation[y, x, channel] = rows[y] >> x & 1 == 1
