import math

import pytest
import torch
from torch import distributions as reference

from rollout.learners.distributions import Categorical, DiagonalGaussian, MultiCategorical


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 3.0


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_log_prob_and_entropy_are_those_of_torch(logits: torch.Tensor, dtype: torch.dtype) -> None:
    action = (torch.arange(50) % 7).to(dtype)
    expected, found = reference.Categorical(logits=logits), Categorical(logits)
    torch.testing.assert_close(found.log_prob(action), expected.log_prob(action.long()))
    torch.testing.assert_close(found.entropy(), expected.entropy())


def test_gradients_are_those_of_torch(logits: torch.Tensor) -> None:
    action = torch.arange(50) % 7

    def gradient(use_torch: bool) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        policy = reference.Categorical(logits=leaf) if use_torch else Categorical(leaf)
        (policy.log_prob(action) * torch.arange(50) + 3.0 * policy.entropy()).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(use_torch=False), gradient(use_torch=True))


def test_equal_logits_have_the_greatest_entropy() -> None:
    assert Categorical(torch.full((1, 5), 2.0)).entropy().item() == pytest.approx(math.log(5))


def test_huge_logits_stay_finite() -> None:
    policy = Categorical(torch.tensor([[1e4, -1e4]]))
    assert policy.log_prob(torch.tensor([1])).item() == -2e4
    assert policy.entropy().item() == 0.0


def test_masked_choice_is_one_among_those_that_are_left(logits: torch.Tensor) -> None:
    mask = torch.rand(50, 7, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[:, 3] = True
    leaf = logits.clone().requires_grad_()
    policy = Categorical(leaf, mask)
    (policy.log_prob(torch.full((50,), 3)) + policy.entropy()).sum().backward()
    assert leaf.grad is not None
    for row in range(50):
        left = logits[row, mask[row]].clone().requires_grad_()
        expected = reference.Categorical(logits=left)
        place = torch.tensor(int(mask[row, :3].sum()))
        (expected.log_prob(place) + expected.entropy()).backward()
        torch.testing.assert_close(policy.entropy()[row], expected.entropy())
        torch.testing.assert_close(
            policy.log_prob(torch.full((50,), 3))[row], expected.log_prob(place)
        )
        torch.testing.assert_close(leaf.grad[row, mask[row]], left.grad)
    assert (leaf.grad[~mask] == 0).all()
    assert (policy.log_probs.exp()[~mask] == 0).all()


def test_several_choices_are_independent(logits: torch.Tensor) -> None:
    action = torch.stack([torch.arange(50) % 2, torch.arange(50) % 5], dim=1).to(torch.int32)
    mask = torch.ones(50, 7, dtype=torch.bool)
    mask[:, 6] = False
    parts = [Categorical(logits[:, :2]), Categorical(logits[:, 2:], mask[:, 2:])]
    policy = MultiCategorical(logits, (2, 5), mask)
    torch.testing.assert_close(policy.entropy(), parts[0].entropy() + parts[1].entropy())
    torch.testing.assert_close(
        policy.log_prob(action), parts[0].log_prob(action[:, 0]) + parts[1].log_prob(action[:, 1])
    )


def test_gaussian_is_that_of_torch() -> None:
    random = torch.Generator().manual_seed(1)
    mean, action = torch.randn(2, 50, 3, generator=random).unbind()
    log_std = torch.tensor([0.0, -1.5, 2.0])

    def gradients(use_torch: bool) -> tuple[torch.Tensor, ...]:
        leaves = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
        if use_torch:
            normal = reference.Normal(leaves[0], leaves[1].exp())
            policy = reference.Independent(normal, 1)
        else:
            policy = DiagonalGaussian(*leaves)
        log_prob, entropy = policy.log_prob(action), policy.entropy()
        assert log_prob.shape == entropy.shape == (50,)
        return (log_prob, entropy, *torch.autograd.grad((log_prob + entropy).sum(), leaves))

    for found, expected in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_wrong_shapes_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"logits \[7\], expected \[rows, actions\]"):
        Categorical(logits[0])
    with pytest.raises(ValueError, match=r"mask \[50, 6\] for logits \[50, 7\]"):
        Categorical(logits, torch.ones(50, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"actions \[50, 1\]"):
        Categorical(logits).log_prob(torch.zeros(50, 1))
    with pytest.raises(ValueError, match=r"actions \[50\], expected \[rows, 2 choices\]"):
        MultiCategorical(logits, (2, 5)).log_prob(torch.zeros(50))
    with pytest.raises(ValueError, match=r"mean \[50, 7\] and log_std \[2\]"):
        DiagonalGaussian(logits, torch.zeros(2))
    with pytest.raises(ValueError, match=r"actions \[50\], expected \[50, 7\]"):
        DiagonalGaussian(logits, torch.zeros(7)).log_prob(torch.zeros(50))
