"""A network as compiled loops: Python source, generated from its specification.

Two rules make it fast and let a row's result be the same, bit for bit, whatever rows are beside it:

- The innermost loop runs over a layer's outputs, so each output adds up its inputs in one fixed
  order and the compiler has nothing to reorder. (Libraries choose another order, or another kernel,
  by the number of rows.)
- Two rows share each load of the weights, and four inputs go into each pass over the outputs, which
  keeps the multipliers busy. An odd number of rows is padded with a row whose result nobody reads.

Sizes are constants in the generated source: with them as variables it runs a third slower. Outputs
are padded to whole vector registers, which `pack` does once per version of the weights.

NaN, in an observation or a parameter, reaches the outputs: what is hidden here nobody finds later.
"""

import numpy as np

from rollout.learners.network import LOG_STD, OBSERVATION, Dense, GaussianHead, NetworkSpec

# rows evaluated together: their activations and the weights stay in the first-level cache
BLOCK = 32

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


def padded(outputs: int) -> int:
    """Outputs of a layer as the compiled loops hold them: whole registers."""
    return 8 if outputs <= 8 else -(-outputs // 16) * 16


def num_packed(spec: NetworkSpec) -> int:
    """Length of the float32 vector that `pack` writes."""
    return _log_std_offset(spec) + _num_log_std(spec)


def _log_std_offset(spec: NetworkSpec) -> int:
    return sum((layer.inputs + 1) * padded(layer.outputs) for layer in spec.layers)


def _num_log_std(spec: NetworkSpec) -> int:
    return spec.head.size if isinstance(spec.head, GaussianHead) else 0


def num_scratch(spec: NetworkSpec) -> int:
    """Length of the float32 vector that `forward` works in."""
    return BLOCK * (spec.num_inputs + sum(padded(layer.outputs) for layer in spec.layers))


def policy_source(spec: NetworkSpec) -> str:
    """Source of `pack`, `load_row`, `forward` and the constants that say where its results lie.

    pack(weights, packed): lays out the flat vector for the loops.
    load_row(observation, scratch, r): makes row r of the inputs from one flat observation.
    forward(packed, scratch, rows): reads `rows` inputs from the start of `scratch`,
        float32 [BLOCK, NUM_INPUTS], and leaves outputs and values in it. `rows` ≤ BLOCK.
    """
    places = {OBSERVATION: (0, spec.num_inputs)}  # buffer → (offset in scratch, width)
    offset = BLOCK * spec.num_inputs
    for layer in spec.layers:
        places[layer.name] = (offset, padded(layer.outputs))
        offset += BLOCK * padded(layer.outputs)
    parts = [
        "import math",
        "import numpy as np",
        f"BLOCK = {BLOCK}",
        f"NUM_INPUTS = {spec.num_inputs}",
        f"NUM_OUTPUTS = {spec.head.num_outputs}",
        f"LOG_STD_OFFSET = {_log_std_offset(spec)}",
        _place("OUTPUTS", places, spec.outputs.buffer, spec.outputs.start),
        _place("VALUE", places, spec.value.buffer, spec.value.start),
        _tanh_source(),
        # layers of one shape share their loops, which halves what a separate value network compiles
        *dict.fromkeys(_dense_source(layer) for layer in spec.layers),
        _pack_source(spec),
        _load_row_source(spec),
        _forward_source(spec, places),
    ]
    return "\n\n".join(parts) + "\n\n"


def _place(name: str, places: dict, buffer: str, column: int) -> str:
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
"""


def _dense_name(layer: Dense) -> str:
    return f"dense_{layer.inputs}_{padded(layer.outputs)}_{layer.activation}"


def _dense_source(layer: Dense) -> str:
    """dense_…(x, weight, bias, out, rows) writes out[:rows]; see the top of this file."""
    width = padded(layer.outputs)
    whole = layer.inputs // 4 * 4
    lines = [
        "@jit_fma",
        f"def {_dense_name(layer)}(x, weight, bias, out, rows):",
        "    for r in range(0, rows, 2):",
        f"        for j in range({width}):",
        "            out[r, j] = bias[j]",
        "            out[r + 1, j] = bias[j]",
    ]
    if whole:
        lines.append(f"        for k in range(0, {whole}, 4):")
        lines += _pass_source("            ", 4, width)
    if layer.inputs > whole:
        lines.append(f"        k = {whole}")
        lines += _pass_source("        ", layer.inputs - whole, width)
    if layer.activation != "identity":
        function = {"tanh": "tanh({})", "relu": "max({}, np.float32(0.0))"}[layer.activation]
        lines += [
            f"        for j in range({width}):",
            f"            out[r, j] = {function.format('out[r, j]')}",
            f"            out[r + 1, j] = {function.format('out[r + 1, j]')}",
        ]
    return "\n".join(lines)


def _pass_source(indent: str, inputs: int, width: int) -> list[str]:
    """One pass over the outputs of two rows, taking in `inputs` inputs from k on."""
    lines = []
    for row, x in ((0, "a"), (1, "b")):
        lines += [f"{indent}{x}{n} = x[r + {row}, k + {n}]" for n in range(inputs)]
    lines.append(f"{indent}for j in range({width}):")
    lines += [f"{indent}    w{n} = weight[k + {n}, j]" for n in range(inputs)]
    for row, x in ((0, "a"), (1, "b")):
        total = f"out[r + {row}, j]"
        for n in range(inputs):
            total = f"({total} + {x}{n} * w{n})"
        lines.append(f"{indent}    out[r + {row}, j] = {total}")
    return lines


def _pack_source(spec: NetworkSpec) -> str:
    lines = ["@jit", "def pack(weights, packed):"]
    offset = 0
    for layer in spec.layers:
        for name in (f"{layer.name}.weight", f"{layer.name}.bias"):
            parameter = spec.parameter(name)
            rows, columns = (1, *parameter.shape)[-2:]
            width = padded(columns)
            lines += [
                f"    for i in range({rows}):",
                f"        for j in range({width}):",
                f"            packed[{offset} + i * {width} + j] = (",
                f"                weights[{parameter.offset} + i * {columns} + j]"
                f" if j < {columns} else np.float32(0.0)",
                "            )",
            ]
            offset += rows * width
    if isinstance(spec.head, GaussianHead):
        start = spec.parameter(LOG_STD).offset
        lines += [
            f"    for j in range({spec.head.size}):",
            f"        packed[{offset} + j] = weights[{start} + j]",
        ]
    return "\n".join(lines)


def _load_row_source(spec: NetworkSpec) -> str:
    """Numbers as they are; of categories one input each, which is 1 for the observation's."""
    lines = ["@jit", "def load_row(observation, scratch, r):"]
    if not spec.parts:
        lines += [
            f"    for j in range({spec.num_inputs}):",
            f"        scratch[r * {spec.num_inputs} + j] = observation[j]",
        ]
    else:
        lines.append("    in_bytes = observation.view(np.uint8)")
    start = 0
    for part in spec.parts:
        piece = f"in_bytes[{part.offset}:{part.offset + part.size_bytes}]"
        lines += [
            f"    numbers = {piece}.view(np.{np.dtype(part.dtype).name})",
            f"    place = r * {spec.num_inputs} + {start}",
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


def _forward_source(spec: NetworkSpec, places: dict) -> str:
    lines = ["@jit_fma", "def forward(packed, scratch, rows):"]
    for buffer, (offset, width) in places.items():
        stop = offset + BLOCK * width
        lines.append(f"    in_{buffer} = scratch[{offset}:{stop}].reshape({BLOCK}, {width})")
    offset = 0
    for layer in spec.layers:
        width = padded(layer.outputs)
        bias = offset + layer.inputs * width
        lines += [
            f"    weight = packed[{offset}:{bias}].reshape({layer.inputs}, {width})",
            f"    bias = packed[{bias}:{bias + width}]",
            f"    {_dense_name(layer)}(in_{layer.source}, weight, bias, in_{layer.name}, rows)",
        ]
        offset = bias + width
    return "\n".join(lines)
