"""The compiled policy against torch, against float64, and against itself in other company."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import kernels
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Conv, Gru, Lstm, Normalize
from rollout.learners.network import (
    CategoricalHead,
    Filters,
    NetworkSpec,
    make_conv,
    make_mlp,
    with_normalized_inputs,
)
from rollout.learners.torch_network import TorchNetwork
from rollout.policy_kernel import (
    BLOCK,
    TANH_LIMIT,
    num_packed,
    num_scratch,
    padded,
    policy_source,
)

TEMPLATE = Path(__file__).parent / "policy_template.py"


class Policy:
    """A network, compiled; its memory is full of what nobody may read."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.packed = np.full(num_packed(spec), np.nan, np.float32)
        self.scratch = np.full(num_scratch(spec), np.nan, np.float32)
        row = np.zeros((1, spec.num_inputs), np.float32)
        vector = np.zeros(spec.num_parameters, np.float32)
        logits = np.zeros((1, spec.head.num_outputs), np.float32)
        work = (vector, self.packed, self.scratch, row, logits, vector[:1])
        self.kernels = kernels.load_kernels(
            TEMPLATE,
            {},
            {"evaluate": work, "tanh_all": (vector, vector)},
            preamble=policy_source(spec),
        )

    def __call__(self, weights: np.ndarray, observation: np.ndarray):
        rows = len(observation)
        logits = np.full((rows, self.spec.head.num_outputs), np.nan, np.float32)
        value = np.full(rows, np.nan, np.float32)
        for start in range(0, rows, BLOCK):
            block = slice(start, start + BLOCK)
            self.kernels.evaluate(
                weights,
                self.packed,
                self.scratch,
                np.ascontiguousarray(observation[block]),
                logits[block],
                value[block],
            )
        return logits, value


SPECS = {
    "CartPole's": make_mlp((4,), CategoricalHead((2,)), (64, 64), "tanh", "shared"),
    "one input, one unit": make_mlp((1,), CategoricalHead((2,)), (1,), "tanh", "shared"),
    "seven inputs, seven outputs": make_mlp((7,), CategoricalHead((7,)), (5, 9), "relu", "shared"),
    "eight outputs with the value": make_mlp((3,), CategoricalHead((7,)), (8,), "tanh", "separate"),
    "nine outputs with the value": make_mlp(
        (9,), CategoricalHead((8,)), (17, 3), "relu", "separate"
    ),
    "no hidden layer": make_mlp((5,), CategoricalHead((4,)), (), "tanh", "separate"),
    "identity": make_mlp((2,), CategoricalHead((3,)), (16,), "identity", "shared"),
    "deep": make_mlp((6,), CategoricalHead((18,)), (33, 16, 15, 1, 4), "tanh", "separate"),
    "normalized": with_normalized_inputs(
        make_mlp((3,), CategoricalHead((2,)), (5,), "tanh", "shared")
    ),
    "an image": make_mlp((2, 3), CategoricalHead((3,)), (10,), "relu", "shared"),
    "a convolution": make_conv(
        (5, 4, 1), CategoricalHead((3,)), [Filters(3, 2, 1)], (8,), "relu", "shared"
    ),
    "convolutions, channels first": make_conv(
        (3, 9, 11),
        CategoricalHead((2,)),
        [Filters(24, 3, 2), Filters(8, 2, 1)],
        (),
        "tanh",
        "shared",
        scale=1.0 / 255.0,
        channels_first=True,
    ),
    "MinAtar's": make_conv(
        (10, 10, 4), CategoricalHead((3,)), [Filters(16, 3, 1)], (128,), "relu", "shared"
    ),
    "separate convolutions": make_conv(
        (13, 7, 2),
        CategoricalHead((5,)),
        [Filters(17, 3, 2), Filters(72, 2, 1), Filters(48, 1, 1)],
        (6,),
        "tanh",
        "separate",
    ),
    "many inputs": make_mlp((2311,), CategoricalHead((3,)), (20,), "relu", "shared"),
    "wide": make_mlp((10,), CategoricalHead((3,)), (48, 80), "tanh", "shared"),
}
SLOW = ("deep", "MinAtar's", "separate convolutions", "many inputs", "wide")  # to compile
POLICIES: dict[str, Policy] = {}
each_spec = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SPECS],
)


def policy(name: str) -> Policy:
    if name not in POLICIES:
        POLICIES[name] = Policy(SPECS[name])
    return POLICIES[name]


def random_weights(spec: NetworkSpec, seed: int = 0) -> np.ndarray:
    """Biases too, unlike initial parameters; outputs of about the size of the inputs."""
    rng = np.random.default_rng(seed)
    flat = np.zeros(spec.num_parameters, np.float32)
    for parameter in spec.parameters:
        inputs = np.prod(parameter.shape[:-1])
        scale = 1.0 / np.sqrt(inputs) if len(parameter.shape) > 1 else 0.3
        parameter.view(flat)[:] = scale * rng.standard_normal(parameter.shape)
    return flat


def random_rows(spec: NetworkSpec, rows: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, spec.num_inputs)).astype(np.float32)


def in_torch(spec: NetworkSpec, weights: np.ndarray, observation: np.ndarray):
    """Plain torch operations on each layer."""
    flat = torch.from_numpy(weights)
    buffers = {"observation": torch.from_numpy(observation)}
    for layer in spec.layers:
        assert not isinstance(layer, Lstm | Gru)
        first, second = (spec.parameter(f"{layer.name}.{n}").view(flat) for n, _ in layer.shapes())
        if isinstance(layer, Normalize):
            normalized = (buffers[layer.source] - first) * second
            buffers[layer.name] = torch.clamp(normalized, -10.0, 10.0)
            continue
        weight, bias = first, second
        if isinstance(layer, Conv):
            out = conv_in_torch(layer, buffers[layer.source], weight, bias)
        else:
            out = buffers[layer.source] @ weight + bias
        functions = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x}
        buffers[layer.name] = functions[layer.activation](out)
    logits, value = spec.outputs, spec.value
    return (
        buffers[logits.buffer][:, logits.start : logits.stop].numpy(),
        buffers[value.buffer][:, value.start].numpy(),
    )


def conv_in_torch(layer: Conv, rows: torch.Tensor, weight, bias) -> torch.Tensor:
    height, width, channels = layer.image
    images = rows.reshape(-1, channels, height, width)
    if not layer.channels_first:
        images = rows.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    out = torch.conv2d(layer.scale * images, weight.permute(3, 2, 0, 1), bias, layer.stride)
    return out.permute(0, 2, 3, 1).flatten(1)


def in_float64(spec: NetworkSpec, weights: np.ndarray, observation: np.ndarray):
    """Row by row, output by output."""
    flat = weights.astype(np.float64)
    logits = np.zeros((len(observation), spec.head.num_outputs))
    value = np.zeros(len(observation))
    for r, row in enumerate(observation.astype(np.float64)):
        buffers = {"observation": row}
        for layer in spec.layers:
            assert not isinstance(layer, Lstm | Gru)
            weight, bias = (
                spec.parameter(f"{layer.name}.{n}").view(flat) for n, _ in layer.shapes()
            )
            if isinstance(layer, Normalize):
                numbers = zip(buffers[layer.source], weight, bias, strict=True)
                normalized = [(x - mean) * scale for x, mean, scale in numbers]
                buffers[layer.name] = np.clip(normalized, -10.0, 10.0)
                continue
            source = buffers[layer.source]
            patches = patches_of(layer, source) if isinstance(layer, Conv) else [source]
            weight = weight.reshape(-1, weight.shape[-1])
            out = []
            for patch in patches:
                for j in range(len(bias)):
                    total = bias[j] + sum(patch * weight[:, j])
                    functions = {"tanh": np.tanh, "relu": lambda x: max(x, 0.0)}
                    out.append(functions.get(layer.activation, lambda x: x)(total))
            buffers[layer.name] = np.array(out)
        logits[r] = buffers[spec.outputs.buffer][spec.outputs.start : spec.outputs.stop]
        value[r] = buffers[spec.value.buffer][spec.value.start]
    return logits, value


def patches_of(layer: Conv, row: np.ndarray) -> list[np.ndarray]:
    """The numbers of every patch of one image, as the kernel goes over it."""
    height, width, channels = layer.image
    image = row.reshape(height, width, channels)
    if layer.channels_first:
        image = row.reshape(channels, height, width).transpose(1, 2, 0)
    k, stride = layer.kernel, layer.stride
    return [
        layer.scale * image[y : y + k, x : x + k].reshape(-1)
        for y in range(0, height - k + 1, stride)
        for x in range(0, width - k + 1, stride)
    ]


@each_spec
@pytest.mark.parametrize("seed", range(3))
def test_compiled_policy_agrees_with_torch_and_with_float64(name, seed):
    spec = SPECS[name]
    weights, rows = random_weights(spec, seed), random_rows(spec, 67, seed + 100)
    found = policy(name)(weights, rows)
    for twin in (in_torch, in_float64):
        for one, other in zip(found, twin(spec, weights, rows), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def test_normalized_inputs_are_clipped_as_the_learner_clips_them():
    spec = SPECS["normalized"]
    weights, rows = random_weights(spec), 50.0 * random_rows(spec, 40)
    mean, scale = (spec.parameter(f"normalized.{n}").view(weights) for n in ("mean", "scale"))
    normalized = (rows - mean) * scale
    assert (normalized > 10.0).any() and (normalized < -10.0).any()
    with torch.no_grad():
        wanted = TorchNetwork(spec, weights).forward(torch.from_numpy(rows))
    for one, other in zip(policy("normalized")(weights, rows), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@each_spec
def test_initial_parameters_agree_with_torch(name):
    spec = SPECS[name]
    weights, rows = initial_parameters(spec, seed=7), random_rows(spec, 33)
    for one, other in zip(policy(name)(weights, rows), in_torch(spec, weights, rows), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@each_spec
@settings(max_examples=25)
@given(data=st.data())
def test_row_has_the_same_bits_in_any_company(name, data):
    """Any subset of rows, in any order, at any place in the block, repeated or not."""
    spec = SPECS[name]
    weights, rows = random_weights(spec), random_rows(spec, 40)
    logits, value = policy(name)(weights, rows)
    chosen = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=70))
    found = policy(name)(weights, rows[chosen])
    assert found[0].tobytes() == logits[chosen].tobytes()
    assert found[1].tobytes() == value[chosen].tobytes()


@each_spec
def test_row_has_the_same_bits_whatever_lies_in_its_neighbours(name):
    spec = SPECS[name]
    weights, rows = random_weights(spec), random_rows(spec, 3)
    wanted = policy(name)(weights, rows)
    for poison in (np.nan, np.inf, 1e30, 0.0):
        company = rows.copy()
        company[[0, 2]] = poison
        found = policy(name)(weights, company)
        assert found[0][1].tobytes() == wanted[0][1].tobytes()
        assert found[1][1] == wanted[1][1]


@each_spec
@pytest.mark.parametrize("position", ["first", "last"])
def test_nan_in_an_observation_reaches_every_output(name, position):
    """Hidden, it would act on, and train on, numbers that mean nothing."""
    spec = SPECS[name]
    weights, rows = random_weights(spec), random_rows(spec, 4)
    rows[2, 0 if position == "first" else -1] = np.nan
    logits, value = policy(name)(weights, rows)
    assert np.isnan(logits[2]).all()
    assert np.isnan(value[2])
    assert not np.isnan(logits[[0, 1, 3]]).any()


@each_spec
def test_nan_in_any_parameter_reaches_an_output(name):
    spec = SPECS[name]
    rows = random_rows(spec, 3)
    for parameter in spec.parameters:
        for index in (0, parameter.size - 1):
            weights = random_weights(spec)
            weights[parameter.offset + index] = np.nan
            logits, value = policy(name)(weights, rows)
            assert np.isnan(logits).any() or np.isnan(value).any(), f"{parameter.name}[{index}]"


def test_relu_and_tanh_hide_no_infinity_as_nan():
    spec = SPECS["one input, one unit"]
    weights = random_weights(spec)
    for x in (np.inf, -np.inf, 1e30, -1e30):
        found = policy("one input, one unit")(weights, np.array([[x]], np.float32))
        wanted = in_torch(spec, weights, np.array([[x]], np.float32))
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)


def tanh(x) -> np.ndarray:
    x = np.asarray(x, np.float32)
    y = np.full_like(x, 5.0)
    policy("CartPole's").kernels.tanh_all(x, y)
    return y


def test_tanh_is_within_a_millionth_everywhere():
    near = np.linspace(-10, 10, 400_001)
    small = np.geomspace(1e-38, 1e-2, 10_000)
    for x in (near, small, -small):
        x = x.astype(np.float32)
        error = np.abs(tanh(x) - np.tanh(x.astype(np.float64)))
        assert error.max() < 1e-6


def test_tanh_is_odd_and_never_beyond_one():
    x = np.linspace(0, 20, 200_001, dtype=np.float32)
    y = tanh(x)
    assert (tanh(-x) == -y).all()
    assert y.max() <= 1.0
    at_the_limit = tanh([TANH_LIMIT])[0]
    assert (tanh([9.0, 1e4, 3e38, np.inf]) == at_the_limit).all()
    assert (tanh([-np.inf, -3e38]) == -at_the_limit).all()


def test_tanh_rises():
    """Up to rounding: a policy must not turn round where its weights go on."""
    y = tanh(np.linspace(-9, 9, 100_001, dtype=np.float32)).astype(np.float64)
    assert np.diff(y).min() > -6e-7


def test_tanh_of_nan_is_nan():
    assert np.isnan(tanh([np.nan, -np.nan])).all()
    mixed = np.zeros(37, np.float32)
    mixed[11] = np.nan
    assert np.isnan(tanh(mixed)).tolist() == [i == 11 for i in range(37)]


@pytest.mark.parametrize(("outputs", "width"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32)])
def test_outputs_are_padded_to_whole_registers(outputs, width):
    assert padded(outputs) == width


@pytest.mark.slow
def test_packing_leaves_no_old_weight_behind():
    """The next version of the weights replaces the last one whole."""
    name = "deep"
    spec = SPECS[name]
    rows = random_rows(spec, 5)
    fresh = Policy(spec)(random_weights(spec, 1), rows)
    used = policy(name)
    used(random_weights(spec, 2), random_rows(spec, 32))
    for one, other in zip(used(random_weights(spec, 1), rows), fresh, strict=True):
        assert one.tobytes() == other.tobytes()
