"""How fast does an actor act with a convolutional policy, against its forward pass alone in torch?

Breakout-MinAtar with the network of MinAtar's authors (16 filters of 3×3, 128 units), unrolls of
128 steps, one core: environment, policy, sampling, autoreset and writing. The baseline does less:
torch (one thread) evaluates the same network on the same number of rows, and nothing else. Then
both evaluate the network of Mnih et al. 2015, for Atari's pictures.
"""

import harness
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from rollout.acting import UnrollActor, Workspace, load_acting_kernels, read_only
from rollout.envs import CompiledEnv, Envs
from rollout.envs.minatar.breakout import Breakout
from rollout.experiment_tables import ConvSettings
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Conv, Dense
from rollout.learners.network import NetworkSpec
from rollout.policy_memory import PolicyMemory
from rollout.shapes import make_network, make_schema

UNROLL_LENGTH = 128


class Pictures(CompiledEnv):
    """Shows bytes of the size that Atari's pictures have; nothing happens."""

    state = np.dtype([("t", "i4")])
    observation_space = Box(0, 255, (84, 84, 4), np.uint8)
    action_space = Discrete(6)

    def reset(state, params, draw):
        state.t = 0

    def step(state, params, action, draw):
        return 0.0, False

    def observe(state, params, observation):
        observation[0, 0, 0] = 1


NETWORKS: dict[str, tuple[type[CompiledEnv], ConvSettings]] = {
    "minatar": (Breakout, ConvSettings()),
    "atari": (
        Pictures,
        ConvSettings(
            channels=(32, 64, 64), kernel_sizes=(8, 4, 3), strides=(4, 2, 1), hidden_sizes=(512,)
        ),
    ),
}


def torch_module(spec: NetworkSpec, weights: np.ndarray) -> torch.nn.Module:
    """The network as one would write it in torch, of images with the channels last in memory."""
    modules: list[torch.nn.Module] = []
    image = (0, 0, 0)  # what the last convolution writes
    for layer in spec.layers:
        assert isinstance(layer, Conv | Dense)
        weight, bias = (
            torch.from_numpy(spec.parameter(f"{layer.name}.{name}").view(weights).copy())
            for name in ("weight", "bias")
        )
        if isinstance(layer, Conv):
            module = torch.nn.Conv2d(layer.image[2], layer.channels, layer.kernel, layer.stride)
            module.weight.data = weight.permute(3, 2, 0, 1) * layer.scale
            image = (*layer.positions, layer.channels)
        else:
            if isinstance(modules[-2], torch.nn.Conv2d):  # flattened, the channels come first
                weight = weight.view(*image, -1).permute(2, 0, 1, 3).reshape(layer.inputs, -1)
                modules.append(torch.nn.Flatten())
            module = torch.nn.Linear(layer.inputs, layer.outputs)
            module.weight.data = weight.t().contiguous()
        module.bias.data = bias  # pyright: ignore[reportOptionalMemberAccess]
        modules += [module, torch.nn.ReLU() if layer.activation == "relu" else torch.nn.Identity()]
    whole = torch.nn.Sequential(*modules)
    return whole.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def bench(name: str, num_envs: int) -> dict:
    env, settings = NETWORKS[name]
    network = make_network(settings, env)
    schema = make_schema(env, UNROLL_LENGTH if env is Breakout else 2, has_value=True)
    weights = read_only(initial_parameters(network, seed=1))
    actor = UnrollActor(Envs(env, num_envs, seed=1), network, schema)
    actor.act(weights)
    rows = np.ascontiguousarray(actor.buffer.unroll().observation[0])
    module, images = torch_module(network, weights), torch.from_numpy(rows).float()
    images = images.permute(0, 3, 1, 2)
    evaluate = load_acting_kernels(env, network, schema).evaluate
    workspace, nothing = Workspace(network), PolicyMemory.at_start(schema, num_envs)
    work = workspace.packed, workspace.scratch
    outputs = np.zeros((num_envs, network.head.num_outputs), np.float32)
    value = np.zeros(num_envs, np.float32)

    def torch_forward() -> torch.Tensor:
        with torch.inference_mode():
            return module(images)

    def compiled_forward() -> None:
        evaluate(weights, *work, rows, *nothing, outputs, value)

    compiled_forward()
    np.testing.assert_allclose(torch_forward()[:, -1], value, atol=1e-5)
    calls = {
        "compiled forward alone": (compiled_forward, num_envs),
        "torch forward alone": (torch_forward, num_envs),
    }
    if env is Breakout:
        calls = {"acting": (lambda: actor.act(weights), UNROLL_LENGTH * num_envs), **calls}
    return harness.measure(calls)


def main() -> None:
    harness.pin_to_one_core()
    torch.set_num_threads(1)
    config = {"unroll_length": UNROLL_LENGTH}
    harness.report(
        "conv_acting_throughput",
        unit="env steps/s on one core",
        ours="acting",
        metrics={f"breakout_minatar_{n}_envs": bench("minatar", n) for n in (32, 256)},
        config=config,
    )
    harness.report(
        "conv_forward_throughput",
        unit="pictures/s on one core",
        ours="compiled forward alone",
        metrics={f"atari_{n}_rows": bench("atari", n) for n in (32, 256)},
        config=config,
    )


if __name__ == "__main__":
    main()
