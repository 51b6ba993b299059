"""Executes a user's own `torch.nn.Module`, for learning and for acting."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from rollout.learners.frames import Frames
from rollout.learners.network import ModuleSpec
from rollout.learners.torch_network import TorchNetwork

BLOCK = 32  # rows of a pass when acting, always; see blocks_of


class ModuleNetwork(TorchNetwork):
    """A module whose parameters are views of one vector, and their gradients of another.

    It is in evaluation mode for good: dropout drops nothing, and what batch normalisation divides
    by stays as it was made. Buffers are constants; those of float32 lie in the vector, too.
    """

    def __init__(
        self, spec: ModuleSpec, module: nn.Module, device: str | torch.device = "cpu"
    ) -> None:
        """module: with parameters of the specification's shapes, of which its vector begins."""
        super().__init__(spec, initial_vector(spec, module), device)
        self.module = module.to(self.device).eval()
        self._input_shape = spec.input_shape
        for name, tensor in tensors_of(self.module):
            view = self.parameters[name]
            tensor.data, tensor.grad = view.data, view.grad
            self.parameters[name] = tensor

    def run(
        self,
        observation: torch.Tensor,
        core_state: torch.Tensor | None = None,
        is_first: torch.Tensor | None = None,
        frames: Frames | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the head reads [R, A], the value [R], and core states [R, 0]: it has none."""
        self._check_shape(observation)
        inputs = self.frame_inputs(observation).to(torch.float32)
        outputs, value = self.module(inputs.unflatten(1, self._input_shape))
        return outputs, value, outputs.new_empty((len(observation), 0))

    def evaluate(self, observation: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the head reads, float32 [N, A], and the values [N], of observations [N, …].

        place: integers [N]. The bits of a row depend on its observation and its place alone: torch
        chooses another order of sums, or another kernel, by the number of rows, and by where a row
        is. So each pass has BLOCK rows, a row lies at its place modulo BLOCK, and one thread
        computes it.
        """
        outputs = np.empty((len(place), self.spec.head.num_outputs), np.float32)
        value = np.empty(len(place), np.float32)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for rows in blocks_of(place):
                block = np.zeros((BLOCK, *observation.shape[1:]), observation.dtype)
                block[place[rows] % BLOCK] = observation[rows]
                with torch.no_grad():
                    both = self.forward(torch.from_numpy(block))
                for array, tensor in zip((outputs, value), both, strict=True):
                    array[rows] = tensor.numpy()[place[rows] % BLOCK]
        finally:
            torch.set_num_threads(num_threads)
        return outputs, value


def blocks_of(place: np.ndarray) -> Iterator[slice]:
    """Rows that share a pass: as long as their places go up, within one block."""
    is_cut = (np.diff(place) <= 0) | (np.diff(place // BLOCK) != 0)
    bounds = [0, *(np.flatnonzero(is_cut) + 1).tolist(), len(place)]
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            yield slice(start, stop)


def initial_vector(spec: ModuleSpec, module: nn.Module) -> np.ndarray:
    """The flat float32 vector [P] of a module as it was made; the head's parameters are 0."""
    flat = np.zeros(spec.num_parameters, np.float32)
    for name, tensor in tensors_of(module):
        spec.parameter(name).view(flat)[...] = tensor.detach().cpu().numpy()
    return flat


def tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What belongs into the flat vector: parameters, and buffers of float32, with their names."""
    yield from module.named_parameters()
    for name, buffer in module.named_buffers():
        if buffer.dtype == torch.float32:
            yield name, buffer
