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

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name in the layer, and its shape; the last axis is the outputs'."""
        yield "weight", (self.inputs, self.outputs)
        yield "bias", (self.outputs,)

    def orthogonal(self) -> Iterator[tuple[str, Gains]]:
        """The parameters that begin as orthogonal matrices; the others begin as zeros."""
        yield "weight", self.gains


Layer = Dense
