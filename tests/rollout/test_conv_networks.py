"""Networks with convolutions, from the experiment file to what actors record."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Space

from rollout import api
from rollout.acting import UnrollActor, read_only
from rollout.envs import Envs
from rollout.envs.diagnostic.counting import Counting
from rollout.envs.minatar.board import board_space
from rollout.envs.minatar.breakout import Breakout
from rollout.errors import ConfigError
from rollout.experiment import Experiment
from rollout.experiment_tables import ConvSettings
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Conv
from rollout.learners.network import CategoricalHead, Filters, NetworkSpec, make_conv
from rollout.learners.torch_network import TorchNetwork
from rollout.policy_kernel import BLOCK, block_size, num_scratch
from rollout.shapes import make_network, make_schema
from tests.some_fast import slow_unless

MINATAR = {"id": "Breakout-MinAtar", "num_envs": 6}


class Pictures(Counting):
    """Shows bytes: three frames behind each other, the channels first."""

    observation_space = Box(0, 255, (3, 6, 5), np.uint8)

    def observe(state, params, observation):
        for c in range(3):
            for y in range(6):
                for x in range(5):
                    observation[c, y, x] = (40 * c + 7 * y + 11 * x + 13 * state.t) % 256


def spec_for(space: Space, **settings: Any) -> NetworkSpec:
    env: Any = SimpleNamespace(
        observation_space=space, action_space=Discrete(4), __qualname__="Shown"
    )
    return make_network(ConvSettings(**settings), env)


def first_layer(spec: NetworkSpec) -> Conv:
    layer = spec.layers[0]
    assert isinstance(layer, Conv)
    return layer


@pytest.mark.parametrize(
    ("shape", "axis", "image"),
    [
        ((10, 10, 4), "auto", (10, 10, 4)),
        ((4, 84, 84), "auto", (84, 84, 4)),
        ((5, 5, 5), "auto", (5, 5, 5)),
        ((10, 10, 10), "auto", (10, 10, 10)),
        ((3, 7, 5), "auto", (7, 5, 3)),
        ((4, 10, 7), "last", (4, 10, 7)),
        ((10, 10, 4), "first", (10, 4, 10)),
    ],
)
def test_channels_are_on_the_shortest_axis_or_where_the_file_says(shape, axis, image) -> None:
    layer = first_layer(spec_for(Box(0, 1, shape, np.float32), channels_axis=axis))
    assert layer.image == image
    assert layer.channels_first == (image != shape)


@pytest.mark.parametrize(
    ("space", "scale"),
    [
        (Box(0, 255, (9, 9, 3), np.uint8), 1.0 / 255.0),
        (Box(0, 1, (9, 9, 3), np.uint8), 1.0),
        (board_space(3), 1.0),
        (Box(0.0, 255.0, (9, 9, 3), np.float32), 1.0),
    ],
)
def test_pictures_of_bytes_are_scaled_to_one(space, scale) -> None:
    assert first_layer(spec_for(space)).scale == scale


def test_default_network_is_that_of_minatar() -> None:
    spec = spec_for(Breakout.observation_space)
    filters, dense, heads = spec.layers
    assert isinstance(filters, Conv)
    assert (filters.channels, filters.kernel, filters.stride) == (16, 3, 1)
    assert (dense.inputs, dense.outputs, heads.outputs) == (8 * 8 * 16, 128, 4 + 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["env.id=CartPole-v1"],
            r"reads images, .* CartPole shows \(4,\) numbers; try network.kind=\"mlp\"",
        ),
        (
            ["network.kernel_sizes=[11]"],
            r"convolution 1 has a kernel of 11×11, what it goes over is 10×10; .*shape "
            r"\(10, 10, 4\), the channels last",
        ),
        (
            ["network.channels=[8,8]", "network.kernel_sizes=[5,7]", "network.strides=[1,1]"],
            "convolution 2 has a kernel of 7×7, what it goes over is 6×6",
        ),
        (["network.channels=[8,8]"], "have 2, 1 and 1 numbers; write one in each"),
        (["network.kernel_sizes=[0]"], "wanted a list of 1 to 16 integers from 1 to 64"),
    ],
)
def test_network_that_cannot_be_is_refused_before_anything_starts(overrides, said) -> None:
    tables = {"env": MINATAR, "stop": {"env_steps": 1}, "network": {"kind": "conv"}}
    with pytest.raises(ConfigError, match=said):
        Experiment.from_dict(tables, overrides)


def test_dictionary_with_an_image_is_refused() -> None:
    space = Dict({"image": Box(0, 255, (9, 9, 3), np.uint8)})
    with pytest.raises(ValueError, match="Shown shows a Dict"):
        spec_for(space)


@pytest.mark.parametrize("env", slow_unless([Pictures], [Breakout, Pictures]))
@pytest.mark.parametrize("num_envs", [3, pytest.param(BLOCK + 5, marks=pytest.mark.slow)])
def test_actor_records_what_torch_computes(env, num_envs) -> None:
    network = make_network(ConvSettings(channels=(6,), hidden_sizes=(20,)), env)
    schema = make_schema(env, 7, has_value=True)
    weights = initial_parameters(network, 3)
    actor = UnrollActor(Envs(env, num_envs, seed=2), network, schema)
    actor.act(read_only(weights))
    unroll = actor.buffer.unroll()
    rows = torch.from_numpy(unroll.observation.reshape(-1, *network.observation_shape).copy())
    with torch.no_grad():
        outputs, value = TorchNetwork(network, weights).forward(rows)
    np.testing.assert_allclose(unroll.value.reshape(-1), value, atol=1e-5)
    taken = torch.from_numpy(unroll.action.reshape(-1, 1).astype(np.int64))
    log_prob = torch.log_softmax(outputs[: len(taken)], -1).gather(1, taken)[:, 0]
    np.testing.assert_allclose(unroll.behavior_log_prob.reshape(-1), log_prob, atol=1e-5)
    assert rows.unique().numel() > 1


def test_large_networks_evaluate_fewer_rows_together() -> None:
    """An actor is to be small, whatever it looks at."""
    nature = [Filters(32, 8, 4), Filters(64, 4, 2), Filters(64, 3, 1)]
    head = CategoricalHead((6,))
    large = make_conv((84, 84, 4), head, nature, (512,), "relu", "shared")
    small = make_conv((10, 10, 4), head, nature[2:], (128,), "relu", "shared")
    assert block_size(small) == BLOCK > block_size(large) >= 8
    assert 4 * num_scratch(large) <= 4 << 20


@pytest.mark.slow
def test_parameters_do_not_depend_on_the_number_of_actors(places, tmp_path) -> None:
    digests = set()
    for num_actors in (1, 2, 5):
        tables = {
            "env": MINATAR,
            "fleet": {"num_actors": num_actors, "unroll_length": 16},
            "network": {"kind": "conv", "channels": [8], "hidden_sizes": [16]},
            "algorithm": {"kind": "ppo", "learning_rate": 3e-3},
            "stop": {"env_steps": 4 * 16 * 6},
        }
        result = api.train(tables, run_dir=tmp_path / f"run{num_actors}")
        places.assert_gone()
        digests.add(result.summary.params_digest)
    assert len(digests) == 1
