"""Freeway-MinAtar against the `minatar` package."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import find_env
from rollout.envs.minatar.freeway import CAR, CHICKEN, COLUMN, Freeway, FreewayFull
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
    cars = their.pop("cars")
    assert [y for _, y, _, _ in cars] == list(range(1, 9)), "one car in each lane"
    return {
        "chicken": their.pop("pos"),
        "chicken_wait": their.pop("move_timer"),
        "steps_left": their.pop("terminate_timer") + 1,
        "x": [x for x, _, _, _ in cars],
        "wait": [timer for _, _, timer, _ in cars],
        "pace": [speed for _, _, _, speed in cars],
    }


def cross_with_care(board, rng):
    """A player that goes up where no car is near, and now and then steps back."""
    row = int(board[:, COLUMN, CHICKEN].argmax())
    if row > 0 and not board[row - 1, COLUMN - 1 : COLUMN + 2, CAR].any():
        return "u"
    return "d" if rng.random() < 0.05 else "n"


@pytest.mark.parametrize("ramping", slow_unless([True], [True, False]))
@pytest.mark.parametrize("sticky", slow_unless([0.1], [0.0, 0.1, 0.5]))
@pytest.mark.parametrize("env", [Freeway, FreewayFull])
def test_random_play_is_the_packages(env, sticky, ramping):
    judge = Judge(env, "freeway", fields, sticky_action_prob=sticky, difficulty_ramping=ramping)
    assert len(judge.play(random_player(judge.letters), 2600)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [0.0, 0.1])
@pytest.mark.parametrize(("player", "reached"), [(random_player("u"), 20), (cross_with_care, 40)])
def test_play_that_gets_far_is_the_packages(player, reached, sticky):
    judge = Judge(Freeway, "freeway", fields, sticky_action_prob=sticky)
    assert judge.play(player, 2600)[0] > reached


cars = st.tuples(
    st.integers(0, 9), st.integers(0, 5), st.sampled_from([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5])
)


@functools.cache
def judge_of_states() -> Judge:
    return Judge(FreewayFull, "freeway", fields, sticky_action_prob=0.3)


@settings(max_examples=500)
@given(
    chicken=st.fixed_dictionaries(
        {
            "pos": st.integers(0, 9),
            "move_timer": st.integers(0, 3),
            "terminate_timer": st.integers(0, 5) | st.integers(0, 2500),
            "last_action": st.integers(0, 5),
        }
    ),
    cars=st.lists(cars, min_size=8, max_size=8),
    letters=st.text(LETTERS, min_size=1, max_size=8),
)
def test_transitions_from_any_state_are_the_packages(chicken, cars, letters):
    lanes = [[x, lane, timer, speed] for lane, (x, timer, speed) in enumerate(cars, 1)]
    judge = judge_of_states()
    judge.put(cars=lanes, **chicken)
    for letter in letters:
        _, terminated = judge.step(letter)
        if terminated:
            break


@pytest.mark.slow
def test_compiled_play_is_plain_pythons():
    assert assert_compiled_equals_plain(Freeway, cross_with_care, 2600) > 0
    assert_compiled_equals_plain(FreewayFull, random_player(LETTERS), 300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("player", "episodes"), [(random_player("nlurdf"), 15), (cross_with_care, 15)]
)
def test_returns_and_lengths_are_distributed_as_the_packages(player, episodes):
    assert_same_distributions(FreewayFull, player, episodes)


def test_it_is_bundled_and_renders():
    assert find_env("Freeway-MinAtar") is Freeway
    assert find_env("Freeway-MinAtar-full") is FreewayFull
    assert_render_shows_observation(Freeway)
