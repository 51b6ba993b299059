"""States of foreign environments: what is restored goes on in the same bits, or is not trusted."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import FrameStackObservation, NormalizeObservation, TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rollout.env_source import EnvSource
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.looped_envs import LoopedEnvs
from rollout.envs.foreign.plain_data import NotPlain, read_attributes, write_attributes
from rollout.envs.foreign.saved_state import StateSaver
from rollout.envs.foreign.trying_out import Trial
from rollout.envs.philox import CLOCK
from rollout.envs.registry import find_any_env
from tests.envs.foreign_samples import ClosingBadly, Drift, Kept, Thinning
from tests.envs.gymnasium_samples import Walk

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)
ARRAYS = arrays.arrays(
    st.sampled_from(["u1", "i8", "?"]), arrays.array_shapes(min_dims=0, min_side=0)
).flatmap(lambda array: st.sampled_from(["f4", "f8", array.dtype]).map(array.astype))
VALUES = st.recursive(
    st.one_of(SCALARS, ARRAYS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda items: deque(items, 5)),
        st.dictionaries(st.one_of(st.text("ab"), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@given(st.dictionaries(st.text("xyz", min_size=1), VALUES, max_size=4))
def test_attributes_come_back_as_they_were(attributes):
    owner, other = SimpleNamespace(**attributes), SimpleNamespace()
    write_attributes(other, read_attributes(owner))
    assert same(vars(owner), vars(other))


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM"])
def test_generators_of_random_numbers_go_on(kind):
    owner = SimpleNamespace(random=np.random.Generator(getattr(np.random, kind)(7)))
    owner.random.normal(size=5)
    owner.random.integers(9, dtype=np.int32)  # leaves half a word
    other = SimpleNamespace(random=None)
    write_attributes(other, read_attributes(owner))
    assert other.random.integers(9, dtype=np.int32) == owner.random.integers(9, dtype=np.int32)
    np.testing.assert_array_equal(other.random.normal(size=9), owner.random.normal(size=9))


@pytest.mark.parametrize("value", [object(), np.array([object()]), [{"a": object()}], {1, 2}])
def test_what_is_more_than_data_is_named(value):
    with pytest.raises(NotPlain, match=r"^SimpleNamespace.keeper is a"):
        read_attributes(SimpleNamespace(a=1, keeper=value))


def trained(make, **params) -> ForeignEnv:
    return ForeignEnv("mine", make, params)


def wrapped(**params) -> gymnasium.Env:
    return FrameStackObservation(TimeLimit(Kept(Drift(**params)), 11), 3)


def normalized() -> gymnasium.Env:
    return NormalizeObservation(Drift())


@pytest.mark.parametrize("make", [Drift, wrapped, normalized])
def test_snapshot_restored_elsewhere_goes_on_in_the_same_bits(make):
    env = trained(make)
    assert not env.has_hidden_state and not env.hides_state_because
    first = LoopedEnvs(env, 3, 5, first_env=2, state_bytes=env.state_bytes)
    acting = Trial(first)
    for _ in range(20):  # into second episodes
        acting.step()
    again = LoopedEnvs(env, 3, 99, begin=False, state_bytes=env.state_bytes)
    position = np.zeros(1, np.int64)
    again.restore(first.snapshot(), position, 16)
    assert again.snapshot() == first.snapshot() and (first.clocks["t"] > 0).all()
    assert position[0] == 2 * 16
    np.testing.assert_array_equal(again.observation(), first.observation())
    other = Trial(again)
    other._random = acting._random  # the same draws in turn
    state = acting._random.bit_generator.state
    for _ in range(30):
        came = acting.step()
        acting._random.bit_generator.state, state = state, acting._random.bit_generator.state
        for one, two in zip(came, other.step(), strict=True):
            np.testing.assert_array_equal(one, two)
        state = acting._random.bit_generator.state
    assert again.snapshot() == first.snapshot()


@pytest.mark.parametrize(
    ("make", "params", "why"),
    [
        (Drift, {"forgets": "place"}, "goes on differently in step 1"),
        (Drift, {"forgets": "generator"}, "goes on differently in step 1"),
        (Walk, {}, "Walk has no pair of methods snapshot() -> bytes and restore(bytes)"),
        (lambda: Kept(Drift(), keeps=object()), {}, "Kept.keeps is a builtins.object"),
    ],
)
def test_state_that_is_not_whole_is_not_trusted(make, params, why):
    env = trained(make, **params)
    assert env.has_hidden_state and why in env.hides_state_because
    assert env.state_bytes == CLOCK.itemsize


def test_snapshot_that_is_no_bytes_is_named():
    class Wrong(Drift):
        def snapshot(self) -> Any:
            return {"t": self.t}

    env = trained(Wrong)
    assert env.hides_state_because == "Wrong.snapshot returns dict, wanted bytes"


def test_state_that_outgrows_its_room_counts_as_not_saved():
    env = trained(Drift, grows=True, limit=100)
    envs = LoopedEnvs(env, 2, 5, state_bytes=env.state_bytes)
    acting = Trial(envs)
    for _ in range(60):
        acting.step()
    again = LoopedEnvs(env, 2, 5, begin=False, state_bytes=env.state_bytes)
    again.restore(envs.snapshot())
    was_under_way = envs.clocks["t"] > 0
    assert was_under_way.any() and (again.clocks["t"] == 0).all()
    assert (again.clocks["episode"] == envs.clocks["episode"] + was_under_way).all()


def test_state_that_becomes_more_than_data_counts_as_not_saved(caplog):
    env = ForeignEnv("mine", lambda: Around(Thinning(limit=100)))
    assert not env.has_hidden_state
    envs = LoopedEnvs(env, 1, 5, state_bytes=env.state_bytes)
    acting = Trial(envs)
    for _ in range(60):
        acting.step()
    lengths = np.frombuffer(envs.snapshot(), env.state_dtype(env.state_bytes))["length"]
    envs.snapshot()
    assert not lengths.any()
    assert caplog.text.count("a state cannot be saved any more: Around.last is a") == 1


class Around(gymnasium.Wrapper):
    """Remembers the thought of what is within."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.last: Any = None

    def step(self, action) -> Any:
        self.last = self.unwrapped.thought  # pyright: ignore[reportAttributeAccessIssue]
        return super().step(action)


def test_close_that_raises_costs_no_state():
    assert not trained(ClosingBadly).has_hidden_state


def test_beginnings_need_no_state():
    """What a learner sends first: clocks, and nothing behind them."""
    env = trained(Drift)
    states = np.zeros(2, env.state_dtype(env.state_bytes))
    states["clock"]["env"], states["clock"]["seed"] = [4, 5], 7
    given = LoopedEnvs(env, 2, 0, begin=False, state_bytes=env.state_bytes)
    given.restore(states.tobytes())
    fresh = LoopedEnvs(env, 2, 7, first_env=4)
    np.testing.assert_array_equal(given.observation(), fresh.observation())


MUJOCO = ["HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Reacher-v5", "Humanoid-v5"]


@pytest.mark.parametrize("name", MUJOCO)
def test_mujoco_states_are_exact(name):
    pytest.importorskip("mujoco")
    env = find_any_env(EnvSource(id=f"gymnasium:{name}", folder=""))
    assert isinstance(env, ForeignEnv)
    assert not env.has_hidden_state, env.hides_state_because


def test_atari_states_are_exact_with_what_wraps_them():
    pytest.importorskip("ale_py")
    env = find_any_env(
        EnvSource(
            id="gymnasium:ALE/Breakout-v5",
            params={"frameskip": 1, "repeat_action_probability": 0.0},
            wrappers=("AtariPreprocessing", {"name": "FrameStackObservation", "stack_size": 2}),
            folder="",
        )
    )
    assert isinstance(env, ForeignEnv)
    assert not env.has_hidden_state, env.hides_state_because
    assert env.is_seeded_once


def test_atari_with_sticky_actions_hides_which_was_the_last():
    pytest.importorskip("ale_py")
    env = find_any_env(EnvSource(id="gymnasium:ALE/Breakout-v5", folder=""))
    assert isinstance(env, ForeignEnv)
    assert env.has_hidden_state
    assert "repeat_action_probability is 0.25, with 0 states are exact" in env.hides_state_because


def test_hostile_states_are_errors_and_nothing_else():
    saver = StateSaver(Drift())
    for data in (b"", b"\x00" * 40, b"\x92\xc4\x01a\xc4\x01b"):
        with pytest.raises(Exception):  # noqa: B017, PT011
            saver.restore(data)
