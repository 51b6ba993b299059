"""The layers that networks are made of: which numbers each has, and how these begin.

A layer reads one buffer and writes another, of its own name. A kind of layer is one dataclass here,
one function of torch (torch_network.py, torch_core.py; of convolutions two: compiled_conv.py and
torch_conv.py), and one that writes compiled loops (rollout/dense_source.py, normalize_source.py,
conv_source.py, core_source.py).
"""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import msgspec

Activation = Literal["tanh", "relu", "identity"]
Gains = tuple[tuple[int, float], ...]  # (columns, gain), for one group of columns after the other


class _Layer(msgspec.Struct, frozen=True):
    """What all kinds have. source: the buffer that it reads."""

    name: str
    source: str

    @property
    def core_size(self) -> int:
        """Numbers that it remembers from one step to the next, of each row."""
        return 0

    @property
    def is_trained(self) -> bool:
        """Whether an optimizer changes its parameters."""
        return True

    def ones(self) -> Iterator[tuple[str, slice]]:
        """The parameters of which some columns begin as ones."""
        return iter(())


class Dense(_Layer, frozen=True, tag=True):
    """activation(source @ weight + bias): `weight` [inputs, outputs], `bias` [outputs]."""

    inputs: int
    outputs: int
    activation: Activation
    gains: Gains

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name in the layer, and its shape; the last axis is the outputs'."""
        yield "weight", (self.inputs, self.outputs)
        yield "bias", (self.outputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        """The parameters that begin as orthogonal matrices; the others begin as zeros, or ones."""
        yield "weight", self.gains


class Normalize(_Layer, frozen=True, tag=True):
    """(source - mean) · scale, no further from 0 than LIMIT: `mean` and `scale` [inputs].

    Both are statistics, not trained: normalization.py sets them. At first they only clip.
    """

    LIMIT: ClassVar[float] = 10.0

    inputs: int

    @property
    def outputs(self) -> int:
        return self.inputs

    @property
    def is_trained(self) -> bool:
        return False

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "mean", (self.inputs,)
        yield "scale", (self.inputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        return iter(())

    def ones(self) -> Iterator[tuple[str, slice]]:
        yield "scale", slice(None)


class Conv(_Layer, frozen=True, tag=True):
    """activation(scale · patch @ weight + bias) for every patch of an image, without padding.

    `weight` [kernel, kernel, channels of the image, channels], `bias` [channels]. It reads and
    writes images as rows of numbers: [height, width, channels], or [channels, height, width] where
    its source has the channels first.

    image: height, width and channels of the source. channels: of the output. kernel, stride: in
    both directions. scale: 1/255 brings bytes to [0, 1].
    """

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


class Lstm(_Layer, frozen=True, tag=True):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with the forget gate of Gers 2000).

        i, f, g, o = source @ input_weight + h @ hidden_weight + bias, a quarter of the columns each
        c' = σ(f) c + σ(i) tanh(g)        h' = σ(o) tanh(c')

    It writes h'; its core state is h and c, side by side. Forget gates begin with a bias of 1
    (Jozefowicz et al. 2015): open.
    """

    inputs: int
    outputs: int

    @property
    def core_size(self) -> int:
        return 2 * self.outputs

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "input_weight", (self.inputs, 4 * self.outputs)
        yield "hidden_weight", (self.outputs, 4 * self.outputs)
        yield "bias", (4 * self.outputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        yield "input_weight", ((self.outputs, 1.0),) * 4
        yield "hidden_weight", ((self.outputs, 1.0),) * 4

    def ones(self) -> Iterator[tuple[str, slice]]:
        yield "bias", slice(self.outputs, 2 * self.outputs)


class Gru(_Layer, frozen=True, tag=True):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate behind the product, as in torch.

        r, z, n = a third each of source @ input_weight + bias, and of h @ hidden_weight
        r, z = σ(both parts)      n' = tanh(n of source + r (n of h + hidden_bias))
        h' = (1 - z) n' + z h

    It writes h', which is its core state.
    """

    inputs: int
    outputs: int

    @property
    def core_size(self) -> int:
        return self.outputs

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "input_weight", (self.inputs, 3 * self.outputs)
        yield "hidden_weight", (self.outputs, 3 * self.outputs)
        yield "bias", (3 * self.outputs,)
        yield "hidden_bias", (self.outputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        yield "input_weight", ((self.outputs, 1.0),) * 3
        yield "hidden_weight", ((self.outputs, 1.0),) * 3


Core = Lstm | Gru
Layer = Dense | Normalize | Conv | Core
