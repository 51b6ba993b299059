"""Breakout-MinAtar against the `minatar` package."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import find_env
from rollout.envs.minatar.breakout import BALL, PADDLE, TRAIL, Breakout, BreakoutFull
from tests.envs.minatar_judge import (
    LETTERS,
    Judge,
    assert_compiled_equals_plain,
    assert_render_shows_observation,
    assert_same_distributions,
    random_player,
)
from tests.some_fast import slow_unless

DIRECTIONS = ((-1, -1), (1, -1), (1, 1), (-1, 1))  # (dx, dy) by the package's number


def fields(their):
    dx, dy = DIRECTIONS[their.pop("ball_dir")]
    bricks = their.pop("brick_map") == 1
    assert bricks.sum() == bricks[1:4].sum(), "bricks are in three rows"
    return {
        "paddle": their.pop("pos"),
        "x": their.pop("ball_x"),
        "y": their.pop("ball_y"),
        "dx": dx,
        "dy": dy,
        "last_x": their.pop("last_x"),
        "last_y": their.pop("last_y"),
        "in_brick": their.pop("strike"),
        "bricks": bricks[1:4],
    }


def follow_ball(board, rng):
    """A player that rarely misses: it goes where the ball will come down, when that is near."""
    paddle = int(board[9, :, PADDLE].argmax())
    y, x = divmod(int(board[:, :, BALL].argmax()), 10)
    trail_y, trail_x = divmod(int(board[:, :, TRAIL].argmax()), 10)
    direction = (x > trail_x) - (x < trail_x)
    if trail_y <= y:  # coming down, or along the ceiling
        for _ in range(8 - y):
            direction = -direction if not 0 <= x + direction <= 9 else direction
            x = min(max(x + direction, 0), 9)
    return "n" if paddle == x else "lr"[paddle < x]


@pytest.mark.parametrize("ramping", slow_unless([True], [True, False]))
@pytest.mark.parametrize("sticky", slow_unless([0.1], [0.0, 0.1, 0.5]))
@pytest.mark.parametrize("env", [Breakout, BreakoutFull])
def test_random_play_is_the_packages(env, sticky, ramping):
    judge = Judge(env, "breakout", fields, sticky_action_prob=sticky, difficulty_ramping=ramping)
    assert len(judge.play(random_player(judge.letters), 1500)) > 50


@pytest.mark.parametrize("sticky", [0.0, 0.1])
def test_play_that_gets_far_is_the_packages(sticky):
    judge = Judge(Breakout, "breakout", fields, sticky_action_prob=sticky)
    assert max(judge.play(follow_ball, 4000)) > 30, "a second wall of bricks was reached"


rows = st.integers(0, 8)
columns = st.integers(0, 9)
some_bricks = st.lists(st.booleans(), min_size=30, max_size=30)
all_or_none = st.sampled_from([[False] * 30, [True] * 30])


@functools.cache
def judge_of_states() -> Judge:
    return Judge(BreakoutFull, "breakout", fields, sticky_action_prob=0.3)


@settings(max_examples=500)
@given(
    place=st.fixed_dictionaries(
        {
            "pos": columns,
            "ball_x": columns,
            "ball_y": rows,
            "ball_dir": st.integers(0, 3),
            "last_x": columns,
            "last_y": st.integers(0, 9),
            "strike": st.booleans(),
            "last_action": st.integers(0, 5),
        }
    ),
    bricks=some_bricks | all_or_none,
    letters=st.text(LETTERS, min_size=1, max_size=8),
)
def test_transitions_from_any_state_are_the_packages(place, bricks, letters):
    brick_map = np.zeros((10, 10))
    brick_map[1:4] = np.reshape(bricks, (3, 10))
    judge = judge_of_states()
    judge.put(brick_map=brick_map, **place)
    for letter in letters:
        _, terminated = judge.step(letter)
        if terminated:
            break


@pytest.mark.slow
def test_compiled_play_is_plain_pythons():
    assert assert_compiled_equals_plain(Breakout, follow_ball, 1500) > 0
    assert_compiled_equals_plain(BreakoutFull, random_player(LETTERS), 300)


@pytest.mark.parametrize(
    ("player", "episodes"), [(random_player("nlurdf"), 400), (follow_ball, 100)]
)
def test_returns_and_lengths_are_distributed_as_the_packages(player, episodes):
    assert_same_distributions(BreakoutFull, player, episodes)


def test_it_is_bundled_and_renders():
    assert find_env("Breakout-MinAtar") is Breakout
    assert find_env("Breakout-MinAtar-full") is BreakoutFull
    assert_render_shows_observation(Breakout)
