"""The compiled form of convolutions: sums over each patch, of some positions at a time."""

from rollout.layer_parts import LayerSource, activated, padded, tile_shape
from rollout.learners.layers import Conv


def conv_source(layer: Conv) -> LayerSource:
    height, width, channels = layer.image
    function = (
        f"conv_{height}_{width}_{channels}_{layer.channels}_{layer.kernel}_{layer.stride}_"
        f"{layer.activation}_{'first' if layer.channels_first else 'last'}"
    )
    weight, bias = f"{layer.name}_weight", f"{layer.name}_bias"
    return LayerSource(
        (_conv_function(function, layer),),
        (f"{function}(in_{layer.source}, {weight}, {bias}, in_{layer.name}, rows)",),
        ((layer.name, layer.outputs),),
    )


def _conv_function(function: str, layer: Conv) -> str:
    """conv_…(x, weight, bias, out, rows) writes out[:rows], image by image."""
    _, width, depth = layer.image
    kernel, stride, channels = layer.kernel, layer.stride, layer.channels
    down, across = layer.positions
    if layer.channels_first:
        pixel, inputs = 1, ((kernel, width), (kernel, 1), (depth, layer.image[0] * width))
    else:
        pixel, inputs = depth, ((kernel, width * depth), (kernel * depth, 1))
    columns_in_weight = padded(channels)
    most_rows, most_columns = tile_shape(columns_in_weight)
    tiles: dict[str, str] = {}
    lines = [
        "@jit_fma",
        f"def {function}(x, weight, bias, out, rows):",
        "    for r in range(rows):",
    ]
    for c in range(0, channels, most_columns):
        columns = min(most_columns, channels - c)
        lines += [
            f"        for i in range({down}):",
            f"            x0 = r * {layer.inputs} + i * {stride * width * pixel}",
            f"            o0 = r * {layer.outputs} + i * {across * channels} + {c}",
        ]
        for start, stop, rows in _in_even_parts(across, most_rows):
            tile = f"{function}_{rows}_{columns}"
            steps = (stride * pixel, 0, channels)
            arguments = f"{rows}, {columns}, {inputs}, {columns_in_weight}, {steps}"
            tiles[tile] = f"{tile} = make_tile({arguments})"
            lines += [
                f"            for j in range({start}, {stop}, {rows}):",
                f"                {tile}(x, x0 + j * {stride * pixel}, weight, {c}, bias, {c}, "
                f"out, o0 + j * {channels})",
            ]
    if layer.activation != "identity":
        lines += [
            f"        for j in range({layer.outputs}):",
            f"            out[r, j] = {activated('out[r, j]', layer.activation)}",
        ]
    return "\n".join([*tiles.values(), "", *lines])


def _in_even_parts(count: int, most: int) -> list[tuple[int, int, int]]:
    """(start, stop, step): ranges of parts of at most `most`, as few as can be, about even."""
    parts = -(-count // most)
    size, larger = divmod(count, parts)
    middle = larger * (size + 1)
    ranges = [(0, middle, size + 1), (middle, count, size)]
    return [one for one in ranges if one[0] < one[1]]
