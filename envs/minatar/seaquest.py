"""Seaquest of MinAtar: rescue divers with a submarine, shoot what comes near, mind the oxygen.

Equal to the `minatar` package transition by transition, but for what board.py says of an episode's
first sticky action. That includes the package's own account of divers: to surface takes one away,
after six were brought home too, so that -1 are left, and only to surface with exactly none is the
end of an episode.

What moves is kept in lists of a fixed length, in the order in which it came; the order decides what
a bullet hits first. They are long enough:

- bullets (4): one every 5 steps, none lasts longer than 10;
- divers (4): one every 30 steps, none lasts longer than 60, for they move every 6 steps;
- fish, submarines (60 each): at most one a step, when fully ramped; none lasts longer than 60;
- enemy bullets (25): a submarine, if it is of the slowest, shoots from columns 1, 3, 5, 7 and 9, or
  from 8, 6, 4, 2 and 0; the bullets last 9, 7, 5, 3 and 1 steps. One submarine a step makes 25.

A list that were full would take nothing more.
"""

import numpy as np
from gymnasium.spaces import Discrete

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.minatar.board import (
    DOWN,
    FIRE,
    LEFT,
    RIGHT,
    SIZE,
    UP,
    board_space,
    picture,
    sticky_action,
)
from rollout.envs.philox import integers, uniform

(  # channels
    FRONT,
    BACK,
    FRIENDLY_BULLET,
    TRAIL,
    ENEMY_BULLET,
    FISH,
    SUBMARINE,
    OXYGEN,
    DIVERS_ABOARD,
    DIVER,
) = range(10)
BOTTOM = SIZE - 1  # the row of the gauges
DEEPEST = SIZE - 2
FULL_TANK, OXYGEN_PER_CELL = 200, 20
MAX_DIVERS = 6  # aboard
SHOT_INTERVAL, ENEMY_SHOT_INTERVAL = 5, 10
DIVER_INTERVAL, DIVER_MOVE_INTERVAL = 30, 5
SLOWEST_ENEMIES, SLOWEST_MOVES = 20, 5  # intervals at the start, and when fully ramped
FASTEST_ENEMIES, FASTEST_MOVES = 1, 2

# Columns of the lists. A bullet has the first three, fish and divers four, submarines all.
X, Y, TO_RIGHT, MOVE_TIMER, SHOT_TIMER = range(5)


class Seaquest(CompiledEnv):
    """No-op (0), left (1), up (2), right (3), down (4) or fire (5).

    Reward 1 for every enemy shot, and up to 10, by what oxygen is left, for coming up with six
    divers. The episode ends when an enemy or its bullet meets the submarine, the oxygen is used up,
    or it surfaces without a diver. Each surfacing makes enemies faster, if `difficulty_ramping`.
    """

    state = np.dtype(
        [
            ("x", "i1"),  # of the submarine's front
            ("y", "i1"),
            ("faces_right", "?"),
            ("at_surface", "?"),
            ("oxygen", "i2"),
            ("divers_aboard", "i2"),
            ("shot_timer", "i1"),
            ("diver_timer", "i1"),
            ("enemy_timer", "i1"),
            ("enemy_interval", "i1"),  # an enemy comes every so many steps
            ("move_interval", "i1"),  # enemies wait so many steps before they move
            ("ramps", "i1"),  # how often the game has become faster
            ("last_action", "i1"),
            ("num_bullets", "i1"),
            ("num_enemy_bullets", "i1"),
            ("num_fish", "i1"),
            ("num_submarines", "i1"),
            ("num_divers", "i1"),
            ("bullets", "i1", (4, 3)),
            ("enemy_bullets", "i1", (25, 3)),
            ("fish", "i1", (60, 4)),
            ("submarines", "i1", (60, 5)),
            ("divers", "i1", (4, 4)),
        ]
    )
    params = {"sticky_action_prob": 0.1, "difficulty_ramping": True}
    observation_space = board_space(10)
    action_space = Discrete(6)
    max_episode_steps = 10_000  # nobody is met at the surface: who stays there would play for ever

    def reset(state, params, draw):
        state.x = 5
        state.at_surface = True
        state.oxygen = FULL_TANK
        state.diver_timer = DIVER_INTERVAL
        state.enemy_timer = SLOWEST_ENEMIES
        state.enemy_interval = SLOWEST_ENEMIES
        state.move_interval = SLOWEST_MOVES

    def step(state, params, action, draw):
        action = sticky_action(state, params, action, draw)
        if state.enemy_timer == 0:
            state.enemy_timer = state.enemy_interval
            send_enemy(state, draw)
        if state.diver_timer == 0:
            state.diver_timer = DIVER_INTERVAL
            send_diver(state, draw)
        steer(state, action)
        reward = move_bullets(state)
        move_divers(state)
        submarines_shot, met_submarine = move_submarines(state)
        met_bullet = move_enemy_bullets(state)
        fish_shot, met_fish = move_fish(state)
        state.enemy_timer -= state.enemy_timer > 0
        state.diver_timer -= state.diver_timer > 0
        state.shot_timer -= state.shot_timer > 0
        prize, suffocated = breathe(state, params)
        return (
            reward + submarines_shot + fish_shot + prize,
            met_submarine or met_bullet or met_fish or suffocated,
        )

    def observe(state, params, observation):
        # A submarine that faces an edge came from the other side: its back is on the board.
        observation[state.y, state.x, FRONT] = True
        observation[state.y, state.x - 1 if state.faces_right else state.x + 1, BACK] = True
        for x in range(state.oxygen // OXYGEN_PER_CELL):
            observation[BOTTOM, x, OXYGEN] = True
        for x in range(BOTTOM - state.divers_aboard, BOTTOM):
            observation[BOTTOM, x, DIVERS_ABOARD] = True
        show(observation, FRIENDLY_BULLET, state.bullets, state.num_bullets)
        show(observation, ENEMY_BULLET, state.enemy_bullets, state.num_enemy_bullets)
        show_with_trails(observation, FISH, state.fish, state.num_fish)
        show_with_trails(observation, SUBMARINE, state.submarines, state.num_submarines)
        show_with_trails(observation, DIVER, state.divers, state.num_divers)

    def render(state, params):
        """The board, as uint8 [200, 200, 3]; where both gauges are, that of divers."""
        board = np.zeros((SIZE, SIZE, 10), np.bool_)
        Seaquest.observe(state, params, board)
        board[..., OXYGEN] &= ~board[..., DIVERS_ABOARD]
        return picture(board)


class SeaquestFull(Seaquest):
    """The same: all six actions matter in Seaquest."""


def send_enemy(state, draw):
    """A fish or a submarine comes in, unless it would meet one in its row."""
    to_right = uniform(draw, 0.0, 1.0) < 0.5
    is_submarine = uniform(draw, 0.0, 1.0) < 1 / 3
    y = integers(draw, 1, SIZE - 1)
    if is_opposed(state.fish, state.num_fish, y, to_right) or is_opposed(
        state.submarines, state.num_submarines, y, to_right
    ):
        return
    x = 0 if to_right else SIZE - 1
    if is_submarine:
        i = state.num_submarines
        state.num_submarines = add(state.submarines, i, x, y, to_right)
        if state.num_submarines > i:
            state.submarines[i, MOVE_TIMER] = state.move_interval
            state.submarines[i, SHOT_TIMER] = ENEMY_SHOT_INTERVAL
    else:
        i = state.num_fish
        state.num_fish = add(state.fish, i, x, y, to_right)
        if state.num_fish > i:
            state.fish[i, MOVE_TIMER] = state.move_interval


def send_diver(state, draw):
    to_right = uniform(draw, 0.0, 1.0) < 0.5
    y = integers(draw, 1, SIZE - 1)
    i = state.num_divers
    state.num_divers = add(state.divers, i, 0 if to_right else SIZE - 1, y, to_right)
    if state.num_divers > i:
        state.divers[i, MOVE_TIMER] = DIVER_MOVE_INTERVAL


def steer(state, action):
    if action == LEFT:
        state.x = max(0, state.x - 1)
        state.faces_right = False
    elif action == RIGHT:
        state.x = min(SIZE - 1, state.x + 1)
        state.faces_right = True
    elif action == UP:
        state.y = max(0, state.y - 1)
    elif action == DOWN:
        state.y = min(DEEPEST, state.y + 1)
    elif action == FIRE and state.shot_timer == 0:
        state.shot_timer = SHOT_INTERVAL
        state.num_bullets = add(
            state.bullets, state.num_bullets, state.x, state.y, state.faces_right
        )


def move_bullets(state):
    """Each hits at most one fish or, if there is none, submarine; returns how many they hit."""
    hits = 0
    for i in range(state.num_bullets - 1, -1, -1):
        move(state.bullets, i)
        x = state.bullets[i, X]
        y = state.bullets[i, Y]
        fish = find(state.fish, state.num_fish, x, y)
        submarine = find(state.submarines, state.num_submarines, x, y)
        if fish >= 0:
            state.num_fish = remove(state.fish, state.num_fish, fish)
            hits += 1
        elif submarine >= 0:
            state.num_submarines = remove(state.submarines, state.num_submarines, submarine)
            hits += 1
        if fish >= 0 or submarine >= 0 or is_outside(state.bullets, i):
            state.num_bullets = remove(state.bullets, state.num_bullets, i)
    return hits


def move_divers(state):
    for i in range(state.num_divers - 1, -1, -1):
        is_taken = can_take(state, i)
        if not is_taken and is_time(state.divers, i, MOVE_TIMER, DIVER_MOVE_INTERVAL):
            move(state.divers, i)
            is_taken = can_take(state, i)
        if is_taken:
            state.divers_aboard += 1
        if is_taken or is_outside(state.divers, i):
            state.num_divers = remove(state.divers, state.num_divers, i)


def can_take(state, i):
    """Whether diver i comes aboard."""
    return state.divers_aboard < MAX_DIVERS and is_met(state, state.divers, i)


def move_submarines(state):
    """Returns (how many swam into a bullet, whether one met ours)."""
    hits = 0
    met_one = False
    for i in range(state.num_submarines - 1, -1, -1):
        is_hit, met_this = swim(state, state.submarines, i)
        met_one = met_one or met_this
        if is_time(state.submarines, i, SHOT_TIMER, ENEMY_SHOT_INTERVAL):  # hit or not
            state.num_enemy_bullets = add(
                state.enemy_bullets,
                state.num_enemy_bullets,
                state.submarines[i, X],
                state.submarines[i, Y],
                state.submarines[i, TO_RIGHT],
            )
        if is_hit or is_outside(state.submarines, i):
            hits += is_hit
            state.num_submarines = remove(state.submarines, state.num_submarines, i)
    return hits, met_one


def move_enemy_bullets(state):
    """Returns whether one met our submarine."""
    met_one = False
    for i in range(state.num_enemy_bullets - 1, -1, -1):
        met_one = met_one or is_met(state, state.enemy_bullets, i)
        move(state.enemy_bullets, i)
        met_one = met_one or is_met(state, state.enemy_bullets, i)
        if is_outside(state.enemy_bullets, i):
            state.num_enemy_bullets = remove(state.enemy_bullets, state.num_enemy_bullets, i)
    return met_one


def move_fish(state):
    """Returns (how many swam into a bullet, whether one met our submarine)."""
    hits = 0
    met_one = False
    for i in range(state.num_fish - 1, -1, -1):
        is_hit, met_this = swim(state, state.fish, i)
        met_one = met_one or met_this
        if is_hit or is_outside(state.fish, i):
            hits += is_hit
            state.num_fish = remove(state.fish, state.num_fish, i)
    return hits, met_one


def swim(state, enemies, i):
    """Move enemy i when it is time; returns (whether it is hit, whether it met our submarine)."""
    met = is_met(state, enemies, i)
    if not is_time(enemies, i, MOVE_TIMER, state.move_interval):
        return False, met
    move(enemies, i)
    if is_met(state, enemies, i):
        return False, True
    bullet = find(state.bullets, state.num_bullets, enemies[i, X], enemies[i, Y])
    if bullet >= 0:
        state.num_bullets = remove(state.bullets, state.num_bullets, bullet)
    return bullet >= 0, met


def breathe(state, params):
    """Use oxygen, or surface; returns (reward, whether that is the end)."""
    suffocated = state.oxygen <= 0
    if state.y > 0:
        state.oxygen -= 1
        state.at_surface = False
        return 0, suffocated
    if state.at_surface:
        return 0, suffocated
    if state.divers_aboard == 0:
        return 0, True
    state.at_surface = True
    prize = 0
    if state.divers_aboard == MAX_DIVERS:
        state.divers_aboard = 0
        prize = state.oxygen // OXYGEN_PER_CELL
    state.divers_aboard -= 1
    state.oxygen = FULL_TANK
    if params.difficulty_ramping:
        ramp(state)
    return prize, suffocated


def ramp(state):
    """More enemies every time, and faster ones every other time, until both can be no more."""
    has_more = state.enemy_interval > FASTEST_ENEMIES
    has_faster = state.move_interval > FASTEST_MOVES
    if has_faster and state.ramps % 2 == 1:
        state.move_interval -= 1
    if has_more:
        state.enemy_interval -= 1
    if has_more or has_faster:
        state.ramps += 1


# What follows is about lists: `things` is an array, its first `count` rows are in use.


def add(things, count, x, y, to_right):
    """Put one more at the end, its other columns 0; returns the new count."""
    if count == things.shape[0]:
        return count
    things[count, X] = x
    things[count, Y] = y
    things[count, TO_RIGHT] = to_right
    return count + 1


def remove(things, count, i):
    """Take out i, or the first that is equal, as from a Python list; returns the new count.

    What comes after moves up. In a loop from the end to the start, that of equal ones the first
    goes lets i be seen twice and the first not at all: the package's loops do so, too.
    """
    columns = things.shape[1]
    for j in range(i):
        is_equal = True
        for column in range(columns):
            is_equal = is_equal and things[j, column] == things[i, column]
        if is_equal:
            i = j
            break
    for j in range(i, count - 1):
        for column in range(columns):
            things[j, column] = things[j + 1, column]
    for column in range(columns):
        things[count - 1, column] = 0
    return count - 1


def find(things, count, x, y):
    """The first at (x, y), or -1."""
    for i in range(count):
        if things[i, X] == x and things[i, Y] == y:
            return i
    return -1


def move(things, i):
    things[i, X] += 1 if things[i, TO_RIGHT] else -1


def is_time(things, i, timer, interval):
    """Whether the timer of i, a column, has run down; it counts on, or starts anew."""
    if things[i, timer] == 0:
        things[i, timer] = interval
        return True
    things[i, timer] -= 1
    return False


def is_outside(things, i):
    return not 0 <= things[i, X] < SIZE


def is_met(state, things, i):
    """Whether i is where the front of our submarine is."""
    return things[i, X] == state.x and things[i, Y] == state.y


def is_opposed(things, count, y, to_right):
    """Whether one in row y goes the other way."""
    is_one = False
    for i in range(count):
        is_one = is_one or (things[i, Y] == y and (things[i, TO_RIGHT] == 1) != to_right)
    return is_one


def show(observation, channel, things, count):
    for i in range(count):
        observation[things[i, Y], things[i, X], channel] = True


def show_with_trails(observation, channel, things, count):
    """Show them and the cells that they come from, where those are on the board."""
    for i in range(count):
        x = things[i, X]
        y = things[i, Y]
        behind = x - 1 if things[i, TO_RIGHT] else x + 1
        observation[y, x, channel] = True
        if 0 <= behind < SIZE:
            observation[y, behind, TRAIL] = True
