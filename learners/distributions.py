"""Distributions over actions, as the learner needs them: log-probabilities and entropies.

Rows of logits lie along memory, [R, A] being the transpose of a contiguous [A, R], because torch's
reductions over a contiguous axis of two or three are ten times slower than over an outer one.
"""

import math
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from rollout.learners.network import LOG_STD_RANGE

# In place of a masked logit: its probability is 0, and 0 times its logarithm is 0 and not NaN.
NEVER = -1e9

# Of Gauss and Hermite: E f(z) ≈ Σ weight · f(node), z standard normal.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(16)
WEIGHTS /= WEIGHTS.sum()


class Distribution(Protocol):
    """A distribution for each of R rows."""

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log π(action) [R], of actions as an unroll has them, a row each."""
        ...

    def entropy(self) -> torch.Tensor:
        """-Σ π log π, or the differential entropy, in nats [R]."""
        ...


class Categorical:
    """One choice among A actions."""

    def __init__(self, logits: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """logits: [R, A]. mask: bool [R, A], what is allowed; None: everything."""
        if logits.ndim != 2:
            raise ValueError(f"logits {list(logits.shape)}, expected [rows, actions]")
        if mask is not None:
            if mask.shape != logits.shape:
                raise ValueError(f"mask {list(mask.shape)} for logits {list(logits.shape)}")
            logits = logits.masked_fill(~mask, NEVER)
        self.log_probs = torch.log_softmax(logits.t(), dim=0).t()

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """action: any integers, [R]; or [R, 1], as spaces of several choices have a single one."""
        rows = len(self.log_probs)
        if action.shape not in ((rows,), (rows, 1)):
            raise ValueError(
                f"actions {list(action.shape)} for log-probabilities "
                f"{list(self.log_probs.shape)}, expected [rows]"
            )
        # nll_loss is a gather whose gradient is a plain loop instead of a scatter
        return -functional.nll_loss(self.log_probs, action.reshape(rows).long(), reduction="none")

    def entropy(self) -> torch.Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class MultiCategorical:
    """Several choices, independent of each other."""

    def __init__(
        self, logits: torch.Tensor, choices: tuple[int, ...], mask: torch.Tensor | None = None
    ) -> None:
        """logits, mask: [R, sum of choices], side by side."""
        masks = mask.split(choices, dim=1) if mask is not None else [None] * len(choices)
        self.parts = [
            Categorical(part, part_mask)
            for part, part_mask in zip(logits.split(choices, dim=1), masks, strict=True)
        ]

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """action: any integers, [R, number of choices]."""
        if action.ndim != 2 or action.shape[1] != len(self.parts):
            raise ValueError(
                f"actions {list(action.shape)}, expected [rows, {len(self.parts)} choices]"
            )
        return sum_of([part.log_prob(a) for part, a in zip(self.parts, action.t(), strict=True)])

    def entropy(self) -> torch.Tensor:
        return sum_of([part.entropy() for part in self.parts])


class DiagonalGaussian:
    """Quantities, each normal by itself."""

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor) -> None:
        """mean: [R, n]. log_std: [n] or [R, n], the logarithm of the standard deviation."""
        if mean.ndim != 2 or log_std.shape not in (mean.shape, mean.shape[1:]):
            raise ValueError(
                f"mean {list(mean.shape)} and log_std {list(log_std.shape)}, "
                "expected [rows, n], and [n] or [rows, n]"
            )
        self.mean, self.log_std = mean, log_std

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """action: float32 [R, n], before it was clipped to any bounds."""
        if action.shape != self.mean.shape:
            raise ValueError(f"actions {list(action.shape)}, expected {list(self.mean.shape)}")
        distance = (action - self.mean) * torch.exp(-self.log_std)
        constant = self.log_std.sum(-1) + 0.5 * math.log(2.0 * math.pi) * self.mean.shape[1]
        return -0.5 * distance.square().sum(-1) - constant

    def entropy(self) -> torch.Tensor:
        of_unit_normal = 0.5 * (1.0 + math.log(2.0 * math.pi))
        total = self.log_std.sum(-1) + of_unit_normal * self.mean.shape[1]
        return total.expand(len(self.mean))


class SquashedGaussian:
    """Quantities between bounds: tanh of such that are normal, scaled (Haarnoja et al. 2018, SAC).

    An action is what is normal, u; the quantity is a linear function of tanh(u).
    """

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor, log_scale: float) -> None:
        """mean, log_std: of u, as DiagonalGaussian has them. log_scale: GaussianHead.log_scale."""
        self.unsquashed = DiagonalGaussian(mean, log_std)
        self.log_scale = log_scale

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """log π of the quantities [R], from action: float32 [R, n], u (the paper's appendix C)."""
        log_slope = log_slope_of_tanh(action).sum(-1)
        return self.unsquashed.log_prob(action) - log_slope - self.log_scale

    def entropy(self) -> torch.Tensor:
        """Of the quantities [R]: that of u, and E log of the slope, which has no closed form.

        By quadrature, so without noise: within 1e-3 nats per quantity for deviations of u up to
        1.6; within 0.3 up to 7.4, where it is -7 (between -1 and 1).
        """
        mean = self.unsquashed.mean.t()  # rows along memory
        std = torch.exp(self.unsquashed.log_std).expand(mean.shape[::-1]).t()
        nodes, weights = mean.new_tensor(NODES), mean.new_tensor(WEIGHTS)
        points = mean + std * nodes.view(-1, 1, 1)
        curved = weights @ functional.logsigmoid(2.0 * points).flatten(1)
        log_slope = 2.0 * (math.log(2.0) - mean + curved.view(mean.shape)).sum(0)
        return self.unsquashed.entropy() + log_slope + self.log_scale


def log_slope_of_tanh(u: torch.Tensor) -> torch.Tensor:
    """log(1 - tanh²(u)), also where tanh(u) rounds to 1."""
    return 2.0 * (math.log(2.0) - u + functional.logsigmoid(2.0 * u))


def limited_log_std(output: torch.Tensor) -> torch.Tensor:
    """Any numbers as log_std, in LOG_STD_RANGE, which says how."""
    lowest, highest = LOG_STD_RANGE
    limit = torch.where(output > 0.0, highest, -lowest)
    return limit * torch.tanh(output / limit)


def sum_of(terms: list[torch.Tensor]) -> torch.Tensor:
    """Their sum in order, without a first zero."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
