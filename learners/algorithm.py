"""What an algorithm is, and what all of them share.

An algorithm of your own is a subclass with settings, and an `update` that turns a batch into steps
of the optimizer; README.md beside this file has an example to start from, ppo.py is a longer one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from rollout.learners import draws
from rollout.learners.optimizer import Adam
from rollout.learners.settings import AlgorithmSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch

S = TypeVar("S", bound=AlgorithmSettings)
Rows = TypeVar("Rows", bound=NamedTuple)
Metrics = dict[str, torch.Tensor]

# A pass through the network takes at most so many rows at a time: enough to hide the cost of a
# kernel's start, few enough for the processor's caches, and for memory whatever the batch.
MAX_ROWS = {"cpu": 8192, "cuda": 1 << 18}


class Algorithm(ABC, Generic[S]):
    """Improves a network from batches.

    Settings: model of the table `[algorithm]`; its `needs_value` tells actors to record `value`.
    """

    Settings: ClassVar[type[AlgorithmSettings]]

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
        `update_index`. fraction_done: of the run, 0 to 1, for schedules; 0 unless the settings'
        `anneal_lr` is true.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that the next update depends on, besides the network's parameters."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.optimizer.load_state_dict(state)

    @property
    def skipped_steps(self) -> int:
        """Steps since the beginning whose loss or gradient was not finite."""
        return self.optimizer.skipped_steps

    def on_device(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor: its own memory on a CPU, else a copy that may be under way."""
        return torch.from_numpy(array).to(self.network.device, non_blocking=True)

    def as_rows(self, column: np.ndarray) -> torch.Tensor:
        """A column [T, B, …] of a batch as rows [T·B, …] on the device."""
        return self.on_device(column).flatten(0, 1)

    def make_rows(self, kind: type[Rows], batch: Batch, **computed: np.ndarray) -> Rows:
        """The steps of a batch as rows on the device, without steps that are none.

        kind: a NamedTuple of tensors. Its fields are those of `computed`, each [T, B, …], and else
        the columns of the batch by their names: `observation` [R, *obs_shape], `action`, … Row T of
        an observation or value is left out.
        """
        T = len(batch.reward)
        columns = [computed[n] if n in computed else getattr(batch, n) for n in kind._fields]
        return self.without_no_ops(kind._make(self.as_rows(c[:T]) for c in columns), batch)

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
        num_rows = len(minibatch[0])
        max_rows = MAX_ROWS[self.network.device.type]
        self.network.flat_grad.zero_()
        total: Metrics = {}
        for start in range(0, num_rows, max_rows):
            piece = minibatch
            if num_rows > max_rows:
                piece = minibatch._make(column[start : start + max_rows] for column in minibatch)
            piece_loss, metrics = _checked(loss(piece))
            part = len(piece[0]) / num_rows
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


def _checked(returned: Any) -> tuple[torch.Tensor, Metrics]:
    """What a loss returned. Raises TypeError or ValueError for what no step can be taken from."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise TypeError(f"the loss returned {_shown(returned)}; wanted (loss, metrics)")
    loss, metrics = returned
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise ValueError(
            f"the loss is {_shown(loss)}; wanted a mean over rows, a tensor of shape []"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss carries no gradient; it must come from self.network(…) without detach, item "
            "or torch.no_grad in between"
        )
    for name, metric in metrics.items():
        if not isinstance(metric, torch.Tensor) or metric.ndim:
            raise ValueError(f"metric {name!r} is {_shown(metric)}; wanted a tensor of shape []")
    return loss, metrics


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"an object of type {type(value).__name__}"


def mean_metrics(steps: list[Metrics | None]) -> dict[str, float]:
    """Means over the steps that were taken, as floats, and how many were not; waits once."""
    taken = [metrics for metrics in steps if metrics is not None]
    skipped = {"losses/skipped_steps": float(len(steps) - len(taken))}
    if not taken:
        return skipped
    names = list(taken[0])
    table = torch.stack([metrics[name] for metrics in taken for name in names])
    return dict(zip(names, table.view(len(taken), -1).mean(0).tolist(), strict=True)) | skipped
