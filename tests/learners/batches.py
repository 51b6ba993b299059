"""Steps and batches that several tests learn from."""

from typing import Any

import numpy as np
import torch

from rollout.learners.synthetic_batch import make_synthetic_batch
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch


def make_steps(T: int, B: int, seed: int, end_probability: float = 0.2) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    truncated = random.random((T, B)) < end_probability
    final_t, final_env = (index.astype(np.int32) for index in truncated.nonzero())
    return {
        "reward": random.standard_normal((T, B), np.float32),
        "value": random.standard_normal((T + 1, B), np.float32),
        "terminated": random.random((T, B)) < end_probability,
        "truncated": truncated,
        "final_t": final_t,
        "final_env": final_env,
        "final_value": random.standard_normal(len(final_t), np.float32),
    }


def act(network: TorchNetwork, seed: int) -> Batch:
    """Episodes of one step, with reward 1 where the action is the sign of the first number."""
    batch = make_synthetic_batch(network, 16, 16, seed)
    with torch.no_grad():
        logits, _ = network.forward(torch.from_numpy(batch.observation[:-1]).flatten(0, 1))
    policy = torch.distributions.Categorical(logits=logits)
    is_1 = np.random.default_rng(seed).random(256) < policy.probs[:, 1].numpy()
    log_prob = policy.log_prob(torch.from_numpy(is_1).long())
    batch.action[:] = is_1.reshape(16, 16)
    batch.behavior_log_prob[:] = log_prob.numpy().reshape(16, 16)
    batch.reward[:] = batch.action == (batch.observation[:-1, :, 0] > 0)
    end_every_step(batch)
    return batch


def end_every_step(batch: Batch) -> None:
    batch.terminated[:], batch.truncated[:] = True, False
    batch.final_t = batch.final_env = np.zeros(0, np.int32)
    batch.final_value = np.zeros(0, np.float32)
    batch.final_observation = batch.final_observation[:0]


def mark_no_ops(batch: Batch) -> np.ndarray:
    """Have some steps of a batch be none: the one after an end, or some, of an agent that waits."""
    ended = batch.terminated | batch.truncated
    T, B = ended.shape
    no_op = np.zeros_like(ended)
    for t in range(1, T):
        no_op[t] = ~ended[t] & (ended[t - 1] | (no_op[t - 1] & (np.arange(B) % 2 > 0)))
    batch.no_op = no_op
    return no_op
