"""A whole run once more: acted and trained from its beginning, in one process, without a fleet.

What was acted is a function of the environments' states and the weights' version, whoever acted it
and beside whom. So all that must be known of a run, besides its experiment, is the order in which
unrolls came to its batches: in async order.jsonl tells, in lockstep there is only one.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    named_parameters,
    policy_parameters,
)
from rollout.env_states import EnvStates
from rollout.errors import OperatorError, RunFailed
from rollout.experiment import Experiment
from rollout.learning import check_device, fraction_done, make_learning
from rollout.order_log import Order, Part, read_order
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network, make_schema
from rollout.summary import params_digest, versions

log = logging.getLogger(__name__)

MOST_LENGTHS = 8  # of parts, for which an actor is kept: its memory is that of one unroll

MakeOrders = Callable[[], Iterator[Order]]


@dataclass(frozen=True)
class Comparison:
    """The policy after an update, replayed and as its checkpoint has it, by `params_digest`.

    checkpoint_digest: None if there is no checkpoint of that update.
    """

    update: int
    digest: str
    checkpoint_digest: str | None

    @property
    def is_equal(self) -> bool | None:
        """None where there is nothing to compare with."""
        return None if self.checkpoint_digest is None else self.digest == self.checkpoint_digest

    def as_dict(self) -> dict[str, Any]:
        return {
            "update": self.update,
            "digest": self.digest,
            "checkpoint_digest": self.checkpoint_digest,
            "equal": self.is_equal,
        }


class RunReplay:
    """A run to be replayed up to `num_updates`, and what it is compared with on the way."""

    def __init__(self, run: RunDirectory, updates: int | None = None) -> None:
        """updates: how many; by default as many as the newest good checkpoint has seen.

        Raises OperatorError if the run cannot be replayed, or not so far.
        """
        known = _checkpoints(run)
        newest = known[-1] if known else load_newest(run)  # which says why there is none
        self.run = run
        self.num_updates = newest.update if updates is None else updates
        self.experiment = newest.learnable()
        _refuse_hidden_state(run, self.experiment)
        _refuse_changes(run, known)
        check_device(self.experiment.learner.device)
        self._checkpoints = {c.update: c for c in known if c.update <= self.num_updates}
        self._orders = _orders_of(run, self.experiment, self.num_updates)
        self._last_use = _last_use(run, self._orders, self.experiment, self.num_updates)

    def __repr__(self) -> str:
        return f"RunReplay({str(self.run.path)!r}, {self.num_updates} updates)"

    def compare(self, tell: Callable[[int], None] = lambda update: None) -> list[Comparison]:
        """Replay; what was found at each checkpoint, and last at the end, or where they differ.

        tell: is told the number of updates done, after each. Raises RunFailed where the run cannot
        have come this way.
        """
        trainer = Retrainer(self.experiment, self._last_use)
        found = []
        for order in itertools.chain([None], itertools.islice(self._orders(), self.num_updates)):
            if order is not None:
                trainer.train(order)
                tell(trainer.update)
            checkpoint = self._checkpoints.get(trainer.update)
            if checkpoint is not None or trainer.update == self.num_updates:
                found.append(trainer.compare(checkpoint))
                if found[-1].is_equal is False:
                    break  # what follows from it differs, too
        return found

    def changed_versions(self) -> dict[str, tuple[str | None, str | None]]:
        """Package → (version the run ended with, version here), where they differ."""
        summary = self.run.read_summary() or {}
        then, now = summary.get("versions"), versions()
        if not isinstance(then, dict):
            return {}
        names = sorted({*then, *now})
        return {n: (then.get(n), now.get(n)) for n in names if then.get(n) != now.get(n)}


class Retrainer:
    """Does what a run's actors and learner did, one batch after the other.

    last_use: of each weights version, the last update with an unroll that it acted; a version is
    kept until then.
    """

    def __init__(self, experiment: Experiment, last_use: dict[int, int]) -> None:
        from rollout.learners.torch_network import allocate  # with torch: slow to import
        from rollout.learners.unroll import Batch

        self.update = 0
        self._experiment = experiment
        self._last_use = last_use
        self._env = experiment.env.find()
        fleet, num_envs = experiment.fleet, experiment.env.num_envs
        self._spec = make_network(experiment.network, self._env, experiment.seed)
        needs_value = experiment.algorithm.needs_value
        self._schema = make_schema(self._env, fleet.unroll_length, needs_value, self._spec)
        self._algorithm, self._network = make_learning(experiment, self._spec)
        self._batch = Batch(self._schema, num_envs, allocate)
        self._states = EnvStates(num_envs, self._schema.state_bytes, experiment.seed)
        self._actors: dict[int, Any] = {}  # by the length of a part; the last used one last
        self._weights: dict[int, np.ndarray] = {}
        self._keep_weights()

    def __repr__(self) -> str:
        return f"Retrainer(update={self.update}, {len(self._weights)} versions of the weights)"

    def train(self, order: Order) -> None:
        """Act and train on the next batch. Raises RunFailed if an environment, or the loss, fails.

        The order must be within the bounds that `_last_use` checks.
        """
        from rollout.learners.optimizer import NonFiniteLossError

        column = 0
        for part in order.parts:
            self._act(part, column)
            column += part.num_envs
        self._batch.seal()
        env_steps = self.update * self._experiment.batch_size
        done = fraction_done(self._experiment, env_steps)
        try:
            self._algorithm.train_on(self._batch, self.update, done)
        except NonFiniteLossError as error:
            raise RunFailed(f"after {self.update} updates: {error}") from error
        self._batch.clear()
        self.update += 1
        self._keep_weights()

    def compare(self, checkpoint: Checkpoint | None) -> Comparison:
        """The policy as it is now, and as the checkpoint has it."""
        theirs = None
        if checkpoint is not None:
            theirs = self._digest(policy_parameters(checkpoint, self._spec))
        return Comparison(self.update, self._digest(self._network.export()), theirs)

    def _act(self, part: Part, column: int) -> None:
        envs = np.arange(part.first_env, part.first_env + part.num_envs)
        try:
            actor = self._actor(part)
            actor.restore(self._states.give(envs, cut=0))
            actor.act(self._weights[part.weights_version])
        except Exception as error:  # whatever an author's code raises
            raise RunFailed(
                f"update {self.update}, environments {envs[0]} to {envs[-1]}: "
                f"{type(error).__name__}: {error}; they did not fail in the run, so they depend "
                "on more than their state, or have changed since"
            ) from error
        unroll = actor.buffer.unroll()
        self._states.accept(envs, unroll)
        self._batch.put(unroll, column, envs, part.weights_version)

    def _actor(self, part: Part) -> Any:
        """An actor for parts of this length, in whatever state."""
        from rollout.make_actor import make_actor  # with Numba: slow to import

        actor = self._actors.pop(part.num_envs, None)
        if actor is None:
            settings = self._experiment.env
            actor = make_actor(
                self._env,
                part.num_envs,
                self._experiment.seed,
                self._spec,
                self._schema,
                given_network=self._experiment.given_network,
                params=settings.params,
                first_env=part.first_env,
            )
            if len(self._actors) >= MOST_LENGTHS:
                del self._actors[next(iter(self._actors))]
        self._actors[part.num_envs] = actor
        return actor

    def _keep_weights(self) -> None:
        """Keep the newest version if it acts at all, and no version that will act no more."""
        if self._last_use.get(self.update, -1) >= self.update:
            weights = self._network.export()
            weights.flags.writeable = False  # the form in which kernels take them
            self._weights[self.update] = weights
        over = [v for v in self._weights if self._last_use[v] < self.update]
        for version in over:
            del self._weights[version]

    def _digest(self, flat: np.ndarray) -> str:
        return params_digest(named_parameters(self._spec, flat))


def lockstep_orders(num_envs: int, policy_lag: int) -> Iterator[Order]:
    """What lockstep implies: every batch is one unroll of all environments, in their order."""
    for update in itertools.count():
        yield Order(update, (Part(0, num_envs, max(0, update - policy_lag)),))


def _orders_of(run: RunDirectory, experiment: Experiment, num_updates: int) -> MakeOrders:
    fleet = experiment.fleet
    if fleet.mode == "lockstep":
        return lambda: lockstep_orders(experiment.env.num_envs, fleet.policy_lag)
    # Without updates there is nothing to log, and maybe no log.
    return lambda: read_order(run.order) if num_updates else iter(())


def _last_use(
    run: RunDirectory, orders: MakeOrders, experiment: Experiment, num_updates: int
) -> dict[int, int]:
    """The last update that needs each version of the weights. Raises OperatorError for an order
    that cannot be of this run, or if there are too few."""
    num_envs = experiment.env.num_envs
    last_use: dict[int, int] = {}
    count = 0
    for order in itertools.islice(orders(), num_updates):
        _check_order(run, order, num_envs)
        for part in order.parts:
            last_use[part.weights_version] = order.update
        count += 1
    if count < num_updates:
        raise OperatorError(
            f"{run.order}: orders of {count} updates, wanted {num_updates}; replay fewer with "
            f"--updates {count}"
        )
    return last_use


def _check_order(run: RunDirectory, order: Order, num_envs: int) -> None:
    columns = sum(part.num_envs for part in order.parts)
    highest = max((part.first_env + part.num_envs for part in order.parts), default=0)
    if columns != num_envs or highest > num_envs:
        raise OperatorError(
            f"{run.order}:{order.update + 1}: {columns} columns of environments below {highest}, "
            f"wanted {num_envs} columns of {num_envs} environments; the log is of another run"
        )


def _checkpoints(run: RunDirectory) -> list[Checkpoint]:
    """The good ones, the oldest first; a damaged one is warned of."""
    found = []
    for path in list_checkpoints(run.checkpoints):
        try:
            found.append(load_checkpoint(path, *run.given))
        except DamagedCheckpoint as error:
            log.warning("%s; not compared with", error.what)
    return found


def _refuse_hidden_state(run: RunDirectory, experiment: Experiment) -> None:
    if experiment.env.find().has_hidden_state:
        raise OperatorError(
            f"{run.path}: {experiment.env.id} has hidden state, on which its steps depend and of "
            "which nothing was recorded, so the run cannot be replayed"
        )


def _refuse_changes(run: RunDirectory, checkpoints: Iterable[Checkpoint]) -> None:
    """An order log does not tell with which settings each update was made."""
    before = None
    for checkpoint in checkpoints:
        where = None
        if changed_at := checkpoint.state.get("changed_at"):
            where = f"at update {changed_at[0]}"
        elif before and before.experiment.curve != checkpoint.experiment.curve:
            where = f"after {before.path.name}"
        if where:
            raise OperatorError(
                f"{run.path}: resumed with other settings {where}; only a run with the same "
                "settings from its beginning to its end can be replayed"
            )
        before = checkpoint
