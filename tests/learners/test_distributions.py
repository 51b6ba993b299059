import math

import pytest
import torch
from scipy import integrate
from torch import distributions as reference
from torch.distributions import AffineTransform, TanhTransform

from rollout.learners.distributions import (
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
    limited_log_std,
)
from rollout.learners.network import LOG_STD_RANGE, GaussianHead


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


@pytest.mark.parametrize("is_dependent", [False, True])
def test_gaussian_is_that_of_torch(is_dependent: bool) -> None:
    random = torch.Generator().manual_seed(1)
    mean, action = torch.randn(2, 50, 3, generator=random).unbind()
    log_std = torch.tensor([0.0, -1.5, 2.0])
    if is_dependent:
        log_std = log_std + 0.3 * torch.randn(50, 3, generator=random)

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


BOUNDS = ((-2.0, 2.0), (0.0, 0.5), (-1.0, 3.0))
LOG_2 = math.log(2.0)
LOG_SCALE = GaussianHead(3, "dependent", BOUNDS).log_scale


def reference_squashed(mean: torch.Tensor, log_std: torch.Tensor) -> reference.Distribution:
    """Between BOUNDS, of torch's own parts."""
    low, high = torch.tensor(BOUNDS, dtype=mean.dtype).unbind(1)
    normal = reference.Normal(mean, log_std.exp())
    squash = [TanhTransform(), AffineTransform((low + high) / 2, (high - low) / 2)]
    return reference.TransformedDistribution(normal, squash)


@pytest.mark.parametrize("is_dependent", [False, True])
def test_log_prob_of_squashed_quantities_is_that_of_torch(is_dependent: bool) -> None:
    random = torch.Generator().manual_seed(1)
    mean, u = torch.randn(2, 50, 3, generator=random, dtype=torch.float64).unbind()
    log_std = torch.tensor([0.0, -1.5, 0.7], dtype=torch.float64)
    if is_dependent:
        log_std = log_std + 0.3 * torch.randn(50, 3, generator=random, dtype=torch.float64)
    low, high = torch.tensor(BOUNDS, dtype=torch.float64).unbind(1)
    expected = reference_squashed(mean, log_std).log_prob(low + (high - low) * (u.tanh() + 1) / 2)
    found = SquashedGaussian(mean, log_std, LOG_SCALE).log_prob(u)
    torch.testing.assert_close(found, expected.sum(-1), rtol=1e-9, atol=1e-9)
    in_single = SquashedGaussian(mean.float(), log_std.float(), LOG_SCALE).log_prob(u.float())
    torch.testing.assert_close(in_single.double(), found, rtol=1e-5, atol=1e-5)


def test_squashed_quantities_are_somewhere_between_the_bounds() -> None:
    """The density integrates to 1 over them."""
    mean, log_std = torch.tensor([[0.8]]).double(), torch.tensor([[0.1]]).double()
    head = GaussianHead(1, bounds=((-1.0, 4.0),))
    x = torch.linspace(-1.0, 4.0, 200_001, dtype=torch.float64)[1:-1]
    u = torch.atanh((x + 1.0) / 2.5 - 1.0).unsqueeze(1)
    rows = mean.expand(len(u), 1), log_std.expand(len(u), 1)
    density = SquashedGaussian(*rows, head.log_scale).log_prob(u).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("mean", "log_std", "error"),
    [
        ([0.0, 0.0, 0.0], [0.0, -4.0, 0.5], 2e-3),
        ([1.5, -0.3, 4.0], [-1.0, 0.3, -0.5], 1e-3),
        ([-2.0, 0.7, 0.0], [1.0, 2.0, 1.5], 0.4),
    ],
)
def test_entropy_of_squashed_quantities_is_the_integral(
    mean: list[float], log_std: list[float], error: float
) -> None:
    """And what drawing them says."""

    def integral(m: float, s: float, width: float) -> float:
        def at(z: float) -> float:
            u, density = m + s * z, math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
            log_density = math.log(density / s) - math.log(width / 2.0)
            a = abs(u)
            return -density * (log_density + 2.0 * (a + math.log1p(math.exp(-2.0 * a)) - LOG_2))

        kink = min(max(-m / s, -12.0), 12.0)
        return sum(integrate.quad(at, *ends)[0] for ends in ((-13.0, kink), (kink, 13.0)))

    widths = [high - low for low, high in BOUNDS]
    wanted = sum(map(integral, mean, [math.exp(x) for x in log_std], widths))
    rows = torch.tensor([mean]).double(), torch.tensor([log_std]).double()
    found = SquashedGaussian(*rows, LOG_SCALE).entropy()
    assert found.shape == (1,)
    assert found.item() == pytest.approx(wanted, abs=error)

    random = torch.Generator().manual_seed(0)
    u = rows[0] + rows[1].exp() * torch.randn(200_000, 3, generator=random, dtype=torch.float64)
    many = SquashedGaussian(rows[0].expand_as(u), rows[1].expand_as(u), LOG_SCALE)
    surprise = -many.log_prob(u)
    deviation = surprise.std().item() / math.sqrt(len(u))
    assert surprise.mean().item() == pytest.approx(found.item(), abs=4.0 * deviation + error)


def test_gradients_of_squashed_quantities_are_differences() -> None:
    random = torch.Generator().manual_seed(1)
    mean, output, action = torch.randn(3, 4, 3, generator=random, dtype=torch.float64).unbind()

    def of_a_policy(mean: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        policy = SquashedGaussian(mean, limited_log_std(4.0 * output), LOG_SCALE)
        return policy.log_prob(3.0 * action), policy.entropy()

    leaves = mean.requires_grad_(), output.requires_grad_()
    assert torch.autograd.gradcheck(of_a_policy, leaves)


@pytest.mark.parametrize("output", [-1e30, -50.0, 0.0, 50.0, 1e30])
def test_extreme_quantities_have_finite_log_probs_and_gradients(output: float) -> None:
    mean = torch.tensor([[-1e4, 0.0, 30.0, 1e4]], requires_grad=True)
    leaf = torch.full((1, 4), output, requires_grad=True)
    log_std = limited_log_std(leaf)
    policy = SquashedGaussian(mean, log_std, 0.0)
    action = mean.detach() + log_std.detach().exp() * torch.tensor([[3.0, -3.0, 0.0, 1.0]])
    log_prob, entropy = policy.log_prob(action), policy.entropy()
    gradients = torch.autograd.grad((log_prob + entropy).sum(), (mean, leaf))
    for found in (log_prob, entropy, *gradients):
        assert found.isfinite().all()


def test_log_std_of_an_output_is_near_it_and_in_its_range() -> None:
    output = torch.linspace(-40.0, 40.0, 8001, dtype=torch.float64, requires_grad=True)
    found = limited_log_std(output)
    (slope,) = torch.autograd.grad(found.sum(), output)
    lowest, highest = LOG_STD_RANGE
    assert (found >= lowest).all() and (found <= highest).all()
    assert (found.diff() >= 0.0).all()
    near = output.detach().abs() < 0.1
    torch.testing.assert_close(found[near], output[near], rtol=1e-2, atol=1e-9)
    assert (slope[(output > -2.5 * 5.0) & (output < 2.5 * 2.0)] > 0.02).all(), "a way back"


def test_single_choice_may_have_an_axis_of_its_own(logits: torch.Tensor) -> None:
    action = torch.arange(len(logits)) % logits.shape[1]
    policy = Categorical(logits)
    assert torch.equal(policy.log_prob(action[:, None]), policy.log_prob(action))


def test_wrong_shapes_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"logits \[7\], expected \[rows, actions\]"):
        Categorical(logits[0])
    with pytest.raises(ValueError, match=r"mask \[50, 6\] for logits \[50, 7\]"):
        Categorical(logits, torch.ones(50, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"actions \[50, 2\]"):
        Categorical(logits).log_prob(torch.zeros(50, 2))
    with pytest.raises(ValueError, match=r"actions \[50\], expected \[rows, 2 choices\]"):
        MultiCategorical(logits, (2, 5)).log_prob(torch.zeros(50))
    with pytest.raises(ValueError, match=r"mean \[50, 7\] and log_std \[2\]"):
        DiagonalGaussian(logits, torch.zeros(2))
    with pytest.raises(ValueError, match=r"mean \[50, 7\] and log_std \[50, 2\]"):
        DiagonalGaussian(logits, torch.zeros(50, 2))
    with pytest.raises(ValueError, match=r"actions \[50\], expected \[50, 7\]"):
        DiagonalGaussian(logits, torch.zeros(7)).log_prob(torch.zeros(50))
