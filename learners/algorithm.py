"""What an algorithm is, and what all of them share.

An algorithm of your own is a subclass with settings, and an `update` that turns a batch into steps
of the optimizer; ppo.py is the example to start from.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from rollout.learners import draws
from rollout.learners.optimizer import Adam
from rollout.learners.settings import Settings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch

S = TypeVar("S", bound=Settings)
Rows = TypeVar("Rows", bound=NamedTuple)
Piece = TypeVar("Piece")
Metrics = dict[str, torch.Tensor]

# A pass through the network takes at most so many rows at a time: enough to hide the cost of a
# kernel's start, few enough for the processor's caches, and for memory whatever the batch.
MAX_ROWS = {"cpu": 8192, "cuda": 1 << 18}


class Algorithm(ABC, Generic[S]):
    """Improves a network from batches.

    Settings: model of the table `[algorithm]`; its `needs_value` tells actors to record `value`.
    """

    Settings: ClassVar[type[Settings]]

    def __init__(
        self, network: TorchNetwork, settings: S, seed: int, *, adam_eps: float = 1e-8
    ) -> None:
        self.network = network
        self.settings = settings
        self.seed = seed
        self.optimizer = Adam(network.flat, network.flat_grad, eps=adam_eps)

    @abstractmethod
    def update(self, batch: Batch, update_index: int, fraction_done: float) -> dict[str, float]:
        """Improve the network once; returns metrics by their names in logs.

        The batch may be overwritten once this returns. All randomness is a function of the seed and
        `update_index`. fraction_done: of the run, 0 to 1, for schedules.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that the next update depends on, besides the network's parameters."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.optimizer.load_state_dict(state)

    def on_device(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor: its own memory on a CPU, else a copy that may be under way."""
        return torch.from_numpy(array).to(self.network.device, non_blocking=True)

    def as_rows(self, column: np.ndarray) -> torch.Tensor:
        """A column [T, B, …] of a batch as rows [T·B, …] on the device."""
        return self.on_device(column).flatten(0, 1)

    def without_no_ops(self, rows: Rows, batch: Batch) -> Rows:
        """The rows of a batch that are steps; of most environments, all are."""
        if not batch.no_op.any():
            return rows
        is_step = self.as_rows(~batch.no_op)
        return rows._make(column[is_step] for column in rows)

    def minibatches(
        self, rows: Rows, num_minibatches: int, update_index: int, epoch: int
    ) -> Iterator[Rows]:
        """Share out the rows, in a random order that only seed, update and epoch decide.

        rows: a NamedTuple of tensors, each [R, …]; a minibatch has R / num_minibatches rows, some
        one more where that is no integer, and at least two if there are two.
        """
        num_minibatches = max(1, min(num_minibatches, len(rows[0]) // 2))
        order = self.on_device(draws.permutation(self.seed, len(rows[0]), update_index, epoch))
        # All at once: gathered for each minibatch, the columns would leave the cache in between.
        shuffled = [column.index_select(0, order) for column in rows]
        pieces = (column.tensor_split(num_minibatches) for column in shuffled)
        for columns in zip(*pieces, strict=True):
            if len(columns[0]):
                yield rows._make(columns)

    def step(
        self,
        loss: Callable[[Rows], tuple[torch.Tensor, Metrics]],
        minibatch: Rows,
        learning_rate: float,
        max_grad_norm: float,
    ) -> Metrics | None:
        """One step of the optimizer down the gradient of `loss`; its metrics, or None if skipped.

        loss: mean over rows, and metrics, which are such means as well; both are summed up over
        pieces of the minibatch.
        """
        pieces = self._pieces(minibatch, MAX_ROWS[self.network.device.type])
        return self.step_in_pieces(loss, pieces, learning_rate, max_grad_norm)

    def _pieces(self, minibatch: Rows, max_rows: int) -> Iterator[tuple[Rows, float]]:
        num_rows = len(minibatch[0])
        if num_rows <= max_rows:
            yield minibatch, 1.0
            return
        for start in range(0, num_rows, max_rows):
            piece = minibatch._make(column[start : start + max_rows] for column in minibatch)
            yield piece, len(piece[0]) / num_rows

    def step_in_pieces(
        self,
        loss: Callable[[Piece], tuple[torch.Tensor, Metrics]],
        pieces: Iterable[tuple[Piece, float]],
        learning_rate: float,
        max_grad_norm: float,
    ) -> Metrics | None:
        """Like `step`, down the gradient of the weighted sum of losses.

        pieces: each with its weight, the part of the minibatch that it is; at least one.
        """
        self.network.flat_grad.zero_()
        total: Metrics = {}
        for piece, part in pieces:
            piece_loss, metrics = loss(piece)
            if part < 1.0:
                piece_loss = part * piece_loss
                metrics = {name: part * metric for name, metric in metrics.items()}
            piece_loss.backward()
            for name, metric in {**metrics, "loss": piece_loss}.items():
                total[name] = total[name] + metric.detach() if name in total else metric.detach()
        norm = self.optimizer.step(total.pop("loss"), learning_rate, max_grad_norm)
        if norm is None:
            return None
        return {**total, "losses/grad_norm": norm}


def mean_metrics(steps: list[Metrics | None]) -> dict[str, float]:
    """Means over the steps that were taken, as floats, and how many were not; waits once."""
    taken = [metrics for metrics in steps if metrics is not None]
    skipped = {"losses/skipped_steps": float(len(steps) - len(taken))}
    if not taken:
        return skipped
    names = list(taken[0])
    table = torch.stack([metrics[name] for metrics in taken for name in names])
    return dict(zip(names, table.view(len(taken), -1).mean(0).tolist(), strict=True)) | skipped


def explained_variance(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - Var(target - value) / Var(target): 1 is perfect, 0 no better than a constant."""
    if target.numel() < 2:
        return target.new_zeros(())
    variance, left = target.var(), (target - value).var()
    return torch.where(variance > 0.0, 1.0 - left / variance, 0.0)
