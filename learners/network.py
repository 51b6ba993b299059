"""What a network is, apart from who executes it.

A `NetworkSpec` is a small program over named buffers: each layer reads one buffer and writes
another, and a head says what distribution over actions its outputs mean. The learner executes it
with torch (torch_network.py), actors with compiled loops (rollout/policy_kernel.py), both from the
same flat float32 vector of parameters.
"""

import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from rollout.learners.layers import Activation, Dense, Gru, Layer, Lstm

OBSERVATION = "observation"  # what the first layers read: float32 [rows, num_inputs]


class InputPart(msgspec.Struct, frozen=True):
    """A piece of an observation, as the network reads it (rollout.envs.layouts.ObservationPart).

    offset: bytes from the observation's start. dtype: of its numbers. size: how many. categories:
    how many values each may have, which become as many inputs, one of them 1; empty for quantities.
    """

    offset: int
    dtype: str
    size: int
    categories: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        return sum(self.categories) or self.size

    @property
    def size_bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


class CategoricalHead(msgspec.Struct, frozen=True, tag="categorical"):
    """One choice or several; the outputs are their logits, side by side.

    choices: how many actions each chooses from.
    """

    choices: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        return sum(self.choices)


class GaussianHead(msgspec.Struct, frozen=True, tag="gaussian"):
    """Quantities, each normal around its own output.

    The logarithms of their standard deviations are parameters, the same in every state: `log_std`
    [size], at first 0.
    """

    size: int

    @property
    def num_outputs(self) -> int:
        return self.size

    @property
    def choices(self) -> tuple[int, ...]:
        return ()


Head = CategoricalHead | GaussianHead
LOG_STD = "log_std"


@dataclass(frozen=True)
class Columns:
    """Columns start, …, stop - 1 of a buffer."""

    buffer: str
    start: int
    stop: int


@dataclass(frozen=True)
class Parameter:
    """A named array inside the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def view(self, flat):
        """This parameter as a view of the flat vector (NumPy's or torch's)."""
        return flat[self.offset : self.offset + self.size].reshape(self.shape)


@dataclass(frozen=True)
class NetworkSpec:
    """Layers in the order of execution, and where the head's outputs and the value are found.

    parts: how an observation is read; empty if its numbers are the inputs.
    """

    observation_shape: tuple[int, ...]
    head: Head
    layers: tuple[Layer, ...]
    outputs: Columns
    value: Columns
    parts: tuple[InputPart, ...] = ()

    @property
    def num_inputs(self) -> int:
        """How many numbers the first layers read."""
        if self.parts:
            return sum(part.num_inputs for part in self.parts)
        return math.prod(self.observation_shape)

    @property
    def core_size(self) -> int:
        """Length of the core state: what the network remembers of an episode, float32."""
        return sum(layer.core_size for layer in self.layers)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, in the order of the flat vector."""
        parameters = []
        offset = 0
        for layer in self.layers:
            for name, shape in layer.shapes():
                parameters.append(Parameter(f"{layer.name}.{name}", shape, offset))
                offset += parameters[-1].size
        if isinstance(self.head, GaussianHead):
            parameters.append(Parameter(LOG_STD, (self.head.size,), offset))
        return tuple(parameters)

    @property
    def num_parameters(self) -> int:
        """Length of the flat vector."""
        last = self.parameters[-1]
        return last.offset + last.size

    def parameter(self, name: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.name == name)


def make_mlp(
    observation_shape: tuple[int, ...],
    head: Head,
    hidden_sizes: tuple[int, ...],
    activation: Activation,
    value_network: Literal["shared", "separate"],
    parts: tuple[InputPart, ...] = (),
    core: tuple[Literal["lstm", "gru"], int] | None = None,
) -> NetworkSpec:
    """Dense layers of `hidden_sizes`, perhaps a core, then the head's outputs and the value.

    core: its kind, and how many outputs it has.

    With a shared value network one last layer yields both: its columns are the outputs, the value.
    Gains as in Andrychowicz et al., "What matters in on-policy RL" (2021): √2 inside, 0.01 for the
    policy, 1 for the value.
    """
    inputs = sum(part.num_inputs for part in parts) or math.prod(observation_shape)
    num_outputs = head.num_outputs

    def torso(prefix: str) -> tuple[list[Layer], str, int]:
        layers: list[Layer] = []
        source, width = OBSERVATION, inputs
        for i, size in enumerate(hidden_sizes):
            gains = ((size, math.sqrt(2.0)),)
            layers.append(Dense(f"{prefix}_{i}", source, width, size, activation, gains))
            source, width = layers[-1].name, size
        if core is not None:
            kind, size = core
            layers.append({"lstm": Lstm, "gru": Gru}[kind](f"{prefix}_core", source, width, size))
            source, width = layers[-1].name, size
        return layers, source, width

    if value_network == "shared":
        layers, source, width = torso("torso")
        gains = ((num_outputs, 0.01), (1, 1.0))
        layers.append(Dense("heads", source, width, num_outputs + 1, "identity", gains))
        outputs = Columns("heads", 0, num_outputs)
        value = Columns("heads", num_outputs, num_outputs + 1)
    else:
        layers, source, width = torso("policy_torso")
        layers.append(
            Dense("policy", source, width, num_outputs, "identity", ((num_outputs, 0.01),))
        )
        value_layers, source, width = torso("value_torso")
        layers += [*value_layers, Dense("value", source, width, 1, "identity", ((1, 1.0),))]
        outputs, value = Columns("policy", 0, num_outputs), Columns("value", 0, 1)
    return NetworkSpec(observation_shape, head, tuple(layers), outputs, value, parts)
