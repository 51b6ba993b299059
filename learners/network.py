"""What a network is, apart from who executes it.

A `NetworkSpec` is a small program over named buffers: each layer reads one buffer and writes
another, and a head says what distribution over actions its outputs mean. The learner executes it
with torch (torch_network.py), actors with compiled loops (rollout/policy_kernel.py), both from the
same flat float32 vector of parameters. A `ModuleSpec` is a user's own module, of which nothing is
known but that: both execute it with torch (module_network.py).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from rollout.learners.layers import Activation, Conv, Dense, Gru, Layer, Lstm

CoreSpec = tuple[Literal["lstm", "gru"], int]  # its kind, and how many outputs it has
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


class _Network(msgspec.Struct, frozen=True):
    """What the kinds of specification have in common.

    observation_shape: of one observation, as unrolls have it. head: what its outputs mean.
    """

    observation_shape: tuple[int, ...]
    head: Head

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name and shape, but for the head's."""
        raise NotImplementedError

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, in the order of the flat vector."""
        shapes = [*self.shapes()]
        if isinstance(self.head, GaussianHead):
            shapes.append((LOG_STD, (self.head.size,)))
        parameters = []
        offset = 0
        for name, shape in shapes:
            parameters.append(Parameter(name, shape, offset))
            offset += parameters[-1].size
        return tuple(parameters)

    @property
    def num_parameters(self) -> int:
        """Length of the flat vector."""
        last = self.parameters[-1]
        return last.offset + last.size

    def parameter(self, name: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.name == name)


class NetworkSpec(_Network, frozen=True, tag="layers"):
    """Layers in the order of execution, and where the head's outputs and the value are found.

    parts: how an observation is read; empty if its numbers are the inputs.
    """

    layers: tuple[Layer, ...]
    outputs: Columns
    value: Columns
    parts: tuple[InputPart, ...] = ()

    @property
    def num_inputs(self) -> int:
        """How many numbers the first layers read."""
        return num_inputs(self.observation_shape, self.parts)

    @property
    def row_numbers(self) -> int:
        """How many numbers all buffers have of a row."""
        return self.num_inputs + sum(layer.outputs for layer in self.layers)

    @property
    def core_size(self) -> int:
        """Length of the core state: what the network remembers of an episode, float32."""
        return sum(layer.core_size for layer in self.layers)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for layer in self.layers:
            for name, shape in layer.shapes():
                yield f"{layer.name}.{name}", shape


class ModuleSpec(_Network, frozen=True, tag="module"):
    """A `torch.nn.Module` of a user's own, which torch executes in actors as well.

    parts: as of a NetworkSpec; with them the module reads [rows, num_inputs]. kind:
    `package.module:Name`, or `object:Name` for a class that has to be given besides. folder: where
    modules are looked for first. params: keyword arguments of the class. seed: torch's, while it is
    made. named_shapes: of its parameters, in its own order. row_numbers: how many numbers a pass
    keeps of a row, for its gradient.
    """

    parts: tuple[InputPart, ...]
    kind: str
    folder: str
    params: dict[str, Any]
    seed: int
    named_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    row_numbers: int = 1

    @property
    def core_size(self) -> int:
        """0: it remembers nothing from one step to the next."""
        return 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what the module reads of one observation."""
        if not self.parts:
            return self.observation_shape
        return (num_inputs(self.observation_shape, self.parts),)

    @property
    def head_offset(self) -> int:
        """Where the head's own parameters begin, behind the module's."""
        return sum(math.prod(shape) for _, shape in self.named_shapes)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        return iter(self.named_shapes)


Network = NetworkSpec | ModuleSpec


def num_inputs(observation_shape: tuple[int, ...], parts: tuple[InputPart, ...]) -> int:
    """How many numbers a network reads of an observation."""
    return sum(part.num_inputs for part in parts) or math.prod(observation_shape)


def make_mlp(
    observation_shape: tuple[int, ...],
    head: Head,
    hidden_sizes: tuple[int, ...],
    activation: Activation,
    value_network: Literal["shared", "separate"],
    parts: tuple[InputPart, ...] = (),
    core: CoreSpec | None = None,
) -> NetworkSpec:
    """Dense layers of `hidden_sizes`, perhaps a core, then the head's outputs and the value.

    core: its kind, and how many outputs it has.

    With a shared value network one last layer yields both: its columns are the outputs, the value.
    Gains as in Andrychowicz et al., "What matters in on-policy RL" (2021): √2 inside, 0.01 for the
    policy, 1 for the value.
    """
    inputs = num_inputs(observation_shape, parts)

    def torso(prefix: str) -> Torso:
        return _dense_layers(prefix, (), OBSERVATION, inputs, hidden_sizes, activation)

    return _with_heads(observation_shape, head, torso, core, value_network, parts)


class Filters(NamedTuple):
    """What one convolution is made of: see layers.Conv."""

    channels: int
    kernel: int
    stride: int


def make_conv(
    observation_shape: tuple[int, ...],
    head: Head,
    convolutions: Sequence[Filters],
    hidden_sizes: tuple[int, ...],
    activation: Activation,
    value_network: Literal["shared", "separate"],
    *,
    scale: float = 1.0,
    channels_first: bool = False,
    core: CoreSpec | None = None,
) -> NetworkSpec:
    """Convolutions of an image, then as `make_mlp`.

    observation_shape: (height, width, channels), or (channels, height, width) with channels_first.
    scale: what the observation is multiplied by. Raises ValueError for a kernel that is larger than
    what it goes over.
    """
    height, width, depth = observation_shape
    if channels_first:
        depth, height, width = observation_shape

    def torso(prefix: str) -> Torso:
        layers: list[Layer] = []
        source, image = OBSERVATION, (height, width, depth)
        for i, (channels, kernel, stride) in enumerate(convolutions):
            gains = ((channels, math.sqrt(2.0)),)
            name, is_first = f"{prefix}_conv_{i}", i == 0
            layer = Conv(
                name, source, image, channels, kernel, stride, activation, gains,
                scale if is_first else 1.0, is_first and channels_first,
            )  # fmt: skip
            if kernel > min(image[:2]):
                raise ValueError(
                    f"convolution {i + 1} has a kernel of {kernel}×{kernel}, what it goes over is "
                    f"{image[0]}×{image[1]}"
                )
            layers.append(layer)
            source, image = name, (*layer.positions, channels)
        return _dense_layers(prefix, layers, source, math.prod(image), hidden_sizes, activation)

    return _with_heads(observation_shape, head, torso, core, value_network, ())


Torso = tuple[list[Layer], str, int]  # layers; the buffer that the last one writes, and its width


def _dense_layers(
    prefix: str,
    before: Iterable[Layer],
    source: str,
    width: int,
    sizes: tuple[int, ...],
    activation: Activation,
) -> Torso:
    layers = [*before]
    for i, size in enumerate(sizes):
        gains = ((size, math.sqrt(2.0)),)
        layers.append(Dense(f"{prefix}_{i}", source, width, size, activation, gains))
        source, width = layers[-1].name, size
    return layers, source, width


def _with_heads(
    observation_shape: tuple[int, ...],
    head: Head,
    hidden: Callable[[str], Torso],
    core: CoreSpec | None,
    value_network: Literal["shared", "separate"],
    parts: tuple[InputPart, ...],
) -> NetworkSpec:
    """hidden: makes the hidden layers, of names with a certain beginning."""

    def torso(prefix: str) -> Torso:
        layers, source, width = hidden(prefix)
        if core is not None:
            kind, size = core
            layers.append({"lstm": Lstm, "gru": Gru}[kind](f"{prefix}_core", source, width, size))
            source, width = layers[-1].name, size
        return layers, source, width

    num_outputs = head.num_outputs
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
