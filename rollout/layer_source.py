"""The compiled form of each kind of layer, as Python source for policy_kernel.py to put together.

In `forward` every buffer is a float32 array `in_NAME` [BLOCK, width], and every parameter an array
`LAYER_NAME` of its own shape, but for the last axis: that one is padded. How loops must be written
so that a row's result does not depend on its company, policy_kernel.py says.
"""

from rollout.conv_source import conv_source
from rollout.layer_parts import LayerSource, activated, padded
from rollout.learners.layers import Conv, Dense, Layer


def layer_source(layer: Layer) -> LayerSource:
    """A layer's compiled form."""
    match layer:
        case Dense():
            return dense_source(layer)
        case Conv():
            return conv_source(layer)


def dense_source(layer: Dense) -> LayerSource:
    width = padded(layer.outputs)
    function = f"dense_{layer.inputs}_{width}_{layer.activation}"
    weight, bias = f"{layer.name}_weight", f"{layer.name}_bias"
    return LayerSource(
        (_dense_function(function, layer, width),),
        (f"{function}(in_{layer.source}, {weight}, {bias}, in_{layer.name}, rows)",),
        ((layer.name, width),),
    )


def _dense_function(function: str, layer: Dense, width: int) -> str:
    """dense_…(x, weight, bias, out, rows) writes out[:rows]."""
    whole = layer.inputs // 4 * 4
    lines = [
        "@jit_fma",
        f"def {function}(x, weight, bias, out, rows):",
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
        lines += [
            f"        for j in range({width}):",
            f"            out[r, j] = {activated('out[r, j]', layer.activation)}",
            f"            out[r + 1, j] = {activated('out[r + 1, j]', layer.activation)}",
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
