"""Seaquest-MinAtar against the `minatar` package."""

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import Envs
from rollout.envs.minatar.board import COLOURS
from rollout.envs.minatar.seaquest import (
    BACK,
    DIVER,
    DIVERS_ABOARD,
    ENEMY_BULLET,
    FISH,
    FRONT,
    OXYGEN,
    SUBMARINE,
    Seaquest,
    SeaquestFull,
    add,
    remove,
)
from rollout.envs.registry import find_env
from tests.envs.minatar_judge import (
    LETTERS,
    Judge,
    assert_compiled_equals_plain,
    assert_render_shows_observation,
    assert_same_distributions,
    random_player,
)
from tests.some_fast import slow_unless

LISTS = {
    "f_bullets": "bullets",
    "e_bullets": "enemy_bullets",
    "e_fish": "fish",
    "e_subs": "submarines",
    "divers": "divers",
}


def fields(their):
    found = {
        "x": their.pop("sub_x"),
        "y": their.pop("sub_y"),
        "faces_right": their.pop("sub_or"),
        "at_surface": their.pop("surface"),
        "oxygen": their.pop("oxygen"),
        "divers_aboard": their.pop("diver_count"),
        "shot_timer": their.pop("shot_timer"),
        "diver_timer": their.pop("d_spawn_timer"),
        "enemy_timer": their.pop("e_spawn_timer"),
        "enemy_interval": their.pop("e_spawn_speed"),
        "move_interval": their.pop("move_speed"),
        "ramps": their.pop("ramp_index"),
    }
    for their_name, name in LISTS.items():
        things = their.pop(their_name)
        found[name] = np.zeros(Seaquest.state[name].shape)
        for i, thing in enumerate(things):  # of the length that we think it has
            found[name][i] = thing
        found[f"num_{name}"] = len(things)
    return found


def fetch_divers(board, rng):
    """A player that fetches divers, comes up before it suffocates, shoots and keeps away."""
    y, x = (int(place) for place in np.argwhere(board[:, :, FRONT])[0])
    facing = 1 if x > 0 and board[y, x - 1, BACK] else -1
    enemies = board[:, :, FISH] | board[:, :, SUBMARINE]
    aboard, oxygen = board[9, :, DIVERS_ABOARD].sum(), board[9, :, OXYGEN].sum()

    def is_safe(letter):
        to_y = min(max(y + {"u": -1, "d": 1}.get(letter, 0), 0), 8)
        to_x = min(max(x + {"l": -1, "r": 1}.get(letter, 0), 0), 9)
        if to_y == 0:
            return y == 0 or aboard > 0
        near, nearer = slice(max(0, to_x - 2), to_x + 3), slice(max(0, to_x - 1), to_x + 2)
        return not (enemies[to_y, nearer].any() or board[to_y, near, ENEMY_BULLET].any())

    ahead = enemies[y, x:] if facing > 0 else enemies[y, : x + 1]
    divers = np.argwhere(board[:, :, DIVER])
    wishes = "f" if ahead.any() else ""
    if aboard and (oxygen < 5 or aboard == 6):
        wishes = "u"
    elif len(divers):
        to_y, to_x = min(divers, key=lambda place: abs(place[0] - y) + abs(place[1] - x))
        wishes += ("u" if to_y < y else "d" if to_y > y else "") + (
            "l" if to_x < x else "r" if to_x > x else ""
        )
    safe = [letter for letter in wishes + "n" if is_safe(letter)]
    others = [letter for letter in "rldu" if is_safe(letter)]
    return safe[0] if safe else others[rng.integers(len(others))] if others else "n"


@pytest.mark.parametrize("ramping", slow_unless([True], [True, False]))
@pytest.mark.parametrize("sticky", slow_unless([0.1], [0.0, 0.1, 0.5]))
def test_random_play_is_the_packages(sticky, ramping):
    judge = Judge(
        Seaquest, "seaquest", fields, sticky_action_prob=sticky, difficulty_ramping=ramping
    )
    assert len(judge.play(random_player(LETTERS), 1000)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("ramping", [True, False])
@pytest.mark.parametrize("sticky", [0.0, 0.1])
def test_play_that_gets_far_is_the_packages(sticky, ramping):
    judge = Judge(
        Seaquest, "seaquest", fields, sticky_action_prob=sticky, difficulty_ramping=ramping
    )
    assert max(judge.play(fetch_divers, 3000)) > 20, "never brought six divers home"


places = (st.integers(0, 9), st.integers(1, 3) | st.integers(1, 8), st.booleans())
move_timers = st.just(0) | st.integers(0, 5)
bullets = st.tuples(*places)
fish = st.tuples(*places, move_timers)
submarines = st.tuples(*places, move_timers, st.just(0) | st.integers(0, 10))


def lists(things, max_size):
    return st.lists(things.map(list), max_size=max_size)


@functools.cache
def judge_of_states(ramping: bool) -> Judge:
    return Judge(
        SeaquestFull, "seaquest", fields, sticky_action_prob=0.3, difficulty_ramping=ramping
    )


@settings(max_examples=600)
@given(
    state=st.fixed_dictionaries(
        {
            "sub_x": st.integers(0, 9),
            "sub_y": st.integers(0, 2) | st.integers(0, 8),
            "sub_or": st.booleans(),
            "oxygen": st.integers(-1, 2) | st.integers(0, 200),
            "diver_count": st.integers(-3, 6),
            "shot_timer": move_timers,
            "d_spawn_timer": st.just(0) | st.integers(0, 30),
            "e_spawn_timer": st.just(0) | st.integers(0, 20),
            "e_spawn_speed": st.integers(1, 20),
            "move_speed": st.integers(2, 5),
            "ramp_index": st.integers(0, 30),
            "f_bullets": lists(bullets, 3),
            "e_bullets": lists(bullets, 6),
            "e_fish": lists(fish, 6),
            "e_subs": lists(submarines, 6),
            "divers": lists(fish, 3),
            "last_action": st.integers(0, 5),
        }
    ),
    at_surface=st.booleans(),
    ramping=st.booleans(),
    letters=st.text(LETTERS, min_size=1, max_size=8),
)
def test_transitions_from_any_state_are_the_packages(state, at_surface, ramping, letters):
    if state["sub_x"] in (0, 9):  # one that faces an edge has come from the other side
        state["sub_or"] = state["sub_x"] == 9
    judge = judge_of_states(ramping)
    judge.put(surface=at_surface and state["sub_y"] == 0, **state)
    for letter in letters:
        _, terminated = judge.step(letter)
        if terminated:
            break


NOBODY = {"f_bullets": [], "e_bullets": [], "e_fish": [], "e_subs": [], "divers": []}


def test_to_surface_takes_a_diver_away_after_six_too_as_in_the_package():
    judge = Judge(Seaquest, "seaquest", fields, sticky_action_prob=0.0)
    judge.put(sub_x=5, sub_y=1, surface=False, diver_count=6, oxygen=199, **NOBODY)
    assert judge.step("u") == (9, False)
    assert judge.theirs.env.diver_count == -1
    judge.step("d")
    assert judge.step("u") == (0, False), "-1 are not none"
    assert judge.theirs.env.diver_count == -2


def test_of_equal_bullets_the_first_leaves_as_in_the_package():
    judge = Judge(Seaquest, "seaquest", fields, sticky_action_prob=0.0)
    judge.put(**NOBODY | {"f_bullets": [[7, 1, False], [5, 2, True], [8, 1, False]]})
    judge.put(e_fish=[[7, 1, True, 3]])
    assert judge.step("n") == (1, False)
    assert judge.theirs.env.f_bullets == [[6, 2, True], [6, 1, False]]


class OneKind:
    """Draws of the package's game: all enemies are of one kind, in one row, and swim one way."""

    def __init__(self, kind: str, to_right: bool) -> None:
        self.units = (0.2 if to_right else 0.8, 0.2 if kind == "submarines" else 0.8)
        self.asked = 0

    def rand(self) -> float:
        """Which way first; then, of an enemy, which kind."""
        self.asked += 1
        return self.units[self.asked - 1]

    def randint(self, low: int, high: int, size: Any) -> int:
        """The row comes last."""
        assert (low, high, size) == (1, 9, None)
        self.asked = 0
        return 3


@pytest.mark.parametrize("kind", ["fish", "submarines"])
@pytest.mark.parametrize("to_right", [True, False])
def test_lists_hold_as_many_as_there_can_be(kind, to_right):
    """An enemy in every step, and slow ones, who last longest: more than in any episode."""
    judge = Judge(SeaquestFull, "seaquest", fields, sticky_action_prob=0.0)
    judge.theirs.env.random._random = OneKind(kind, to_right)
    judge.put(e_spawn_speed=1, e_spawn_timer=0, d_spawn_timer=0)
    most = dict.fromkeys(LISTS.values(), 0)
    for _ in range(200):
        judge.step("f")  # along the surface, where nobody is
        for their_name, name in LISTS.items():
            most[name] = max(most[name], len(getattr(judge.theirs.env, their_name)))
    capacity = {name: Seaquest.state[name].shape[0] for name in most}
    # in a step, before the first ones leave, there are more: 1 enemy and 5 bullets
    assert most[kind] == capacity[kind] - 1 == 59
    if kind == "submarines":
        assert most["enemy_bullets"] == capacity["enemy_bullets"] - 5 == 20
    assert all(most[name] < capacity[name] for name in most)


def test_full_list_takes_nothing_more():
    things = np.arange(12, dtype=np.int8).reshape(4, 3)
    before = things.copy()
    assert add(things, 4, 1, 2, True) == 4
    np.testing.assert_array_equal(things, before)
    assert add(things, 3, 7, 8, True) == 4
    assert things[3].tolist() == [7, 8, 1]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6), st.data())
def test_things_leave_a_list_as_pythons_remove_does(listed, data):
    things = np.zeros((6, 2), np.int8)
    things[: len(listed)] = listed
    i = data.draw(st.integers(0, len(listed) - 1))
    assert remove(things, len(listed), i) == len(listed) - 1
    listed.remove(listed[i])
    assert things[: len(listed)].tolist() == [list(thing) for thing in listed]
    assert not things[len(listed) :].any(), "equal games have equal states"


@pytest.mark.slow
def test_compiled_play_is_plain_pythons():
    assert assert_compiled_equals_plain(Seaquest, fetch_divers, 1000) > 0
    assert assert_compiled_equals_plain(SeaquestFull, random_player(LETTERS), 600) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("player", "episodes"), [(random_player(LETTERS), 400), (fetch_divers, 100)]
)
def test_returns_and_lengths_are_distributed_as_the_packages(player, episodes):
    assert_same_distributions(Seaquest, player, episodes)


def test_it_is_bundled_and_renders():
    assert find_env("Seaquest-MinAtar") is Seaquest
    assert find_env("Seaquest-MinAtar-full") is SeaquestFull
    assert_render_shows_observation(Seaquest)


def test_picture_shows_divers_before_oxygen():
    envs = Envs(Seaquest, 1, seed=0, jit=False)
    envs.records["state"]["divers_aboard"] = 2
    colours = envs.render()[190, 10::20]
    assert (colours == COLOURS[[OXYGEN] * 7 + [DIVERS_ABOARD] * 2 + [OXYGEN]]).all()
