"""The compiled form of each kind of layer, as Python source for policy_kernel.py to put together.

In `forward` every buffer is a float32 array `in_NAME` [BLOCK, width], and every parameter an array
`LAYER_NAME` of its own shape, but for the last axis: that one is padded. How loops must be written
so that a row's result does not depend on its company, policy_kernel.py says.
"""

from typing import NamedTuple

from rollout.learners.layers import Dense, Gru, Layer, Lstm


class LayerSource(NamedTuple):
    """functions: definitions of what `lines` calls. lines: of `forward`, this layer's.

    buffers: name and width of each that it writes; the first is the layer's own.
    """

    functions: tuple[str, ...]
    lines: tuple[str, ...]
    buffers: tuple[tuple[str, int], ...]


def padded(outputs: int) -> int:
    """Outputs of a layer as the compiled loops hold them: whole registers."""
    return 8 if outputs <= 8 else -(-outputs // 16) * 16


def layer_source(layer: Layer) -> LayerSource:
    """A layer's compiled form."""
    match layer:
        case Dense():
            return dense_source(layer)
        case Lstm():
            return core_source(layer, LSTM_LINES)
        case Gru():
            return core_source(layer, GRU_LINES)


def dense_source(layer: Dense) -> LayerSource:
    width = padded(layer.outputs)
    function = f"dense_{layer.inputs}_{width}_{layer.activation}"
    weight, bias = f"{layer.name}_weight", f"{layer.name}_bias"
    return LayerSource(
        (_dense_function(function, layer, width),),
        (f"{function}(in_{layer.source}, {weight}, {bias}, in_{layer.name}, rows)",),
        ((layer.name, width),),
    )


def old_core(layer: Layer) -> str:
    """The buffer of the core state that a layer reads, [BLOCK, core_size]."""
    return f"{layer.name}_old_core"


def new_core(layer: Layer) -> str:
    """The buffer of the core state that it writes."""
    return f"{layer.name}_new_core"


LSTM_LINES = """
kept = sigmoid(sums[row, {S} + j] + recurrent[row, {S} + j]) * old[row, {S} + j]
candidate = tanh(sums[row, 2 * {S} + j] + recurrent[row, 2 * {S} + j])
cell = kept + sigmoid(sums[row, j] + recurrent[row, j]) * candidate
hidden = sigmoid(sums[row, 3 * {S} + j] + recurrent[row, 3 * {S} + j]) * tanh(cell)
new[row, {S} + j] = cell
"""
GRU_LINES = """
reset = sigmoid(sums[row, j] + recurrent[row, j])
update = sigmoid(sums[row, {S} + j] + recurrent[row, {S} + j])
proposed = reset * (recurrent[row, 2 * {S} + j] + hidden_bias[j])
candidate = tanh(sums[row, 2 * {S} + j] + proposed)
hidden = candidate + update * (old[row, j] - candidate)
"""


def core_source(layer: Lstm | Gru, lines: str) -> LayerSource:
    """lines: make `hidden` [S] of the sums over the source and over what it was; see layers.py."""
    shapes = dict(layer.shapes())
    width = padded(shapes["bias"][0])
    function = f"{type(layer).__name__.lower()}_{layer.inputs}_{layer.outputs}"
    buffers = (
        (layer.name, layer.outputs),
        (f"{layer.name}_sums", width),
        (f"{layer.name}_recurrent", width),
        (old_core(layer), layer.core_size),
        (new_core(layer), layer.core_size),
    )
    arguments = [f"in_{layer.source}", *(f"{layer.name}_{name}" for name in shapes)]
    arguments += [f"in_{name}" for name, _ in buffers]
    code = [
        "@jit_fma",
        f"def {function}(x, {', '.join(shapes)}, out, sums, recurrent, old, new, rows):",
        "    for r in range(0, rows, 2):",
        *_sum_source("sums", "x", "input_weight", layer.inputs, width, "bias[j]"),
        *_sum_source("recurrent", "old", "hidden_weight", layer.outputs, width),
        "        for row in range(r, r + 2):",
        f"            for j in range({layer.outputs}):",
        *(f"                {line}" for line in lines.format(S=layer.outputs).strip().split("\n")),
        "                new[row, j] = hidden",
        "                out[row, j] = hidden",
    ]
    call = f"{function}({', '.join(arguments)}, rows)"
    return LayerSource(("\n".join(code),), (call,), buffers)


def _dense_function(function: str, layer: Dense, width: int) -> str:
    """dense_…(x, weight, bias, out, rows) writes out[:rows]."""
    lines = [
        "@jit_fma",
        f"def {function}(x, weight, bias, out, rows):",
        "    for r in range(0, rows, 2):",
        *_sum_source("out", "x", "weight", layer.inputs, width, "bias[j]"),
    ]
    if layer.activation != "identity":
        activated = {"tanh": "tanh({})", "relu": "max({}, np.float32(0.0))"}[layer.activation]
        lines += [
            f"        for j in range({width}):",
            f"            out[r, j] = {activated.format('out[r, j]')}",
            f"            out[r + 1, j] = {activated.format('out[r + 1, j]')}",
        ]
    return "\n".join(lines)


def _sum_source(
    out: str, x: str, weight: str, inputs: int, width: int, start: str = "np.float32(0.0)"
) -> list[str]:
    """out = start + x @ weight, for rows r and r + 1."""
    whole = inputs // 4 * 4
    lines = [
        f"        for j in range({width}):",
        f"            {out}[r, j] = {start}",
        f"            {out}[r + 1, j] = {start}",
    ]
    if whole:
        lines.append(f"        for k in range(0, {whole}, 4):")
        lines += _pass_source("            ", out, x, weight, 4, width)
    if inputs > whole:
        lines.append(f"        k = {whole}")
        lines += _pass_source("        ", out, x, weight, inputs - whole, width)
    return lines


def _pass_source(indent: str, out: str, x: str, weight: str, inputs: int, width: int) -> list[str]:
    """One pass over the sums of two rows, taking in `inputs` inputs from k on."""
    lines = []
    for row, a in ((0, "a"), (1, "b")):
        lines += [f"{indent}{a}{n} = {x}[r + {row}, k + {n}]" for n in range(inputs)]
    lines.append(f"{indent}for j in range({width}):")
    lines += [f"{indent}    w{n} = {weight}[k + {n}, j]" for n in range(inputs)]
    for row, a in ((0, "a"), (1, "b")):
        total = f"{out}[r + {row}, j]"
        for n in range(inputs):
            total = f"({total} + {a}{n} * w{n})"
        lines.append(f"{indent}    {out}[r + {row}, j] = {total}")
    return lines
