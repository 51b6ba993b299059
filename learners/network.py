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
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec
import numpy as np

from rollout.learners.layers import Activation, Conv, Dense, Gru, Layer, Lstm, Normalize

CoreSpec = tuple[Literal["lstm", "gru"], int]  # its kind, and how many outputs it has
OBSERVATION = "observation"  # what the first layers read: float32 [rows, num_inputs]
NORMALIZED = "normalized"  # the layer that normalizes it, where there is one


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

    std: what the logarithms of their standard deviations are. "independent": parameters, the same
    in every state, `log_std` [size], at first 0. "dependent": outputs as well, behind the means,
    that were brought into LOG_STD_RANGE. bounds: (low, high) of each quantity, between which tanh
    squashes it; empty: it is what is normal.
    """

    size: int
    std: Literal["independent", "dependent"] = "independent"
    bounds: tuple[tuple[float, float], ...] = ()

    @property
    def num_outputs(self) -> int:
        return 2 * self.size if self.std == "dependent" else self.size

    @property
    def choices(self) -> tuple[int, ...]:
        return ()

    @property
    def log_scale(self) -> float:
        """log |d quantity / d tanh|, summed over quantities; 0 without bounds."""
        return math.fsum(math.log(0.5 * high - 0.5 * low) for low, high in self.bounds)


Head = CategoricalHead | GaussianHead
LOG_STD = "log_std"

# Of a deviation that is an output, as in CleanRL's SAC: from 0.007, below which float32 no longer
# tells an action's distance from the mean, to 7. An output x becomes limit · tanh(x / limit), by
# the limit on its side of 0: then a new network's deviations are 1, and a large x, other than with
# a clamp, still has a gradient.
LOG_STD_RANGE = (-5.0, 2.0)


@dataclass(frozen=True)
class Columns:
    """Columns start, …, stop - 1 of a buffer."""

    buffer: str
    start: int
    stop: int


@dataclass(frozen=True)
class Parameter:
    """A named array inside the flat vector. is_trained: whether an optimizer changes it."""

    name: str
    shape: tuple[int, ...]
    offset: int
    is_trained: bool = True

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

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """Every parameter's name and shape, and whether it is trained; but for the head's."""
        raise NotImplementedError

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every parameter, in the order of the flat vector."""
        arrays = [*self.arrays()]
        if isinstance(self.head, GaussianHead) and self.head.std == "independent":
            arrays.append((LOG_STD, (self.head.size,), True))
        parameters = []
        offset = 0
        for name, shape, is_trained in arrays:
            parameters.append(Parameter(name, shape, offset, is_trained))
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

    parts: how an observation is read; empty if its numbers are the inputs. frame_stack: how many of
    an episode's last observations are read, each a frame; zeros before the first one.
    """

    layers: tuple[Layer, ...]
    outputs: Columns
    value: Columns
    parts: tuple[InputPart, ...] = ()
    frame_stack: int = 1

    @property
    def num_inputs(self) -> int:
        """How many numbers the first layers read."""
        return self.frame_stack * self.frame_inputs

    @property
    def frame_inputs(self) -> int:
        """How many of these come from each frame."""
        return num_inputs(self.observation_shape, self.parts)

    @property
    def is_quantity(self) -> np.ndarray:
        """Which inputs of a frame are quantities, not columns of a category: bool [n]."""
        parts = [np.full(part.num_inputs, not part.categories) for part in self.parts]
        return np.concatenate(parts) if parts else np.ones(self.frame_inputs, np.bool_)

    @property
    def is_normalized(self) -> bool:
        """Whether its first layer normalizes observations; see `with_normalized_inputs`."""
        return isinstance(self.layers[0], Normalize)

    @property
    def frame_run(self) -> int:
        """How many of a frame's are side by side: an image's channels if they are last, else all.

        So the inputs are [frame_inputs / frame_run, frame_stack, frame_run], oldest frame first.
        """
        first = self.layers[0]
        if isinstance(first, Conv) and not (first.channels_first or self.parts):
            return self.observation_shape[-1]
        return self.frame_inputs

    @property
    def row_numbers(self) -> int:
        """How many numbers all buffers have of a row."""
        return self.num_inputs + sum(layer.outputs for layer in self.layers)

    @property
    def core_size(self) -> int:
        """Length of the core state: what the network remembers of an episode, float32."""
        return sum(layer.core_size for layer in self.layers)

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        for layer in self.layers:
            for name, shape in layer.shapes():
                yield f"{layer.name}.{name}", shape, layer.is_trained


class ModuleSpec(_Network, frozen=True, tag="module"):
    """A `torch.nn.Module` of a user's own, which torch executes in actors as well.

    Its buffers lie in the flat vector too, so that they are the same wherever it is executed.

    parts: as of a NetworkSpec; with them the module reads [rows, num_inputs]. kind:
    `package.module:Name`, or `object:Name` for a class that has to be given besides. folder: where
    modules are looked for first. params: keyword arguments of the class. seed: torch's, while it is
    made. named_arrays: name, shape and whether it is trained, of its parameters, and of its buffers
    of float32, in its own order. row_numbers: how many numbers a pass keeps of a row, for its
    gradient.
    """

    core_size: ClassVar[int] = 0  # it remembers nothing from one step to the next
    frame_stack: ClassVar[int] = 1

    parts: tuple[InputPart, ...]
    kind: str
    folder: str
    params: dict[str, Any]
    seed: int
    named_arrays: tuple[tuple[str, tuple[int, ...], bool], ...] = ()
    row_numbers: int = 1

    @property
    def is_object(self) -> bool:
        """Whether its class was given as an object, which no other process can find."""
        return self.kind.startswith("object:")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what the module reads of one observation."""
        if not self.parts:
            return self.observation_shape
        return (num_inputs(self.observation_shape, self.parts),)

    @property
    def head_offset(self) -> int:
        """Where the head's own parameters begin, behind the module's."""
        return sum(math.prod(shape) for _, shape, _ in self.named_arrays)

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        yield from self.named_arrays


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
    frame_stack: int = 1,
) -> NetworkSpec:
    """Dense layers of `hidden_sizes`, perhaps a core, then the head's outputs and the value.

    core: its kind, and how many outputs it has. frame_stack: see NetworkSpec.

    With a shared value network one last layer yields both: its columns are the outputs, the value.
    Gains as in Andrychowicz et al., "What matters in on-policy RL" (2021): √2 inside, 0.01 for the
    policy, 1 for the value.
    """
    inputs = frame_stack * num_inputs(observation_shape, parts)

    def torso(prefix: str) -> Torso:
        return _dense_layers(prefix, (), OBSERVATION, inputs, hidden_sizes, activation)

    return _with_heads(observation_shape, head, torso, core, value_network, parts, frame_stack)


def with_normalized_inputs(spec: NetworkSpec) -> NetworkSpec:
    """The same network, reading its inputs by way of a layer `NORMALIZED`; none of images."""
    assert not any(isinstance(layer, Conv) for layer in spec.layers), "frames would interleave"
    layers: list[Layer] = [Normalize(NORMALIZED, OBSERVATION, spec.num_inputs)]
    for layer in spec.layers:
        source = NORMALIZED if layer.source == OBSERVATION else layer.source
        layers.append(msgspec.structs.replace(layer, source=source))
    return msgspec.structs.replace(spec, layers=tuple(layers))


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
    frame_stack: int = 1,
) -> NetworkSpec:
    """Convolutions of an image, then as `make_mlp`.

    observation_shape: (height, width, channels), or (channels, height, width) with channels_first;
    channels of several frames are side by side. scale: what the observation is multiplied by.
    Raises ValueError for a kernel that is larger than what it goes over.
    """
    height, width, depth = observation_shape
    if channels_first:
        depth, height, width = observation_shape

    def torso(prefix: str) -> Torso:
        layers: list[Layer] = []
        source, image = OBSERVATION, (height, width, depth * frame_stack)
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

    return _with_heads(observation_shape, head, torso, core, value_network, (), frame_stack)


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
    frame_stack: int,
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
    return NetworkSpec(observation_shape, head, tuple(layers), outputs, value, parts, frame_stack)
