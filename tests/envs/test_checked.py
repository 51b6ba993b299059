"""Checked mode: what is wrong in an environment is said with its place and its value."""

import re

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from rollout.envs import CompiledEnv, EnvError, Envs, Outcome, uniform
from rollout.envs.checks.random_play import RandomActions
from rollout.envs.diagnostic.counting import Counting
from tests.envs import wrong_helpers
from tests.envs.nasty import Nasty
from tests.envs.wrong_helpers import decorated, make_writer

(
    NOTHING,
    WRITE,
    WRITE_IN_MODULE,
    WRITE_DECORATED,
    WRITE_IN_CLOSURE,
    READ,
    RAISE,
    RESET,
    NAN,
    DIVISION,
    REWARD,
    FAR,
    LAST,
    SEEN,
) = range(14)
write_behind = make_writer(1)


class Wrong(CompiledEnv):
    """Goes wrong in the way `how` at step 4 of every episode of environment 6 and up."""

    state = np.dtype(
        [("env", "i8"), ("t", "i8"), ("x", "f8"), ("v", "f8"), ("board", "i8", (2, 3))]
    )
    params = {"how": NOTHING}
    observation_space = Box(-100, 100, (2, 2), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 7

    def reset(state, params, draw):
        state.env = draw.env
        state.x = uniform(draw, 1.0, 2.0)
        if params.how == RESET and draw.episode == 1:
            state.board[-3, 0] = 1

    def step(state, params, action, draw):
        state.t += 1
        if state.env < 6:
            return 1.0, False
        if state.t == 5:
            if params.how == WRITE:
                state.board[2, action] = 1
            if params.how == WRITE_IN_MODULE:
                wrong_helpers.write(state.board, 2 + action)
            if params.how == WRITE_DECORATED:
                decorated(state.board, 2)
            if params.how == WRITE_IN_CLOSURE:
                write_behind(state.board)
            if params.how == READ:
                state.v = state.board[0, 3]
            if params.how == RAISE:
                raise ValueError("too fast")
            if params.how == NAN:
                spoil(state)
            if params.how == DIVISION:
                state.v = state.x / (state.x - state.x)
            if params.how == REWARD:
                return -state.x * 1e300, False
            if params.how == FAR:
                state.v = 2 * 100.5
        if params.how == LAST and state.t == 7:
            state.v = -101
        return 1.0, False

    def observe(state, params, observation):
        observation[0, 0] = state.x
        observation[0, 1] = state.t
        observation[1, 0] = state.v
        if params.how == SEEN and state.t == 5 and state.env == 6:
            observation[1, 2] = 1


def spoil(state):
    state.x = 1.5
    state.v = np.sqrt(-state.x)


def wrong_step(how: int, jit: bool = True) -> str:
    """What checked mode says; environment 6 is the third of four."""
    envs = Envs(Wrong, 4, 0, first_env=4, params={"how": how}, jit=jit, checked=True)
    with pytest.raises(EnvError) as found:
        step(envs, 20)
    return str(found.value)


def step(envs: Envs, num_steps: int) -> None:
    outcome = Outcome(envs.env, envs.num_envs)
    for _ in range(num_steps):
        envs.step(np.zeros(envs.num_envs, np.int32), outcome)


@pytest.mark.parametrize(
    ("how", "what", "line", "where"),
    [
        (WRITE, "state.board[2, 0] lies outside (2, 3)", "state.board[2, action] = 1", "step 4"),
        (WRITE_IN_MODULE, "board[2, 0] lies outside (2, 3)", "board[row, 0] = 7", "step 4"),
        (WRITE_DECORATED, "board[2, 0] lies outside (2, 3)", "board[row, 0] = 7", "step 4"),
        (WRITE_IN_CLOSURE, "board[1, 3] lies outside (2, 3)", "board[row, 3] = 7", "step 4"),
        (READ, "state.board[0, 3] lies outside (2, 3)", "state.v = state.board[0, 3]", "step 4"),
        (RAISE, "ValueError: too fast", 'raise ValueError("too fast")', "step 4"),
        (SEEN, "observation[1, 2] lies outside (2, 2)", "observation[1, 2] = 1", "observation 5"),
        (FAR, "observation[1, 0] is 201.0, wanted -100.0 to 100.0", "= state.v", "observation 5"),
        (LAST, "observation[1, 0] is -101.0, wanted -100.0", "= state.v", "observation 7"),
        (REWARD, "reward is -inf", "return -state.x * 1e300, False", "step 4"),
    ],
)
def test_fault_is_said_with_line_and_place(how, what, line, where):
    said = wrong_step(how)
    assert said.startswith("environment Wrong: ")
    assert what in said
    assert line in line_named(said), said
    assert f"; environment 6, episode 0, {where}" in said


def line_named(said: str) -> str:
    """The source of the first line that a message names."""
    named = re.search(r"\((\S+?\.py):(\d+), in \w+\)", said)
    assert named, said
    with open(named[1]) as file:
        return file.readlines()[int(named[2]) - 1]


def test_reset_that_fails_names_its_episode():
    said = wrong_step(RESET)
    assert "state.board[-3, 0] lies outside (2, 3)" in said
    assert "state.board[-3, 0] = 1" in line_named(said)
    assert "environment 4, episode 1, reset" in said


def test_number_that_is_not_finite_comes_with_its_cause():
    said = wrong_step(NAN)
    seen, cause = said.split(", since ")
    assert "observation[1, 0] is nan" in seen
    assert "observation[1, 0] = state.v" in line_named(seen)
    assert cause.startswith("state.v is nan (")
    assert "state.v = np.sqrt(-state.x)" in line_named(cause)


def test_division_by_zero_that_goes_on_in_compiled_code_is_named():
    said = wrong_step(DIVISION)
    assert "observation[1, 0] is inf" in said
    assert "where plain Python fails: ZeroDivisionError: float division by zero" in said
    assert "state.x / (state.x - state.x)" in line_named(said.split("ZeroDivisionError")[1])


@pytest.mark.parametrize("how", [WRITE, WRITE_DECORATED, FAR, REWARD, RAISE])
def test_plain_python_is_checked_in_the_same_words(how):
    assert wrong_step(how, jit=False) == wrong_step(how)


def test_unchecked_kernels_are_not_touched_by_checked_ones():
    """Neither by those of the author's that are compiled only once: an unchecked kernel is fast."""
    wrong_step(WRITE_DECORATED)
    board = np.zeros((2, 3, 3), np.int64)
    decorated(board[0], 3)  # checked, this would raise
    assert board[1, 0, 0] == 7


def test_environments_are_as_before_when_a_function_failed():
    envs = Envs(Wrong, 4, 0, first_env=4, params={"how": WRITE}, checked=True)
    outcome = Outcome(Wrong, 4)
    step(envs, 4)
    before = envs.snapshot()
    for _ in range(2):
        with pytest.raises(EnvError, match=r"state.board\[2, 1\]"):
            envs.step(np.ones(4, np.int32), outcome)
        assert envs.snapshot() == before


def test_step_goes_through_where_only_a_number_is_wrong():
    envs = Envs(Wrong, 4, 0, params={"how": FAR}, first_env=6, checked=True)
    step(envs, 4)
    for t in (5, 6):
        with pytest.raises(EnvError, match=rf"observation\[1, 0\] is 201.0.* observation {t}"):
            step(envs, 1)
        assert envs.records["clock"]["t"].tolist() == [t] * 4


@pytest.mark.parametrize("env", [Counting, Nasty, Wrong])
def test_checked_steps_equal_unchecked_ones(env):
    """Where nothing is wrong; several environments truncated and terminated at once."""
    both = [Envs(env, 4, 3, checked=checked) for checked in (False, True)]
    outcomes = [Outcome(env, 4) for _ in both]
    for envs in both:
        envs.records["clock"]["t"] = max(0, (env.max_episode_steps or 0) - 7)
    actions = RandomActions(env.action_space, 4, seed=0)
    for t in range(30):
        action = actions.at(t)
        for envs, outcome in zip(both, outcomes, strict=True):
            envs.step(action, outcome)
        assert both[0].snapshot() == both[1].snapshot(), f"after step {t}"
        for one, other in zip(*(outcome.arrays for outcome in outcomes), strict=True):
            assert one.tobytes() == other.tobytes(), f"outcome of step {t}"
        assert outcomes[0].num_finals == outcomes[1].num_finals
        assert outcomes[0].num_episodes == outcomes[1].num_episodes
        np.testing.assert_array_equal(both[0].observation(), both[1].observation())
        np.testing.assert_array_equal(both[0].action_mask(), both[1].action_mask())


class Shown(CompiledEnv):
    """Shows what its params say."""

    state = np.dtype([("t", "i8")])
    params = {"level": 2, "k": 3, "bit": 1, "x": 0.5, "none": False}
    observation_space = Dict(
        {
            "level": Discrete(3),
            "inner": Dict({"hand": MultiDiscrete([2, 4]), "x": Box(-1, 1, (2,), np.float64)}),
            "bits": MultiBinary(2),
        }
    )
    action_space = MultiDiscrete([2, 3])
    max_episode_steps = 3

    def reset(state, params, draw):
        state.t = 0

    def step(state, params, action, draw):
        state.t += 1
        return 0.0, False

    def observe(state, params, observation):
        observation.level = params.level
        observation.inner.hand[1] = params.k
        observation.inner.x[1] = params.x
        observation.bits[0] = params.bit

    def action_mask(state, params, mask):
        mask[0] = False
        if params.none and state.t == 1:
            mask[2:] = False


@pytest.mark.parametrize(
    ("params", "said", "line"),
    [
        ({"level": 3}, "observation.level is 3, wanted 0 to 2", "observation.level ="),
        ({"level": -1}, "observation.level is -1, wanted 0 to 2", "observation.level ="),
        ({"k": 4}, "observation.inner.hand[1] is 4, wanted 0 to 3", ".hand[1] ="),
        ({"bit": 2}, "observation.bits[0] is 2, wanted 0 to 1", ".bits[0] ="),
        ({"x": -1.5}, "observation.inner.x[1] is -1.5, wanted -1.0 to 1.0", ".x[1] ="),
        ({"x": np.nan}, "observation.inner.x[1] is nan (", ".x[1] ="),
        ({"x": np.inf}, "observation.inner.x[1] is inf (", ".x[1] ="),
    ],
)
def test_every_part_of_an_observation_is_checked(params, said, line):
    envs = Envs(Shown, 2, 0, params=params, checked=True)
    with pytest.raises(EnvError) as found:
        envs.observation()
    assert said in str(found.value)
    assert "environment 0, episode 0, observation 0" in str(found.value)
    assert line in line_named(str(found.value))


def test_observation_that_is_never_written_is_said_to_be():
    class Unwritten(Shown):
        observation_space = Box(1, 2, (2,), np.float32)

        def observe(state, params, observation):
            observation[0] = 1.5

    with pytest.raises(
        EnvError, match=r"observation\[1\] is 0.0, wanted 1.0 to 2.0 \(observe leav"
    ):
        Envs(Unwritten, 1, 0, checked=True).observation()


def test_infinity_is_refused_even_where_a_space_has_no_bounds():
    class Unbounded(Shown):
        observation_space = Box(-np.inf, np.inf, (1,), np.float64)

        def observe(state, params, observation):
            observation[0] = params.x

    Envs(Unbounded, 1, 0, params={"x": 1e300}, checked=True).observation()
    with pytest.raises(EnvError, match=r"observation\[0\] is -inf \("):
        Envs(Unbounded, 1, 0, params={"x": -np.inf}, checked=True).observation()


def test_mask_that_allows_nothing_is_refused():
    envs, outcome = Envs(Shown, 2, 0, params={"none": True}, checked=True), Outcome(Shown, 2)
    assert envs.action_mask().tolist() == [[False, True, True, True, True]] * 2
    envs.step(np.ones((2, 2), np.int32), outcome)
    with pytest.raises(EnvError, match="action_mask allows no value of action choice 1") as found:
        envs.action_mask()
    assert "in action_mask); environment 0, episode 0, observation 1" in str(found.value)
    assert line_named(str(found.value)).strip() == "mask[2:] = False"


def test_actions_of_the_wrong_type_are_still_the_callers_error():
    envs, outcome = Envs(Shown, 2, 0, checked=True), Outcome(Shown, 2)
    with pytest.raises(EnvError, match=r"got actions int64 \[2, 2\], wanted int32 \[2, 2\]"):
        envs.step(np.ones((2, 2), np.int64), outcome)


def test_state_goes_on_from_a_snapshot_in_checked_mode():
    envs = Envs(Wrong, 4, 0, checked=True)
    step(envs, 10)
    other, position = Envs(Wrong, 4, 9, checked=True), np.zeros(1, np.int64)
    other.restore(envs.snapshot(), position, 10)
    assert other.snapshot() == envs.snapshot()
    assert position[0] == 30
