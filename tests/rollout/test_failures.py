"""Failures: counted by place, and saved so that they load back whole or not at all."""

import dataclasses

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from rollout import failures
from rollout.env_source import EnvSource
from rollout.envs import Envs
from rollout.envs.classic.cartpole import CartPole
from rollout.errors import OperatorError, RunFailed
from rollout.failures import (
    ENOUGH_STEPS,
    EnvFailures,
    Failure,
    FailureRows,
    load_failure,
    save_failure,
)
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Dense
from rollout.learners.network import CategoricalHead, Columns, Filters, make_conv, make_mlp
from rollout.shapes import make_schema

NETWORK = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "separate")
SCHEMA = make_schema(CartPole, 5, has_value=True)


def make_failure(**others) -> Failure:
    known = {
        "seed": 3,
        "env": 17,
        "unroll_index": 6,
        "t": 2,
        "weights_version": 5,
        "network": NETWORK,
        "schema": SCHEMA,
        "ended": "exception",
        "error": "ValueError: the pole “broke”",
        "weights": initial_parameters(NETWORK, 3),
        "env_state": np.frombuffer(
            Envs(CartPole, 1, 3, first_env=17, jit=False).snapshot(), np.uint8
        ),
    }
    source = {"id": "CartPole-v1", "params": {"force": 9.5}, "folder": "/home/somebody/experiments"}
    source |= {name: others.pop(name) for name in source.keys() & others.keys()}
    return Failure(env_source=EnvSource(**source), **(known | others))


def assert_same(one: Failure, other: Failure) -> None:
    for name in Failure.__struct_fields__:
        mine, its = getattr(one, name), getattr(other, name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)
        else:
            assert mine == its, name


def test_failures_are_counted_by_environment_and_step():
    counted = EnvFailures()
    assert [counted.record(*place) for place in [(3, 40), (3, 41), (4, 40), (3, 40), (3, 40)]] == [
        1,
        1,
        1,
        2,
        3,
    ]
    assert repr(counted) == "EnvFailures(3 steps, 3 at most of the same)"


def test_failures_in_a_row_are_those_without_a_completed_episode_in_between():
    rows = FailureRows()
    failed = [(0, 100, 99), (0, 200, 99), (1, 320, 99), (1, 420, 99), (1, 520, 99)]
    counts = [rows.record(3, *place) for place in failed]
    assert counts == [(1, False), (2, False), (1, False), (2, False), (3, True)]
    assert rows.record(4, 1, 520, 99) == (1, False), "each environment has its own row"
    assert repr(rows) == "FailureRows(2 environments, 3 failures at most)"


def test_failures_at_various_steps_are_enough_when_nine_are_in_a_row():
    rows = FailureRows()
    found = [rows.record(0, 7, 500 * life, 100 + life // 2) for life in range(9)]
    assert found == [(life + 1, life == 8) for life in range(9)]


def test_rare_failures_of_what_completes_no_episode_are_never_enough():
    rows = FailureRows()
    for life in range(1, 1000):
        steps = ENOUGH_STEPS + 7 * life
        assert rows.record(0, 0, life * 20_000, steps) == (1, False)
    rows = FailureRows()
    found = [rows.record(0, 0, 20_000 * life, 19_999)[1] for life in range(3)]
    assert found == [False, False, True], "but not always at the same step"


def test_count_forgets_what_is_longest_ago(monkeypatch):
    monkeypatch.setattr(failures, "MOST_REMEMBERED", 3)
    counted = EnvFailures()
    for step in range(4):
        counted.record(0, step)
        assert counted.record(7, 7) == step + 1  # recorded again and again, so never the oldest
    assert counted.record(0, 0) == 1
    assert counted.record(0, 3) == 2


def test_failure_loads_back_as_it_was_saved(tmp_path):
    failure = make_failure()
    path = save_failure(tmp_path / "failures", failure)
    assert path == tmp_path / "failures" / "env-17-step-32.safetensors"
    assert_same(load_failure(path), failure)


def test_failure_of_a_fresh_environment_has_no_state(tmp_path):
    failure = make_failure(env_state=np.zeros(0, np.uint8), t=-1, unroll_index=0)
    path = save_failure(tmp_path, failure)
    assert path.name == "env-17-step-0.safetensors"
    assert_same(load_failure(path), failure)


def test_text_that_no_encoding_has_is_saved(tmp_path):
    failure = make_failure(error="bad \udcff", folder="/home/\udcff")
    assert load_failure(save_failure(tmp_path, failure)).error == "bad ?"


def test_failure_at_the_same_place_replaces_the_former(tmp_path):
    save_failure(tmp_path, make_failure())
    path = save_failure(tmp_path, make_failure(error="SIGSEGV", ended="signal"))
    assert load_failure(path).error == "SIGSEGV"
    assert len(list(tmp_path.iterdir())) == 1


def test_folder_that_cannot_be_made_fails_the_run(tmp_path):
    (tmp_path / "failures").write_text("a file")
    with pytest.raises(RunFailed, match="cannot be written"):
        save_failure(tmp_path / "failures", make_failure())


def with_layer(**others) -> Failure:
    first, *rest = NETWORK.layers
    changed = msgspec.structs.replace(first, **others)
    network = msgspec.convert(
        msgspec.to_builtins(NETWORK) | {"layers": msgspec.to_builtins((changed, *rest))},
        type(NETWORK),
    )
    return make_failure(network=network)


def with_convolution(**others) -> Failure:
    network = make_conv((4, 5, 1), CategoricalHead((2,)), [Filters(3, 2, 1)], (), "relu", "shared")
    first, *rest = network.layers
    changed = msgspec.structs.replace(first, **others)
    network = msgspec.structs.replace(network, layers=(changed, *rest))
    schema = dataclasses.replace(SCHEMA, observation_shape=(4, 5, 1))
    weights = np.zeros(max(network.num_parameters, 0), np.float32)
    return make_failure(network=network, schema=schema, weights=weights)


def with_network(**others) -> Failure:
    return make_failure(network=msgspec.structs.replace(NETWORK, **others))


def with_schema(**others) -> Failure:
    return make_failure(schema=msgspec.convert(msgspec.to_builtins(SCHEMA) | others, type(SCHEMA)))


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (make_failure(weights=np.zeros(7, np.float32)), r"weights is float32 \[7\], wanted"),
        (make_failure(env_state=np.zeros(9, np.uint8)), r"env_state is uint8 \[9\], wanted uint8"),
        (make_failure(env=18), "env_state is of environment 17 of seed 3, wanted 18 of 3"),
        (make_failure(seed=4), "env_state is of environment 17 of seed 3, wanted 17 of 4"),
        (make_failure(seed=-1), "Expected `int` >= 0"),
        (make_failure(t=5), "t=5 in an unroll of 5 steps"),
        (make_failure(ended="boredom"), "Invalid enum value 'boredom'"),
        (make_failure(params=["force"]), "Expected `object`, got `array`"),
        (with_schema(unroll_length=0), "unroll_length=0"),
        (with_schema(unroll_length=10**9), "unroll_length=1000000000"),
        (with_schema(observation_shape=(5,)), "for a network that reads"),
        (with_schema(observation_dtype="O"), "dtype 'O'"),
        (with_schema(state_bytes=3), "state_bytes=3"),
        (with_schema(frame_stack=2), "frame_stack=2 for a network with 1"),
        (with_network(frame_stack=0), "frame_stack=0"),
        (with_network(frame_stack=10**9), "frame_stack=1000000000"),
        (with_layer(name="x = 1\nimport os"), "layer 'x = 1"),
        (with_layer(name="value"), "layer 'value'"),
        (with_layer(source="value"), "inputs from 'value'"),
        (with_layer(inputs=-4), "-4 inputs from"),
        (with_layer(outputs=0), "0 inputs|8 inputs|4 inputs"),
        (with_convolution(kernel=5), "layer torso_conv_0: Conv"),
        (with_convolution(kernel=0), "layer torso_conv_0: Conv"),
        (with_convolution(stride=0), "layer torso_conv_0: Conv"),
        (with_convolution(channels=-3), "layer torso_conv_0: Conv"),
        (with_convolution(image=(4, -5, -1)), "layer torso_conv_0: Conv"),
        (with_convolution(image=(4, 4, 1)), "torso_conv_0: 16 inputs from 'observation'"),
        (with_convolution(channels=4), "heads: 36 inputs from 'torso_conv_0'"),
    ],
)
def test_what_does_not_fit_together_is_refused(failure, said, tmp_path):
    with pytest.raises(OperatorError, match="not a failure that can be replayed") as error:
        load_failure(save_failure(tmp_path, failure))
    assert error.match(said)


def test_outputs_beyond_their_layer_are_refused(tmp_path):
    network = type(NETWORK)(
        (4,),
        CategoricalHead((2,)),
        (Dense("heads", "observation", 4, 3, "identity", ()),),
        Columns("heads", 0, 2),
        Columns("heads", 3, 4),
    )
    failure = make_failure(network=network, weights=np.zeros(15, np.float32))
    with pytest.raises(OperatorError, match="1 outputs in Columns"):
        load_failure(save_failure(tmp_path, failure))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\xff" * 100,
        (2).to_bytes(8, "little") + b"{}",
        safetensors.numpy.save({"weights": np.zeros(3, np.float32)}),
        safetensors.numpy.save({}, {"format": "1"}),
        safetensors.numpy.save({}, {"format": "2", "failure": "{}"}),
        safetensors.numpy.save({}, {"format": "1", "failure": "[" * 100_000}),
        safetensors.numpy.save({}, {"format": "1", "failure": '{"env_id":"CartPole-v1"}'}),
    ],
    ids=range(9),  # not the content: the order of its metadata differs from process to process
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "failure"
    path.write_bytes(content)
    with pytest.raises(OperatorError, match="failure: not a failure that can be replayed"):
        load_failure(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(OperatorError, match="nothing: cannot be read: No such file"):
        load_failure(tmp_path / "nothing")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = save_failure(tmp_path_factory.mktemp("fuzz"), make_failure())
    return path, path.read_bytes(), load_failure(path)


def assert_equal_or_refused(saved, content: bytes) -> None:
    path, _, failure = saved
    path.write_bytes(content)
    try:
        found = load_failure(path)
    except OperatorError:
        return
    assert_same(found, failure)


@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1))
def test_flipped_bytes_are_refused_or_mean_nothing(saved, flips):
    content = bytearray(saved[1])
    for place, flip in flips:
        content[place % len(content)] ^= flip
    assert_equal_or_refused(saved, bytes(content))


@given(place=st.integers(0, 3000), flip=st.integers(1, 255))
def test_flipped_byte_of_the_header_is_refused_or_means_nothing(saved, place, flip):
    content = bytearray(saved[1])
    content[place % (8 + int.from_bytes(content[:8], "little"))] ^= flip
    assert_equal_or_refused(saved, bytes(content))


@given(stop=st.integers(0, 10**6), tail=st.binary(max_size=20))
def test_truncated_file_is_refused(saved, stop, tail):
    assert_equal_or_refused(saved, saved[1][: stop % len(saved[1])] + tail)
