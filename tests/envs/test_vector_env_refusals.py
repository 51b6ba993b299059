"""What a vector environment refuses, and in which words."""

from functools import partial

import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode

from rollout.envs import EnvError, Envs, VectorEnv, check_env, register
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from tests.envs.gymnasium_envs import Maze, Sliders, Tiles


class OneStep(Counting):
    max_episode_steps = 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, "seed -1 of environment 0, wanted an integer from 0 to 4294967295"),
        ({"seed": 2**32 - 2}, "seed 4294967296 of environment 2"),
        ({"seed": [0, 1.5, 2]}, "seed 1.5 of environment 1"),
        ({"seed": [0, 1]}, "2 seeds for 3 environments"),
        ({"seed": 1.5}, "seed=1.5, wanted an integer, one for each environment, or None"),
        ({"seed": "12"}, "seed='12', wanted"),
        ({"options": [True] * 3}, "options=[True, True, True], wanted a dictionary"),
        ({"options": {"reset_mask": [True] * 3}}, "reset_mask'] is [True, True, True], wanted"),
        ({"options": {"reset_mask": np.ones(3)}}, "wanted a bool array [3]"),
        ({"options": {"reset_mask": np.ones(2, np.bool_)}}, "wanted a bool array [3]"),
        ({"options": {"reset_mask": np.zeros(3, np.bool_)}}, "at least one True"),
    ],
)
def test_reset_of_another_kind_is_refused_and_changes_nothing(arguments, words):
    envs = VectorEnv(CartPole, 3)
    with pytest.raises(EnvError) as caught:
        envs.reset(**arguments)
    assert words in str(caught.value)
    with pytest.raises(EnvError, match="call reset before step"):
        envs.step([0, 0, 0])
    envs.reset(seed=1)
    before = envs.snapshot()
    with pytest.raises(EnvError):
        envs.reset(**arguments)
    assert envs.snapshot() == before


def test_first_reset_is_of_all():
    with pytest.raises(EnvError, match="the first reset is of all"):
        VectorEnv(CartPole, 2).reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize(
    ("env", "actions", "words"),
    [
        (CartPole, [0, 1], "CartPole got actions int64 [2], wanted integers [3]"),
        (CartPole, [[0], [1], [0]], "actions int64 [3, 1], wanted integers [3]"),
        (CartPole, 1, "actions int64 [], wanted integers [3]"),
        (CartPole, None, "actions object [], wanted integers [3]"),
        (CartPole, [0.0, 1.0, 0.0], "actions float64 [3], wanted integers [3]"),
        (CartPole, [True, False, True], "actions bool [3], wanted integers [3]"),
        (CartPole, ["a", "b", "c"], "wanted integers [3]"),
        (CartPole, [[0], [1, 2], 3], "CartPole cannot read its actions: "),
        (CartPole, [0, 2, 0], "got action 2 for environment 1, wanted an integer from 0 to 1"),
        (CartPole, [0, 0, -1], "got action -1 for environment 2, wanted an integer from 0 to 1"),
        (CartPole, [0, 2**32, 0], "got action 4294967296 for environment 1"),
        (CartPole, np.array([2**63, 0, 0], np.uint64), "got action 9223372036854775808 for env"),
        (
            Maze,
            [[2, 1], [2, 2], [0, 0]],
            "got action 2 for environment 1, wanted an integer from 0",
        ),
        (Maze, [2, 1, 0], "actions int64 [3], wanted integers [3, 2]"),
        (Sliders, [[0.0, 1.0]], "actions float64 [1, 2], wanted numbers [3, 2]"),
        (Sliders, [[0, 1], [1, np.nan], [0, 1]], "action[1] = nan for environment 1"),
        (Sliders, np.zeros((3, 2), np.bool_), "actions bool [3, 2], wanted numbers [3, 2]"),
    ],
)
def test_actions_of_another_kind_are_refused_before_anything_is_stepped(env, actions, words):
    envs = VectorEnv(env, 3)
    envs.reset(seed=0)
    before = envs.snapshot()
    with pytest.raises(EnvError) as caught:
        envs.step(actions)
    assert words in str(caught.value)
    assert envs.snapshot() == before


def test_ended_environment_is_not_stepped_without_autoreset():
    envs = VectorEnv(OneStep, 3, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step([0, 0, 0])
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    with pytest.raises(EnvError, match="of environment 0, 2 has ended; reset it before the next"):
        envs.step([0, 0, 0])


@pytest.mark.parametrize("limit", [0, -2, 2.5, "7", 2**31])
def test_time_limit_of_another_kind_is_refused(limit):
    with pytest.raises(EnvError, match=r"max_episode_steps=.*, wanted a positive integer, -1"):
        VectorEnv(CartPole, 1, max_episode_steps=limit)


def test_snapshot_of_others_is_refused():
    envs = VectorEnv(CartPole, 3)
    with pytest.raises(EnvError, match="call reset before snapshot"):
        envs.snapshot()
    envs.reset(seed=0)
    kept = envs.snapshot()
    renamed, fewer = VectorEnv(type("Other", (CartPole,), {}), 3), VectorEnv(CartPole, 2)
    for others in (renamed, fewer):
        others.reset(seed=0)
    cut = (b"", b"xx", kept[:-1], kept + kept, kept[:8], kept[8:])
    for other in (*cut, renamed.snapshot(), fewer.snapshot(), None, "text"):
        with pytest.raises(EnvError, match="no snapshot of 3 environments CartPole"):
            envs.restore(other)  # pyright: ignore[reportArgumentType]
    assert envs.snapshot() == kept


class Raising(Counting):
    def step(state, params, action, draw):
        if action == 1:
            raise ValueError("too far")
        return 0.0, False


@pytest.mark.parametrize("jit", [True, False])
def test_what_an_environment_raises_comes_with_its_name(jit):
    envs = VectorEnv(Raising, 3, jit=jit)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="too far") as caught:
        envs.step([0, 0, 1])
    assert caught.value.__notes__ == [
        "raised in one of 3 environments Raising; Envs(…, checked=True), or `rollout check-env`, "
        "says in which, when and where"
    ]


@pytest.mark.parametrize("mode", ["foo", "NEXT_STEP", 3, None])
def test_autoreset_mode_of_another_kind_is_refused(mode):
    with pytest.raises(EnvError, match="wanted one of 'NextStep', 'SameStep', 'Disabled'"):
        VectorEnv(CartPole, 1, autoreset_mode=mode)


@pytest.mark.parametrize("env", [CartPole(), Discrete, None, 3])
@pytest.mark.parametrize("make", [VectorEnv, check_env, partial(register, "mine/Mine-v0"), Envs])
def test_what_is_no_environment_is_refused(env, make):
    with pytest.raises(EnvError, match=r"wanted a subclass of rollout\.envs\.CompiledEnv"):
        make(env, **{"num_envs": 1, "seed": 0} if make is Envs else {})


@pytest.mark.parametrize(("env", "mode"), [(Maze, "human"), (Tiles, "rgb_array"), (Maze, 3)])
def test_render_mode_that_is_not_there_is_refused(env, mode):
    with pytest.raises(EnvError, match=f"{env.__name__} has no render_mode={mode!r}, wanted"):
        VectorEnv(env, 1, render_mode=mode)
