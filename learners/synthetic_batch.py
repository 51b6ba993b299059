"""A batch without a fleet, to measure an algorithm's update with its data at hand."""

import numpy as np
import torch

from rollout.learners.network import GaussianHead, Network
from rollout.learners.torch_network import TorchNetwork, allocate
from rollout.learners.unroll import Batch, Unroll, UnrollSchema


def make_synthetic_batch(
    network: TorchNetwork, unroll_length: int, num_envs: int, seed: int = 0
) -> Batch:
    """A full batch of normal observations, random actions, rewards of 1 and scattered ends.

    Values and log-probabilities are the network's own, as if it had acted.
    """
    spec = network.spec
    is_plain = not spec.parts and not spec.core_size and spec.frame_stack == 1
    assert is_plain, "made for plain numbers, and for no memory"
    random = np.random.default_rng(seed)
    rows = (unroll_length, num_envs)
    ends = random.random(rows)
    terminated, truncated = ends < 0.01, ends > 0.995
    final_t, final_env = (index.astype(np.int32) for index in truncated.nonzero())
    episode_t, episode_env = (
        index.astype(np.int32) for index in (terminated | truncated).nonzero()
    )
    observation = random.standard_normal(
        (unroll_length + 1, num_envs, *spec.observation_shape), np.float32
    )
    final_observation = random.standard_normal((len(final_t), *spec.observation_shape), np.float32)
    action = _random_action(spec, rows, random)
    schema = UnrollSchema(
        unroll_length,
        spec.observation_shape,
        "float32",
        action.shape[2:],
        action.dtype.str,
        has_value=True,
    )
    value, behavior_log_prob = _decide(network, observation, action)
    unroll = Unroll(
        observation=observation,
        action=action,
        action_mask=np.zeros((*rows, 0), np.bool_),
        core_state=np.zeros((num_envs, 0), np.float32),
        frames=np.zeros((num_envs, 0, *spec.observation_shape), np.float32),
        reward=np.ones(rows, np.float32),
        terminated=terminated,
        truncated=truncated,
        behavior_log_prob=behavior_log_prob,
        value=value,
        no_op=np.zeros((0, num_envs), np.bool_),
        env_state=np.zeros((num_envs, 0), np.uint8),
        final_t=final_t,
        final_env=final_env,
        final_observation=final_observation,
        final_value=_value(network, final_observation),
        episode_t=episode_t,
        episode_env=episode_env,
        episode_return=np.full(len(episode_t), 100.0),
        episode_length=np.full(len(episode_t), 100, np.int32),
    )
    batch = Batch(schema, num_envs, allocate)
    batch.put(unroll, 0, np.arange(num_envs), weights_version=0)
    batch.seal()
    return batch


def _random_action(spec: Network, rows: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    head = spec.head
    if isinstance(head, GaussianHead):
        return random.standard_normal((*rows, head.size), np.float32)
    columns = [random.integers(0, count, rows, np.int32) for count in head.choices]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=-1)


def _value(network: TorchNetwork, observation: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(observation).to(network.device))[1].cpu().numpy()


def _decide(
    network: TorchNetwork, observation: np.ndarray, action: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Value [T+1, N] of the observations and log-probability [T, N] of the actions."""
    T, N = action.shape[:2]
    rows = observation.reshape(-1, *observation.shape[2:])
    taken = torch.from_numpy(action).flatten(0, 1).to(network.device)
    with torch.no_grad():
        policy, _ = network(torch.from_numpy(rows[: T * N]).to(network.device))
        log_prob = policy.log_prob(taken).cpu()
    return _value(network, rows).reshape(T + 1, N), log_prob.view(T, N).numpy()
