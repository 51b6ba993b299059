"""The categorical distribution over actions, as pure functions of logits.

Rows lie along memory here, [R, A] being the transpose of a contiguous [A, R], because torch's
reductions over a contiguous axis of two or three are ten times slower than over an outer one.
"""

import torch
from torch.nn import functional


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """log π(a) of every action a, [R, A], from logits [R, A]."""
    if logits.ndim != 2:
        raise ValueError(f"logits {list(logits.shape)}, expected [rows, actions]")
    return torch.log_softmax(logits.t(), dim=0).t()


def log_prob(log_probs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """log π(action) [R], from all log-probabilities [R, A] and actions, any integers, [R]."""
    if log_probs.ndim != 2 or action.shape != log_probs.shape[:1]:
        raise ValueError(
            f"log-probabilities {list(log_probs.shape)} and actions {list(action.shape)}, "
            "expected [rows, actions] and [rows]"
        )
    # nll_loss is a gather whose gradient is a plain loop instead of a scatter
    return -functional.nll_loss(log_probs, action.long(), reduction="none")


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """-Σ π(a) log π(a), in nats, [R], from all log-probabilities [R, A]."""
    if log_probs.ndim != 2:
        raise ValueError(f"log-probabilities {list(log_probs.shape)}, expected [rows, actions]")
    return -(log_probs.exp() * log_probs).sum(-1)
