"""Executes a `NetworkSpec` with torch, for learning.

On a CPU the obvious module (`nn.Linear`, `nn.Tanh`) spends half its time beside the arithmetic it
needs, at three places:

- `torch.tanh` costs six times as much as `torch.sigmoid`, from which it follows
  (torch_activations.py); the doubling is inside the product's own alpha and beta;
- a product with few columns (the heads) costs as much as one with 64, its transpose a sixth of
  that: narrow layers are computed with the rows along memory, and their gradients too;
- glibc returns every large temporary to the kernel and faults it in again, page by page:
  `keep_freed_memory` ends that.
"""

import ctypes
import math
from collections.abc import Callable

import numpy as np
import torch

from rollout.learners import torch_conv
from rollout.learners.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
    limited_log_std,
)
from rollout.learners.frames import Frames
from rollout.learners.layers import Activation, Conv, Dense, Gru, Lstm, Normalize
from rollout.learners.network import LOG_STD, OBSERVATION, GaussianHead, Network, NetworkSpec
from rollout.learners.torch_activations import tanh_of_half_
from rollout.learners.torch_core import run_core

NARROW = 16  # a layer with fewer outputs is computed transposed


class TorchNetwork:
    """A network whose parameters are views of one vector, and their gradients of another.

    So publishing weights is one copy, the gradient's norm one call, and an optimizer sees one
    tensor.

    flat, flat_grad: float32 [P] on the device, in the order of `spec.parameters`. Backward passes
    add to `flat_grad`; whoever optimizes sets it to zero.
    """

    def __init__(
        self, spec: Network, parameters: np.ndarray, device: str | torch.device = "cpu"
    ) -> None:
        """parameters: float32 [P], copied."""
        self.spec = spec
        self.device = torch.device(device)
        self.flat = torch.empty(spec.num_parameters, dtype=torch.float32, device=self.device)
        self.flat_grad = torch.zeros_like(self.flat)
        self.parameters: dict[str, torch.Tensor] = {}
        for parameter in spec.parameters:
            view = parameter.view(self.flat)
            if parameter.is_trained:  # the gradient of others stays zero
                view.requires_grad_().grad = parameter.view(self.flat_grad)
            self.parameters[parameter.name] = view
        self.load(parameters)
        if isinstance(spec, NetworkSpec) and any(isinstance(one, Conv) for one in spec.layers):
            self._conv = conv_for(self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.num_parameters} parameters on {self.device})"

    def __call__(
        self,
        observation: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        core_state: torch.Tensor | None = None,
        is_first: torch.Tensor | None = None,
        is_step: torch.Tensor | None = None,
        frames: Frames | None = None,
    ) -> tuple[Distribution, torch.Tensor]:
        """The policy in R observations, and their values [R].

        What is what, algorithm.Inputs says; a network that remembers nothing needs the observation
        only.
        """
        outputs, value, _ = self.run(observation, core_state, is_first, frames)
        if is_step is not None:
            outputs, value = outputs[is_step], value[is_step]
            action_mask = action_mask[is_step] if action_mask is not None else None
        return self.policy(outputs, action_mask), value

    def policy(
        self, outputs: torch.Tensor, action_mask: torch.Tensor | None = None
    ) -> Distribution:
        """The distribution that the head's outputs [R, A] mean."""
        mask = action_mask if action_mask is not None and action_mask.shape[1] else None
        head = self.spec.head
        if isinstance(head, GaussianHead):
            return self._gaussian(head, outputs)
        if len(head.choices) == 1:
            return Categorical(outputs, mask)
        return MultiCategorical(outputs, head.choices, mask)

    def _gaussian(self, head: GaussianHead, outputs: torch.Tensor) -> Distribution:
        if head.std == "dependent":
            mean, log_std = outputs.split(head.size, dim=1)
            log_std = limited_log_std(log_std)
        else:
            mean, log_std = outputs, self.parameters[LOG_STD]
        if head.bounds:
            return SquashedGaussian(mean, log_std, head.log_scale)
        return DiagonalGaussian(mean, log_std)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs and value as `run` gives them, of a network that remembers nothing."""
        outputs, value, _ = self.run(observation)
        return outputs, value

    def run(
        self,
        observation: torch.Tensor,
        core_state: torch.Tensor | None = None,
        is_first: torch.Tensor | None = None,
        frames: Frames | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the head reads [R, A], the value [R], and the core states [R, core_size] after.

        observation, core_state, is_first, frames: as in algorithm.Inputs.
        """
        spec = self.spec
        assert isinstance(spec, NetworkSpec)
        self._check_shape(observation)
        if spec.frame_stack > 1:
            if frames is None:
                raise ValueError(
                    f"a network of frame_stack={spec.frame_stack} reads frames as well"
                )
            observation = frames.stacked(observation)
        buffers = {OBSERVATION: self.inputs(observation)}
        before, after = self._split(core_state), [self.flat.new_empty((len(observation), 0))]
        for layer in spec.layers:
            parameters = [self.parameters[f"{layer.name}.{name}"] for name, _ in layer.shapes()]
            source = buffers[layer.source]
            match layer:
                case Dense():
                    weight, bias = parameters
                    buffers[layer.name] = dense(source, weight, bias, layer.activation)
                case Normalize():
                    mean, scale = parameters
                    normalized = (source - mean) * scale
                    buffers[layer.name] = normalized.clamp(-layer.LIMIT, layer.LIMIT)
                case Conv():
                    weight, bias = parameters
                    buffers[layer.name] = self._conv(layer, source, weight, bias)
                case Lstm() | Gru():
                    assert is_first is not None
                    core_states = run_core(layer, source, parameters, before[layer.name], is_first)
                    buffers[layer.name] = core_states[:, : layer.outputs]
                    after.append(core_states)
        # Columns are taken from the transpose, so that their gradients lie transposed as well.
        outputs, value = spec.outputs, spec.value
        return (
            buffers[outputs.buffer].t()[outputs.start : outputs.stop].t(),
            buffers[value.buffer].t()[value.start],
            torch.cat(after, dim=1),
        )

    def _split(self, core_state: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The core state of each layer that has one."""
        if core_state is None:
            return {}
        assert isinstance(self.spec, NetworkSpec)
        sizes = [layer.core_size for layer in self.spec.layers]
        pieces = core_state.split(sizes, dim=1)
        return {layer.name: piece for layer, piece in zip(self.spec.layers, pieces, strict=True)}

    def inputs(self, observation: torch.Tensor) -> torch.Tensor:
        """What the first layers read, float32 [R, num_inputs]: categories as one-hot.

        observation: [R, *obs_shape], or [R, k, *obs_shape] of a network that stacks k frames.
        """
        spec = self.spec
        assert isinstance(spec, NetworkSpec)
        frames = self.frame_inputs(observation.reshape(-1, *spec.observation_shape))
        runs = spec.frame_inputs // spec.frame_run
        frames = frames.reshape(-1, spec.frame_stack, runs, spec.frame_run)
        return frames.transpose(1, 2).flatten(1).to(torch.float32)

    def frame_inputs(self, observation: torch.Tensor) -> torch.Tensor:
        """What they read of single observations [R, *obs_shape]: [R, frame_inputs]."""
        rows = observation.flatten(1)
        if not self.spec.parts:
            return rows
        in_bytes = rows.contiguous().view(torch.uint8)
        pieces = []
        for part in self.spec.parts:
            dtype = torch.from_numpy(np.empty(0, part.dtype)).dtype
            numbers = in_bytes[:, part.offset : part.offset + part.size_bytes]
            numbers = numbers.clone(memory_format=torch.contiguous_format).view(dtype)
            pieces.append(one_hot(numbers, part.categories) if part.categories else numbers)
        return torch.cat([piece.to(torch.float32) for piece in pieces], dim=1)

    def _check_shape(self, observation: torch.Tensor) -> None:
        if tuple(observation.shape[1:]) != self.spec.observation_shape:
            wanted = ", ".join(("rows", *map(str, self.spec.observation_shape)))
            raise ValueError(f"observation {list(observation.shape)}, expected [{wanted}]")

    def load(self, parameters: np.ndarray) -> None:
        """Copy float32 [P] into the parameters."""
        if parameters.dtype != np.float32 or parameters.shape != tuple(self.flat.shape):
            raise ValueError(
                f"parameters are {parameters.dtype} {list(parameters.shape)}, "
                f"expected float32 {list(self.flat.shape)}"
            )
        self.flat.copy_(torch.tensor(parameters))

    def export(self) -> np.ndarray:
        """A copy of the parameters in host memory, float32 [P]."""
        return self.flat.to("cpu", copy=True).numpy()


def conv_for(device: torch.device) -> Callable[..., torch.Tensor]:
    """Who executes convolutions: conv(layer, source, weight, bias), compiled before this returns.

    Our own kernels have one thread, so torch's are used where it may use several.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        from rollout.learners import compiled_conv  # and Numba, which other networks do without

        compiled_conv.conv_kernels()
        return compiled_conv.conv
    return torch_conv.conv


def one_hot(numbers: torch.Tensor, categories: tuple[int, ...]) -> torch.Tensor:
    """Columns for each category of each number, side by side: float32 [R, sum of categories].

    numbers: integers [R, n]. One that is no category has zeros only.
    """
    index = numbers.long()
    counts = torch.tensor(categories, device=numbers.device)
    is_one = (index >= 0) & (index < counts)
    place = torch.where(is_one, index + counts.cumsum(0) - counts, 0)
    columns = torch.zeros(len(numbers), sum(categories), device=numbers.device)
    return columns.scatter_add_(1, place, is_one.to(torch.float32))  # of all wrong ones, 0 at 0


def dense(
    source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: Activation
) -> torch.Tensor:
    """activation(source @ weight + bias) [R, outputs], from source [R, inputs]."""
    return _Dense.apply(source, weight, bias, activation)  # pyright: ignore[reportReturnType]


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx, source, weight, bias, activation):
        scale = 2.0 if activation == "tanh" else 1.0
        if weight.shape[1] < NARROW:
            transposed = torch.addmm(
                bias.unsqueeze(1), weight.t().contiguous(), source.t(), alpha=scale, beta=scale
            )
            output = transposed.t()
        else:
            output = torch.addmm(bias, source, weight, alpha=scale, beta=scale)
        if activation == "tanh":
            tanh_of_half_(output)
        elif activation == "relu":
            output.relu_()
        ctx.activation = activation
        ctx.save_for_backward(source, weight, output)
        return output

    @staticmethod
    def backward(ctx, *grad_outputs):
        source, weight, output = ctx.saved_tensors
        (grad,) = grad_outputs
        if ctx.activation == "tanh":
            grad = torch.ops.aten.tanh_backward(grad, output)
        elif ctx.activation == "relu":
            grad = torch.ops.aten.threshold_backward(grad, output, 0)
        narrow = weight.shape[1] < NARROW
        grad_weight = (grad.t() @ source).t() if narrow else source.t() @ grad
        grad_source = grad @ weight.t() if ctx.needs_input_grad[0] else None
        return grad_source, grad_weight, grad.sum(0), None


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in torch's memory, for `Batch`: `torch.from_numpy` costs nothing."""
    return _allocate(shape, dtype, pinned=False)


def allocate_pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in memory that a CUDA device copies from while the host goes on."""
    return _allocate(shape, dtype, pinned=True)


def _allocate(shape: tuple[int, ...], dtype: np.dtype, pinned: bool) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    return memory.numpy().view(dtype).reshape(shape)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, in this process; a learner calls it once, at start.

    A pass over 8,192 rows frees and takes some 15 MB of temporaries. By default that is returned to
    the kernel each time, and faulting it in again costs a third of the pass.
    """
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(m_trim_threshold, 1 << 30)
    mallopt(m_top_pad, 64 << 20)
    mallopt(m_mmap_threshold, 32 << 20)  # the greatest it accepts
