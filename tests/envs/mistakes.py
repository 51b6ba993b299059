# pyright: reportOperatorIssue=false, reportUndefinedVariable=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportGeneralTypeIssues=false
# ruff: noqa: F821, F841, C408, C419, PIE804, UP031, UP032
"""Mistakes that authors make, each with words of the reason and of the cure that they get.

The line that is wrong says so. What follows a comment of `#` alone compiles without a complaint
from Numba, and would do something else than what it says.
"""

import dataclasses
import enum
import functools
import math
import operator
import os
import random
import sys
import time
import types
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space

from rollout.envs import integers, uniform
from tests.envs import broken_helpers


class Mistake(NamedTuple):
    """A function with a mistake in it; spaces: where they matter."""

    function: types.FunctionType
    reason: str
    cure: str
    spaces: dict[str, Space]


MISTAKES: list[Mistake] = []


def mistake(reason: str, cure: str, **spaces: Space):
    """The function below is answered with these words."""

    def keep(function):
        MISTAKES.append(Mistake(function, reason, cure, spaces))
        return function

    return keep


TABLE = {"left": 1.0}
NUMBERS = [1, 2, 3]
SHORT = np.zeros(2)
SPACE = Discrete(3)
GENERATOR = np.random.default_rng(0)
counter = 0


@dataclasses.dataclass
class Point:
    x: float


class Ball:
    x = 1.0


class Color(enum.Enum):
    RED = 1


def with_keyword(x, *, scale):
    return x * scale


BALL = Ball()
ADD_ONE = functools.partial(operator.add, 1)


# Names, fields and arguments


@mistake("`state` has no field 'velocty'", "did you mean state.velocity? it has x, velocity, v")
def step_writes_unknown_field(state, params, action, draw):
    state.x += 1
    state.velocty += 1  # wrong
    return 1.0, False


@mistake("`state` has no field 'goal'", "or add it to `state`, ('goal', 'f8')")
def step_reads_unknown_field(state, params, action, draw):
    return state.goal, False  # wrong


@mistake("`state.ball` has no field 'z'", "it has x, y; ")
def step_reads_unknown_field_of_nested_record(state, params, action, draw):
    return state.ball.z, False  # wrong


@mistake("`params` has no field 'forc'", "did you mean params.force? it has force; or add it to")
def step_reads_unknown_param(state, params, action, draw):
    return params.forc, False  # wrong


@mistake(
    "`observation` has no field 'goals'",
    "did you mean observation.goal? it has goal, place; or add it to `observation_space`",
    observation_space=Dict({"goal": Discrete(3), "place": Box(-1, 1, (2,), np.float32)}),
)
def observe_writes_unknown_part(state, params, observation):
    observation.place[0] = state.x
    observation.goals = 1  # wrong


@mistake("name 'gravity' is not defined", "define it outside the class, in the same file")
def step_undefined_name(state, params, action, draw):
    return gravity + 1, False  # wrong


@mistake("name 'unifrom' is not defined", "did you mean uniform?")
def step_misspells_a_function(state, params, action, draw):
    return unifrom(draw, 0.0, 1.0), False  # wrong


@mistake("name 'normal' is not defined", "from rollout.envs import normal")
def step_forgets_to_import_ours(state, params, action, draw):
    return normal(draw, 0.0, 1.0), False  # wrong


@mistake("name 'cmath' is not defined", "import cmath, at the top of the file")
def step_forgets_to_import_a_module(state, params, action, draw):
    return cmath.pi, False  # wrong


@mistake("there is no self", "functions are given state, params, action, draw")
def step_uses_self(state, params, action, draw):
    return self.x, False  # wrong


@mistake("name 'observation' is not defined", "is given state, params, action, draw only")
def step_uses_the_observation(state, params, action, draw):
    return observation[0], False  # wrong


@mistake("name 'Mine' is not defined", "plain functions outside the class")
def step_calls_a_method_of_its_class(state, params, action, draw):
    return Mine.distance(state), False  # wrong


@mistake("`state` has no field 'move'", "write move(state, …) as a function outside the class")
def step_calls_a_method_of_the_state(state, params, action, draw):
    state.move(1)  # wrong
    return 1.0, False


@mistake("there is no super()", "call a function that both classes use")
def step_calls_super(state, params, action, draw):
    return super().step(state, params, action, draw)  # wrong


@mistake("`x` has no field 'nope'", "a field that it has")
def step_calls_a_broken_helper(state, params, action, draw):
    return broken_helpers.of_record(state.ball), False


@mistake("a number (float64) has no nope", "numbers need no methods")
def step_calls_a_broken_helper_of_a_helper(state, params, action, draw):
    return broken_helpers.outer(state.x), False


@mistake("module math has no sinus", "a function that math has")
def reset_calls_an_unknown_function(state, params, draw):
    state.x = math.sinus(3)  # wrong


# Draws


@mistake("missing a required argument: 'low'", "uniform(draw, low, high); each call is one number")
def step_draws_without_range(state, params, action, draw):
    return uniform(draw), False  # wrong


@mistake("missing a required argument: 'high'", "uniform(draw, low, high)")
def step_draws_without_draw(state, params, action, draw):
    return uniform(0.0, 1.0), False  # wrong


@mistake("missing a required argument: 'high'", "integers(draw, low, high)")
def step_draws_like_numpy(state, params, action, draw):
    return integers(draw, 3), False  # wrong


@mistake("too many positional arguments", "uniform(draw, low, high); each call is one number")
def reset_draws_several(state, params, draw):
    state.v[:] = uniform(draw, 0.0, 1.0, 3)  # wrong


@mistake("`draw` says where a draw happens", "uniform(draw, low, high), integers(draw, low, high)")
def step_calls_a_method_of_draw(state, params, action, draw):
    return draw.uniform(0.0, 1.0), False  # wrong


@mistake("`draw` says where a draw happens", "uniform(draw, low, high), integers(draw, low, high)")
def step_calls_draw(state, params, action, draw):
    return draw(), False  # wrong


@mistake("np.random.default_rng draws from a generator that is in no state", "uniform(draw, low")
def step_makes_a_generator(state, params, action, draw):
    return np.random.default_rng(1).random(), False  # wrong


@mistake("GENERATOR.random draws from a generator that is in no state", "uniform(draw, 0.0, 1.0)")
def step_uses_a_generator(state, params, action, draw):
    return GENERATOR.random(), False  # wrong


@mistake("random.choice draws from", "choices[integers(draw, 0, len(choices))]")
def step_chooses_at_random(state, params, action, draw):
    return random.choice((1, 2)), False  # wrong


@mistake("module 'math' has no attribute 'random'", "uniform(draw, low, high)")
def step_draws_from_math(state, params, action, draw):
    return math.random(), False  # wrong


#
@mistake("np.random.uniform draws from a generator that is in no state", "uniform(draw, low, high)")
def step_draws_uniform_by_numpy(state, params, action, draw):
    return np.random.uniform(0, 1), False  # wrong


#
@mistake("np.random.randint draws from", "integers(draw, low, high), which leaves out `high`")
def step_draws_integers_by_numpy(state, params, action, draw):
    return np.random.randint(0, 2), False  # wrong


#
@mistake("random.random draws from", "uniform(draw, 0.0, 1.0)")
def step_draws_by_python(state, params, action, draw):
    return random.random(), False  # wrong


#
@mistake("np.random.normal draws from", "normal(draw, mean, standard_deviation)")
def step_calls_a_helper_that_draws(state, params, action, draw):
    return broken_helpers.drawn(), False


@mistake("np.random.random draws from", "uniform(draw, 0.0, 1.0)")
def step_calls_a_decorated_helper_that_draws(state, params, action, draw):
    return broken_helpers.compiled_noise(), False


#
@mistake("np.random.seed draws from", "leave it out: the experiment's seed decides every draw")
def reset_seeds(state, params, draw):
    np.random.seed(0)  # wrong


# What step returns


@mistake("wanted (reward, terminated)", "two values with a comma between")
def step_returns_a_number(state, params, action, draw):
    return 1.0  # wrong


@mistake("returns (float64, bool, bool) at", "`max_episode_steps` truncates")
def step_returns_truncated(state, params, action, draw):
    return 1.0, False, False  # wrong


@mistake("5 values, wanted (reward, terminated)", "`observe` writes what is observed, and there is")
def step_returns_what_gymnasium_does(state, params, action, draw):
    return np.zeros(3), 1.0, False, False, {}  # wrong


@mistake("returns (an array [3], float64, bool, bool) at", "`observe` writes what is observed")
def step_returns_the_observation(state, params, action, draw):
    return state.v, 1.0, False, False  # wrong


@mistake("returns (an array [3], bool) at", "a reward is one number: a sum, or one element")
def step_rewards_with_an_array(state, params, action, draw):
    return state.v, False  # wrong


@mistake("returns (complex128, bool) at", "a reward is one number, 0.0 where there is none")
def step_rewards_with_a_complex_number(state, params, action, draw):
    return 1j, False  # wrong


@mistake("returns (nothing, bool) at", "a reward is one number, 0.0 where there is none")
def step_rewards_with_none(state, params, action, draw):
    return None, False  # wrong


@mistake("returns (float64 or nothing, bool) at", "a reward is one number, 0.0 where there is none")
def step_rewards_on_one_path(state, params, action, draw):
    reward = None
    if action == 1:
        reward = 1.0
    return reward, False  # wrong


@mistake("returns (text, bool) at", "a reward is one number")
def step_rewards_with_text(state, params, action, draw):
    return "one", True  # wrong


@mistake("returns (float64, float64) at", "a truth: a comparison")
def step_terminates_with_a_float(state, params, action, draw):
    return 1.0, state.x  # wrong


@mistake("returns (float64, an array) at", "one truth: (…).any()")
def step_terminates_with_an_array(state, params, action, draw):
    return 1.0, state.v > 0  # wrong


@mistake("returns (bool, float64) at", "the other way round")
def step_returns_the_wrong_way_round(state, params, action, draw):
    return False, 1.0  # wrong


@mistake("returns a list at", "two values with a comma between")
def step_returns_a_list(state, params, action, draw):
    return [1.0, False]  # wrong


@mistake("returns nothing at", "end it with `return reward, terminated`")
def step_returns_nothing(state, params, action, draw):  # wrong
    state.x = 1.0


@mistake("returns (float64, bool) or nothing at", "one of its paths returns nothing")
def step_forgets_one_path(state, params, action, draw):  # wrong
    if action == 1:
        return 1.0, False


@mistake("return different kinds: (an array, False), (float64, False)", "same on every path")
def step_returns_different_kinds(state, params, action, draw):  # wrong
    if action == 1:
        return 1.0, False
    return np.zeros(2), False


@mistake("return different kinds: (float64, False), float64", "the same on every path")
def step_returns_different_lengths(state, params, action, draw):  # wrong
    if action == 1:
        return 1.0, False
    return 1.0


@mistake("returns a generator at", "return, not yield")
def step_yields(state, params, action, draw):
    yield 1.0, False  # wrong


@mistake("returns an array at", "write into `state`, and return nothing")
def reset_returns_the_observation(state, params, draw):
    return np.zeros(3)  # wrong


@mistake("returns an array at", "write into `observation`, and return nothing")
def observe_returns_the_observation(state, params, observation):
    return np.array([state.x])  # wrong


@mistake("returns an array at", "write into `mask`, and return nothing")
def mask_returns_the_mask(state, params, mask):
    return np.zeros(2, np.bool_)  # wrong


# Arrays


@mistake("3 indices for `state.board`, which has 2", "state.board[i, j]")
def step_gives_too_many_indices(state, params, action, draw):
    state.board[0, 0, 0] = 3  # wrong
    return 1.0, False


@mistake("2 indices for `observation`, which has 1", "observation[i]")
def observe_gives_too_many_indices(state, params, observation):
    observation[0, 0] = state.x  # wrong


@mistake("`action` is the integer of a Discrete space, not an array", "`action` without an index")
def step_indexes_the_action(state, params, action, draw):
    return action[0], False  # wrong


@mistake("`state.x` is a float64, not an array", "`state.x` without an index")
def step_indexes_a_number(state, params, action, draw):
    return state.x[0], False  # wrong


@mistake("an index is a float", "int(x)")
def step_indexes_with_a_float(state, params, action, draw):
    return state.v[state.x], False  # wrong


@mistake("an index is a float", "int(x)", action_space=Box(-1, 1, (2,), np.float32))
def step_indexes_with_a_quantity(state, params, action, draw):
    return state.v[action[0]], False  # wrong


@mistake("an array is indexed with a list", "integers or slices")
def step_indexes_with_a_list(state, params, action, draw):
    return state.v[[0, 1]].sum(), False  # wrong


@mistake("an array is assigned whole, or indexed with another", "write the loop")
def step_indexes_with_an_array(state, params, action, draw):
    state.board[state.board > 0] = 0  # wrong
    return 1.0, False


@mistake("an array is indexed with text", "observation[0]; names, observation.name, are for a Dict")
def observe_names_what_has_no_name(state, params, observation):
    observation["x"] = state.x  # wrong


@mistake("an array has no field x", "observation[0]; names, observation.name, are for a Dict")
def observe_writes_a_field_of_an_array(state, params, observation):
    observation.x = state.x  # wrong


@mistake("an array where one number is wanted", "a slice as long as it")
def observe_writes_an_array_into_a_number(state, params, observation):
    observation[0] = state.board  # wrong


@mistake("an array has no append", "its length is fixed, so count")
def step_appends(state, params, action, draw):
    state.v.append(3)  # wrong
    return 1.0, False


@mistake("an array has no compiled tolist", "write the loop")
def step_makes_a_list_of_an_array(state, params, action, draw):
    return state.v.tolist()[0], False  # wrong


@mistake("arrays outside the class are constants", "keep what changes in `state`")
def step_writes_a_global_array(state, params, action, draw):
    SHORT[0] = 1  # wrong
    return 1.0, False


@mistake("an array in a record cannot be assigned whole", "write into it: state.board[:] = …")
def step_assigns_an_array_whole(state, params, action, draw):
    state.board = np.zeros((3, 3), np.int8)  # wrong
    return 1.0, False


#
@mistake("an array in a record cannot be assigned whole", "write into it: state.v[:] = …")
def step_assigns_an_array_of_another_shape(state, params, action, draw):
    state.v = SHORT  # wrong
    return 1.0, False


@mistake("an array in a record cannot be assigned whole", "write into it: state.board[:] = …")
def step_calls_a_helper_that_assigns_an_array(state, params, action, draw):
    broken_helpers.clear(state)
    return 1.0, False


#
@mistake("the result does not fit into `state.board`", "state.board[:] = state.board + 0.5")
def step_adds_fractions_to_integers_in_place(state, params, action, draw):
    state.v += 0.5  # this fits
    state.board += 0.5  # wrong
    return 1.0, False


@mistake("the result does not fit into `state.board[0]`", "state.board[0] = state.board[0]")
def step_changes_a_row_in_place(state, params, action, draw):
    state.board[0, 0] += 1  # this fits
    state.board[0] *= 0.5  # wrong
    return 1.0, False


@mistake("count is an integer, which drops a float's fraction", "else ('count', 'f8') in the dtype")
def step_adds_a_fraction_to_an_integer(state, params, action, draw):
    state.count += 0.1 * (action - 0.5)  # wrong
    return 1.0, False


@mistake("an array where x is one number", "one element, x[0], or its sum")
def step_puts_an_array_into_a_number(state, params, action, draw):
    state.x = state.v  # wrong
    return 1.0, False


#
@mistake("an array is neither true nor false", "one truth: (…).any(), (…).all()")
def step_asks_whether_an_array_is_true(state, params, action, draw):
    if state.v > 0:  # wrong
        return 1.0, True
    return 1.0, False


#
@mistake(
    "an array is neither true nor false",
    "or a comparison of one element",
    action_space=MultiDiscrete([2, 3]),
)
def step_compares_all_actions(state, params, action, draw):
    state.x += 1.0 if action == 1 else -1.0  # wrong
    return 1.0, False


#
@mistake(
    "an action is only read",
    "a name of its own",
    action_space=Box(-1, 1, (2,), np.float32),
)
def step_clips_the_action_in_place(state, params, action, draw):
    action[0] = min(max(action[0], -0.5), 0.5)  # wrong
    return 1.0, False


# Meanings of arguments


#
@mistake("this makes `observation` something else, and changes nothing", "observation[:] = …")
def observe_assigns_the_observation(state, params, observation):
    observation = np.array([state.x])  # wrong


#
@mistake("this makes `state` something else, and changes nothing", "state.field = …")
def reset_assigns_the_state(state, params, draw):
    state = np.zeros(3)  # wrong


#
@mistake("params are the same for all environments", "a field of `state`, set in `reset`")
def reset_changes_the_params(state, params, draw):
    params.force = uniform(draw, 1.0, 2.0)  # wrong


#
@mistake("params are the same for all environments", "a field of `state`, set in `reset`")
def reset_calls_a_helper_that_changes_the_params(state, params, draw):
    broken_helpers.weaken(params)


#
@mistake("only reads the state, and any number of times", "change it in `step` or `reset`")
def observe_changes_the_state(state, params, observation):
    state.board[0, 0] += 1  # wrong


#
@mistake("this makes `mask` something else, and changes nothing", "mask[:] = …")
def mask_assigns_the_mask(state, params, mask):
    mask = state.v > 0  # wrong


#
@mistake("fields of a record are attributes", "state.x")
def step_names_a_field_by_text(state, params, action, draw):
    state["x"] = 1.0  # wrong
    return 1.0, False


#
@mistake(
    "fields of a record are attributes",
    "observation.goal",
    observation_space=Dict({"goal": Discrete(3)}),
)
def observe_names_a_part_by_text(state, params, observation):
    observation["goal"] = 1  # wrong


#
@mistake("a number is never equal to text", "LEFT, RIGHT = 0, 1")
def step_compares_the_action_with_text(state, params, action, draw):
    return 1.0, action == "left"  # wrong


# NumPy and Python's own functions


@mistake("numpy.gradient is not compiled", "write the loop")
def step_calls_what_numba_lacks(state, params, action, draw):
    state.v[:] = np.gradient(state.v)  # wrong
    return 1.0, False


@mistake("compiled, this takes no axis", "write the loop, for i in range(3): state.board[i]")
def step_reduces_along_an_axis(state, params, action, draw):
    state.v[:] = np.mean(state.board, axis=0)  # wrong
    return 1.0, False


@mistake("compiled, clip is for arrays", "min(max(x, low), high)")
def step_clips_a_number(state, params, action, draw):
    state.x = np.clip(state.x, -1.0, 1.0)  # wrong
    return 1.0, False


@mistake("np.concatenate(): all the input arrays must have same", "write it more simply")
def observe_concatenates(state, params, observation):
    observation[:] = np.concatenate((state.v, state.board))  # wrong


@mistake("float(…) is compiled for numbers only", "1.0 if is_caught else 0.0")
def step_makes_a_number_of_a_truth(state, params, action, draw):
    return float(state.x > 1.0), False  # wrong


@mistake("any(…) is not compiled", "write the loop")
def step_calls_any(state, params, action, draw):
    return 1.0, any([cell > 0 for cell in state.board[0]])  # wrong


@mistake("breakpoint(…) is not compiled", "Envs(…, jit=False) runs it as plain Python")
def step_breaks(state, params, action, draw):
    breakpoint()  # noqa: T100  # wrong
    return 1.0, False


@mistake("generators are not compiled", "write the loop")
def step_maps(state, params, action, draw):
    return sum(map(abs, state.v)), False  # wrong


@mistake("time.time is not compiled, and no state could give the same again", "count steps")
def step_reads_the_clock(state, params, action, draw):
    return time.time(), False  # wrong


@mistake("Discrete is Gymnasium's", "spaces are for the attributes of the class")
def step_calls_gymnasium(state, params, action, draw):
    return gymnasium.spaces.Discrete(2).sample(), False  # wrong


@mistake("SPACE is an object of Gymnasium's", "its numbers as constants: NUM_ACTIONS = 3")
def step_reads_a_space(state, params, action, draw):
    return SPACE.n, False  # wrong


# Python's objects


@mistake("TABLE is a dictionary", "number the keys 0, 1, … and use a tuple or an array")
def step_reads_a_global_dictionary(state, params, action, draw):
    return TABLE["left"], False  # wrong


@mistake("NUMBERS is a list", "a tuple")
def step_reads_a_global_list(state, params, action, draw):
    return NUMBERS[action], False  # wrong


@mistake("text among numbers", "numbers with names")
def step_mixes_in_a_dictionary(state, params, action, draw):
    table = {0: 1.0, 1: "text"}  # wrong
    return table[action], False


@mistake("dict(…) is not compiled", "number the keys 0, 1, …")
def step_makes_a_dictionary(state, params, action, draw):
    table = dict(left=1.0)  # wrong
    return table["left"], False


@mistake("not compiled", "a tuple of numbers of one kind")
def step_makes_a_set(state, params, action, draw):
    seen = {1, "one"}  # wrong
    return 1.0, False


@mistake("an empty list has no type", "an array of fixed length in `state` and a count")
def step_makes_an_empty_list(state, params, action, draw):
    items = []  # wrong
    return 1.0, len(items) > 0


@mistake("elements of this list are of several kinds", "numbers of one kind, in a tuple")
def step_mixes_in_a_list(state, params, action, draw):
    items = [1, "one", 2.0]
    return items[action], False  # wrong


@mistake("elements of this tuple are of several kinds", "the same kind for all: (1.0, 2.5)")
def step_mixes_in_a_tuple(state, params, action, draw):
    moves = ((1, 0), (0, 1.5, 3))
    return moves[action][0], False  # wrong


@mistake("Color is an Enum, whose members are no numbers", "class Color(enum.IntEnum)")
def step_compares_with_an_enum(state, params, action, draw):
    return 1.0, action == Color.RED  # wrong


@mistake("Color is an Enum, whose members are no numbers", "class Color(enum.IntEnum)")
def step_keeps_an_enum(state, params, action, draw):
    state.x = Color.RED  # wrong
    return 1.0, False


@mistake("ADD_ONE is a functools.partial", "a function that calls it: def ADD_ONE(x)")
def step_calls_a_partial(state, params, action, draw):
    return ADD_ONE(state.x), False  # wrong


@mistake("has keyword-only arguments, which do not compile", "def with_keyword(x, scale)")
def step_calls_with_keywords_only(state, params, action, draw):
    return with_keyword(state.x, scale=2.0), False  # wrong


@mistake("sys.exit is not compiled", "to end an episode, return terminated = True")
def step_exits(state, params, action, draw):
    if state.x > 3:
        sys.exit(1)  # wrong
    return 1.0, False


@mistake("exit(…) is not compiled", 'raise RuntimeError("why")')
def step_quits(state, params, action, draw):
    if state.x > 3:
        exit()  # wrong
    return 1.0, False


@mistake("os.getpid is not compiled", "becomes a constant at the top of the file")
def step_asks_the_system(state, params, action, draw):
    return os.getpid(), False  # wrong


@mistake("Point is a class", "write methods as functions: distance(state, x)")
def step_makes_an_object(state, params, action, draw):
    return Point(state.x).x, False  # wrong


@mistake("BALL is a Python object", "keep what changes in `state`")
def step_reads_an_object(state, params, action, draw):
    return BALL.x, False  # wrong


@mistake("a class inside a function", "keep what changes in `state`")
def step_defines_a_class(state, params, action, draw):
    class Inner:  # wrong
        pass

    return 1.0, False


@mistake("globals are constants when compiled", "keep what changes in `state`")
def step_counts_in_a_global(state, params, action, draw):
    global counter
    counter += 1  # wrong
    return counter, False


@mistake("an import inside a function", "import at the top of the file")
def step_imports(state, params, action, draw):
    import math  # wrong

    return math.pi, False


@mistake("is decorated", "leave the decorator out")
def step_calls_what_is_cached(state, params, action, draw):
    return remembered(3), False  # wrong


@functools.cache
def remembered(x):
    return x


# Text


@mistake("text where a float64 is wanted", "numbers with names, LEFT, RIGHT = 0, 1")
def step_puts_text_into_a_number(state, params, action, draw):
    state.x = "left"  # wrong
    return 1.0, False


@mistake("text where a float64 is wanted", "numbers with names")
def step_makes_text(state, params, action, draw):
    state.x = str(action)  # wrong
    return 1.0, False


@mistake("text among numbers", "numbers with names")
def step_adds_text(state, params, action, draw):
    return 1.0 + "a", False  # wrong


@mistake("formats in f-strings are not compiled", 'print("x", state.x)')
def step_formats(state, params, action, draw):
    name = f"x{state.x:.2f}"  # wrong
    return 1.0, False


@mistake("text cannot be formatted", 'print("x", state.x)')
def step_formats_by_method(state, params, action, draw):
    print("x {}".format(state.x))  # wrong
    return 1.0, False


@mistake("text cannot be formatted", 'print("x", state.x)')
def step_formats_by_percent(state, params, action, draw):
    print("x %s" % state.x)  # wrong
    return 1.0, False


@mistake("print takes no keywords", 'print("x", state.x)')
def step_prints_with_a_keyword(state, params, action, draw):
    print("x", state.x, sep=",")  # wrong
    return 1.0, False


#
@mistake("print does not show what an f-string holds", 'print("x", state.x)')
def step_prints_a_format(state, params, action, draw):
    print(f"x {state.x}")  # wrong
    return 1.0, False


# Types that change, values that are not there


@mistake("is 0 and an array", "one type for each name")
def step_changes_a_type(state, params, action, draw):
    x = 0
    if action == 1:
        x = np.zeros(3)
    return 1.0, x > 0  # wrong


@mistake("None where a float64 is wanted", "a number that says so: -1, or math.nan")
def step_forgets_a_number(state, params, action, draw):
    state.x = None  # wrong
    return 1.0, False


@mistake("complex128 where a float64 is wanted", "one number")
def step_makes_a_complex_number(state, params, action, draw):
    state.x = 1j  # wrong
    return 1.0, False


# Syntax


@mistake("only a bare `except:` is compiled", "test first: if x != 0.0")
def step_tries(state, params, action, draw):
    try:
        state.x = 1 / state.x
    except ZeroDivisionError:  # wrong
        state.x = 0
    return 1.0, False


@mistake("`with` is not compiled", "leave it out")
def step_opens_a_file(state, params, action, draw):
    with open("x") as file:  # wrong
        file.read()
    return 1.0, False


@mistake("a generator expression is not compiled", "write the loop, or a list")
def step_sums_a_generator(state, params, action, draw):
    total = sum(cell for cell in state.board[0])  # wrong
    return total, False


@mistake("a function that calls itself is not compiled", "a loop, and an array in `state`")
def step_calls_a_recursive_helper(state, params, action, draw):
    return broken_helpers.endless(3), False


@mistake("`**` is not compiled", "name the arguments")
def step_passes_keywords(state, params, action, draw):
    return broken_helpers.inner(**{"x": 1}), False  # wrong


@mistake("`*` takes a tuple only", "name the arguments")
def step_passes_a_list(state, params, action, draw):
    arguments = [1]
    return broken_helpers.inner(*arguments), False  # wrong


@mistake("`first, *rest =` is not compiled", "slices")
def step_unpacks_the_rest(state, params, action, draw):
    first, *rest = (1, 2, 3)  # wrong
    return first, False


@mistake("`del` is not compiled", "leave it out")
def step_deletes(state, params, action, draw):
    x = 3
    del x  # wrong
    return 1.0, False


@mistake("the type of something here cannot be told", "each step on a line of its own")
def step_names_within(state, params, action, draw):
    if (x := action + 1) > 1:  # wrong
        return x, False
    return 0.0, False
