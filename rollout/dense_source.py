"""The compiled form of dense layers, and of the sums that others are made of as well."""

from rollout.layer_parts import LayerSource, activated, padded, tile_shape
from rollout.learners.layers import Dense


def dense_source(layer: Dense) -> LayerSource:
    function = f"dense_{layer.inputs}_{layer.outputs}_{layer.activation}"
    weight, bias = f"{layer.name}_weight", f"{layer.name}_bias"
    return LayerSource(
        (_dense_function(function, layer),),
        (f"{function}(in_{layer.source}, {weight}, {bias}, in_{layer.name}, rows)",),
        ((layer.name, layer.outputs),),
    )


def _dense_function(function: str, layer: Dense) -> str:
    """dense_…(x, weight, bias, out, rows) writes out[:rows]."""
    lines = sums_source(function, layer.inputs, layer.outputs)
    if layer.activation != "identity":
        lines += [
            "    for r in range(rows):",
            f"        for j in range({layer.outputs}):",
            f"            out[r, j] = {activated('out[r, j]', layer.activation)}",
        ]
    return "\n".join(lines)


# inputs that go by before the next rows come, if there are more: their weights stay in the cache
MOST_INPUTS = 1024


def sums_source(function: str, inputs: int, outputs: int, has_bias: bool = True) -> list[str]:
    """function(x, weight, bias, out, rows): out[:rows] = x[:rows] @ weight + bias.

    has_bias: else it is function(x, weight, out, rows), without one. x: [BLOCK, inputs]. weight:
    [inputs, padded(outputs)]. out: [BLOCK, outputs]. Of an odd number of rows one more is computed.
    """
    width = padded(outputs)
    rows, columns = tile_shape(width)
    length = -(-inputs // -(-inputs // MOST_INPUTS))
    begins_with_bias = has_bias and length == inputs
    start, start_step = ("bias, j", 0) if begins_with_bias else (f"out, r * {outputs} + j", outputs)
    arguments = "x, weight, bias, out, rows" if has_bias else "x, weight, out, rows"
    tiles, lines = [], ["@jit_fma", f"def {function}({arguments}):"]
    if not begins_with_bias:
        lines += [
            "    for r in range(rows + rows % 2):",
            f"        for j in range({outputs}):",
            f"            out[r, j] = {'bias[j]' if has_bias else 'np.float32(0.0)'}",
        ]
    lines.append(f"    whole = rows // {rows} * {rows}")
    for first_input, end_input, some_inputs in ranges(inputs, length):
        lines.append(f"    for k in range({first_input}, {end_input}, {some_inputs}):")
        for first, end, some in ranges(outputs, columns):
            lines.append(f"        for j in range({first}, {end}, {some}):")
            for from_row, to_row, together in (("0", "whole", rows), ("whole", "rows", 2)):
                tile = f"{function}_{together}_{some}_{some_inputs}"
                tiles.append(
                    f"{tile} = make_tile({together}, {some}, (({some_inputs}, 1),), {width}, "
                    f"({inputs}, {start_step}, {outputs}))"
                )
                lines += [
                    f"            for r in range({from_row}, {to_row}, {together}):",
                    f"                {tile}(x, r * {inputs} + k, weight, k * {width} + j, "
                    f"{start}, out, r * {outputs} + j)",
                ]
    return [*tiles, "", *lines]


def ranges(count: int, step: int) -> list[tuple[int, int, int]]:
    """(first, end, step) of the whole steps, and of what is left."""
    whole = count // step * step
    parts = [(0, whole, step), (whole, count, count - whole)]
    return [part for part in parts if part[0] < part[1]]
