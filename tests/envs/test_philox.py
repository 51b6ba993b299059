import math

import numba
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st

from rollout.envs import CompiledEnv, Envs, Outcome, kernels, philox
from rollout.envs.records import RecordView

WORDS = st.integers(0, 2**32 - 1)
ONES = 0xFFFFFFFF

# Random123's kat_vectors, philox4x32 10: counter, key, result. The last are the digits of π.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (ONES, ONES, ONES, ONES),
        (ONES, ONES),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

assert kernels is not None  # gives philox its compiled bodies


@numba.njit
def compiled_philox(seed, stream, env, episode, t, k):
    return philox.philox(seed, stream, env, episode, t, k)


@numba.njit
def compiled_units(word_0, word_1):
    return philox.unit_float64(word_0, word_1), philox.unit_float32(word_0)


@numba.njit
def compiled_draws(clocks):
    draw = clocks[0]
    return (
        philox.uniform(draw, -2.0, 3.0),
        philox.integers(draw, -4, 9),
        philox.normal(draw, 1.0, 2.0),
        philox.next_unit_float64(draw),
    )


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    assert philox.philox(*key, *counter) == answer
    assert compiled_philox(*map(np.uint32, (*key, *counter))) == answer


@given(st.tuples(*[WORDS] * 6))
def test_compiled_philox_equals_python_integers(words):
    assert compiled_philox(*map(np.uint32, words)) == philox.philox(*words)


@given(st.lists(WORDS, min_size=1, max_size=5), st.tuples(*[WORDS] * 5), st.integers(0, 3))
def test_philox_of_arrays_equals_philox_of_each(column, words, position):
    """The array may stand at any of the counter's four places, as the learner uses it."""
    arguments: list = [*words[:2], *words[2:]]
    arguments.insert(2 + position, np.array(column, np.uint64))
    found = philox.philox(*arguments)
    for i, word in enumerate(column):
        arguments[2 + position] = word
        assert tuple(int(np.broadcast_to(w, len(column))[i]) for w in found) == philox.philox(
            *arguments
        )


@given(WORDS, WORDS)
def test_compiled_units_equal_python_and_stay_below_one(word_0, word_1):
    unit_64, unit_32 = compiled_units(np.uint32(word_0), np.uint32(word_1))
    assert unit_64 == philox.unit_float64(word_0, word_1)
    assert unit_32 == philox.unit_float32(word_0)
    assert 0.0 <= unit_64 < 1.0
    assert 0.0 <= unit_32 < 1.0


def test_largest_words_still_give_less_than_one():
    assert philox.unit_float64(ONES, ONES) == 1.0 - 2.0**-53
    assert philox.unit_float32(ONES) == np.float32(1.0) - np.float32(2.0**-24) < 1.0
    unit_64, unit_32 = compiled_units(np.uint32(ONES), np.uint32(ONES))
    assert (unit_64, unit_32) == (1.0 - 2.0**-53, 1.0 - 2.0**-24)


@given(st.tuples(*[WORDS] * 5), st.integers(0, 2**32 - 10))
def test_compiled_draws_equal_python_and_take_one_block_each(words, k):
    clocks = np.zeros(2, philox.CLOCK)
    clocks["seed"], clocks["stream"], clocks["env"], clocks["episode"], clocks["t"] = words
    clocks["k"] = k
    found = compiled_draws(clocks[:1])
    draw = RecordView(clocks[1:])
    uniform = philox.uniform(draw, -2.0, 3.0)
    integer = philox.integers(draw, -4, 9)
    normal = philox.normal(draw, 1.0, 2.0)
    assert found == (uniform, integer, normal, philox.next_unit_float64(draw))
    assert clocks["k"].tolist() == [k + 5, k + 5], "uniform, integers: one draw; normal: two"
    assert -2.0 <= uniform < 3.0
    assert integer in range(-4, 9)


def test_integers_are_evenly_spread_over_the_whole_range_and_no_further():
    counts = np.zeros(6)
    clock = np.zeros(1, philox.CLOCK)
    for _ in range(6000):
        counts[philox.integers(RecordView(clock), 0, 6)] += 1
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 20.5  # 99.9 % of 5 degrees of freedom


def test_normal_has_its_mean_and_deviation():
    clock = np.zeros(1, philox.CLOCK)
    drawn = np.array([philox.normal(RecordView(clock), 3.0, 2.0) for _ in range(4000)])
    assert abs(drawn.mean() - 3.0) < 4 * 2.0 / math.sqrt(4000)
    assert abs(drawn.std() - 2.0) < 0.1


def test_streams_keep_their_numbers():
    """Recorded runs and checkpoints depend on them."""
    streams = (philox.RESET, philox.STEP, philox.ACTION, philox.EVALUATION, philox.LEARNER)
    assert streams == (0, 1, 2, 3, 4)


class Drawing(CompiledEnv):
    """Shows what it drew: one number in reset, three in each step."""

    state = np.dtype([("drawn", "f8", (3,))])
    observation_space = Box(0, 1, (3,), np.float64)
    action_space = Discrete(1)
    max_episode_steps = 2

    def reset(state, params, draw):
        state.drawn[0] = philox.uniform(draw, 0.0, 1.0)

    def step(state, params, action, draw):
        for k in range(3):
            state.drawn[k] = philox.uniform(draw, 0.0, 1.0)
        return 0.0, False

    def observe(state, params, observation):
        observation[:] = state.drawn


def unit(seed, stream, env, episode, t, k):
    return philox.unit_float64(*philox.philox(seed, stream, env, episode, t, k)[:2])


@pytest.mark.parametrize("jit", [True, False])
def test_draw_k_of_step_t_is_at_the_counter_that_the_design_says(jit):
    """Philox(key=(seed, stream), counter=(environment, episode, step, draw)), across episodes."""
    seed, first_env = 0xFFFFFFFF, 7
    envs = Envs(Drawing, 2, seed, first_env=first_env, jit=jit)
    outcome = Outcome(Drawing, 2)
    action = np.zeros(2, np.int32)
    for i in range(2):
        drawn = unit(seed, philox.RESET, first_env + i, 0, 0, 0)
        assert envs.observation()[i].tolist() == [drawn, 0.0, 0.0]
    for episode in range(3):
        for t in range(2):
            envs.step(action, outcome)
            for i in range(2):
                shown = outcome.final_observation[i] if t == 1 else outcome.observation[i]
                wanted = [unit(seed, philox.STEP, first_env + i, episode, t, k) for k in range(3)]
                assert shown.tolist() == wanted, f"environment {i}, episode {episode}, step {t}"
        for i in range(2):
            drawn = unit(seed, philox.RESET, first_env + i, episode + 1, 0, 0)
            assert outcome.observation[i].tolist() == [drawn, 0.0, 0.0]
