"""Networks with convolutions, in torch, against torch's own modules of the same numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Conv, Dense
from rollout.learners.network import CategoricalHead, Filters, NetworkSpec, make_conv
from rollout.learners.torch_network import TorchNetwork

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x}
HEAD = CategoricalHead((3,))
SPECS = {
    "MinAtar's": make_conv((10, 10, 4), HEAD, [Filters(16, 3, 1)], (128,), "relu", "shared"),
    "separate": make_conv(
        (9, 13, 2), HEAD, [Filters(5, 3, 2), Filters(7, 2, 1)], (6,), "tanh", "separate"
    ),
    "channels first": make_conv(
        (4, 11, 9),
        HEAD,
        [Filters(8, 3, 2), Filters(3, 1, 1)],
        (),
        "relu",
        "shared",
        scale=1.0 / 255.0,
        channels_first=True,
    ),
}
each_spec = pytest.mark.parametrize("name", SPECS)


def plain_forward(spec: NetworkSpec, leaves: dict[str, torch.Tensor], observation: torch.Tensor):
    """Layer by layer in float64, of leaves as torch's modules keep them: channels first."""
    buffers = {"observation": observation.double()}
    for layer in spec.layers:
        assert isinstance(layer, Conv | Dense)
        source = buffers[layer.source]
        weight, bias = leaves[f"{layer.name}.weight"], leaves[f"{layer.name}.bias"]
        if isinstance(layer, Conv):
            is_rows = layer.source == "observation" and not layer.channels_first
            images = source.permute(0, 3, 1, 2) if is_rows else source
            found = functional.conv2d(images * layer.scale, weight, bias, layer.stride)
        else:
            is_images = source.ndim == 4  # flattened as [height, width, channels]
            rows = source.permute(0, 2, 3, 1).flatten(1) if is_images else source
            found = functional.linear(rows, weight, bias)
        buffers[layer.name] = ACTIVATIONS[layer.activation](found)
    outputs, value = spec.outputs, spec.value
    return (
        buffers[outputs.buffer][:, outputs.start : outputs.stop],
        buffers[value.buffer][:, value.start],
    )


# Axes of ours in the order in which torch's modules have them, and the other way round.
TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def as_leaves(spec: NetworkSpec, flat: np.ndarray) -> dict[str, torch.Tensor]:
    leaves = {}
    for parameter in spec.parameters:
        ours = torch.from_numpy(parameter.view(flat).astype(np.float64))
        theirs = ours.permute(TO_TORCH[ours.ndim]).contiguous()
        leaves[parameter.name] = theirs.requires_grad_()
    return leaves


@each_spec
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_outputs_and_gradients_equal_those_of_plain_modules(name, dtype) -> None:
    spec = SPECS[name]
    flat = np.random.default_rng(0).standard_normal(spec.num_parameters, np.float32) * 0.3
    random = torch.Generator().manual_seed(1)
    highest = 256 if dtype == torch.uint8 else 2
    observation = torch.randint(0, highest, (21, *spec.observation_shape), generator=random)
    observation = observation.to(dtype)
    if name != "channels first":  # not scaled: numbers of this size, or tanh is flat
        observation = (observation > 0).to(dtype)
    gradients = (
        torch.randn(21, 3, generator=random),
        torch.randn(21, generator=random),
    )

    network, leaves = TorchNetwork(spec, flat), as_leaves(spec, flat)
    found, wanted = network.forward(observation), plain_forward(spec, leaves, observation)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)

    torch.autograd.backward(found, gradients)
    torch.autograd.backward(wanted, tuple(gradient.double() for gradient in gradients))
    for parameter in spec.parameters:
        ours = parameter.view(network.flat_grad).double()
        theirs = leaves[parameter.name].grad
        assert theirs is not None
        theirs = theirs.permute(FROM_TORCH[theirs.ndim])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@each_spec
def test_kernels_begin_as_orthogonal_matrices(name) -> None:
    spec = SPECS[name]
    flat = initial_parameters(spec, seed=5)
    for layer in spec.layers:
        assert isinstance(layer, Conv | Dense)
        if isinstance(layer, Conv):
            weight = spec.parameter(f"{layer.name}.weight").view(flat)
            matrix = weight.reshape(-1, layer.channels)
            small = matrix.T @ matrix if len(matrix) >= layer.channels else matrix @ matrix.T
            np.testing.assert_allclose(small, 2.0 * np.eye(len(small)), atol=1e-5)
            assert not spec.parameter(f"{layer.name}.bias").view(flat).any()


def test_forward_and_backward_are_the_same_bits_each_time() -> None:
    spec = SPECS["MinAtar's"]
    network = TorchNetwork(spec, initial_parameters(spec, 0))
    observation = torch.rand(300, 10, 10, 4, generator=torch.Generator().manual_seed(4))
    runs = []
    for _ in range(2):
        network.flat_grad.zero_()
        outputs, value = network.forward(observation)
        (outputs.square().sum() + value.sum()).backward()
        runs.append((outputs.detach(), value.detach(), network.flat_grad.clone()))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_kernel_larger_than_what_it_goes_over_is_refused() -> None:
    with pytest.raises(ValueError, match=r"convolution 2 has a kernel of 5×5, .* is 3×8"):
        make_conv((5, 10, 1), HEAD, [Filters(4, 3, 1), Filters(4, 5, 1)], (), "relu", "shared")
