"""How fast does a learner run a convolution forward and backward, against torch's own?

One layer at a time, float32, one thread, one core: MinAtar's (16 filters of 3×3 over a 10×10 image
of 4 to 10 channels, and a second one behind it) and the three of Mnih et al. 2015. Both write
activated outputs, and the gradients of weight and bias, and of the source for layers behind
another. Torch's is torch_conv.py, which learners use on a GPU or with several threads.
"""

import harness
import torch

from rollout.learners import compiled_conv, torch_conv
from rollout.learners.layers import Conv
from rollout.learners.torch_network import keep_freed_memory

# image, channels, kernel, stride, rows of a minibatch, whether there is a layer before it
LAYERS = {
    "minatar_4_channels": ((10, 10, 4), 16, 3, 1, 1024, False),
    "minatar_7_channels": ((10, 10, 7), 16, 3, 1, 1024, False),
    "minatar_10_channels": ((10, 10, 10), 16, 3, 1, 1024, False),
    "minatar_second_layer": ((8, 8, 16), 16, 3, 1, 1024, True),
    "atari_first_layer": ((84, 84, 4), 32, 8, 4, 128, False),
    "atari_second_layer": ((20, 20, 32), 64, 4, 2, 128, True),
    "atari_third_layer": ((9, 9, 64), 64, 3, 1, 128, True),
}


def bench(image, channels: int, kernel: int, stride: int, rows: int, has_before: bool):
    layer = Conv("conv", "observation", image, channels, kernel, stride, "relu", ())
    random = torch.Generator().manual_seed(0)
    (_, weight_shape), (_, bias_shape) = layer.shapes()
    source = torch.randn(rows, layer.inputs, generator=random).requires_grad_(has_before)
    weight = torch.randn(weight_shape, generator=random).mul_(0.05).requires_grad_()
    bias = torch.randn(bias_shape, generator=random).requires_grad_()
    gradient = torch.randn(rows, layer.outputs, generator=random)
    asked = [weight, bias, source] if has_before else [weight, bias]

    def made_by(conv):
        def forward_and_backward():
            output = conv(layer, source, weight, bias)
            return output.detach(), *torch.autograd.grad(output, asked, gradient)

        return forward_and_backward

    calls = {"compiled": made_by(compiled_conv.conv), "torch": made_by(torch_conv.conv)}
    for ours, theirs in zip(*(call() for call in calls.values()), strict=True):
        # torch adds up all rows in one sum, thousands of terms
        size = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * size)
    return harness.measure({name: (call, rows) for name, call in calls.items()})


def main() -> None:
    harness.pin_to_one_core()
    torch.set_num_threads(1)
    keep_freed_memory()
    harness.report(
        "conv_learning_throughput",
        unit="rows/s forward and backward on one core",
        ours="compiled",
        metrics={name: bench(*layer) for name, layer in LAYERS.items()},
        config={"activation": "relu"},
    )


if __name__ == "__main__":
    main()
