"""Gymnasium's spaces and the kit's: nothing is lost between them."""

import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Space,
    Text,
    Tuple,
    flatten,
)
from hypothesis import given
from hypothesis import strategies as st

from rollout.envs.errors import EnvError
from rollout.envs.foreign.actions import action_reader, kit_action_space
from rollout.envs.foreign.observations import Misfit, kit_observation_space, observation_writer
from rollout.envs.layouts import action_layout, observation_layout

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
DTYPES = ["f2", "f4", "f8", "u1", "i2", "i4", "i8", "?"]
BOXES = st.builds(
    lambda shape, dtype: Box(0, 1, shape, np.dtype(dtype).type), SHAPES, st.sampled_from(DTYPES)
)
CHOICES = st.one_of(
    st.builds(Discrete, st.integers(1, 5), start=st.integers(-2, 2)),
    st.builds(
        lambda shape, start: MultiDiscrete(np.full(shape, 3), start=np.full(shape, start)),
        st.lists(st.integers(1, 2), min_size=1, max_size=2),
        st.integers(-1, 2),
    ),
    st.builds(MultiBinary, st.one_of(st.integers(1, 3), st.just([2, 2]))),
)
KEYS = st.sampled_from(["a", "b", "my-key", "2d", "class", "_x", "state.v"])
SPACES = st.recursive(
    st.one_of(BOXES, CHOICES),
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, min_size=1, max_size=3).map(Dict),
        st.lists(inner, min_size=1, max_size=3).map(Tuple),
    ),
    max_leaves=5,
)


def test_bounds_beyond_single_precision_are_none():
    space = Box(np.array([-1e300, -1.0]), np.array([1e300, 1e39]), dtype=np.float64)
    kept = kit_action_space(space)
    assert isinstance(kept, Box)
    np.testing.assert_array_equal(kept.low, np.array([-np.inf, -1.0], np.float32))
    np.testing.assert_array_equal(kept.high, np.array([np.inf, np.inf], np.float32))
    (action,) = action_reader(space)(np.array([[3e38, 2.0]], np.float32))
    assert space.contains(action)


def read_by_network(space: Space, row: np.ndarray) -> np.ndarray:
    """What a network reads of a row: categories one-hot, all side by side."""
    in_bytes = row.reshape(-1).view(np.uint8)
    pieces = []
    for part in observation_layout(space).parts:
        size = part.size * part.dtype.itemsize
        numbers = in_bytes[part.offset : part.offset + size].view(part.dtype)
        if not part.categories:
            pieces.append(numbers.astype(np.float64))
        for number, count in zip(numbers, part.categories, strict=False):
            pieces.append(np.eye(count)[number])
    return np.concatenate(pieces)


@given(SPACES, st.integers(0, 2**31))
def test_network_reads_what_gymnasium_flattens(space, seed):
    space.seed(seed)
    observation = space.sample()
    kit = kit_observation_space(space)
    layout = observation_layout(kit)
    row = np.zeros(layout.shape, layout.dtype)
    observation_writer(space)(row, observation)
    wanted = np.asarray(flatten(space, observation), np.float64)
    np.testing.assert_allclose(read_by_network(kit, row), wanted, rtol=1e-7)


@given(
    st.one_of(
        CHOICES,
        st.lists(CHOICES, min_size=1, max_size=3).map(Tuple),
        st.dictionaries(KEYS, CHOICES, min_size=1, max_size=3).map(
            lambda inner: Dict(list(inner.items()))
        ),
    ),
    st.integers(0, 2**31),
)
def test_every_choice_becomes_another_action_of_the_space(space, seed):
    kit = kit_action_space(space)
    layout = action_layout(kit)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, layout.choices, (20, len(layout.choices))).astype(np.int32)
    rows = np.unique(rows, axis=0)
    actions = action_reader(space)(rows[:, 0] if layout.shape == () else rows)
    assert all(space.contains(action) for action in actions)
    assert len({repr(action) for action in actions}) == len(rows)


@given(
    SHAPES, st.sampled_from([np.float32, np.float64]), st.floats(0.01, 10), st.integers(0, 2**31)
)
def test_quantities_are_put_between_the_bounds_as_the_space_has_them(shape, dtype, high, seed):
    inner = Box(-high, high / 3, shape, dtype)
    for space in (inner, Tuple([inner, inner]), Dict({"a": inner})):
        layout = action_layout(kit_action_space(space))
        rows = np.random.default_rng(seed).normal(0, high, (9, *layout.shape)).astype(np.float32)
        rows[0] = np.inf
        for action in action_reader(space)(rows):
            assert space.contains(action), action


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Text(3), "observation_space is Text"),
        (Dict({"a": Box(0, 1, (2,)), "b": Sequence(Discrete(2))}), "observation_space['b'] is Seq"),
        (Box(0, 1, (0,)), "with at least one number"),
        (None, "observation_space is None, wanted a Box, Discrete"),
        (Tuple([]), "observation_space is Tuple()"),
    ],
)
def test_observation_that_cannot_be_kept_is_named(space, said):
    with pytest.raises(EnvError) as caught:
        kit_observation_space(space)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Text(3), "action_space is Text"),
        (
            Box(0, 255, (2,), np.uint8),
            "wanted a Discrete, MultiDiscrete, MultiBinary or Box",
        ),
        (
            Tuple([Discrete(2), Box(0, 1, (1,))]),
            "wanted choices (Discrete, MultiDiscrete, Multi",
        ),
        (Dict({"a": Dict({"b": Text(1)})}), "action_space['a']['b'] is Text"),
        (None, "action_space is None"),
    ],
)
def test_action_that_cannot_be_chosen_is_named(space, said):
    with pytest.raises(EnvError) as caught:
        kit_action_space(space)
    assert said in str(caught.value)


def test_spaces_of_the_old_package_are_said_to_be():
    old = type("Box", (), {"__module__": "gym.spaces.box", "__repr__": lambda self: "Box(2,)"})()
    for refuse in (kit_observation_space, kit_action_space):
        with pytest.raises(EnvError, match="of the old package gym, not of gymnasium"):
            refuse(old)


PAIR = Dict({"a": Box(-1, 1, (2,)), "b": Tuple([Discrete(3), MultiDiscrete([2, 2])])})


@pytest.mark.parametrize(
    ("space", "observation", "said"),
    [
        (Box(-1, 1, (2,)), np.zeros(3, np.float32), "observation has shape [3], wanted [2]"),
        (Box(-1, 1, (2,)), "text", "observation has shape [], wanted [2]"),
        (Box(-1, 1, (2,)), [[1], [2, 3]], "observation is [[1], [2, 3]], wanted an array [2]"),
        (Box(-1, 1, (2,)), np.array(["a", "b"]), "observation holds <U1 (<U1), wanted float32"),
        (Box(0, 9, (2,), np.uint8), np.zeros(2), "holds floats (float64), wanted uint8"),
        (Box(0, 255, (2,), np.uint8), [300, -1], "is [300, -1], which uint8 does not hold"),
        (Discrete(3), 3, "observation is 3, wanted an integer from 0 to 2"),
        (Discrete(3, start=5), 4, "observation is 4, wanted an integer from 5 to 7"),
        (Discrete(3), 1.0, "observation is 1.0, wanted an integer from 0 to 2"),
        (MultiDiscrete([2, 3]), np.array([1, 3]), "observation is [1, 3], which is not in MultiD"),
        (PAIR, np.zeros(2), "observation is array([0., 0.]), wanted exactly ['a', 'b'] in it"),
        (PAIR, {"a": np.zeros(2)}, "wanted exactly ['a', 'b'] in it"),
        (PAIR, {"a": np.zeros(2), "c": 1}, "observation has no 'b', wanted ['a', 'b'] in it"),
        (
            PAIR,
            {"a": np.zeros(2), "b": (1,)},
            "observation['b'] is (1,), wanted exactly [0, 1]",
        ),
        (
            PAIR,
            {"a": np.zeros(2), "b": (1, np.zeros(3, int))},
            "observation['b'][1] has shape [3], wanted [2]",
        ),
    ],
)
def test_observation_that_is_not_what_its_space_says_is_named(space, observation, said):
    layout = observation_layout(kit_observation_space(space))
    with pytest.raises(Misfit) as caught:
        observation_writer(space)(np.zeros(layout.shape, layout.dtype), observation)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("space", "observation", "read"),
    [
        (Box(-1, 1, (2,)), [0.5, 1], [0.5, 1]),
        (Box(-1, 1, (2,)), np.full(2, 0.5, np.float64), [0.5, 0.5]),
        (Box(-1, 1, ()), 0.25, [0.25]),
        (Box(0, 9, (2,), np.uint8), [1, 2], [1, 2]),
        (Box(0, 1, (1,), np.int8), [True], [1]),
        (Discrete(3), np.int64(2), [0, 0, 1]),
        (Discrete(2, start=4), np.array(5), [0, 1]),
        (MultiDiscrete([2, 2]), [1, 0], [0, 1, 1, 0]),
        (Tuple([Discrete(2)]), [1], [0, 1]),
    ],
)
def test_what_is_meant_is_taken(space, observation, read):
    kit = kit_observation_space(space)
    row = np.zeros(observation_layout(kit).shape, observation_layout(kit).dtype)
    observation_writer(space)(row, observation)
    assert read_by_network(kit, row).tolist() == read
