import math

import pytest
import torch
from torch.distributions import Categorical

from rollout.learners import distributions


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 3.0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_log_prob_and_entropy_are_those_of_torch(logits: torch.Tensor, dtype: torch.dtype) -> None:
    action = (torch.arange(50) % 7).to(dtype)
    expected = Categorical(logits=logits)
    log_probs = distributions.log_probs(logits)
    torch.testing.assert_close(
        distributions.log_prob(log_probs, action), expected.log_prob(action.long())
    )
    torch.testing.assert_close(distributions.entropy(log_probs), expected.entropy())


def test_gradients_are_those_of_torch(logits: torch.Tensor) -> None:
    action = torch.arange(50) % 7

    def gradient(use_torch: bool) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        if use_torch:
            distribution = Categorical(logits=leaf)
            log_prob, entropy = distribution.log_prob(action), distribution.entropy()
        else:
            log_probs = distributions.log_probs(leaf)
            log_prob = distributions.log_prob(log_probs, action)
            entropy = distributions.entropy(log_probs)
        (log_prob * torch.arange(50) + 3.0 * entropy).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(use_torch=False), gradient(use_torch=True))


def test_equal_logits_have_the_greatest_entropy() -> None:
    log_probs = distributions.log_probs(torch.full((1, 5), 2.0))
    assert distributions.entropy(log_probs).item() == pytest.approx(math.log(5))


def test_huge_logits_stay_finite() -> None:
    log_probs = distributions.log_probs(torch.tensor([[1e4, -1e4]]))
    assert distributions.log_prob(log_probs, torch.tensor([1])).item() == -2e4
    assert distributions.entropy(log_probs).item() == 0.0


def test_wrong_shapes_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"logits \[7\], expected \[rows, actions\]"):
        distributions.log_probs(logits[0])
    with pytest.raises(ValueError, match=r"actions \[50, 1\]"):
        distributions.log_prob(logits, torch.zeros(50, 1))
    with pytest.raises(ValueError, match=r"expected \[rows, actions\]"):
        distributions.entropy(logits[0])
