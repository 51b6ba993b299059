"""Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347).

With the details that CleanRL's documentation lists, and its names. One differs on purpose: actors
recorded values and log-probabilities as they acted, with the weights that acted, so nothing of the
batch is evaluated again before the first step.

Unless `vtrace` is on, for steps that older weights acted, as in async: then the policy that must
not be left too far is the newest, and V-trace's weights correct for the one that acted (the
decoupled objective of Hilton et al. 2021, arXiv 2110.00641).
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from rollout.learners.algorithm import (
    Algorithm,
    Inputs,
    Metrics,
    explained_variance,
    max_rows,
    mean_metrics,
)
from rollout.learners.columns import Columns, evaluate
from rollout.learners.gae import batch_gae
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch


class Rows(NamedTuple):
    """Steps of a batch in any order; each field [R, …].

    old_log_prob, value: by the policy that acted, or by the newest before the first step.
    """

    inputs: Inputs
    action: torch.Tensor
    old_log_prob: torch.Tensor
    value: torch.Tensor
    advantage: torch.Tensor
    return_: torch.Tensor


class Estimates(NamedTuple):
    """Of all steps of a batch, [T, B] each: what Rows has of them, by the same names."""

    old_log_prob: torch.Tensor
    value: torch.Tensor
    advantage: torch.Tensor
    return_: torch.Tensor


class PPO(Algorithm[PpoSettings]):
    Settings = PpoSettings

    def __init__(self, network: TorchNetwork, settings: PpoSettings, seed: int) -> None:
        super().__init__(network, settings, seed, adam_eps=settings.adam_eps)

    def update(self, batch: Batch, update_index: int, fraction_done: float) -> dict[str, float]:
        s = self.settings
        learning_rate = s.learning_rate * (1.0 - fraction_done) if s.anneal_lr else s.learning_rate
        rows = self.rows(batch)
        steps: list[Metrics | None] = []
        for epoch in range(s.update_epochs):
            for minibatch in self.minibatches(rows, s.num_minibatches, update_index, epoch):
                if s.norm_adv:
                    minibatch = minibatch._replace(advantage=normalized(minibatch.advantage))
                steps.append(self.step(self.loss, minibatch, learning_rate, s.max_grad_norm))
            last = steps[-1] if steps else None
            if s.target_kl is not None and last and last["losses/approx_kl"] > s.target_kl:
                break
        return {
            **mean_metrics(steps),
            "losses/explained_variance": explained_variance(*self.values(rows)).item(),
            "charts/learning_rate": learning_rate,
        }

    def rows(self, batch: Batch) -> Rows:
        """The steps of a batch, with their advantages and returns."""
        estimates = self.evaluated(batch) if self.settings.vtrace else self.recorded(batch)
        rows = Rows(
            self.inputs(batch),
            self.as_rows(batch.action),
            *(column.flatten() for column in estimates),
        )
        return self.without_no_ops(rows)

    def values(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and returns of the rows that are steps."""
        is_step = rows.inputs.is_step
        if is_step is None:
            return rows.value, rows.return_
        return rows.value[is_step], rows.return_[is_step]

    def recorded(self, batch: Batch) -> Estimates:
        """What follows from the values that actors recorded."""
        advantage = batch_gae(batch, self.settings.gamma, self.settings.gae_lambda)
        value = batch.value[:-1]
        columns = (batch.behavior_log_prob, value, advantage, advantage + value)
        return Estimates(*map(self.on_device, columns))

    @torch.no_grad()
    def evaluated(self, batch: Batch) -> Estimates:
        """What follows from the values of the newest weights, corrected for those that acted."""
        columns = Columns.of(batch, self.network.device)
        shape, device = batch.reward.shape, self.network.device
        estimates = Estimates(*(torch.zeros(shape, device=device) for _ in Estimates._fields))
        for piece in columns.pieces(columns.with_steps(), max_rows(self.network)):
            found = evaluate(self.network, columns.pick(piece))
            corrected = found.corrected(self.settings.gamma, self.settings.gae_lambda)
            index = torch.from_numpy(piece).to(device)
            estimates.old_log_prob[:, index] = found.log_prob
            estimates.value[:, index] = found.value
            estimates.advantage[:, index] = corrected.advantage
            estimates.return_[:, index] = corrected.value_target
        return estimates

    def loss(self, minibatch: Rows) -> tuple[torch.Tensor, Metrics]:
        """Equation 9 of the paper with its sign turned, and what to watch."""
        s = self.settings
        policy, value = self.network(*minibatch.inputs)
        log_ratio = policy.log_prob(minibatch.action) - minibatch.old_log_prob
        ratio = log_ratio.exp()

        clipped_ratio = ratio.clamp(1.0 - s.clip_coef, 1.0 + s.clip_coef)
        surrogate = torch.min(minibatch.advantage * ratio, minibatch.advantage * clipped_ratio)
        policy_loss = -surrogate.mean()
        value_loss = 0.5 * self._squared_error(value, minibatch).mean()
        entropy = policy.entropy().mean()
        loss = policy_loss - s.ent_coef * entropy + s.vf_coef * value_loss

        with torch.no_grad():
            # "k3" of Schulman's note on approximating KL divergence: unbiased, and never negative
            approx_kl = (ratio - 1.0 - log_ratio).mean()
            clipfrac = ((ratio - 1.0).abs() > s.clip_coef).float().mean()
        return loss, {
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/entropy": entropy,
            "losses/approx_kl": approx_kl,
            "losses/clipfrac": clipfrac,
        }

    def _squared_error(self, value: torch.Tensor, minibatch: Rows) -> torch.Tensor:
        s = self.settings
        error = functional.mse_loss(value, minibatch.return_, reduction="none")
        if not s.clip_vloss:
            return error
        change = (value - minibatch.value).clamp(-s.clip_coef, s.clip_coef)
        clipped = functional.mse_loss(minibatch.value + change, minibatch.return_, reduction="none")
        return torch.max(error, clipped)


def normalized(advantage: torch.Tensor) -> torch.Tensor:
    """With mean 0 and standard deviation 1; a single one is 0."""
    if len(advantage) < 2:
        return torch.zeros_like(advantage)
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)
