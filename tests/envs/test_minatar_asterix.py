"""Asterix-MinAtar against the `minatar` package."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import find_env
from rollout.envs.minatar.asterix import ENEMY, GOLD, PLAYER, Asterix, AsterixFull
from tests.envs.minatar_judge import (
    LETTERS,
    Judge,
    assert_compiled_equals_plain,
    assert_render_shows_observation,
    assert_same_distributions,
    random_player,
)
from tests.some_fast import slow_unless


def fields(their):
    assert their.pop("shot_timer") == 0, "nobody shoots"
    things: list[tuple[int, int, bool]] = [(0, 0, False)] * 8  # empty
    for i, entity in enumerate(their.pop("entities")):
        if entity is not None:
            x, y, goes_right, is_gold = entity
            assert y == i + 1, "a thing stays in its row"
            things[i] = (x, 1 if goes_right else -1, is_gold)
    x, direction, is_gold = zip(*things, strict=True)
    return {
        "player_x": their.pop("player_x"),
        "player_y": their.pop("player_y"),
        "spawn_interval": their.pop("spawn_speed"),
        "spawn_wait": their.pop("spawn_timer"),
        "move_interval": their.pop("move_speed"),
        "move_wait": their.pop("move_timer"),
        "ramp_wait": their.pop("ramp_timer"),
        "ramps": their.pop("ramp_index"),
        "x": x,
        "direction": direction,
        "is_gold": is_gold,
    }


MOVES = {"n": (0, 0), "l": (0, -1), "u": (-1, 0), "r": (0, 1), "d": (1, 0)}


def gather_with_care(board, rng):
    """A player that goes for the nearest gold, but not to a cell beside an enemy."""
    player, gold, enemies = (cells(board, channel) for channel in (PLAYER, GOLD, ENEMY))

    def cost(letter):
        (y, x), (down, right) = player[0], MOVES[letter]
        y, x = min(max(y + down, 1), 8), min(max(x + right, 0), 9)
        is_danger = any(row == y and abs(column - x) <= 1 for row, column in enemies)
        ways = [abs(row - y) + abs(column - x) for row, column in gold]
        return 100 * is_danger + min(ways, default=abs(x - 4.5))

    return min(MOVES, key=cost)


def cells(board, channel):
    return [divmod(cell, 10) for cell in np.flatnonzero(board[:, :, channel]).tolist()]


@pytest.mark.parametrize("ramping", slow_unless([True], [True, False]))
@pytest.mark.parametrize("sticky", slow_unless([0.1], [0.0, 0.1, 0.5]))
@pytest.mark.parametrize("env", [Asterix, AsterixFull])
def test_random_play_is_the_packages(env, sticky, ramping):
    judge = Judge(env, "asterix", fields, sticky_action_prob=sticky, difficulty_ramping=ramping)
    assert len(judge.play(random_player(judge.letters), 2000)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("ramping", [True, False])
@pytest.mark.parametrize("sticky", [0.0, 0.1])
def test_play_that_gets_far_is_the_packages(sticky, ramping):
    judge = Judge(Asterix, "asterix", fields, sticky_action_prob=sticky, difficulty_ramping=ramping)
    assert max(judge.play(gather_with_care, 3000)) > 20


entities = st.none() | st.tuples(st.integers(0, 9), st.booleans(), st.booleans())


@functools.cache
def judge_of_states(ramping: bool) -> Judge:
    return Judge(AsterixFull, "asterix", fields, sticky_action_prob=0.3, difficulty_ramping=ramping)


@settings(max_examples=500)
@given(
    place=st.fixed_dictionaries(
        {
            "player_x": st.integers(0, 9),
            "player_y": st.integers(1, 8),
            "spawn_speed": st.integers(1, 10),
            "spawn_timer": st.integers(0, 10),
            "move_speed": st.integers(1, 5),
            "move_timer": st.integers(0, 5),
            "ramp_timer": st.integers(-1, 1) | st.integers(-1, 100),
            "ramp_index": st.integers(0, 9),
            "last_action": st.integers(0, 5),
        }
    ),
    entities=st.lists(entities, min_size=8, max_size=8),
    ramping=st.booleans(),
    letters=st.text(LETTERS, min_size=1, max_size=8),
)
def test_transitions_from_any_state_are_the_packages(place, entities, ramping, letters):
    rows = [
        None if entity is None else [entity[0], row, *entity[1:]]
        for row, entity in enumerate(entities, 1)
    ]
    judge = judge_of_states(ramping)
    judge.put(entities=rows, **place)
    for letter in letters:
        _, terminated = judge.step(letter)
        if terminated:
            break


def test_compiled_play_is_plain_pythons():
    assert assert_compiled_equals_plain(Asterix, gather_with_care, 1500) > 0
    assert_compiled_equals_plain(AsterixFull, random_player(LETTERS), 300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("player", "episodes"), [(random_player("nlurdf"), 200), (gather_with_care, 60)]
)
def test_returns_and_lengths_are_distributed_as_the_packages(player, episodes):
    assert_same_distributions(AsterixFull, player, episodes, max_steps=1000)


def test_it_is_bundled_and_renders():
    assert find_env("Asterix-MinAtar") is Asterix
    assert find_env("Asterix-MinAtar-full") is AsterixFull
    assert_render_shows_observation(Asterix)
