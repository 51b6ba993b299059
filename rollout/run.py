"""One run in its directory: the learner and all it works with, built, run, and taken down again."""

import contextlib
import logging
import queue
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from rollout.assembler import AsyncAssembler, LockstepAssembler
from rollout.checkpoint import Checkpoint, named_parameters, policy_parameters
from rollout.cluster import Cluster
from rollout.env_source import OBJECT
from rollout.env_states import EnvStates
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.errors import RunFailed
from rollout.events import Event
from rollout.inbox import Inbox
from rollout.learner import Clock, Learner, UpdateFailed
from rollout.learners.unroll import Batch
from rollout.learning import make_learning
from rollout.ledger import Account
from rollout.metrics import MetricsLog
from rollout.order_log import OrderLog
from rollout.plan import HostPlan
from rollout.progress import View
from rollout.receiver import Receiver
from rollout.results import ENV_STATE, ENV_UNROLLS, CheckpointSaver, algorithm_state, summarize
from rollout.resume import Resumption
from rollout.run_directory import RunDirectory, write_atomically
from rollout.shares import Shares
from rollout.summary import Summary

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork

log = logging.getLogger(__name__)
ASYNC_BATCHES = 2  # one in training, one that is being filled


class Run:
    """One run, from the first process to the summary."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: HostPlan,
        given: tuple[bytes, bytes],
        resumption: Resumption | None,
        view: View,
        clock: Clock,
        events: "queue.SimpleQueue[Event]",
    ) -> None:
        """given: environment and network, see HostStart."""
        self._directory = directory
        self._experiment = directory.experiment
        self._plan = plan
        self._given = given
        self._resumption = resumption  # from what it goes on; None if it is new
        self._view = view
        self._clock = clock
        self._events = events

    def train(self) -> tuple[Summary, int | None]:
        """Returns the summary, and the signal that ended it, if one did."""
        with (
            _logging_to(self._directory.log),
            _joinable(self._directory, self._plan),
            _started(self._plan, self._directory, self._given) as cluster,
        ):
            self._view.phase("starting the learner and compiling the environment")
            algorithm, network = make_learning(self._experiment, self._plan.network)
            receiver = self._make_receiver(cluster, network)
            try:
                learner = self._learn(algorithm, network, receiver)
                self._view.phase("stopping the actors")
                learner.stop_fleet()
                ledger, statistics = receiver.end_account(), receiver.statistics()
            finally:
                receiver.close()
            if not ledger.is_balanced:
                text = f"THE LEDGER DOES NOT BALANCE: {ledger.unrolls.as_dict()}"
                log.error(text)
                self._view.notice(text)
            summary = summarize(
                self._experiment,
                learner.update,
                learner.state()[1],
                named_parameters(network.spec, network.export()),
                ledger,
                statistics,
                learner.env_steps_per_s,
            )
            self._directory.write_summary(summary)
        return summary, learner.interrupted_by

    def _learn(
        self, algorithm: "Algorithm", network: "TorchNetwork", receiver: Receiver
    ) -> Learner:
        directory, view = self._directory, self._view
        from_update = None if self._resumption is None else self._resumption.checkpoint.update
        with contextlib.ExitStack() as closing:
            metrics = closing.enter_context(MetricsLog(directory, from_update))
            order = None
            if not self._plan.is_lockstep:
                order = closing.enter_context(contextlib.closing(OrderLog(directory.order)))
            learner = Learner(
                self._experiment, algorithm, network, receiver, view, self._clock, order
            )
            if self._resumption is not None:
                _put_checkpoint(self._resumption.checkpoint, algorithm, network, learner)
            saver = CheckpointSaver(
                directory,
                algorithm,
                learner,
                receiver,
                view,
                before_save=[metrics.flush, *([order.flush] if order else [])],
            )
            closing.enter_context(saver)
            if self._resumption is not None and self._resumption.changes_curve:
                learner.changed_at.append(learner.update)
                saver.save()  # so that whoever resumes it again need not say so again
            from rollout.learners.optimizer import NonFiniteLossError

            trouble = None
            try:
                for progress in learner.run():
                    metrics.write(progress)
                    reason = view.write(progress)
                    if progress.stop_reason is None:  # else the last one follows anyway
                        saver.save_if_due()
                    if metrics.trouble not in (None, trouble):
                        view.notice(f"{metrics.trouble}; training goes on")
                    trouble = metrics.trouble
                    if reason and progress.stop_reason is None:
                        view.notice(f"{reason}: the run ends early")
                        break
            except NonFiniteLossError as error:
                count = f"{learner.update} update{'s' if learner.update != 1 else ''}"
                raise RunFailed(
                    f"after {count}: {error}; {self._directory.log} names the unrolls, and a "
                    f"checkpoint of before is kept (learner.max_skipped_steps="
                    f"{self._experiment.learner.max_skipped_steps})"
                ) from error
            except UpdateFailed as error:
                log.error("%s", error, exc_info=error.__cause__)
                raise RunFailed(
                    f"{error}; {self._directory.log} has its traceback, and a checkpoint of before "
                    f"is kept: mend that, and `{self._how_to_resume()}` goes on from there"
                ) from error.__cause__
        return learner

    def _how_to_resume(self) -> str:
        """The command, or the call where parts of the experiment were given as objects."""
        tables = {name: getattr(self._experiment, name) for name in ("algorithm", "network")}
        given = [name for name, table in tables.items() if table.kind.startswith(OBJECT)]
        if self._experiment.env.id.startswith(OBJECT):
            given.append("env")
        path = self._directory.path
        if not given:
            return f"rollout train --resume {shlex.quote(str(path))}"
        arguments = [f"resume={str(path)!r}", *(f"{name}=…" for name in given)]
        return f"rollout.train({', '.join(arguments)})"

    def _make_receiver(self, cluster: Cluster, network: "TorchNetwork") -> Receiver:
        from rollout.learners.torch_network import allocate, allocate_pinned

        plan, fleet = self._plan, self._experiment.fleet
        memory = allocate_pinned if network.device.type == "cuda" else allocate
        env = self._experiment.env.find()
        length_at, group = None, 1
        if isinstance(env, ForeignEnv):
            length_at, group = None if env.has_hidden_state else env.length_at, env.group
        states = EnvStates(
            plan.num_envs, plan.schema.state_bytes, plan.seed, env.has_hidden_state, length_at
        )
        account = Account(fleet.window)
        first_update, set_aside = 0, []
        if self._resumption is not None:
            checkpoint = self._resumption.checkpoint
            first_update = checkpoint.update
            account.put_state(checkpoint.state["account"])
            states.episodes_lost.update(checkpoint.state["episodes_lost"])
            if self._resumption.keeps_states:
                states.put(checkpoint.arrays[ENV_STATE])
                states.put_counts(checkpoint.arrays[ENV_UNROLLS])
                set_aside = checkpoint.state["set_aside"]
        if plan.is_lockstep:
            states.put_counts(np.full(plan.num_envs, first_update))
        first_unroll = first_update if plan.is_lockstep else 0
        shares = Shares(plan.num_envs, first_unroll, plan.is_lockstep, set_aside, group)
        inbox = Inbox(
            run=plan.run,
            schema=plan.schema,
            choices=plan.network.head.choices,
            policy_lag=plan.policy_lag if plan.is_lockstep else None,
            shares=shares,
            states=states,
            account=account,
            parts=plan.network.parts,
        )
        count = plan.policy_lag + 1 if plan.is_lockstep else ASYNC_BATCHES
        batches = [Batch(plan.schema, plan.num_envs, memory) for _ in range(count)]
        assembler = (
            LockstepAssembler(batches, first_update)
            if plan.is_lockstep
            else AsyncAssembler(batches)
        )
        return Receiver(
            cluster,
            inbox,
            assembler,
            self._events,
            self._directory.failures,
            sets_aside=fleet.on_env_failure == "set_aside",
            set_aside=set_aside,
        )


def _put_checkpoint(
    checkpoint: Checkpoint, algorithm: "Algorithm", network: "TorchNetwork", learner: Learner
) -> None:
    """Have learner, algorithm and network go on from a checkpoint."""
    network.load(policy_parameters(checkpoint, network.spec))
    algorithm.load_checkpoint_state(algorithm_state(checkpoint))
    learner.put_state(checkpoint.update, checkpoint.arrays, checkpoint.state)


@contextlib.contextmanager
def _joinable(directory: RunDirectory, plan: HostPlan) -> Iterator[None]:
    """Tell, in the run's directory, how more actors can join it."""
    try:
        write_atomically(directory.fleet, msgspec.msgpack.encode(plan))
    except OSError as error:
        raise RunFailed(f"{directory.fleet}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        directory.fleet.unlink(missing_ok=True)


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Have run.log hold what this process logs, too."""
    handler = _LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("rollout")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _started(
    plan: HostPlan, directory: RunDirectory, given: tuple[bytes, bytes]
) -> Iterator[Cluster]:
    cluster = Cluster(plan, directory.log, *given)
    try:
        yield cluster
    finally:
        cluster.close()


class _LogFile(logging.FileHandler):
    """Says nothing about a disk that is full: others do."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (its own name)
        pass
