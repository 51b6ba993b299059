"""A network as compiled loops: Python source, generated from its specification.

What makes a row's result the same, bit for bit, whatever rows are beside it: each output adds up
its inputs in one fixed order, a fused product at a time. (Libraries choose another order, or
another kernel, by the number of rows.) What makes it fast: learners/tile_kernel.py. An odd number
of rows is padded with a row whose result nobody reads.

Sizes are constants in the generated source: with them as variables it runs a third slower. Weights
are padded to whole vector registers, which `pack` does once per version of them.

NaN, in an observation or a parameter, reaches the outputs: what is hidden here nobody finds later.
"""

import math
from pathlib import Path

import numpy as np

from rollout import learners
from rollout.core_source import new_core, old_core
from rollout.layer_parts import padded
from rollout.layer_source import layer_source
from rollout.learners.layers import Conv
from rollout.learners.network import LOG_STD, OBSERVATION, NetworkSpec, Parameter

TILES = Path(learners.__path__[0]) / "tile_kernel.py"

Places = dict[str, tuple[int, int]]  # of buffers in scratch: offset and width

# rows evaluated together, so that a load of the weights serves all of them
BLOCK = 32
MOST_SCRATCH = 4 << 20  # bytes; fewer rows together than have more: an actor is to be small

# tanh(x) ≈ x · P(x²) / Q(x²) for |x| ≤ 8, by weighted least squares; error below 6e-7 in float32.
TANH_LIMIT = 8.0
TANH_P = (
    0.9999997866883966,
    0.12712336912154476,
    0.002696433119460859,
    7.162638116745941e-06,
    -6.142459604493927e-09,
)
TANH_Q = (1.0, 0.4604549895398697, 0.02285040817352529, 0.00019674790818401453)


def num_packed(spec: NetworkSpec) -> int:
    """Length of the float32 vector that `pack` writes."""
    parameter, offset = _places_in_packed(spec)[-1]
    return offset + math.prod(_packed_shape(parameter))


def _packed_shape(parameter: Parameter) -> tuple[int, ...]:
    return (*parameter.shape[:-1], padded(parameter.shape[-1]))


def _places_in_packed(spec: NetworkSpec) -> list[tuple[Parameter, int]]:
    """Every parameter, and where it begins."""
    places, offset = [], 0
    for parameter in spec.parameters:
        places.append((parameter, offset))
        offset += math.prod(_packed_shape(parameter))
    return places


def block_size(spec: NetworkSpec) -> int:
    """How many rows `forward` evaluates together: even, at most BLOCK. No result depends on it."""
    fitting = MOST_SCRATCH // (4 * sum(width for _, width in _buffers(spec)))
    return next((rows for rows in (BLOCK, 16, 8, 4) if rows <= fitting), 2)


def num_scratch(spec: NetworkSpec) -> int:
    """Length of the float32 vector that `forward` works in."""
    return block_size(spec) * sum(width for _, width in _buffers(spec))


def _buffers(spec: NetworkSpec) -> list[tuple[str, int]]:
    """Name and width of everything in scratch, in its order."""
    layers = (buffer for layer in spec.layers for buffer in layer_source(layer).buffers)
    return [(OBSERVATION, spec.num_inputs), *layers]


def _places_in_scratch(spec: NetworkSpec) -> Places:
    places, offset, block = {}, 0, block_size(spec)
    for name, width in _buffers(spec):
        places[name] = (offset, width)
        offset += block * width
    return places


def policy_source(spec: NetworkSpec) -> str:
    """Source of `pack`, `load_row`, `forward` and the constants that say where its results lie.

    pack(weights, packed): lays out the flat vector for the loops.
    load_row(frames, observation, scratch, r): makes row r of the inputs from one flat observation
        and those before it, [HISTORY_SIZE], which lie one behind the other.
    push_frame(observation, frames): makes the observation the newest of these.
    load_core(core_state, scratch, r): puts the core state of row r, [CORE_SIZE], beside them.
    forward(packed, scratch, rows): reads `rows` inputs from the start of `scratch`,
        float32 [BLOCK, NUM_INPUTS], and leaves outputs and values in it. `rows` ≤ BLOCK.
    save_core(scratch, r, core_state): takes out the core state that it made of row r.
    """
    places = _places_in_scratch(spec)
    layers = [layer_source(layer) for layer in spec.layers]
    parts = [
        TILES.read_text(),
        "import math",
        "import numpy as np",
        f"BLOCK = {block_size(spec)}",
        f"NUM_INPUTS = {spec.num_inputs}",
        f"NUM_OUTPUTS = {spec.head.num_outputs}",
        f"CORE_SIZE = {spec.core_size}",
        f"HISTORY_SIZE = {(spec.frame_stack - 1) * math.prod(spec.observation_shape)}",
        f"LOG_STD_OFFSET = {_log_std_offset(spec)}",
        _place("OUTPUTS", places, spec.outputs.buffer, spec.outputs.start),
        _place("VALUE", places, spec.value.buffer, spec.value.start),
        _tanh_source(),
        # layers of one shape share their loops, which halves what a separate value network compiles
        *dict.fromkeys(function for layer in layers for function in layer.functions),
        _pack_source(spec),
        _load_frame_source(spec),
        _frames_source(spec),
        _core_source(spec, places),
        _forward_source(spec, places),
    ]
    return "\n\n".join(parts) + "\n\n"


def _log_std_offset(spec: NetworkSpec) -> int:
    """Where these are in `packed`; its end, where there are none."""
    places = {parameter.name: offset for parameter, offset in _places_in_packed(spec)}
    return places.get(LOG_STD, num_packed(spec))


def _place(name: str, places: Places, buffer: str, column: int) -> str:
    offset, width = places[buffer]
    return f"{name}_OFFSET, {name}_STRIDE = {offset + column}, {width}"


def _float(value: float) -> str:
    return f"np.float32({value!r})"


def _horner(coefficients: tuple[float, ...]) -> str:
    text = _float(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        text = f"({text} * square + {_float(coefficient)})"
    return text


def _tanh_source() -> str:
    limit = _float(TANH_LIMIT)
    return f"""
@jit_fma
def tanh(x):
    x = max(min(x, {limit}), -{limit})
    square = x * x
    return x * {_horner(TANH_P)} / {_horner(TANH_Q)}


@jit_fma
def sigmoid(x):
    half = np.float32(0.5)
    return half + half * tanh(half * x)
"""


def _pack_source(spec: NetworkSpec) -> str:
    """A layer's scale becomes part of its weights."""
    convolutions = [layer for layer in spec.layers if isinstance(layer, Conv)]
    scales = {f"{layer.name}.weight": layer.scale for layer in convolutions}
    lines = ["@jit", "def pack(weights, packed):"]
    for parameter, offset in _places_in_packed(spec):
        columns = parameter.shape[-1]
        width = padded(columns)
        scale = scales.get(parameter.name, 1.0)
        factor = "" if scale == 1.0 else f" * np.float32({scale!r})"
        lines += [
            f"    for i in range({parameter.size // columns}):",
            f"        for j in range({width}):",
            f"            packed[{offset} + i * {width} + j] = (",
            f"                weights[{parameter.offset} + i * {columns} + j]{factor}"
            f" if j < {columns} else np.float32(0.0)",
            "            )",
        ]
    return "\n".join(lines)


def _load_frame_source(spec: NetworkSpec) -> str:
    """`load_frame`: one frame's inputs, from `place` on, with room between for those of others.

    Numbers as they are; of categories one input each, which is 1 for the observation's.
    """
    lines = ["@jit", "def load_frame(observation, scratch, place):"]
    run, stride = spec.frame_run, spec.frame_run * spec.frame_stack
    if not spec.parts and run == spec.frame_inputs:
        lines += [
            f"    for j in range({run}):",
            "        scratch[place + j] = observation[j]",
        ]
    elif not spec.parts:
        lines += [
            f"    for i in range({spec.frame_inputs // run}):",
            f"        for j in range({run}):",
            f"            scratch[place + i * {stride} + j] = observation[i * {run} + j]",
        ]
    else:
        lines += ["    in_bytes, first = observation.view(np.uint8), place"]
    start = 0
    for part in spec.parts:
        piece = f"in_bytes[{part.offset}:{part.offset + part.size_bytes}]"
        lines += [
            f"    numbers = {piece}.view(np.{np.dtype(part.dtype).name})",
            f"    place = first + {start}",
        ]
        if part.categories:
            lines += [f"    scratch[place:place + {part.num_inputs}] = np.float32(0.0)"]
        else:
            lines += [
                f"    for j in range({part.size}):",
                "        scratch[place + j] = numbers[j]",
            ]
        first = 0
        for j, count in enumerate(part.categories):
            lines += [
                f"    if 0 <= numbers[{j}] < {count}:",
                f"        scratch[place + {first} + numbers[{j}]] = np.float32(1.0)",
            ]
            first += count
        start += part.num_inputs
    return "\n".join(lines)


def _frames_source(spec: NetworkSpec) -> str:
    """`load_row` and `push_frame`: an observation among those before it."""
    size, before = math.prod(spec.observation_shape), spec.frame_stack - 1
    load = ["@jit", "def load_row(frames, observation, scratch, r):"]
    push = ["@jit", "def push_frame(observation, frames):", "    pass"]
    place = f"r * {spec.num_inputs}"
    if before:
        load += [
            f"    for f in range({before}):",
            f"        frame = frames[f * {size}:(f + 1) * {size}]",
            f"        load_frame(frame, scratch, {place} + f * {spec.frame_run})",
        ]
        place += f" + {before * spec.frame_run}"
        push += [
            f"    for j in range({(before - 1) * size}):",
            f"        frames[j] = frames[j + {size}]",
            f"    for j in range({size}):",
            f"        frames[{(before - 1) * size} + j] = observation[j]",
        ]
    load.append(f"    load_frame(observation, scratch, {place})")
    return "\n".join([*load, "", "", *push])


def _core_source(spec: NetworkSpec, places: Places) -> str:
    """`load_core` and `save_core`: the layers' core states lie side by side."""
    load = ["@jit", "def load_core(core_state, scratch, r):", "    pass"]
    save = ["@jit", "def save_core(scratch, r, core_state):", "    pass"]
    start = 0
    for layer in spec.layers:
        size = layer.core_size
        if size:
            for lines, buffer in ((load, old_core(layer)), (save, new_core(layer))):
                place = f"scratch[{places[buffer][0]} + r * {size} + j]"
                state = f"core_state[{start} + j]"
                pair = f"{place} = {state}" if lines is load else f"{state} = {place}"
                lines += [f"    for j in range({size}):", f"        {pair}"]
        start += size
    return "\n".join([*load, "", "", *save])


def _forward_source(spec: NetworkSpec, places: Places) -> str:
    lines, block = ["@jit_fma", "def forward(packed, scratch, rows):"], block_size(spec)
    for buffer, (offset, width) in places.items():
        stop = offset + block * width
        lines.append(f"    in_{buffer} = scratch[{offset}:{stop}].reshape({block}, {width})")
    for parameter, offset in _places_in_packed(spec):
        shape = _packed_shape(parameter)
        view = f"packed[{offset}:{offset + math.prod(shape)}].reshape({shape})"
        lines.append(f"    {parameter.name.replace('.', '_')} = {view}")
    for layer in spec.layers:
        lines += [f"    {line}" for line in layer_source(layer).lines]
    return "\n".join(lines)
