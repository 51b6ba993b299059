"""Environments of a batch through all of its steps, and what a network says of them.

A trace runs through an unroll from its end to its beginning, so what needs one takes a batch by its
columns, where PPO's epochs take its rows in any order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rollout.learners.distributions import Distribution
from rollout.learners.frames import UnrollFrames
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch
from rollout.learners.vtrace import vtrace


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of a batch, B of them, with the names and shapes of `Batch`.

    What the network reads is on its device, the rest in host memory. A view of the batch where it
    can be one.
    """

    observation: torch.Tensor
    action: torch.Tensor
    action_mask: torch.Tensor
    behavior_log_prob: torch.Tensor
    core_state: torch.Tensor
    frames: torch.Tensor
    is_first: torch.Tensor
    final_observation: torch.Tensor
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    no_op: np.ndarray
    final_t: np.ndarray
    final_env: np.ndarray

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "Columns":
        """All columns of a batch."""

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return cls(
            observation=on_device(batch.observation),
            action=on_device(batch.action),
            action_mask=on_device(batch.action_mask),
            behavior_log_prob=on_device(batch.behavior_log_prob),
            core_state=on_device(batch.core_state),
            frames=on_device(batch.frames),
            is_first=on_device(batch.is_first),
            final_observation=on_device(batch.final_observation),
            reward=batch.reward,
            terminated=batch.terminated,
            truncated=batch.truncated,
            no_op=batch.no_op if batch.no_op.any() else batch.no_op[:0],
            final_t=batch.final_t,
            final_env=batch.final_env,
        )

    @property
    def num_columns(self) -> int:
        return self.reward.shape[1]

    def with_steps(self) -> np.ndarray:
        """Columns that have a step at all, int64, in order."""
        if not len(self.no_op):
            return np.arange(self.num_columns)
        return np.flatnonzero(~self.no_op.all(0))

    def num_steps(self, columns: np.ndarray) -> int:
        """Of all rows of these columns, those that are steps. columns: int64 [b]."""
        no_ops = np.count_nonzero(self.no_op.take(columns, 1))
        return len(columns) * len(self.reward) - int(no_ops)

    def steps(self, x: torch.Tensor) -> torch.Tensor:
        """Of x [T, B], what belongs to steps, [R]."""
        if not len(self.no_op):
            return x.flatten()
        return x[torch.from_numpy(~self.no_op).to(x.device)]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Of x [T, B] over all steps."""
        return self.steps(x).mean()

    def pick(self, columns: np.ndarray) -> "Columns":
        """These columns, in this order. columns: int64 [b], each at most once."""
        if np.array_equal(columns, np.arange(self.num_columns)):
            return self
        index = torch.from_numpy(columns).to(self.observation.device)
        place = np.full(self.num_columns, -1, np.int32)
        place[columns] = np.arange(len(columns), dtype=np.int32)
        final_env = place[self.final_env]
        is_picked = final_env >= 0
        finals = torch.from_numpy(is_picked.nonzero()[0]).to(self.observation.device)
        return Columns(
            observation=self.observation.index_select(1, index),
            action=self.action.index_select(1, index),
            action_mask=self.action_mask.index_select(1, index),
            behavior_log_prob=self.behavior_log_prob.index_select(1, index),
            core_state=self.core_state.index_select(0, index),
            frames=self.frames.index_select(0, index),
            is_first=self.is_first.index_select(1, index),
            final_observation=self.final_observation.index_select(0, finals),
            reward=self.reward.take(columns, 1),
            terminated=self.terminated.take(columns, 1),
            truncated=self.truncated.take(columns, 1),
            no_op=self.no_op.take(columns, 1),
            final_t=self.final_t[is_picked],
            final_env=final_env[is_picked],
        )

    def pieces(self, columns: np.ndarray, max_rows: int) -> list[np.ndarray]:
        """These columns in order, in pieces of at most so many rows, or of one column."""
        most = max(1, max_rows // len(self.reward))
        return [columns[start : start + most] for start in range(0, len(columns), most)]


class Corrected(NamedTuple):
    """What V-trace makes of columns; float32 [T, B] on the network's device."""

    value_target: torch.Tensor
    advantage: torch.Tensor


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network says of columns.

    policy: in the T * B observations acted in.   log_prob, value: [T, B].   log_ratio: [T, B], of
    the policy's probability to the behavior policy's; 0 for steps that are none, where nobody
    chose. bootstrap_value: [B] and final_value: [F], constants for every gradient.
    """

    columns: Columns
    policy: Distribution
    log_prob: torch.Tensor
    log_ratio: torch.Tensor
    value: torch.Tensor
    bootstrap_value: torch.Tensor
    final_value: torch.Tensor

    def corrected(
        self, gamma: float, gae_lambda: float, rho_clip: float = 1.0, c_clip: float = 1.0
    ) -> Corrected:
        """V-trace's targets and advantages, constants. Waits once for the device."""
        T, B = self.columns.reward.shape
        parts = self.log_ratio.exp(), self.value, self.bootstrap_value, self.final_value
        on_host = torch.cat([part.detach().reshape(-1) for part in parts]).cpu().numpy()
        ratio, value, final_value = np.split(on_host, [T * B, T * B + (T + 1) * B])
        result = vtrace(
            ratio=ratio.reshape(T, B),
            reward=self.columns.reward,
            value=value.reshape(T + 1, B),
            terminated=self.columns.terminated,
            truncated=self.columns.truncated,
            final_t=self.columns.final_t,
            final_env=self.columns.final_env,
            final_value=final_value,
            gamma=gamma,
            gae_lambda=gae_lambda,
            rho_clip=rho_clip,
            c_clip=c_clip,
        )
        return Corrected(*(torch.from_numpy(a).to(self.value.device) for a in result))


def evaluate(network: TorchNetwork, columns: Columns) -> Evaluation:
    """The network over columns, step after step where it has a core."""
    T, B = columns.reward.shape
    frames = UnrollFrames.of(columns.observation, columns.frames, columns.is_first)
    outputs, value, core_states = network.run(
        columns.observation[:-1].flatten(0, 1),
        columns.core_state,
        columns.is_first[:-1].flatten(),
        frames.of_steps() if frames else None,
    )
    policy = network.policy(outputs, columns.action_mask.flatten(0, 1))
    log_prob = policy.log_prob(columns.action.flatten(0, 1)).view(T, B)
    log_ratio = log_prob - columns.behavior_log_prob
    if len(columns.no_op):
        log_ratio = log_ratio.masked_fill(torch.from_numpy(columns.no_op).to(network.device), 0.0)
    with torch.no_grad():
        last = torch.cat([columns.observation[-1], columns.final_observation])
        states = core_states.unflatten(0, (T, B))
        begun = states[-1].masked_fill(columns.is_first[-1].unsqueeze(1), 0.0)
        places = columns.final_t.astype(np.int64) * B + columns.final_env
        ends = torch.from_numpy(places).to(network.device)
        last_state = torch.cat([begun, core_states[ends]])
        never = columns.is_first.new_zeros(len(last))
        last_frames = frames.of_last(ends) if frames else None
        _, last_value, _ = network.run(last, last_state, never, last_frames)
    return Evaluation(
        columns=columns,
        policy=policy,
        log_prob=log_prob,
        log_ratio=log_ratio,
        value=value.view(T, B),
        bootstrap_value=last_value[:B],
        final_value=last_value[B:],
    )
