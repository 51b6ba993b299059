from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Dense, Layer
from rollout.learners.network import OBSERVATION, CategoricalHead, Columns, NetworkSpec, make_mlp
from rollout.learners.torch_network import TorchNetwork, allocate

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0), "identity": lambda x: x}
MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "identity": nn.Identity}


def random_parameters(spec: NetworkSpec, seed: int = 0) -> np.ndarray:
    """Far from initial values, biases included."""
    return np.random.default_rng(seed).standard_normal(spec.num_parameters, np.float32) * 0.5


def numpy_forward(
    spec: NetworkSpec, flat: np.ndarray, observation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In float64, layer by layer."""
    buffers = {OBSERVATION: observation.reshape(len(observation), -1).astype(np.float64)}
    for layer in spec.layers:
        weight, bias = (
            spec.parameter(f"{layer.name}.{suffix}").view(flat).astype(np.float64)
            for suffix in ("weight", "bias")
        )
        activation = ACTIVATIONS[layer.activation]
        buffers[layer.name] = activation(buffers[layer.source] @ weight + bias)
    logits, value = spec.outputs, spec.value
    return (
        buffers[logits.buffer][:, logits.start : logits.stop],
        buffers[value.buffer][:, value.start],
    )


SPECS = {
    "shared tanh": make_mlp((4,), CategoricalHead((2,)), (64, 64), "tanh", "shared"),
    "separate tanh": make_mlp((4,), CategoricalHead((3,)), (32, 16), "tanh", "separate"),
    "shared relu": make_mlp((6,), CategoricalHead((5,)), (24,), "relu", "shared"),
    "narrow inside": make_mlp((3,), CategoricalHead((2,)), (5, 7), "tanh", "shared"),
    "narrow relu inside": make_mlp((3,), CategoricalHead((2,)), (5, 7), "relu", "separate"),
    "wide head": make_mlp((4,), CategoricalHead((40,)), (16,), "identity", "separate"),
    "linear": make_mlp((4,), CategoricalHead((2,)), (), "tanh", "shared"),
    "image": make_mlp((5, 5, 2), CategoricalHead((4,)), (16,), "relu", "shared"),
}


@pytest.mark.parametrize("name", SPECS)
def test_outputs_equal_those_of_numpy(name: str) -> None:
    spec = SPECS[name]
    flat = random_parameters(spec)
    observation = np.random.default_rng(1).standard_normal((37, *spec.observation_shape))
    logits, value = TorchNetwork(spec, flat).forward(
        torch.from_numpy(observation.astype(np.float32))
    )
    expected_logits, expected_value = numpy_forward(spec, flat, observation.astype(np.float32))
    assert logits.shape == (37, spec.head.num_outputs)
    np.testing.assert_allclose(logits.detach(), expected_logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(value.detach(), expected_value, atol=1e-5, rtol=1e-5)


def sequential(spec: NetworkSpec, flat: np.ndarray, layers: Iterable[Layer]) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Flatten()]
    for layer in layers:
        linear = nn.Linear(layer.inputs, layer.outputs)
        weight, bias = (
            torch.tensor(spec.parameter(f"{layer.name}.{suffix}").view(flat))
            for suffix in ("weight", "bias")
        )
        linear.weight.data, linear.bias.data = weight.t().contiguous(), bias
        modules += [linear, MODULES[layer.activation]()]
    return nn.Sequential(*modules)


@pytest.mark.parametrize("name", SPECS)
def test_gradients_equal_those_of_a_plain_module(name: str) -> None:
    spec = SPECS[name]
    flat = random_parameters(spec)
    network = TorchNetwork(spec, flat)
    random = torch.Generator().manual_seed(2)
    observation = torch.randn(37, *spec.observation_shape, generator=random)
    grad_logits = torch.randn(37, spec.head.num_outputs, generator=random)
    grad_value = torch.randn(37, generator=random)
    torch.autograd.backward(network.forward(observation), (grad_logits, grad_value))

    branches = [spec.layers]
    if spec.outputs.buffer != spec.value.buffer:
        half = len(spec.layers) // 2
        branches = [spec.layers[:half], spec.layers[half:]]
    for branch in branches:
        plain = sequential(spec, flat, branch)
        outputs = plain(observation)
        grad_outputs = torch.zeros_like(outputs)
        for columns, gradient in ((spec.outputs, grad_logits), (spec.value, grad_value[:, None])):
            if columns.buffer == branch[-1].name:
                grad_outputs[:, columns.start : columns.stop] = gradient
        outputs.backward(grad_outputs)
        linears = [module for module in plain if isinstance(module, nn.Linear)]
        for layer, linear in zip(branch, linears, strict=True):
            weight, bias = (
                spec.parameter(f"{layer.name}.{suffix}").view(network.flat_grad)
                for suffix in ("weight", "bias")
            )
            assert linear.weight.grad is not None
            torch.testing.assert_close(weight, linear.weight.grad.t(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(bias, linear.bias.grad, rtol=1e-4, atol=1e-4)


def test_layer_that_two_others_read_gets_both_gradients() -> None:
    spec = NetworkSpec(
        observation_shape=(3,),
        head=CategoricalHead((2,)),
        layers=(
            Dense("torso", OBSERVATION, 3, 20, "tanh", ((20, 1.0),)),
            Dense("policy", "torso", 20, 2, "identity", ((2, 1.0),)),
            Dense("value", "torso", 20, 1, "identity", ((1, 1.0),)),
        ),
        outputs=Columns("policy", 0, 2),
        value=Columns("value", 0, 1),
    )
    network = TorchNetwork(spec, random_parameters(spec))
    observation = torch.randn(10, 3, generator=torch.Generator().manual_seed(3))
    gradients = []
    for want_logits, want_value in ((True, False), (False, True), (True, True)):
        network.flat_grad.zero_()
        logits, value = network.forward(observation)
        (want_logits * logits.sum() + want_value * value.sum()).backward()
        gradients.append(spec.parameter("torso.weight").view(network.flat_grad).clone())
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


def test_parameters_and_gradients_are_views_of_the_flat_vectors() -> None:
    spec = SPECS["shared tanh"]
    network = TorchNetwork(spec, random_parameters(spec))
    weight = network.parameters["torso_1.weight"]
    network.flat.fill_(3.0)
    assert bool((weight == 3.0).all())
    logits, value = network.forward(torch.ones(8, 4))
    (logits.sum() + value.sum()).backward()
    gradient = weight.grad
    assert gradient is not None
    assert gradient.untyped_storage().data_ptr() == network.flat_grad.untyped_storage().data_ptr()
    assert bool(network.flat_grad[-3:].eq(8.0).all()), "the heads' biases saw 8 rows of ones"


def test_loading_and_exporting_are_inverse_and_copy() -> None:
    spec = SPECS["separate tanh"]
    flat = random_parameters(spec)
    network = TorchNetwork(spec, np.zeros_like(flat))
    network.load(flat)
    exported = network.export()
    assert exported.dtype == np.float32
    assert np.array_equal(exported, flat)
    network.flat.zero_()
    assert np.array_equal(exported, flat), "export is a view"
    assert flat.any(), "load keeps a view"


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros((1, 50), np.float32)])
def test_vector_of_another_length_is_refused(wrong: np.ndarray) -> None:
    spec = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared")
    network = TorchNetwork(spec, initial_parameters(spec, 0))
    with pytest.raises(ValueError, match=rf"expected float32 \[{spec.num_parameters}\]"):
        network.load(wrong)


def test_vector_of_another_dtype_is_refused() -> None:
    spec = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared")
    with pytest.raises(ValueError, match="parameters are float64"):
        TorchNetwork(spec, initial_parameters(spec, 0).astype(np.float64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.int32, torch.bool])
def test_observations_of_any_dtype_are_taken(dtype: torch.dtype) -> None:
    spec = SPECS["image"]
    network = TorchNetwork(spec, random_parameters(spec))
    observation = torch.randint(0, 2, (6, 5, 5, 2)).to(dtype)
    torch.testing.assert_close(network.forward(observation), network.forward(observation.float()))


def test_observations_of_another_shape_are_refused() -> None:
    spec = SPECS["image"]
    network = TorchNetwork(spec, random_parameters(spec))
    with pytest.raises(ValueError, match=r"observation \[6, 50\], expected \[rows, 5, 5, 2\]"):
        network(torch.zeros(6, 50))


def test_forward_and_backward_are_the_same_bits_each_time() -> None:
    spec = SPECS["shared tanh"]
    network = TorchNetwork(spec, random_parameters(spec))
    observation = torch.randn(1000, 4, generator=torch.Generator().manual_seed(4))
    runs = []
    for _ in range(2):
        network.flat_grad.zero_()
        logits, value = network.forward(observation)
        (logits.square().sum() + value.sum()).backward()
        runs.append((logits.detach(), value.detach(), network.flat_grad.clone()))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_, np.uint8, np.float64])
def test_allocated_array_has_the_shape_and_dtype_asked_for(dtype: type) -> None:
    array = allocate((3, 5, 2), np.dtype(dtype))
    assert array.shape == (3, 5, 2)
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert torch.from_numpy(array).data_ptr() == array.ctypes.data
    assert allocate((0, 4), np.dtype(dtype)).shape == (0, 4)
