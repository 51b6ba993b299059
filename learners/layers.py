"""The layers that networks are made of: which numbers each has, and how these begin.

A layer reads one buffer and writes another, of its own name. A kind of layer is one dataclass here,
one function in torch_network.py, and one in rollout/layer_source.py.
"""

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

Activation = Literal["tanh", "relu", "identity"]
Gains = tuple[tuple[int, float], ...]  # (columns, gain), for one group of columns after the other


class Dense(msgspec.Struct, frozen=True, tag=True):
    """activation(source @ weight + bias): `weight` [inputs, outputs], `bias` [outputs]."""

    name: str
    source: str
    inputs: int
    outputs: int
    activation: Activation
    gains: Gains

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name in the layer, and its shape; the last axis is the outputs'."""
        yield "weight", (self.inputs, self.outputs)
        yield "bias", (self.outputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        """The parameters that begin as orthogonal matrices; the others begin as zeros."""
        yield "weight", self.gains


class Conv(msgspec.Struct, frozen=True, tag=True):
    """activation(scale · patch @ weight + bias) for every patch of an image, without padding.

    `weight` [kernel, kernel, channels of the image, channels], `bias` [channels]. It reads and
    writes images as rows of numbers: [height, width, channels], or [channels, height, width] where
    its source has the channels first.

    image: height, width and channels of the source. channels: of the output. kernel, stride: in
    both directions. scale: 1/255 brings bytes to [0, 1].
    """

    name: str
    source: str
    image: tuple[int, int, int]
    channels: int
    kernel: int
    stride: int
    activation: Activation
    gains: Gains
    scale: float = 1.0
    channels_first: bool = False

    @property
    def inputs(self) -> int:
        return math.prod(self.image)

    @property
    def positions(self) -> tuple[int, int]:
        """Patches, down and across; less than 1 where the kernel is larger than the image."""
        height, width, _ = self.image
        down, across = height - self.kernel, width - self.kernel
        return down // self.stride + 1, across // self.stride + 1

    @property
    def outputs(self) -> int:
        return math.prod(self.positions) * self.channels

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "weight", (self.kernel, self.kernel, self.image[2], self.channels)
        yield "bias", (self.channels,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        """The weight as a matrix of one row for each number of a patch."""
        yield "weight", self.gains


Layer = Dense | Conv
