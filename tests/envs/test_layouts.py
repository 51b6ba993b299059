"""What a space becomes in arrays."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, flatdim
from hypothesis import given
from hypothesis import strategies as st

from rollout.envs import CompiledEnv, Envs, Outcome, integers, uniform
from rollout.envs.layouts import NUMBERS, action_layout, observation_layout, observation_rows

NAMES = st.sampled_from(["place", "goal", "inner", "seen", "x"])
LEAVES = st.one_of(
    st.builds(  # with bools only where there is no Dict around it
        lambda shape, dtype: Box(0, 1, tuple(shape), dtype.type),
        st.lists(st.integers(1, 3), min_size=1, max_size=3),
        st.sampled_from(NUMBERS[1:]),
    ),
    st.builds(Discrete, st.integers(1, 5)),
    st.builds(MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    st.builds(MultiBinary, st.integers(1, 4)),
)
SPACES = st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, min_size=1).map(Dict))


@given(SPACES)
def test_layout_holds_every_number_of_the_space(space):
    layout = observation_layout(space)
    assert len(layout.names()) == len(set(layout.names())) == flatdim(space)
    assert sum(sum(part.categories) or part.size for part in layout.parts) == flatdim(space)
    end = 0
    for part in layout.parts:  # one behind the other, without gaps
        assert part.offset == end
        end += part.size * part.dtype.itemsize
    assert end == layout.size * layout.dtype.itemsize
    assert (layout.record is not None) == isinstance(space, Dict)


def test_names_say_where_a_number_comes_from():
    space = Dict(
        place=Box(-1, 1, (2,), np.float32),
        inner=Dict(way=Discrete(2), tools=MultiDiscrete([2, 1])),
    )
    assert observation_layout(space).names() == [
        "place[0]",
        "place[1]",
        "inner.way=0",
        "inner.way=1",
        "inner.tools[0]=0",
        "inner.tools[0]=1",
        "inner.tools[1]=0",
    ]


def test_actions_lie_as_their_space_says():
    assert action_layout(Discrete(3)).choices == (3,)
    assert action_layout(Discrete(3)).shape == ()
    several = action_layout(MultiDiscrete([2, 5]))
    assert (several.shape, several.choices, several.mask_size) == ((2,), (2, 5), 7)
    box = action_layout(Box(np.float32(-1), np.array([1, np.inf], np.float32)))
    assert (box.shape, box.dtype, box.mask_size) == ((2,), np.float32, 0)
    assert (box.low, box.high) == ((-1.0, -1.0), (1.0, np.inf))


class Rich(CompiledEnv):
    """Every kind of observation, two choices, one of which is not always allowed."""

    state = np.dtype([("x", "f8"), ("way", "i4")])
    observation_space = Dict(
        place=Box(-np.inf, np.inf, (2,), np.float32),
        way=Discrete(4),
        inner=Dict(seen=MultiBinary(3), tools=MultiDiscrete([2, 9])),
    )
    action_space = MultiDiscrete([2, 3])
    max_episode_steps = 10

    def reset(state, params, draw):
        state.x = uniform(draw, 0, 1)
        state.way = integers(draw, 0, 4)

    def step(state, params, action, draw):
        state.x += action[0] - 0.5
        state.way = (state.way + action[1]) % 4
        return state.x, state.x < -2

    def observe(state, params, observation):
        observation.place[0] = state.x
        observation.way = state.way
        if state.way == 2:  # all of it is zero otherwise
            observation.inner.seen[2] = 1
            observation.inner.tools[1] = 8

    def action_mask(state, params, mask):
        if state.way == 0:
            mask[1] = False
            mask[4] = False


class Moved(CompiledEnv):
    """Moved by two numbers; shows the whole part of where it is."""

    state = np.dtype([("x", "f8")])
    observation_space = Discrete(5)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(state, params, draw):
        state.x = 0

    def step(state, params, action, draw):
        state.x += abs(action[0] * action[1])
        return action[1], state.x > 4

    def observe(state, params, observation):
        observation[0] = int(state.x)


@pytest.mark.parametrize("env", [Rich, Moved])
def test_compiled_and_plain_python_agree_on_every_kind_of_space(env):
    rng = np.random.default_rng(0)
    compiled, plain = Envs(env, 4, seed=0), Envs(env, 4, seed=0, jit=False)
    outcome, expected = Outcome(env, 4), Outcome(env, 4)
    for _ in range(60):
        if env is Rich:
            action = rng.integers(0, 2, (4, 2)).astype(np.int32)
        else:
            action = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
        compiled.step(action, outcome)
        plain.step(action, expected)
        for mine, theirs in zip(outcome.arrays, expected.arrays, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(compiled.action_mask(), plain.action_mask())
        np.testing.assert_array_equal(compiled.observation(), plain.observation())
    assert compiled.snapshot() == plain.snapshot()


@pytest.mark.parametrize("jit", [True, False])
def test_dict_observation_has_what_the_author_wrote_and_zeros_else(jit):
    envs, outcome = Envs(Rich, 8, seed=0, jit=jit), Outcome(Rich, 8)
    outcome.observation[:] = 255
    record = observation_layout(Rich.observation_space).record
    assert record is not None
    seen = set()
    for _ in range(20):
        envs.step(np.ones((8, 2), np.int32), outcome)
        shown = outcome.observation.view(record)[:, 0]
        way = envs.records["state"]["way"]
        np.testing.assert_array_equal(shown["way"], way)
        np.testing.assert_array_equal(shown["place"][:, 0], np.float32(envs.records["state"]["x"]))
        assert (shown["place"][:, 1] == 0).all()
        np.testing.assert_array_equal(shown["inner"]["tools"][:, 1], 8 * (way == 2))
        np.testing.assert_array_equal(shown["inner"]["seen"], np.outer(way == 2, [0, 0, 1]))
        mask = envs.action_mask()
        np.testing.assert_array_equal(mask[:, 1], way != 0)
        np.testing.assert_array_equal(mask[:, 4], way != 0)
        assert mask[:, [0, 2, 3]].all()
        seen |= set(way.tolist())
    assert seen == {0, 1, 2, 3}


def test_categories_keep_the_dtype_of_their_space():
    assert observation_layout(Discrete(3, dtype=np.int32)).dtype == np.int32
    assert observation_layout(MultiDiscrete([3, 4], dtype=np.int32)).dtype == np.int32


SEEN = Dict(way=Discrete(4), place=Box(-1, 1, (2,), np.float32))


@pytest.mark.parametrize(
    ("space", "observation", "words"),
    [
        (Discrete(4), 7, "observation is 7, wanted integers from 0 to below 4"),
        (Discrete(4), -1, "observation is -1, wanted integers from 0 to below 4"),
        (SEEN, {"way": 4, "place": [0.0, 0.0]}, "way is 4, wanted integers"),
        (SEEN, {"way": 1}, "has no 'place'"),
        (
            SEEN,
            {"way": [1, 2], "place": [0.0, 0.0]},
            r"place is float64 \[2\], wanted float32 \[2\]",
        ),
    ],
)
def test_observation_that_the_space_has_not_is_refused(space, observation, words):
    with pytest.raises(ValueError, match=words):
        observation_rows(space, observation)


def test_observations_become_the_rows_that_compiled_code_writes():
    rows, is_batch = observation_rows(SEEN, {"way": [1, 3], "place": [[0.5, 1.0], [0.0, -1.0]]})
    record = observation_layout(SEEN).record
    assert record is not None and is_batch
    shown = rows.view(record)[:, 0]
    assert shown["way"].tolist() == [1, 3]
    assert shown["place"].tolist() == [[0.5, 1.0], [0.0, -1.0]]
    single, is_batch = observation_rows(SEEN, {"way": 3, "place": [0.0, -1.0]})
    assert not is_batch
    np.testing.assert_array_equal(single, rows[1:])
    none, is_batch = observation_rows(SEEN, {"way": np.zeros(0, int), "place": np.zeros((0, 2))})
    assert none.shape == (0, 16) and is_batch
