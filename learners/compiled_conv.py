"""Convolutions by kernels of our own, for learning with one thread on a CPU.

There torch spends as long beside the sums as on them: it reorders images and weights for its
kernels, and passes over all results again for the activation, forward and backward. These write
each result once, activated, and multiply its gradient by the activation's slope on the way. Images
stay rows, the channels last. On a GPU, and with several threads, torch_conv.py runs instead.
"""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from llvmlite import binding
from torch.autograd.function import once_differentiable

from rollout.envs.kernels import load_kernels
from rollout.learners.layers import Conv
from rollout.learners.torch_activations import tanh_of_half_

HERE = Path(__file__).parent
ACTIVATIONS = ("identity", "relu", "tanh")  # by their numbers in conv_kernel.py


@functools.cache
def conv_kernels() -> SimpleNamespace:
    """`forward` and `backward` of conv_kernel.py, for layers of all sizes.

    Compiling them takes some seconds, once per machine: ask for them before anybody waits.
    """
    bias = np.zeros(1, np.float32)
    rows, weight = bias.reshape(1, 1), bias.reshape(1, 1, 1, 1)
    layer = (1, 1, 1), 1, 1, ACTIVATIONS.index("identity")
    # Of two vectors of sums each, these leave room in 32 registers, or in the 16 of AVX2.
    has_avx512 = bool(binding.get_host_cpu_features().get("avx512f"))
    rows_of_tile, lanes = (8, 16) if has_avx512 else (6, 8)
    return load_kernels(
        HERE / "conv_kernel.py",
        {
            **{name.upper(): number for number, name in enumerate(ACTIVATIONS)},
            "ROWS": rows_of_tile,
            "VECTOR_LANES": lanes,
        },
        {
            "forward": (rows, weight, bias[0], bias, *layer, rows),
            "backward": (rows, weight, bias[0], rows, rows, *layer, weight, bias, True, rows),
        },
        preamble=(HERE / "tile_kernel.py").read_text() + "\n\n",
    )


def conv(
    layer: Conv, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """What a convolution makes of images [R, inputs]: images [R, outputs], the channels last.

    It has first derivatives only. Raises ValueError for arrays of other shapes than the layer's,
    beyond which the kernels would read.
    """
    wanted = {"source": (len(source), layer.inputs), **dict(layer.shapes())}
    for (name, shape), tensor in zip(wanted.items(), (source, weight, bias), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} {list(tensor.shape)}, expected {list(shape)}")
    if layer.channels_first:
        height, width, channels = layer.image
        source = source.reshape(-1, channels, height * width).transpose(1, 2).flatten(1)
    return _Conv.apply(layer, source, weight, bias)  # pyright: ignore[reportReturnType]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer, source, weight, bias):
        source = source.contiguous()
        output = source.new_empty((len(source), layer.outputs))
        doubled = layer.activation == "tanh"
        conv_kernels().forward(
            _array(source),
            _array(weight),
            np.float32(2.0 * layer.scale if doubled else layer.scale),
            _array(2.0 * bias if doubled else bias),
            *_sizes(layer),
            _array(output),
        )
        if doubled:
            tanh_of_half_(output)
        ctx.layer = layer
        ctx.save_for_backward(source, weight, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        layer, (source, weight, output) = ctx.layer, ctx.saved_tensors
        (grad,) = grad_outputs
        needs_source = ctx.needs_input_grad[1]
        transposed = (weight * layer.scale).permute(0, 3, 1, 2) if needs_source else weight[:0]
        grad_source = torch.empty_like(source) if needs_source else None
        grad_weight, grad_bias = torch.empty_like(weight), weight.new_empty(layer.channels)
        conv_kernels().backward(
            _array(source),
            _array(transposed.contiguous()),
            np.float32(layer.scale),
            _array(output),
            _array(grad.contiguous()),
            *_sizes(layer),
            _array(grad_weight),
            _array(grad_bias),
            needs_source,
            _array(source[:0] if grad_source is None else grad_source),
        )
        return None, grad_source, grad_weight, grad_bias


def _sizes(layer: Conv) -> tuple[tuple[int, int, int], int, int, int]:
    return layer.image, layer.kernel, layer.stride, ACTIVATIONS.index(layer.activation)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor."""
    return tensor.detach().numpy()
