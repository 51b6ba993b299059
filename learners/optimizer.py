"""Adam (Kingma and Ba, ICLR 2015, arXiv 1412.6980) over one flat tensor.

Ours because constructing torch's first optimizer imports torch._dynamo, a second in a run that is
to end after four; and because one tensor needs none of torch.optim's bookkeeping.
"""

import math

import torch

MAX_SKIPPED_STEPS = 10


class NonFiniteLossError(ArithmeticError):
    """Losses or gradients are NaN or infinite again and again: learning has broken down."""


class Adam:
    """Algorithm 1 of the paper, behind a clip of the gradient's norm and a guard.

    A loss or gradient that is not finite changes nothing but the counts.

    skipped_steps: how many steps the guard refused.   step_count: how many were taken (t).
    max_skipped_steps: in a row, at which it gives up.
    """

    def __init__(
        self,
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """parameters, gradient: float32 [P]; the first is updated in place, both are clobbered."""
        if parameters.shape != gradient.shape or parameters.ndim != 1:
            raise ValueError(
                f"parameters {list(parameters.shape)} and gradient {list(gradient.shape)}, "
                "expected [P] and [P]"
            )
        self.parameters = parameters
        self.gradient = gradient
        self.betas = betas
        self.eps = eps
        self.max_skipped_steps = MAX_SKIPPED_STEPS
        self.first_moment = torch.zeros_like(parameters)
        self.second_moment = torch.zeros_like(parameters)
        self.step_count = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0

    def __repr__(self) -> str:
        return (
            f"Adam({self.parameters.numel()} parameters, {self.step_count} steps, "
            f"{self.skipped_steps} skipped)"
        )

    @torch.no_grad()
    def step(
        self, loss: torch.Tensor, learning_rate: float, max_grad_norm: float
    ) -> torch.Tensor | None:
        """Update from `gradient`, shortened to `max_grad_norm`, unless it or `loss` is not finite.

        Returns the gradient's norm before clipping, or None if the step was skipped. Raises
        NonFiniteLossError when too many in a row were. Waits once for the device.
        """
        norm = torch.linalg.vector_norm(self.gradient)
        loss_found, norm_found = torch.stack((loss.detach(), norm)).tolist()
        if not (math.isfinite(loss_found) and math.isfinite(norm_found)):
            self._skip(loss_found, norm_found)
            return None
        self.skipped_in_a_row = 0
        self.step_count += 1
        beta_1, beta_2 = self.betas
        if norm_found > max_grad_norm:
            self.gradient.mul_(max_grad_norm / norm_found)
        self.first_moment.lerp_(self.gradient, 1 - beta_1)
        self.second_moment.mul_(beta_2).addcmul_(self.gradient, self.gradient, value=1 - beta_2)
        correction_1 = 1 - beta_1**self.step_count
        correction_2 = 1 - beta_2**self.step_count
        denominator = self.second_moment.sqrt().div_(math.sqrt(correction_2)).add_(self.eps)
        self.parameters.addcdiv_(
            self.first_moment, denominator, value=-learning_rate / correction_1
        )
        return norm

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skipped_steps:
            raise NonFiniteLossError(
                f"{self.skipped_in_a_row} optimizer steps in a row had a loss or gradient that is "
                f"not finite (last: loss {loss}, gradient norm {norm}); "
                "try a smaller learning_rate, and rewards of another scale"
            )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all that the next step depends on."""
        return {
            "first_moment": self.first_moment.clone(),
            "second_moment": self.second_moment.clone(),
            **{name: torch.tensor(getattr(self, name)) for name in _COUNTS},
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.first_moment.copy_(state["first_moment"])
        self.second_moment.copy_(state["second_moment"])
        for name in _COUNTS:
            setattr(self, name, int(state[name]))


_COUNTS = ("step_count", "skipped_steps", "skipped_in_a_row")
