"""The layers that networks are made of: which numbers each has, and how these begin.

A layer reads one buffer and writes another, of its own name. A kind of layer is one dataclass here,
one function in torch_network.py, and one in rollout/layer_source.py.
"""

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

    @property
    def core_size(self) -> int:
        """Numbers that it remembers from one step to the next, of each row."""
        return 0

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name in the layer, and its shape; the last axis is the outputs'."""
        yield "weight", (self.inputs, self.outputs)
        yield "bias", (self.outputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        """The parameters that begin as orthogonal matrices; the others begin as zeros, or ones."""
        yield "weight", self.gains

    def ones(self) -> Iterator[tuple[str, slice]]:
        """The parameters of which columns begin as ones."""
        return iter(())


class Lstm(msgspec.Struct, frozen=True, tag=True):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with the forget gate of Gers 2000).

        i, f, g, o = source @ input_weight + h @ hidden_weight + bias, a quarter of the columns each
        c' = σ(f) c + σ(i) tanh(g)        h' = σ(o) tanh(c')

    It writes h'; its core state is h and c, side by side. Forget gates begin with a bias of 1
    (Jozefowicz et al. 2015): open.
    """

    name: str
    source: str
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


class Gru(msgspec.Struct, frozen=True, tag=True):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate behind the product, as in torch.

        r, z, n = a third each of source @ input_weight + bias, and of h @ hidden_weight
        r, z = σ(both parts)      n' = tanh(n of source + r (n of h + hidden_bias))
        h' = (1 - z) n' + z h

    It writes h', which is its core state.
    """

    name: str
    source: str
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

    def ones(self) -> Iterator[tuple[str, slice]]:
        return iter(())


Core = Lstm | Gru
Layer = Dense | Core
