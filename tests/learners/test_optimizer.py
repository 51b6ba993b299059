import math

import pytest
import torch

from rollout.learners.optimizer import MAX_SKIPPED_STEPS, Adam, NonFiniteLossError

FINE = torch.tensor(1.0)


def make_adam(size: int = 5, eps: float = 1e-5) -> Adam:
    start = torch.linspace(-1.0, 1.0, size)
    return Adam(start.clone(), torch.zeros(size), eps=eps)


def fill_gradient(adam: Adam, seed: int) -> None:
    adam.gradient.normal_(generator=torch.Generator().manual_seed(seed))


def test_twenty_steps_equal_those_of_torch() -> None:
    adam = make_adam()
    leaf = adam.parameters.clone().requires_grad_()
    twin = torch.optim.Adam([leaf], lr=0.01, eps=1e-5)
    for seed in range(20):
        fill_gradient(adam, seed)
        leaf.grad = adam.gradient.clone()
        norm = adam.step(FINE, 0.01, max_grad_norm=1.5)
        twin_norm = torch.nn.utils.clip_grad_norm_([leaf], 1.5)
        twin.step()
        torch.testing.assert_close(norm, twin_norm)
    torch.testing.assert_close(adam.parameters, leaf.detach())


def test_first_step_is_as_long_as_the_learning_rate_whatever_the_gradient() -> None:
    adam = make_adam(eps=1e-12)
    before = adam.parameters.clone()
    adam.gradient.copy_(torch.tensor([1e-3, -1e3, 5.0, -7.0, 1e-2]))
    adam.step(FINE, 0.25, max_grad_norm=math.inf)
    change = torch.tensor([-0.25, 0.25, -0.25, 0.25, -0.25])
    torch.testing.assert_close(adam.parameters, before + change)


def test_long_gradient_is_clipped_and_its_own_length_returned() -> None:
    adam = make_adam(size=2)
    adam.gradient.copy_(torch.tensor([3.0, 4.0]))
    assert adam.step(FINE, 0.1, max_grad_norm=0.5) == 5.0
    torch.testing.assert_close(adam.first_moment, 0.1 * torch.tensor([0.3, 0.4]))


def test_short_gradient_is_left_alone() -> None:
    adam = make_adam(size=2)
    adam.gradient.copy_(torch.tensor([0.3, 0.0]))
    adam.step(FINE, 0.1, max_grad_norm=0.5)
    torch.testing.assert_close(adam.first_moment, torch.tensor([0.03, 0.0]))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step_that_is_not_finite_changes_nothing_and_is_counted(broken: float, where: str) -> None:
    adam = make_adam()
    fill_gradient(adam, 1)
    adam.step(FINE, 0.1, 1.0)
    before = {name: tensor.clone() for name, tensor in adam.state_dict().items()}
    parameters = adam.parameters.clone()
    loss = FINE
    fill_gradient(adam, 2)
    if where == "loss":
        loss = torch.tensor(broken)
    else:
        adam.gradient[3] = broken
    assert adam.step(loss, 0.1, 1.0) is None
    assert torch.equal(adam.parameters, parameters)
    assert torch.equal(adam.first_moment, before["first_moment"])
    assert torch.equal(adam.second_moment, before["second_moment"])
    assert (adam.step_count, adam.skipped_steps) == (1, 1)


def test_steps_skipped_in_a_row_end_in_an_error() -> None:
    adam = make_adam()
    for _ in range(MAX_SKIPPED_STEPS - 1):
        adam.step(torch.tensor(math.nan), 0.1, 1.0)
    with pytest.raises(NonFiniteLossError, match=r"10 optimizer steps in a row.*last: loss nan"):
        adam.step(torch.tensor(math.nan), 0.1, 1.0)


def test_a_good_step_between_skipped_ones_starts_the_count_anew() -> None:
    adam = make_adam()
    for i in range(4 * MAX_SKIPPED_STEPS):
        fill_gradient(adam, i)
        is_good = i % MAX_SKIPPED_STEPS == 0
        adam.step(FINE if is_good else torch.tensor(math.nan), 0.1, 1.0)
    assert adam.skipped_steps == 4 * (MAX_SKIPPED_STEPS - 1)


def test_optimizer_goes_on_from_its_state() -> None:
    adam = make_adam()
    for seed in range(3):
        fill_gradient(adam, seed)
        adam.step(FINE, 0.1, 1.0)
    adam.step(torch.tensor(math.nan), 0.1, 1.0)
    other = make_adam()
    other.parameters.copy_(adam.parameters)
    other.load_state_dict(adam.state_dict())
    for each in (adam, other):
        fill_gradient(each, 9)
        each.step(FINE, 0.1, 1.0)
    assert torch.equal(adam.parameters, other.parameters)
    assert other.skipped_steps == 1


def test_state_is_a_copy() -> None:
    adam = make_adam()
    state = adam.state_dict()
    fill_gradient(adam, 1)
    adam.step(FINE, 0.1, 1.0)
    assert not state["first_moment"].any()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameters \[3\] and gradient \[4\]"):
        Adam(torch.zeros(3), torch.zeros(4))
