"""IMPALA (Espeholt et al., ICML 2018, arXiv 1802.01561).

Each batch is used once. Actors are behind the learner, and V-trace corrects for that: the learner
evaluates their steps with its own network, and weighs each by how much likelier its action is now.

What differs from the paper on purpose: the loss is the mean over steps where the paper has the sum,
so that a learning rate suits batches of any size; the optimizer is Adam.
"""

from collections.abc import Iterator

import numpy as np
import torch

from rollout.learners import draws
from rollout.learners.algorithm import (
    Algorithm,
    Metrics,
    explained_variance,
    max_rows,
    mean_metrics,
)
from rollout.learners.columns import Columns, evaluate
from rollout.learners.impala_settings import ImpalaSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch


class IMPALA(Algorithm[ImpalaSettings]):
    Settings = ImpalaSettings

    def __init__(self, network: TorchNetwork, settings: ImpalaSettings, seed: int) -> None:
        super().__init__(network, settings, seed, adam_eps=settings.adam_eps)

    def update(self, batch: Batch, update_index: int, fraction_done: float) -> dict[str, float]:
        s = self.settings
        learning_rate = s.learning_rate * (1.0 - fraction_done) if s.anneal_lr else s.learning_rate
        batch_columns = Columns.of(batch, self.network.device)
        steps: list[Metrics | None] = []
        for minibatch in self.minibatches_of_columns(batch_columns, update_index):
            pieces = self.pieces(batch_columns, minibatch)
            steps.append(self.step_in_pieces(self.loss, pieces, learning_rate, s.max_grad_norm))
        return {**mean_metrics(steps), "charts/learning_rate": learning_rate}

    def minibatches_of_columns(self, columns: Columns, update_index: int) -> list[np.ndarray]:
        """Which columns are in each minibatch: in a random order that seed and update decide.

        V-trace needs whole unrolls, so environments are shared out, not steps. Columns without a
        step are in none.
        """
        chosen = columns.with_steps()
        count = min(self.settings.num_minibatches, len(chosen))
        if count > 1:
            chosen = chosen[draws.permutation(self.seed, len(chosen), update_index, 0)]
        return np.array_split(chosen, count) if count else []

    def pieces(self, columns: Columns, minibatch: np.ndarray) -> Iterator[tuple[Columns, float]]:
        """The minibatch by as many columns as a pass may take, each with its part of the steps."""
        num_steps = columns.num_steps(minibatch)
        for piece in columns.pieces(minibatch, max_rows(self.network)):
            yield columns.pick(piece), columns.num_steps(piece) / num_steps

    def loss(self, columns: Columns) -> tuple[torch.Tensor, Metrics]:
        """The gradients of section 4.2 as one loss, to go down, and what to watch."""
        s = self.settings
        found = evaluate(self.network, columns)
        value_target, advantage = found.corrected(s.gamma, s.gae_lambda, s.rho_clip, s.c_clip)

        policy_loss = -columns.mean(advantage * found.log_prob)
        value_loss = 0.5 * columns.mean((value_target - found.value).square())
        entropy = columns.mean(found.policy.entropy().view_as(advantage))
        loss = policy_loss - s.ent_coef * entropy + s.vf_coef * value_loss

        with torch.no_grad():
            ratio = found.log_ratio.exp()
            # of the behavior policy and this one, estimated as in PPO
            approx_kl = columns.mean(ratio - 1.0 - found.log_ratio)
            rho = columns.mean(ratio.clamp(max=s.rho_clip))
        return loss, {
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/entropy": entropy,
            "losses/approx_kl": approx_kl,
            "losses/rho": rho,
            "losses/explained_variance": explained_variance(
                columns.steps(found.value.detach()), columns.steps(value_target)
            ),
        }
