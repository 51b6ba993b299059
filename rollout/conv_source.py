"""The compiled form of convolutions: a dense layer over the numbers of each patch."""

from rollout.layer_parts import LayerSource, activated, padded
from rollout.learners.layers import Conv


def conv_source(layer: Conv) -> LayerSource:
    function = f"{layer.name}_of_{layer.source}"
    weight, bias = f"{layer.name}_weight", f"{layer.name}_bias"
    return LayerSource(
        (_conv_function(function, layer),),
        (f"{function}(in_{layer.source}, {weight}, {bias}, in_{layer.name}, rows)",),
        ((layer.name, layer.outputs),),
    )


def _conv_function(function: str, layer: Conv) -> str:
    """conv(x, weight, bias, out, rows) writes out[:rows]."""
    height, width, channels = layer.image
    kernel, stride = layer.kernel, layer.stride
    down, across = layer.positions
    if layer.channels_first:
        corner, runs = f"{stride} * (i * {width} + j)", kernel * kernel
        start, length, step = f"n // {kernel} * {width} + n % {kernel}", channels, height * width
    else:
        corner, runs = f"{stride} * (i * {width} + j) * {channels}", kernel
        start, length, step = f"n * {width * channels}", kernel * channels, 1
    result = activated(
        f"out[r, place + c] * np.float32({layer.scale!r}) + bias[c]", layer.activation
    )
    return f"""
@jit_fma
def {function}(x, weight, bias, out, rows):
    flat_weight = weight.reshape({runs * length}, {padded(layer.channels)})
    for r in range(rows):
        for i in range({down}):
            for j in range({across}):
                place = (i * {across} + j) * {layer.channels}
                corner = {corner}
                for c in range({layer.channels}):
                    out[r, place + c] = np.float32(0.0)
                for n in range({runs}):
                    start = corner + {start}
                    for k in range({length}):
                        one = x[r, start + k * {step}]
                        for c in range({layer.channels}):
                            out[r, place + c] += one * flat_weight[n * {length} + k, c]
                for c in range({layer.channels}):
                    out[r, place + c] = {activated(result, layer.activation)}
"""
