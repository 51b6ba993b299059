"""Training from Python: what the command `rollout train` does, as a function."""

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rollout.assembler import AsyncAssembler, LockstepAssembler
from rollout.checkpoint import Checkpoint, named_parameters, policy_parameters
from rollout.cluster import Cluster, make_plan, remove_run
from rollout.env_states import EnvStates
from rollout.envs.errors import EnvError
from rollout.envs.registry import find_env
from rollout.errors import OperatorError, RunFailed, require_linux
from rollout.events import Event, Interrupted
from rollout.experiment import Experiment, ExperimentSource, as_experiment
from rollout.inbox import Inbox
from rollout.learner import Clock, Learner, stop_reason
from rollout.learners.unroll import Batch
from rollout.learning import check_device, make_learning
from rollout.ledger import Account
from rollout.metrics import MetricsLog
from rollout.order_log import OrderLog, cut_to
from rollout.plan import HostPlan
from rollout.progress import NoView, View
from rollout.receiver import Receiver
from rollout.results import ENV_STATE, CheckpointSaver, algorithm_state, summarize, summary_of
from rollout.resume import Resumption, begin_resume, plan_resume
from rollout.run_directory import RunDirectory, write_atomically
from rollout.shares import Shares
from rollout.summary import Summary

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork
    from rollout.policy import Policy


log = logging.getLogger(__name__)
ASYNC_BATCHES = 2  # one in training, one that is being filled


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    interrupted_by: the signal that ended it, or None. was_finished: there was nothing to resume.
    """

    summary: Summary
    run_dir: Path
    interrupted_by: int | None = None
    was_finished: bool = False

    @property
    def policy(self) -> "Policy":
        """The trained policy; acts without a fleet."""
        from rollout.policy import load_policy

        return load_policy(self.run_dir)


def train(
    experiment: ExperimentSource | None = None,
    overrides: Iterable[str] = (),
    *,
    run_dir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    view: View | None = None,
    started: float | None = None,
) -> Result:
    """Train until a stop condition of the experiment holds, or until Ctrl-C, which saves first.

    experiment: a TOML file's path, a mapping, or an Experiment. overrides: `key=value` each.
    run_dir: a new or empty directory; by default runs/NAME-TIME. resume: a run to go on with
    instead, from its newest good checkpoint; its own experiment, with overrides. started: when the
    run's seconds begin to count, by time.monotonic(); by default now.

    Raises ConfigError, EnvError or OperatorError for what is wrong with the input, and leaves no
    new run directory then; RunFailed when a run that had started dies. Nothing is left running. In
    this process torch then has `learner.num_threads` threads, malloc keeps freed memory, and the
    limit on open files is raised.
    """
    began = time.monotonic() if started is None else started
    require_linux()
    view = view or NoView()
    if (experiment is None) == (resume is None) or (resume is not None and run_dir is not None):
        raise TypeError("train takes an experiment, perhaps with run_dir, or else resume")
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with contextlib.ExitStack() as closing:
        closing.enter_context(_signals_to(events, view))
        if resume is not None:
            directory = closing.enter_context(RunDirectory.open_to_resume(resume))
            resumption = plan_resume(directory, overrides)
            summary = _finished(directory, resumption)
            if summary is not None:
                return Result(summary, directory.path, was_finished=True)
            experiment = resumption.experiment
        else:
            assert experiment is not None
            experiment = as_experiment(experiment, overrides)
            directory = resumption = None
        check_device(experiment.learner.device)
        plan = closing.enter_context(_planned(experiment))  # refuses before there is a directory
        if directory is None:
            directory = closing.enter_context(_new_directory(experiment, run_dir))
        elif resumption is not None:
            _begin_resume(directory, resumption, view)
            began -= resumption.checkpoint.state["wall_s"]
        run = _Run(directory, plan, resumption, view, Clock(began), events)
        summary, interrupted_by = run.train()
    view.finish(summary, directory.path)
    return Result(summary, directory.path, interrupted_by)


@contextlib.contextmanager
def _signals_to(events: "queue.SimpleQueue[Event]", view: View) -> Iterator[None]:
    """Make the first SIGINT, SIGTERM or SIGHUP an event; a second does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # whoever runs this in a thread of their own keeps their own handlers
        return
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in watched}

    def drain(number: int, _frame: object) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        events.put(Interrupted(number))
        again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
        view.notice(f"{signal.Signals(number).name}: ending with a checkpoint{again}")

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # of nohup, say
            signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _planned(experiment: Experiment) -> Iterator[HostPlan]:
    plan = make_plan(experiment)
    try:
        yield plan
    finally:
        remove_run(plan)


@contextlib.contextmanager
def _new_directory(
    experiment: Experiment, path: str | os.PathLike[str] | None
) -> Iterator[RunDirectory]:
    with RunDirectory.create(experiment, path) as directory:
        try:
            yield directory
        except (EnvError, OperatorError):  # nothing was learned; the next try may have the place
            directory.discard()
            raise


def _finished(directory: RunDirectory, resumption: Resumption) -> Summary | None:
    """The summary of a run that a stop condition has ended; None if it can go on."""
    state, stop = resumption.checkpoint.state, resumption.experiment.stop
    mean, episodes = state["episode_return_mean"], len(resumption.checkpoint.arrays["last_returns"])
    if stop_reason(stop, mean, episodes, state["env_steps"], state["wall_s"]) is None:
        return None
    content = directory.read_summary()
    if content is None:  # it died when all was done but this
        summary = summary_of(resumption.experiment, resumption.checkpoint)
        directory.write_summary(summary)
        return summary
    try:
        return Summary.from_dict(content)
    except ValueError as error:
        raise OperatorError(f"{directory.summary}: {error}") from error


def _begin_resume(directory: RunDirectory, resumption: Resumption, view: View) -> None:
    """Cut off what the run had written after its checkpoint."""
    begin_resume(directory, resumption)
    directory.summary.unlink(missing_ok=True)
    update = resumption.checkpoint.update
    cut_to(directory.order, update)
    view.notice(f"going on from {resumption.checkpoint.path.name}")
    if resumption.warning:
        view.notice(resumption.warning)


class _Run:
    """One run in its directory, from the first process to the summary."""

    def __init__(
        self,
        directory: RunDirectory,
        plan: HostPlan,
        resumption: Resumption | None,
        view: View,
        clock: Clock,
        events: "queue.SimpleQueue[Event]",
    ) -> None:
        self._directory = directory
        self._experiment = directory.experiment
        self._plan = plan
        self._resumption = resumption
        self._view = view
        self._clock = clock
        self._events = events

    def train(self) -> tuple[Summary, int | None]:
        """Returns the summary, and the signal that ended it, if one did."""
        with (
            _logging_to(self._directory.log),
            _joinable(self._directory, self._plan),
            _started(self._plan, self._directory) as cluster,
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
            parameters = named_parameters(network.spec, network.export())
            wall_s = self._clock.seconds()
            summary = summarize(self._experiment, learner, parameters, ledger, statistics, wall_s)
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
                view.notice,
                before_save=order.flush if order is not None else lambda: None,
            )
            closing.enter_context(saver)
            from rollout.learners.optimizer import NonFiniteLossError

            try:
                for progress in learner.run():
                    metrics.write(progress)
                    view.write(progress)
                    saver.save_if_due()
            except NonFiniteLossError as error:
                raise RunFailed(f"after {learner.update} updates: {error}") from error
        return learner

    def _make_receiver(self, cluster: Cluster, network: "TorchNetwork") -> Receiver:
        from rollout.learners.torch_network import allocate, allocate_pinned

        plan, fleet = self._plan, self._experiment.fleet
        memory = allocate_pinned if network.device.type == "cuda" else allocate
        env = find_env(plan.env_id)
        states = EnvStates(plan.num_envs, plan.schema.state_bytes, plan.seed, env.has_hidden_state)
        account = Account(fleet.window)
        first_update = 0
        if self._resumption is not None:
            checkpoint = self._resumption.checkpoint
            first_update = checkpoint.update
            account.put_state(checkpoint.state["account"])
            if self._resumption.keeps_states:
                states.put(checkpoint.arrays[ENV_STATE], first_update)
        shares = Shares(plan.num_envs, first_update if plan.is_lockstep else 0, plan.is_lockstep)
        inbox = Inbox(
            run=plan.run,
            schema=plan.schema,
            num_actions=plan.network.num_actions,
            policy_lag=plan.policy_lag if plan.is_lockstep else None,
            shares=shares,
            states=states,
            account=account,
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
        )


def _put_checkpoint(
    checkpoint: Checkpoint, algorithm: "Algorithm", network: "TorchNetwork", learner: Learner
) -> None:
    """Have learner, algorithm and network go on from a checkpoint."""
    network.load(policy_parameters(checkpoint, network.spec))
    algorithm.load_state_dict(algorithm_state(checkpoint))
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
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("rollout")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _started(plan: HostPlan, directory: RunDirectory) -> Iterator[Cluster]:
    cluster = Cluster(plan, directory.log)
    try:
        yield cluster
    finally:
        cluster.close()
