"""Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347).

With the details that CleanRL's documentation lists, and its names. One differs on purpose: actors
recorded values and log-probabilities as they acted, with the weights that acted, so nothing of the
batch is evaluated again before the first step.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from rollout.learners.algorithm import Algorithm, Metrics, mean_metrics
from rollout.learners.gae import batch_gae
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch


class Rows(NamedTuple):
    """Steps of a batch in any order; each field [R, …]."""

    observation: torch.Tensor
    action: torch.Tensor
    action_mask: torch.Tensor
    behavior_log_prob: torch.Tensor
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
            "losses/explained_variance": explained_variance(rows.value, rows.return_),
            "charts/learning_rate": learning_rate,
        }

    def rows(self, batch: Batch) -> Rows:
        """The steps of a batch, with the advantages and returns that its recorded values give."""
        advantage = batch_gae(batch, self.settings.gamma, self.settings.gae_lambda)
        return_ = advantage + batch.value[:-1]
        return self.make_rows(Rows, batch, advantage=advantage, return_=return_)

    def loss(self, minibatch: Rows) -> tuple[torch.Tensor, Metrics]:
        """Equation 9 of the paper with its sign turned, and what to watch."""
        s = self.settings
        policy, value = self.network(minibatch.observation, minibatch.action_mask)
        log_ratio = policy.log_prob(minibatch.action) - minibatch.behavior_log_prob
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


def explained_variance(value: torch.Tensor, return_: torch.Tensor) -> float:
    """1 - Var(return - value) / Var(return): 1 is perfect, 0 no better than a constant."""
    if len(value) < 2:
        return 0.0
    variance, left = return_.var(), (return_ - value).var()
    return torch.where(variance > 0.0, 1.0 - left / variance, 0.0).item()
