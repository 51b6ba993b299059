# pyright: reportOperatorIssue=false
"""A mistake is answered with its author's line, one reason and one cure (see mistakes.py)."""

import re
import traceback

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, EnvError, Envs, Outcome
from tests.envs import broken_helpers
from tests.envs.mistakes import MISTAKES, Mistake
from tests.some_fast import slow_unless

GOOD = {
    "state": np.dtype(
        [
            ("x", "f8"),
            ("velocity", "f8"),
            ("v", "f8", (3,)),
            ("board", "i1", (3, 3)),
            ("count", "i4"),
            ("ball", [("x", "f8"), ("y", "f8")]),
        ]
    ),
    "params": {"force": 1.0},
    "observation_space": Box(-1, 1, (1,), np.float32),
    "action_space": Discrete(2),
}


def reset(state, params, draw):
    state.x = 0.0


def step(state, params, action, draw):
    return 1.0, state.x > 1


def observe(state, params, observation):
    pass


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", str(tmp_path))


def define(name: str, function, **others) -> type[CompiledEnv]:
    members = GOOD | {"reset": reset, "step": step, "observe": observe} | {name: function} | others
    return type("Mine", (CompiledEnv,), members)


def message_of(mistake: Mistake) -> str:
    name = mistake.function.__name__.partition("_")[0].replace("mask", "action_mask")
    with pytest.raises(EnvError) as caught:
        Envs(define(name, mistake.function, **mistake.spaces), 1, seed=0)
    return str(caught.value)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.function.__name__)
def test_mistake_is_answered_with_its_line_the_reason_and_the_cure(mistake):
    message = message_of(mistake)
    what, cure = message.split("\n")
    assert mistake.reason in what
    assert cure.startswith("cure: ")
    assert mistake.cure in cure
    assert len(message) < 600
    place = re.match(r"environment Mine: (\w+) .*? at (\S+\.py):(\d+), `(.*?)`: ", what)
    assert place is not None, what
    wrong = broken_helpers.WRONG.get(place[1]) or mistake.function
    assert place[1] == wrong.__name__
    assert place[2] == wrong.__code__.co_filename
    assert int(place[3]) == broken_helpers.line_of(wrong, "# wrong"), what
    assert place[4].endswith("# wrong"), "the line itself is shown"


@pytest.mark.parametrize("is_wanted", [True, False])
def test_page_of_numbas_is_shown_only_to_who_wants_it(is_wanted, monkeypatch):
    monkeypatch.setenv("ROLLOUT_DEBUG", str(int(is_wanted)))
    mistake = next(one for one in MISTAKES if one.function.__name__ == "step_adds_text")
    with pytest.raises(EnvError) as caught:
        Envs(define("step", mistake.function), 1, seed=0)
    shown = "".join(traceback.format_exception(caught.value))
    assert ("No implementation of function" in shown) == is_wanted
    assert "step_adds_text does not compile" in shown


def test_helper_is_named_with_the_function_that_calls_it():
    mistake = next(one for one in MISTAKES if one.function.__name__ == "step_calls_a_broken_helper")
    name = "environment Mine: of_record (which step_calls_a_broken_helper calls) does not compile"
    assert message_of(mistake).startswith(name)


class Gaining(CompiledEnv):
    """Forgets that its functions do not see the class."""

    state, params = GOOD["state"], GOOD["params"]
    observation_space, action_space = GOOD["observation_space"], GOOD["action_space"]
    GAIN = 2.0

    def reset(state, params, draw):
        state.x = 0.0

    def step(state, params, action, draw):
        return GAIN * state.x, False  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    def observe(state, params, observation):
        pass


def test_attribute_of_the_class_is_told_from_an_unknown_name():
    with pytest.raises(EnvError) as caught:
        Envs(Gaining, 1, seed=0)
    what, cure = str(caught.value).split("\n")
    assert what.endswith("GAIN is an attribute of the class, which its functions do not see")
    assert cure == "cure: move it out of the class; or into `params`, and write params.GAIN"


STATE_OF_ARRAYS = np.dtype(
    [
        ("x", "f8"),
        ("board", "u1", (3, 3)),
        ("signed", "i4", (2,)),
        ("v", "f8", (2,)),
        ("cells", [("v", "i4", (2,))], (2,)),
    ]
)


def test_what_fits_into_an_array_is_not_blamed():
    def step(state, params, action, draw):
        state.signed += 1
        state.v += 0.5
        state.board ^= state.board
        state.board[0, 0] += 1
        state.board += 1
        return 1.0, False

    message = r"`state.board \+= 1`: the result does .*, an array of uint8\ncure: state.board\[:\]"
    with pytest.raises(EnvError, match=message):
        Envs(define("step", step, state=STATE_OF_ARRAYS), 1, seed=0)


def test_several_lines_that_may_not_fit_are_all_named():
    def step(state, params, action, draw):
        state.board += np.uint8(1)
        state.signed += 0.5
        return 1.0, False

    first = step.__code__.co_firstlineno
    others = f"or in another of lines {first + 1}, {first + 2}: Numba does not say which"
    with pytest.raises(EnvError, match=others):
        Envs(define("step", step, state=STATE_OF_ARRAYS), 1, seed=0)


def fall(board):
    board += 1


def step_of_alias(state, params, action, draw):
    cells = state.board
    cells += 1
    return 1.0, False


def step_of_helper(state, params, action, draw):
    fall(state.board)
    return 1.0, False


def step_of_record(state, params, action, draw):
    state.cells[0].v += 0.5
    return 1.0, False


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (step_of_alias, "`cells += 1`"),
        (step_of_helper, "`board += 1`"),
        (step_of_record, "`state.cells[0].v += 0.5`"),
    ],
)
def test_array_whose_type_is_not_known_is_found_by_its_line(step, line):
    with pytest.raises(EnvError) as caught:
        Envs(define("step", step, state=STATE_OF_ARRAYS), 1, seed=0)
    assert f"{line}: the result does not fit into" in str(caught.value)
    assert "an array of another type\ncure: " in str(caught.value)


class Limited(Gaining):
    """Its limit and its other functions are the class's as well."""

    max_episode_steps = 7
    TARGETS = (1.0, 2.0)

    def step(state, params, action, draw):
        return 1.0, draw.t > max_episode_steps  # noqa: F821  # pyright: ignore


class Targeting(Limited):
    """Names a tuple of its class's."""

    def step(state, params, action, draw):
        return TARGETS[0], False  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize(
    ("env", "cure"),
    [
        (Limited, "what functions share is written outside the class, as a constant or a function"),
        (Targeting, "move it out of the class, in the same file"),
    ],
)
def test_attributes_that_are_no_params_get_another_cure(env, cure):
    with pytest.raises(EnvError, match=f"is an attribute of the class.*\n*.*cure: {cure}"):
        Envs(env, 1, seed=0)


@pytest.mark.parametrize(
    "kind", slow_unless([int, np.bool_], [int, bool, np.float32, np.int8, np.bool_])
)
def test_rewards_and_flags_may_be_of_any_number_kind(kind):
    def step(state, params, action, draw):
        return kind(3), kind(0) > 0

    envs = Envs(define("step", step), 1, seed=0)
    assert envs.num_envs == 1


def test_what_compiles_and_means_what_it_says_is_left_alone():
    def step(state, params, action, draw):
        state.v[:] = (1.0, 2.0, 3.0)
        state.v += 1.0  # in place
        state.v[0:2] *= 2.0
        state.ball.x = state.v.sum()
        moves = {0: -1.0, 1: 1.0}
        action = 1 - action
        if (state.board == 0).all() and not state.v.any():
            raise ValueError("no name")
        fill(state.v[0:1])
        state.x += moves[action] + max(state.v) + sum([1.0, 2.0])
        return state.x, state.board.any()

    envs = Envs(define("step", step), 1, seed=0)
    outcome = Outcome(envs.env, 1)
    envs.step(np.zeros(1, np.int32), outcome)
    assert outcome.reward[0] == 1.0 + 6.0 + 3.0
    np.testing.assert_array_equal(envs.records["state"]["v"], [[4.0, 6.0, 4.0]])
    assert envs.records["state"]["ball"]["x"] == 14.0


def fill(params):
    """An array of a helper's own, whatever it calls it."""
    params[0] = 4.0


def test_environment_that_says_that_it_hides_something_may_draw_as_it_likes():
    def step(state, params, action, draw):
        return np.random.random(), False

    envs = Envs(define("step", step, has_hidden_state=True), 1, seed=0)
    assert envs.num_envs == 1


def test_function_without_source_is_answered_without_its_line():
    names: dict = {}
    exec("def step(state, params, action, draw):\n    return state.y, False", names)
    with pytest.raises(EnvError) as caught:
        Envs(define("step", names["step"]), 1, seed=0)
    message = str(caught.value)
    assert message.startswith("environment Mine: step does not compile at <string>:1: ")
    assert "cure: " in message


def test_environment_that_does_not_compile_leaves_no_cache_entry(tmp_path):
    mistake = MISTAKES[0]
    for _ in range(2):
        message_of(mistake)
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
