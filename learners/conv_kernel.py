"""Convolutions for learning, compiled: activation(patch @ weight + bias), and its gradients.

A template (see envs/kernels.py), run behind tile_kernel.py. One machine code serves all layers:
their sizes are arguments. All sums are products of the same form, in an order that only sizes
decide; what differs is what a tile's rows and inputs are:

    result               rows               inputs                 columns
    out                  patches            numbers of a patch     channels
    weight's gradient    numbers of patch   patches of ROWS images channels
    source's gradient    images             channels               numbers of a patch's row

An image is [height, width, depth], a row of float32. Nothing here uses Python objects, and nothing
checks: compiled_conv.py does.
"""

import numpy as np

from rollout.envs.kernels import bound

jit_fma, entry = bound("jit_fma"), bound("entry")
ROWS, VECTOR_LANES = bound("ROWS"), bound("VECTOR_LANES")
IDENTITY, RELU = bound("IDENTITY"), bound("RELU")

wide_tile = bound("make_any_tile")(ROWS, 2, VECTOR_LANES)
narrow_tile = bound("make_any_tile")(ROWS, 1, VECTOR_LANES)
X, START, OUT = 0, 1, 2  # rows of `places`
ZERO = np.int64(0)  # not 0, of which Numba would compile a special case
NO_FLOOR = np.float32(-np.inf)


@jit_fma
def add_products(places, loops, x, weight, start, out, begins, columns, floor):
    """As tile_kernel.make_any_tile says, of any number of columns."""
    x0, w0, s0, o0 = begins
    whole = columns // (2 * VECTOR_LANES) * (2 * VECTOR_LANES)
    for j in range(0, whole, 2 * VECTOR_LANES):
        at = x0, w0 + j, s0 + j, o0 + j
        wide_tile(places, loops, x, weight, start, out, at, 2 * VECTOR_LANES, floor)
    for j in range(whole, columns, VECTOR_LANES):
        at = x0, w0 + j, s0 + j, o0 + j
        narrow_tile(places, loops, x, weight, start, out, at, min(VECTOR_LANES, columns - j), floor)


@entry
def forward(images, weight, scale, bias, image, kernel, stride, activation, out):
    """Fill `out`, all patches of all images; of tanh the sums only, what it is to be tanh of.

    images: [R, height·width·depth]. weight: [kernel, kernel, depth, channels], to be multiplied by
    `scale`. bias: [channels]. image: height, width, depth. activation: IDENTITY, RELU or TANH.
    out: [R, patches·channels].
    """
    height, width, depth = image
    x, scaled_weight, flat_out = images.reshape(-1), weight.reshape(-1) * scale, out.reshape(-1)
    down, across = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    channels = bias.size
    step = stride * depth
    patches = len(images) * down * across
    loops = np.ones((3, 3), np.int64)
    loops[1] = kernel, width * depth, kernel * depth * channels
    loops[2] = kernel * depth, 1, channels
    begins = ZERO, ZERO, ZERO, ZERO
    floor = np.float32(0.0) if activation == RELU else NO_FLOOR
    places = np.zeros((3, ROWS), np.int64)
    patch = i = j = image_at = at = 0
    for _ in range(0, patches, ROWS):
        for m in range(ROWS):
            places[X, m] = at
            places[OUT, m] = patch * channels
            if patch < patches - 1:  # else the last tile's last rows are the same patch again
                patch += 1
                j += 1
                at += step
                if j == across:
                    j = 0
                    i += 1
                    if i == down:
                        i = 0
                        image_at += height * width * depth
                    at = image_at + i * step * width
        add_products(places, loops, x, scaled_weight, bias, flat_out, begins, channels, floor)


@jit_fma
def multiply_by_slope(gradient, out, activation, result):
    """result = gradient times the derivative of the activation that made `out`."""
    for n in range(result.size):
        if activation == RELU:
            result[n] = np.float32(0.0) if out[n] <= np.float32(0.0) else gradient[n]
        elif activation == IDENTITY:
            result[n] = gradient[n]
        else:
            result[n] = gradient[n] * (np.float32(1.0) - out[n] * out[n])


@entry
def backward(
    images,
    transposed,
    scale,
    out,
    gradient,
    image,
    kernel,
    stride,
    activation,
    weight_gradient,
    bias_gradient,
    has_images_gradient,
    images_gradient,
):
    """Fill weight_gradient, bias_gradient and, if there is one, images_gradient.

    Shapes are as in `forward`. gradient: that of `out`. transposed: [kernel, channels, kernel,
    depth], the scaled weight, which only the images' gradient needs.

    ROWS images at a time, the gradient of whose sums then lies in the cache. So every sum over the
    batch is one of sums over ROWS images, which loses less than one that takes patch by patch.
    """
    height, width, depth = image
    down, across = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    channels = bias_gradient.size
    inputs, outputs = height * width * depth, down * across * channels
    step, row_size = stride * depth, kernel * depth
    x, flat_out, of_out = images.reshape(-1), out.reshape(-1), gradient.reshape(-1)
    of_weight, of_images = weight_gradient.reshape(-1), images_gradient.reshape(-1)
    of_weight[:] = np.float32(0.0)
    bias_gradient[:] = np.float32(0.0)
    rows_weight = transposed.reshape(-1)
    of_sums = np.empty(ROWS * outputs, np.float32)
    one = np.ones(1, np.float32)
    places, nowhere = np.zeros((3, ROWS), np.int64), np.zeros((3, ROWS), np.int64)
    loops = np.ones((3, 3), np.int64)
    for first in range(0, len(images), ROWS):
        some = min(ROWS, len(images) - first)
        x0, o0 = first * inputs, first * outputs
        multiply_by_slope(
            of_out[o0 : o0 + some * outputs],
            flat_out[o0 : o0 + some * outputs],
            activation,
            of_sums[: some * outputs],
        )
        loops[0] = some, inputs, outputs
        loops[1] = down, step * width, across * channels
        loops[2] = across, step, channels
        begins = x0, ZERO, ZERO, ZERO
        for k in range(0, kernel * row_size, ROWS):
            for m in range(ROWS):
                number = min(k + m, kernel * row_size - 1)
                places[X, m] = number // row_size * width * depth + number % row_size
                places[START, m] = places[OUT, m] = number * channels
            add_products(
                places, loops, x, of_sums, of_weight, of_weight, begins, channels, NO_FLOOR
            )
        # the bias: sums of products with 1, in all rows the same
        loops[0, 0] = loops[1, 0] = 1
        loops[2] = some * down * across, 0, channels
        begins = ZERO, ZERO, ZERO, ZERO
        add_products(
            nowhere, loops, one, of_sums, bias_gradient, bias_gradient, begins, channels, NO_FLOOR
        )
        if not has_images_gradient:
            continue
        of_images[x0 : x0 + some * inputs] = np.float32(0.0)
        for m in range(ROWS):
            r = min(m, some - 1)
            places[X, m] = r * outputs
            places[START, m] = places[OUT, m] = r * inputs
        loops[2] = channels, 1, row_size
        for row in range(kernel):
            for i in range(down):
                for j in range(across):
                    to = x0 + (i * stride + row) * width * depth + j * step
                    begins = (i * across + j) * channels, row * channels * row_size, to, to
                    add_products(
                        places, loops, of_sums, rows_weight, of_images, of_images, begins,
                        row_size, NO_FLOOR,
                    )  # fmt: skip
    of_weight *= scale
