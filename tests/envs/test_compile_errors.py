# pyright: reportOperatorIssue=false, reportUndefinedVariable=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false
"""A function that does not compile is answered with its author's line and one reason."""

import math
import re

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, EnvError, Envs, uniform
from tests.envs import broken_helpers
from tests.envs.broken_helpers import line_of

GOOD = {
    "state": np.dtype([("x", "f8"), ("board", "i1", (3, 3))]),
    "params": {"force": 1.0},
    "observation_space": Box(-1, 1, (1,), np.float32),
    "action_space": Discrete(2),
}


def reset(state, params, draw):
    state.x = 0.0


def step(state, params, action, draw):
    return 1.0, state.x > 1


def observe(state, params, observation):
    observation[0] = state.x


class Broken:
    """Each function is wrong where it says so; the message's words follow in WANTED."""

    def step_unknown_field(state, params, action, draw):
        state.x += 1
        state.y += 1  # wrong
        return 1.0, False

    def step_unknown_param(state, params, action, draw):
        return params.gravity, False  # wrong

    def step_undefined_name(state, params, action, draw):
        return undefined_name + 1, False  # noqa: F821  # wrong

    def step_text_in_field(state, params, action, draw):
        state.x = "hello"  # wrong
        return 1.0, False

    def step_adds_text(state, params, action, draw):
        return 1.0 + "a", False  # wrong

    def step_too_many_indices(state, params, action, draw):
        state.board[0, 0, 0] = 3  # wrong
        return 1.0, False

    def step_numpys_generator(state, params, action, draw):
        return np.random.default_rng(1).random(), False  # wrong

    def step_draw_without_range(state, params, action, draw):
        return uniform(draw), False  # wrong

    def step_opens_a_file(state, params, action, draw):
        with open("x") as file:
            file.read()
        return 1.0, False

    def step_calls_a_broken_helper(state, params, action, draw):
        return broken_helpers.outer(state.x), False

    def reset_unknown_function(state, params, draw):
        state.x = math.sinus(3)  # wrong

    def observe_writes_an_array(state, params, observation):
        observation[0] = state.board  # wrong


WANTED = {
    "step_unknown_field": "no field 'y' in the record",
    "step_unknown_param": "no field 'gravity' in the record",
    "step_undefined_name": "name 'undefined_name' is not defined",
    "step_text_in_field": "Cannot cast 'hello' to float64",
    "step_adds_text": "nothing compiled does add(float64, 'a')",
    "step_too_many_indices": "cannot index nestedarray(int8, (3, 3)) with 3 indices",
    "step_numpys_generator": "Unknown attribute 'default_rng'",
    "step_draw_without_range": "missing a required argument: 'low'",
    "step_opens_a_file": "construct is not supported",
    "step_calls_a_broken_helper": "Unknown attribute 'nope' of type float64",
    "reset_unknown_function": "module 'math' has no attribute 'sinus'",
    "observe_writes_an_array": "nothing compiled does setitem(",
}


def define(name: str, function) -> type[CompiledEnv]:
    members = GOOD | {"reset": reset, "step": step, "observe": observe} | {name: function}
    return type("Mine", (CompiledEnv,), members)


@pytest.mark.parametrize("name", WANTED)
def test_line_that_does_not_compile_is_named_with_the_reason(name):
    function = getattr(Broken, name)
    env = define(name.partition("_")[0], function)
    with pytest.raises(EnvError) as caught:
        Envs(env, 1, seed=0)
    message = str(caught.value)
    assert message.startswith(f"environment Mine: {name} does not compile: ")
    assert WANTED[name] in message
    assert "\n" not in message
    assert len(message) < 400
    place = re.search(r"\((\S+\.py):(\d+)\)", message)
    assert place is not None
    if name == "step_calls_a_broken_helper":
        assert (place[1], int(place[2])) == (broken_helpers.__file__, broken_helpers.LINE)
    else:
        assert place[1] == __file__
        if name != "step_opens_a_file":  # of that Numba says no line
            assert int(place[2]) == line_of(function, "# wrong")
    assert caught.value.__cause__ is not None, "the full text, for who wants it"


def returns_number(state, params, action, draw):
    return 1.0


def returns_three(state, params, action, draw):
    return 1.0, False, False


def returns_text(state, params, action, draw):
    return "one", True


def returns_float_flag(state, params, action, draw):
    return 1.0, 0.5


def returns_nothing(state, params, action, draw):
    state.x = 1.0


def forgets_one_path(state, params, action, draw):
    if action == 1:
        return 1.0, False


def yields(state, params, action, draw):
    yield 1.0, False


@pytest.mark.parametrize(
    ("function", "found", "hint"),
    [
        (returns_number, "float64", ""),
        (returns_three, "Tuple(float64, False, False)", ""),
        (returns_text, "Tuple('one', True)", ""),
        (returns_float_flag, "UniTuple(float64 x 2)", ""),
        (returns_nothing, "none", ""),
        (forgets_one_path, "OptionalType(", "; one of its paths returns nothing"),
        (yields, "a generator", ""),
    ],
)
def test_step_that_does_not_return_reward_and_terminated_is_refused(function, found, hint):
    with pytest.raises(EnvError) as caught:
        Envs(define("step", function), 1, seed=0)
    message = str(caught.value)
    assert message.startswith(f"environment Mine: {function.__name__} returns {found}")
    line = function.__code__.co_firstlineno
    assert message.endswith(f"wanted (reward, terminated){hint} ({__file__}:{line})")


def test_observe_that_returns_instead_of_writing_is_refused():
    def observe(state, params, observation):
        return state.x

    with pytest.raises(EnvError, match="observe returns float64, wanted nothing \\(it writes into"):
        Envs(define("observe", observe), 1, seed=0)


@pytest.mark.parametrize("kind", [int, bool])
def test_rewards_and_flags_may_be_of_any_number_kind(kind):
    def step(state, params, action, draw):
        return kind(3), kind(0)

    envs = Envs(define("step", step), 1, seed=0)
    assert envs.num_envs == 1


def test_environment_that_does_not_compile_leaves_no_cache_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", str(tmp_path))
    env = define("step", Broken.step_adds_text)
    for _ in range(2):
        with pytest.raises(EnvError, match="does not compile"):
            Envs(env, 1, seed=0)
    entries = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert all(name.endswith(".partial") for name in entries)


def test_broken_environment_still_runs_as_plain_python():
    def step(state, params, action, draw):
        table = {0: 1.0, 1: [2.0, "text"]}
        return table[int(action)], False

    env = define("step", step)
    with pytest.raises(EnvError):
        Envs(env, 1, seed=0)
    assert Envs(env, 1, seed=0, jit=False).num_envs == 1
