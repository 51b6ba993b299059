"""Plain Python and compiled code do the same, bit for bit: a debugger shows what really happens."""

import math

import numba
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from numba.core.dispatcher import Dispatcher

from rollout.envs import BUNDLED, CompiledEnv, Envs, Outcome, find_env, uniform
from rollout.envs.checks.random_play import RandomActions
from rollout.envs.function_copies import undecorated
from rollout.envs.records import ArrayView, RecordsView, RecordView, Short, Single, Unsigned
from tests.envs.nasty import Nasty, Pixels
from tests.some_fast import slow_unless

OWN: dict[str, type[CompiledEnv]] = {"Nasty": Nasty, "Pixels": Pixels}
FAST = ("CartPole-v1", "Asterix-MinAtar", "Memory-v0", *OWN)
CHEAP = {"Slow-v0": {"step_us": 1.0}}


@pytest.mark.parametrize("name", slow_unless(FAST, [*BUNDLED, *OWN]))
def test_plain_python_equals_compiled_bit_for_bit(name):
    env = OWN[name] if name in OWN else find_env(name)
    num_envs, num_steps = 5, 150
    actions = RandomActions(env.action_space, num_envs, seed=0)
    params = CHEAP.get(name)
    compiled = Envs(env, num_envs, seed=3, params=params), Outcome(env, num_envs)
    plain = Envs(env, num_envs, seed=3, params=params, jit=False), Outcome(env, num_envs)
    for envs, _ in (compiled, plain):  # nearly over: few end within 150 steps
        envs.records["clock"]["t"] = max(0, (env.max_episode_steps or 0) - 60)
    assert compiled[0].snapshot() == plain[0].snapshot()
    np.testing.assert_array_equal(compiled[0].observation(), plain[0].observation())
    episodes = 0
    for t in range(num_steps):
        action = actions.at(t)
        for envs, outcome in (compiled, plain):
            envs.step(action, outcome)
        for field in env.state.names or ():
            one, other = (envs.records["state"][field] for envs, _ in (compiled, plain))
            np.testing.assert_array_equal(one, other, err_msg=f"state.{field} after step {t}")
        assert compiled[0].snapshot() == plain[0].snapshot(), f"after step {t}"
        for one, other in zip(compiled[1].arrays, plain[1].arrays, strict=True):
            assert one.tobytes() == other.tobytes(), f"outcome of step {t}"
        assert compiled[1].num_finals == plain[1].num_finals
        assert compiled[1].num_episodes == plain[1].num_episodes
        episodes += plain[1].num_episodes
    has_limit = env.max_episode_steps is not None
    assert episodes >= num_envs or not has_limit, "the test would say little about resets"


def view(dtype: list, **values) -> RecordView:
    array = np.zeros(1, np.dtype(dtype))
    for name, value in values.items():
        array[name] = value
    return RecordsView(array)[0]


def test_small_integers_wrap_in_the_field_and_not_before():
    record = view([("a", "i1"), ("b", "i1")], a=100, b=100)
    assert record.a + record.b == 200
    record.a += record.b
    assert record.a == -56


def test_unsigned_difference_wraps_as_in_compiled_code():
    record = view([("a", "u1"), ("b", "u1")], a=1, b=2)
    assert record.a - record.b == 2**64 - 1
    assert record.a - 2 == -1, "with a signed number it is a signed number"
    assert type(record.a + record.b) is Unsigned


def test_float32_fields_round_with_their_like_and_widen_with_others():
    record = view([("a", "f4"), ("b", "f4"), ("n", "i1")], a=0.1, b=3.0, n=3)
    rounded = np.float32(np.float32(0.1) * np.float32(3.0))
    assert record.a * record.b == float(rounded) != float(np.float32(0.1)) * 3.0
    assert record.a * record.n == float(rounded)
    assert type(record.n) is Short
    assert record.a * 3.0 == float(np.float32(0.1)) * 3.0
    assert record.a * 3 == float(np.float32(0.1)) * 3
    assert type(record.a**2) is Single
    assert type(-record.a) is type(abs(record.a)) is Single


def test_unknown_field_is_refused_with_those_there_are():
    record = view([("a", "f8")])
    with pytest.raises(AttributeError, match=r"no field 'b'; it has \('a',\)"):
        _ = record.b
    with pytest.raises(AttributeError, match="no field 'b'"):
        record.b = 1


def test_index_outside_names_field_and_shape():
    record = view([("board", "i1", (10, 10)), ("cells", [("r", "f8", (2,))], (3,))])
    with pytest.raises(IndexError, match=r"^board\[10, 3\] lies outside \(10, 10\)$"):
        record.board[10, 3] = 1
    with pytest.raises(IndexError, match=r"^board\[-11, 0\] lies outside \(10, 10\)$"):
        _ = record.board[-11, 0]
    with pytest.raises(IndexError, match=r"^board\[2, :\]\[-11\] lies outside \(10,\)$"):
        _ = record.board[2, :][-11]
    with pytest.raises(IndexError, match=r"^board\[1, 2, 3\]: too many indices"):
        _ = record.board[1, 2, 3]
    with pytest.raises(IndexError, match=r"^cells\[3\] lies outside \(3,\)$"):
        _ = record.cells[3]
    with pytest.raises(IndexError, match=r"^cells\[2\].r\[2\] lies outside \(2,\)$"):
        _ = record.cells[2].r[2]


def test_value_that_does_not_fit_names_field_and_value():
    record = view([("level", "u1"), ("board", "i1", (3,)), ("x", "f8")])
    with pytest.raises(ValueError, match=r"^level = nan: cannot convert"):
        record.level = math.nan
    with pytest.raises(OverflowError, match=r"^board\[1\] = inf: cannot convert"):
        record.board[1] = math.inf
    with pytest.raises(ValueError, match=r"^board\[0:2\] = ArrayView.*: could not broadcast"):
        record.board[0:2] = record.board
    with pytest.raises(TypeError, match=r"^level = None: "):
        record.level = None


def test_author_functions_see_their_own_names():
    envs, outcome = Envs(Outside, 1, 0, jit=False), Outcome(Outside, 1)
    for action, text in enumerate(
        (
            r"s\.board\[3\] lies outside \(3,\)",
            r"s has no field 'speed'; it has \('board',\)",
            r"p has no field 'wind'",
            r"shown\[1\] lies outside \(1,\)",
        )
    ):
        with pytest.raises((IndexError, AttributeError), match=text):
            envs.step(np.array([action], np.int32), outcome)


class Outside(CompiledEnv):
    """Fails in another way for each action."""

    state = np.dtype([("board", "i8", (3,))])
    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Discrete(4)

    def reset(s, p, draw):
        s.board[0] = 0

    def step(s, p, action, draw):
        if action == 0:
            s.board[3] = 1
        if action == 1:
            s.speed = 1
        if action == 2:
            s.board[0] = p.wind
        s.board[1] = action
        return 0.0, False

    def observe(s, p, shown):
        if s.board[1] == 3:
            shown[1] = 0


def test_records_in_a_row_are_counted_from_either_end():
    array = np.zeros(1, np.dtype([("grid", [("n", "i4")], (2, 3))]))
    record = RecordsView(array)[0]
    record.grid[1, -1].n = 7
    assert array["grid"]["n"][0].tolist() == [[0, 0, 0], [0, 0, 7]]
    assert record.grid[1][2].n == 7
    assert [cell.n for cell in record.grid[1]] == [0, 0, 7]
    assert len(record.grid) == 2


def test_nested_arrays_are_views_that_write_through():
    array = np.zeros(1, np.dtype([("board", "u1", (2, 2))]))
    record = RecordsView(array)[0]
    record.board[0, 1] = 300
    row = record.board[1]
    row[0] = -1
    assert array["board"][0].tolist() == [[0, 44], [255, 0]]
    assert isinstance(row, ArrayView)
    assert record.board.sum() == 299
    assert [int(n) for n in row] == [255, 0]


class Nested(CompiledEnv):
    state = np.dtype([("cells", [("r", "f8"), ("n", "i4")], (3,))])
    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Discrete(2)

    def reset(state, params, draw):
        state.cells[1].r = uniform(draw, 0.0, 1.0)

    def step(state, params, action, draw):
        state.cells[2].n += 1 + action
        return state.cells[1].r, state.cells[2].n > 5

    def observe(state, params, observation):
        observation[0] = state.cells[2].n


def test_records_within_a_record_are_the_same_in_plain_python():
    both = Envs(Nested, 3, 1), Envs(Nested, 3, 1, jit=False)
    outcomes = [Outcome(Nested, 3) for _ in both]
    for _ in range(9):
        for envs, outcome in zip(both, outcomes, strict=True):
            envs.step(np.ones(3, np.int32), outcome)
        assert both[0].snapshot() == both[1].snapshot()


@numba.njit
def moved(cell):
    cell.n += grown(2)


@numba.njit(error_model="numpy")
def grown(n):
    return n + 1


class Decorated(Nested):
    """Calls helpers that are compiled already, with a record."""

    def step(state, params, action, draw):
        moved(state.cells[2])
        return state.cells[1].r, state.cells[2].n > 15


def test_decorated_helpers_take_records_in_plain_python():
    both = Envs(Decorated, 3, 1), Envs(Decorated, 3, 1, jit=False)
    outcomes = [Outcome(Decorated, 3) for _ in both]
    for _ in range(4):
        for envs, outcome in zip(both, outcomes, strict=True):
            envs.step(np.ones(3, np.int32), outcome)
        assert both[0].snapshot() == both[1].snapshot()
    assert both[1].records["state"]["cells"]["n"][:, 2].tolist() == [12, 12, 12]
    assert isinstance(moved, Dispatcher), "the author's own stays as it was"


def test_undecorated_leaves_alone_what_reaches_nothing_compiled():
    assert undecorated(Nested.step) is Nested.step
    assert undecorated(Decorated.step) is not Decorated.step
