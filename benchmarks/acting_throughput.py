"""How fast does an actor act, against the policy's forward pass alone in torch?

CartPole with a 64×64 tanh policy (value shared), unrolls of 128 steps, one core: environment,
policy, sampling, autoreset and writing. The baseline does less: torch (one thread) evaluates the
same network on the same number of rows, and nothing else.
"""

import harness
import numpy as np
import torch

from rollout.acting import UnrollActor, Workspace, load_acting_kernels, read_only
from rollout.envs import Envs, find_env
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.policy_memory import PolicyMemory
from rollout.shapes import make_schema

CARTPOLE = find_env("CartPole-v1")
UNROLL_LENGTH = 128
NETWORK = make_mlp((4,), CategoricalHead((2,)), (64, 64), "tanh", "shared")
WEIGHTS = read_only(initial_parameters(NETWORK, seed=1))
SCHEMA = make_schema(CARTPOLE, UNROLL_LENGTH, has_value=True)


def torch_module() -> torch.nn.Module:
    """The network as one would write it in torch."""
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 64), torch.nn.Tanh(),
        torch.nn.Linear(64, 64), torch.nn.Tanh(),
        torch.nn.Linear(64, 3),
    )  # fmt: skip
    linears = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for layer, linear in zip(NETWORK.layers, linears, strict=True):
            weight = NETWORK.parameter(f"{layer.name}.weight").view(WEIGHTS)
            linear.weight.copy_(torch.from_numpy(weight.T.copy()))
            linear.bias.copy_(
                torch.from_numpy(NETWORK.parameter(f"{layer.name}.bias").view(WEIGHTS).copy())
            )
    return module


def check(module: torch.nn.Module) -> None:
    """Values and log-probabilities that the actor recorded agree with torch's."""
    actor = UnrollActor(Envs(CARTPOLE, 33, seed=1), NETWORK, SCHEMA)
    actor.act(WEIGHTS)
    unroll = actor.buffer.unroll()
    with torch.no_grad():
        heads = module(torch.from_numpy(unroll.observation.copy()))
    np.testing.assert_allclose(unroll.value, heads[..., 2].numpy(), atol=1e-5)
    log_probs = torch.log_softmax(heads[:-1, :, :2], -1)
    chosen = log_probs.gather(-1, torch.from_numpy(unroll.action.astype(np.int64))[..., None])
    np.testing.assert_allclose(unroll.behavior_log_prob, chosen[..., 0].numpy(), atol=1e-5)


def bench(num_envs: int, module: torch.nn.Module) -> dict:
    actor = UnrollActor(Envs(CARTPOLE, num_envs, seed=1), NETWORK, SCHEMA)
    observation = torch.randn(num_envs, 4)
    evaluate = load_acting_kernels(CARTPOLE, NETWORK, SCHEMA).evaluate
    workspace = Workspace(NETWORK)
    work = workspace.packed, workspace.scratch
    logits, value = np.zeros((num_envs, 2), np.float32), np.zeros(num_envs, np.float32)
    rows, nothing = observation.numpy(), PolicyMemory.at_start(SCHEMA, num_envs)

    def torch_forward() -> None:
        with torch.inference_mode():
            for _ in range(16):
                module(observation)

    def compiled_forward() -> None:
        for _ in range(16):
            evaluate(WEIGHTS, *work, rows, *nothing, logits, value)

    steps = UNROLL_LENGTH * num_envs
    return harness.measure(
        {
            "acting": (lambda: actor.act(WEIGHTS), steps),
            "torch forward alone": (torch_forward, 16 * num_envs),
            "compiled forward alone": (compiled_forward, 16 * num_envs),
        }
    )


def main() -> None:
    harness.pin_to_one_core()
    torch.set_num_threads(1)
    module = torch_module()
    check(module)
    harness.report(
        "acting_throughput",
        unit="env steps/s on one core",
        ours="acting",
        metrics={f"cartpole_{n}_envs": bench(n, module) for n in (16, 256, 1024)},
        config={
            "env": "CartPole-v1",
            "network": "64x64 tanh, shared",
            "unroll_length": UNROLL_LENGTH,
        },
    )


if __name__ == "__main__":
    main()
