"""Convolutions for learning, both forms, against torch's in float64; and what kernels must keep."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from rollout.envs.kernels import load_kernels
from rollout.learners import compiled_conv, torch_conv
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Conv
from rollout.learners.network import CategoricalHead, Filters, make_conv
from rollout.learners.torch_network import TorchNetwork, conv_for

FORMS = {"compiled": compiled_conv.conv, "torch": torch_conv.conv}
SMALL = Conv("conv", "observation", (6, 5, 2), 3, 2, 1, "tanh", ())
each_form = pytest.mark.parametrize("conv", FORMS.values(), ids=FORMS)


@st.composite
def layers(draw) -> Conv:
    kernel = draw(st.integers(1, 4))
    image = (
        kernel + draw(st.integers(0, 6)),
        kernel + draw(st.integers(0, 6)),
        draw(st.sampled_from((1, 2, 3, 4, 7, 16, 33))),
    )
    return Conv(
        "conv",
        "observation",
        image,
        channels=draw(st.sampled_from((1, 3, 8, 15, 16, 17, 32, 40, 65))),
        kernel=kernel,
        stride=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(("relu", "tanh", "identity"))),
        gains=(),
        scale=draw(st.sampled_from((1.0, 1.0 / 255.0))),
        channels_first=draw(st.booleans()),
    )


def made(layer: Conv, rows: int, seed: int) -> list[torch.Tensor]:
    """Source, weight, bias and the gradient of what comes out, float64 but of float32's numbers."""
    random = torch.Generator().manual_seed(seed)
    (_, weight), (_, bias) = layer.shapes()
    shapes = (rows, layer.inputs), weight, bias, (rows, layer.outputs)
    tensors = [torch.randn(shape, generator=random) for shape in shapes]
    tensors[0] /= layer.scale
    tensors[1] /= np.sqrt(np.prod(weight[:3]))
    return [tensor.double() for tensor in tensors]


def slow_conv(layer: Conv, source, weight, bias) -> torch.Tensor:
    height, width, depth = layer.image
    if layer.channels_first:
        images = source.reshape(-1, depth, height, width)
    else:
        images = source.reshape(-1, height, width, depth).permute(0, 3, 1, 2)
    found = functional.conv2d(
        images * layer.scale, weight.permute(3, 2, 0, 1).contiguous(), bias, layer.stride
    )
    activation = {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda x: x}
    return activation[layer.activation](found.permute(0, 2, 3, 1).flatten(1))


def run(conv, layer: Conv, tensors: list[torch.Tensor], needs_source: bool) -> list[torch.Tensor]:
    """What comes out, and the gradients of weight, bias and maybe source."""
    *inputs, gradient = tensors
    source, weight, bias = (tensor.detach() for tensor in inputs)
    asked = [weight.requires_grad_(), bias.requires_grad_()]
    if needs_source:
        asked.append(source.requires_grad_())
    output = conv(layer, source, weight, bias)
    return [output.detach(), *torch.autograd.grad(output, asked, gradient)]


@each_form
@settings(max_examples=120)
@given(layers(), st.sampled_from((0, 1, 2, 7, 8, 9, 20)), st.booleans(), st.booleans())
def test_outputs_and_gradients_equal_those_of_float64(
    conv, layer: Conv, rows: int, needs_source: bool, has_gaps: bool
) -> None:
    tensors = made(layer, rows, seed=rows)
    floats = [tensor.float() for tensor in tensors]
    if has_gaps:  # every other number of a larger tensor
        for i in (0, 3):
            wide = torch.full((rows, 2 * floats[i].shape[1]), torch.nan)
            wide[:, ::2] = floats[i]
            floats[i] = wide[:, ::2]
    found = run(conv, layer, floats, needs_source)
    wanted = run(slow_conv, layer, tensors, needs_source)
    for one, other in zip(found, wanted, strict=True):
        size = float(other.abs().max()) if other.numel() else 1.0
        # a sum near 0 may fall on the other side of it: relu's slope is then another
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-5 * max(size, 1.0))


@each_form
@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
def test_nan_and_infinity_go_where_they_go_in_float64(conv, activation) -> None:
    layer = Conv("conv", "observation", (5, 5, 2), 3, 3, 1, activation, ())
    for place in range(4):
        tensors = made(layer, 9, seed=1)
        tensors[place].view(-1)[1] = torch.nan
        found = run(conv, layer, [tensor.float() for tensor in tensors], needs_source=True)
        for one, other in zip(found, run(slow_conv, layer, tensors, True), strict=True):
            assert torch.equal(one.isnan(), other.isnan())
    tensors = made(layer, 9, seed=1)
    tensors[0][3, 4] = torch.inf
    found, *_ = run(conv, layer, [tensor.float() for tensor in tensors], needs_source=False)
    wanted, *_ = run(slow_conv, layer, tensors, needs_source=False)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_results_have_the_same_bits_whatever_else_runs() -> None:
    layer = Conv("conv", "observation", (9, 9, 5), 20, 3, 2, "relu", ())
    tensors = [tensor.float() for tensor in made(layer, 301, seed=2)]
    alone = run(compiled_conv.conv, layer, tensors, needs_source=True)
    beside: list[list[torch.Tensor]] = []

    def once() -> None:
        beside.append(run(compiled_conv.conv, layer, tensors, needs_source=True))

    threads = [threading.Thread(target=once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(beside) == 4
    for results in beside:
        assert all(torch.equal(one, other) for one, other in zip(results, alone, strict=True))


def test_row_has_the_same_bits_in_any_batch() -> None:
    layer = Conv("conv", "observation", (7, 7, 3), 20, 2, 1, "tanh", ())
    source, weight, bias, _ = (tensor.float() for tensor in made(layer, 19, seed=3))
    whole = compiled_conv.conv(layer, source, weight, bias)
    for rows in (1, 2, 8, 18):
        part = compiled_conv.conv(layer, source[-rows:], weight, bias)
        assert torch.equal(part, whole[-rows:])


def test_compiled_tiles_equal_what_they_say_in_python() -> None:
    """The template as plain Python has the twin of every tile."""
    random = np.random.default_rng(5)
    images = random.standard_normal((3, 4 * 5 * 2), np.float32)
    weight = random.standard_normal((2, 2, 2, 35), np.float32)
    bias = random.standard_normal(35, np.float32)
    outputs = []
    for kernels in (compiled_conv.conv_kernels(), plain_kernels()):
        out = np.zeros((3, 3 * 4 * 35), np.float32)
        kernels.forward(images, weight, np.float32(1.0), bias, (4, 5, 2), 2, 1, 1, out)
        outputs.append(out)
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


def plain_kernels():
    path = compiled_conv.HERE
    bindings = {"ROWS": 4, "VECTOR_LANES": 16, "IDENTITY": 0, "RELU": 1, "TANH": 2}
    preamble = (path / "tile_kernel.py").read_text() + "\n\n"
    return load_kernels(path / "conv_kernel.py", bindings, {}, jit=False, preamble=preamble)


def test_several_threads_leave_convolutions_to_torch() -> None:
    assert conv_for(torch.device("cpu")) is compiled_conv.conv
    assert conv_for(torch.device("cuda")) is torch_conv.conv
    torch.set_num_threads(2)
    try:
        assert conv_for(torch.device("cpu")) is torch_conv.conv
    finally:
        torch.set_num_threads(1)


def test_network_learns_without_compiling(monkeypatch) -> None:
    spec = make_conv((6, 6, 2), CategoricalHead((2,)), [Filters(4, 3, 1)], (8,), "relu", "shared")
    network = TorchNetwork(spec, initial_parameters(spec, 0))
    monkeypatch.setattr(compiled_conv, "load_kernels", None)  # nobody may call it any more
    outputs, value = network.forward(torch.rand(5, 6, 6, 2))
    (outputs.sum() + value.sum()).backward()
    assert network.flat_grad.any()


@pytest.mark.parametrize("wrong", ["source", "weight", "bias"])
def test_arrays_of_other_shapes_are_refused(wrong) -> None:
    names = "source", "weight", "bias"
    tensors = dict(zip(names, (one.float() for one in made(SMALL, 4, 0)), strict=False))
    tensors[wrong] = tensors[wrong][..., 1:]
    with pytest.raises(ValueError, match=rf"{wrong} \[.*, expected \["):
        compiled_conv.conv(SMALL, *tensors.values())


def test_second_derivatives_are_refused() -> None:
    source, weight, bias = (one.float() for one in made(SMALL, 4, 0)[:3])
    weight.requires_grad_()
    output = compiled_conv.conv(SMALL, source, weight, bias)
    (slope,) = torch.autograd.grad(output.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()
