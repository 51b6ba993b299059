"""What an algorithm is, and what all of them share.

An algorithm of your own is a subclass with settings, and an `update` that turns a batch into steps
of the optimizer; README.md beside this file has an example to start from, ppo.py is a longer one.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from rollout.learners import draws
from rollout.learners.frames import Frames, UnrollFrames
from rollout.learners.normalization import Normalization
from rollout.learners.optimizer import Adam
from rollout.learners.settings import AlgorithmSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch

S = TypeVar("S", bound=AlgorithmSettings)
Rows = TypeVar("Rows", bound=NamedTuple)
Piece = TypeVar("Piece")
Metrics = dict[str, torch.Tensor]

NORMALIZATION = "normalization/"  # begins the names of its statistics in a checkpoint

# A pass through the network takes at most so many rows at a time: enough to hide the cost of a
# kernel's start, few enough for the processor's caches. And so many numbers in all of its layers,
# float32, which bounds memory whatever the batch.
MAX_ROWS = {"cpu": 8192, "cuda": 1 << 18}
MAX_NUMBERS = {"cpu": 1 << 26, "cuda": 1 << 31}


def max_rows(network: TorchNetwork) -> int:
    """How many rows a pass through the network takes at most."""
    kind = network.device.type
    return max(1, min(MAX_ROWS[kind], MAX_NUMBERS[kind] // network.spec.row_numbers))


class Inputs(NamedTuple):
    """What a network reads of R rows, in the order in which it takes them.

    With a core, rows are T steps of each of C columns, in the order (t, column), and R = T·C;
    without one each row is a column.

    observation: [R, *obs_shape] of any dtype. action_mask: bool [R, A], what is allowed; [R, 0] for
    everything. core_state: float32 [C, core_size], before step 0. is_first: bool [R], where the
    core state is zeros instead, because an episode begins. is_step: bool [R], the rows that are
    steps, of which alone it says anything; None for all. frames: what comes before each observation
    where the network reads the last few, else None.
    """

    observation: torch.Tensor
    action_mask: torch.Tensor
    core_state: torch.Tensor
    is_first: torch.Tensor
    is_step: torch.Tensor | None = None
    frames: Frames | None = None


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
        self._normalization = Normalization(network, settings)

    def train_on(self, batch: Batch, update_index: int, fraction_done: float) -> dict[str, float]:
        """What learners call: `update`, with rewards and observations normalized where wanted.

        The update sees scaled rewards, and observations by the statistics of the version that it
        begins with; those of the next version are of this batch as well.
        """
        reward = batch.reward
        batch.reward = self._normalization.scaled_reward(batch)
        try:
            metrics = self.update(batch, update_index, fraction_done)
        finally:
            batch.reward = reward
        self._normalization.read_observations(batch)
        return metrics

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

    def checkpoint_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds: `state_dict`, and what normalization goes by.

        So the `state_dict` of a subclass need not know of normalization, and cannot forget it.
        """
        normalization = self._normalization.state_dict()
        return self.state_dict() | {NORMALIZATION + name: x for name, x in normalization.items()}

    def load_checkpoint_state(self, state: dict[str, torch.Tensor]) -> None:
        own = {name: x for name, x in state.items() if not name.startswith(NORMALIZATION)}
        self.load_state_dict(own)
        self._normalization.load_state_dict(
            {name.removeprefix(NORMALIZATION): state[name] for name in state.keys() - own.keys()}
        )

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

    def inputs(self, batch: Batch) -> Inputs:
        """What the network reads of the batch's steps."""
        rows, core_state = batch.reward.size, self.on_device(batch.core_state)
        frames = UnrollFrames.of(
            *map(self.on_device, (batch.observation, batch.frames, batch.is_first))
        )
        return Inputs(
            observation=self.as_rows(batch.observation[:-1]),
            action_mask=self.as_rows(batch.action_mask),
            core_state=core_state if core_state.shape[1] else core_state.new_empty((rows, 0)),
            is_first=self.as_rows(batch.is_first[:-1]),
            is_step=self.as_rows(~batch.no_op) if batch.no_op.any() else None,
            frames=frames.of_steps() if frames else None,
        )

    def make_rows(self, kind: type[Rows], batch: Batch, **computed: np.ndarray) -> Rows:
        """The steps of a batch as rows on the device, without steps that are none.

        kind: a NamedTuple of tensors, `inputs` being what the network reads. Its other fields are
        those of `computed`, each [T, B, …], and else the columns of the batch by their names:
        `action` [R, *action_shape], `reward`, … Row T of a value is left out.
        """
        T, names = len(batch.reward), [name for name in kind._fields if name != "inputs"]
        columns = {n: computed[n] if n in computed else getattr(batch, n) for n in names}
        rows: dict[str, Any] = {name: self.as_rows(column[:T]) for name, column in columns.items()}
        rows["inputs"] = self.inputs(batch)
        return self.without_no_ops(kind._make(rows[name] for name in kind._fields))

    def without_no_ops(self, rows: Rows) -> Rows:
        """The rows that are steps; of a network with a core all, as it needs them."""
        inputs = inputs_of(rows)
        is_step = inputs.is_step
        if is_step is None or inputs.core_state.shape[1]:
            return rows
        steps = _of_each(rows, lambda x: x[is_step])
        return steps._replace(inputs=inputs_of(steps)._replace(is_step=None))

    def minibatches(
        self, rows: Rows, num_minibatches: int, update_index: int, epoch: int
    ) -> Iterator[Rows]:
        """Share out the rows, in a random order that only seed, update and epoch decide.

        rows: a NamedTuple of tensors, each [R, …], with `inputs` among them. A minibatch has R /
        num_minibatches rows, some one more where that is no integer, and at least two if there are
        two. Where the network has a core, environments are shared out instead, with all steps of
        each; rows that are no steps go to the core, and not into the minibatch.
        """
        rows = self.without_no_ops(rows)
        inputs = inputs_of(rows)
        columns, core_size = inputs.core_state.shape
        chosen = torch.arange(columns, device=inputs.is_first.device)
        if inputs.is_step is not None:  # a column without any would be a minibatch of nothing
            chosen = chosen[inputs.is_step.view(-1, columns).any(0)]
        if len(chosen) == 0:
            return
        at_most = len(chosen) if core_size else len(chosen) // 2
        num_minibatches = max(1, min(num_minibatches, at_most))
        permutation = draws.permutation(self.seed, len(chosen), update_index, epoch)
        order = chosen[self.on_device(permutation)]
        # All at once: gathered for each minibatch, the columns would leave the cache in between.
        by_column = _of_each(rows, lambda x: x.unflatten(0, (len(x) // columns, columns)))
        shuffled = _of_each(by_column, lambda x: x.index_select(1, order))
        bounds = -(np.arange(num_minibatches + 1) * -len(chosen) // num_minibatches)
        for start, stop in itertools.pairwise(bounds.tolist()):
            part = _of_each(shuffled, lambda x, a=start, b=stop: x[:, a:b].flatten(0, 1))
            yield _only_steps(part)

    def step(
        self,
        loss: Callable[[Rows], tuple[torch.Tensor, Metrics]],
        minibatch: Rows,
        learning_rate: float,
        max_grad_norm: float,
    ) -> Metrics | None:
        """One step of the optimizer down the gradient of `loss`; its metrics, or None if skipped.

        loss: mean over rows, and metrics, which are such means as well; both are summed up over
        pieces of the minibatch, unless the network has a core, which needs them whole.
        """
        return self.step_in_pieces(loss, self._pieces(minibatch), learning_rate, max_grad_norm)

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
            piece_loss, metrics = _checked(loss(piece))
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

    def _pieces(self, minibatch: Rows) -> Iterator[tuple[Rows, float]]:
        minibatch = self.without_no_ops(minibatch)
        inputs, most = inputs_of(minibatch), max_rows(self.network)
        num_rows = len(inputs.is_first)
        if num_rows <= most or inputs.core_state.shape[1]:
            yield _only_steps(minibatch), 1.0
            return
        for start in range(0, num_rows, most):
            piece = _of_each(minibatch, lambda x, start=start: x[start : start + most])
            yield piece, len(inputs_of(piece).is_first) / num_rows


def inputs_of(rows: Any) -> Inputs:
    """What the network reads of rows. Raises TypeError if they do not have it."""
    inputs = getattr(rows, "inputs", None)
    if not isinstance(inputs, Inputs):
        raise TypeError(
            f"{type(rows).__name__} has no field inputs: Inputs, what the network reads; "
            "self.make_rows and self.inputs(batch) make it"
        )
    return inputs


def _only_steps(rows: Any) -> Any:
    """What the loss reads of rows; the network has to read all of them, if it has a core."""
    inputs = inputs_of(rows)
    is_step = inputs.is_step
    if is_step is None:
        return rows
    others = rows._replace(inputs=None)
    steps = _of_each(others, lambda x: x[is_step] if len(x) == len(is_step) else x)
    return steps._replace(inputs=inputs)


def _of_each(rows: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same rows with every tensor changed, those of their inputs as well."""
    changed = []
    for column in rows:
        if isinstance(column, torch.Tensor):
            column = change(column)
        elif isinstance(column, Frames):
            column = column.at(change(column.place))
        elif column is not None:
            column = _of_each(column, change)
        changed.append(column)
    return rows._make(changed)


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


def explained_variance(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - Var(target - value) / Var(target): 1 is perfect, 0 no better than a constant."""
    if target.numel() < 2:
        return target.new_zeros(())
    variance, left = target.var(), (target - value).var()
    return torch.where(variance > 0.0, 1.0 - left / variance, 0.0)
