"""The compiled form of recurrent layers: sums over the source and over what was, then the gates."""

from rollout.dense_source import sums_source
from rollout.layer_parts import LayerSource
from rollout.learners.layers import Core, Layer, Lstm


def old_core(layer: Layer) -> str:
    """The buffer of the core state that a layer reads, [BLOCK, core_size]."""
    return f"{layer.name}_old_core"


def new_core(layer: Layer) -> str:
    """The buffer of the core state that it writes."""
    return f"{layer.name}_new_core"


# `hidden` of output j, from the sums; see layers.py
LSTM_LINES = """
kept = sigmoid(sums[r, {S} + j] + recurrent[r, {S} + j]) * old[r, {S} + j]
candidate = tanh(sums[r, 2 * {S} + j] + recurrent[r, 2 * {S} + j])
cell = kept + sigmoid(sums[r, j] + recurrent[r, j]) * candidate
hidden = sigmoid(sums[r, 3 * {S} + j] + recurrent[r, 3 * {S} + j]) * tanh(cell)
new[r, {S} + j] = cell
"""
GRU_LINES = """
reset = sigmoid(sums[r, j] + recurrent[r, j])
update = sigmoid(sums[r, {S} + j] + recurrent[r, {S} + j])
proposed = reset * (recurrent[r, 2 * {S} + j] + hidden_bias[j])
candidate = tanh(sums[r, 2 * {S} + j] + proposed)
hidden = candidate + update * (old[r, j] - candidate)
"""


def core_source(layer: Core) -> LayerSource:
    shapes = dict(layer.shapes())
    size, (gates,) = layer.outputs, shapes["bias"]
    kind, template = ("lstm", LSTM_LINES) if isinstance(layer, Lstm) else ("gru", GRU_LINES)
    function = f"{kind}_{layer.inputs}_{size}"
    buffers = (
        (layer.name, size),
        (f"{layer.name}_before", size),
        (f"{layer.name}_sums", gates),
        (f"{layer.name}_recurrent", gates),
        (old_core(layer), layer.core_size),
        (new_core(layer), layer.core_size),
    )
    arguments = [f"in_{layer.source}", *(f"{layer.name}_{name}" for name in shapes)]
    arguments += [f"in_{name}" for name, _ in buffers]
    lines = [
        "@jit_fma",
        f"def {function}(x, {', '.join(shapes)}, out, before, sums, recurrent, old, new, rows):",
        "    for r in range(rows):",
        f"        for j in range({size}):",
        "            before[r, j] = old[r, j]",
        f"    {function}_inputs(x, input_weight, bias, sums, rows)",
        f"    {function}_hidden(before, hidden_weight, recurrent, rows)",
        "    for r in range(rows):",
        f"        for j in range({size}):",
        *(f"            {line}" for line in template.format(S=size).strip().split("\n")),
        "            new[r, j] = hidden",
        "            out[r, j] = hidden",
    ]
    functions = (
        "\n".join(sums_source(f"{function}_inputs", layer.inputs, gates)),
        "\n".join(sums_source(f"{function}_hidden", size, gates, has_bias=False)),
        "\n".join(lines),
    )
    return LayerSource(functions, (f"{function}({', '.join(arguments)}, rows)",), buffers)
