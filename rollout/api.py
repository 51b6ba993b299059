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

from rollout.cluster import Cluster, make_plan
from rollout.envs.errors import EnvError
from rollout.errors import OperatorError, RunFailed, require_linux
from rollout.experiment import Experiment, ExperimentSource, as_experiment
from rollout.host import remove_run
from rollout.inbox import Inbox
from rollout.learner import Clock, Learner
from rollout.learners.network import initial_parameters
from rollout.learners.unroll import Batch
from rollout.metrics import MetricsLog
from rollout.plan import HostPlan
from rollout.progress import NoView, Progress, View
from rollout.receiver import Event, Interrupted, Receiver
from rollout.results import CheckpointSaver, summarize
from rollout.run_directory import RunDirectory
from rollout.summary import Summary

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork
    from rollout.policy import Policy


@dataclass(frozen=True)
class Result:
    """A run that has ended. interrupted_by: the signal that ended it, or None."""

    summary: Summary
    run_dir: Path
    interrupted_by: int | None

    @property
    def policy(self) -> "Policy":
        """The trained policy; acts without a fleet."""
        from rollout.policy import load_policy

        return load_policy(self.run_dir)


def train(
    experiment: ExperimentSource,
    overrides: Iterable[str] = (),
    *,
    run_dir: str | os.PathLike[str] | None = None,
    view: View | None = None,
    started: float | None = None,
) -> Result:
    """Train until a stop condition of the experiment holds, or until Ctrl-C, which saves first.

    experiment: a TOML file's path, a mapping, or an Experiment. overrides: `key=value` each.
    run_dir: a new or empty directory; by default runs/NAME-TIME. started: when the run's seconds
    begin to count, by time.monotonic(); by default now.

    Raises ConfigError, EnvError or OperatorError for what is wrong with the input, and leaves no
    run directory then; RunFailed when a run that had started dies. Nothing is left running. In this
    process torch then has `learner.num_threads` threads, malloc keeps freed memory, and the limit
    on open files is raised.
    """
    clock = Clock(time.monotonic() if started is None else started)
    require_linux()
    view = view or NoView()
    experiment = as_experiment(experiment, overrides)
    _check_device(experiment.learner.device)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with (
        _signals_to(events),
        _planned(experiment) as plan,  # what it refuses leaves no run directory behind
        _directory(experiment, run_dir) as directory,
        _logging_to(directory.log),
        _started(plan, directory) as cluster,
    ):
        view.phase("starting the learner and compiling the environment")
        algorithm, network = _make_learning(experiment, plan)
        receiver = _make_receiver(cluster, network, events)
        try:
            learner = Learner(experiment, algorithm, network, receiver, view, clock)
            saver = CheckpointSaver(directory, algorithm, learner)
            with saver, MetricsLog(directory) as metrics:
                for progress in _run(learner):
                    metrics.write(progress)
                    view.write(progress)
                    saver.save_if_due()
            view.phase("stopping the actors")
            learner.stop_fleet()
            put = receiver.statistics().unrolls_put
            summary = summarize(experiment, learner, network, put, clock.seconds())
        finally:
            receiver.close()
        directory.write_summary(summary)
    view.finish(summary, directory.path)
    return Result(summary, directory.path, learner.interrupted_by)


@contextlib.contextmanager
def _signals_to(events: "queue.SimpleQueue[Event]") -> Iterator[None]:
    """Make the first SIGINT or SIGTERM an event; a second one does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # whoever runs this in a thread of their own keeps their own handlers
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in watched}

    def drain(number: int, _frame: object) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        events.put(Interrupted(number))

    for number in watched:
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
def _directory(
    experiment: Experiment, path: str | os.PathLike[str] | None
) -> Iterator[RunDirectory]:
    with RunDirectory.create(experiment, path) as directory:
        try:
            yield directory
        except (EnvError, OperatorError):  # nothing was learned; the next try may have the place
            directory.discard()
            raise


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


def _check_device(device: str) -> None:
    """Raises OperatorError for a CUDA device that is not there."""
    if not device.startswith("cuda"):
        return
    import torch

    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise OperatorError(
            f"learner.device={device}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; set learner.device=auto or cpu"
        )


def _make_learning(experiment: Experiment, plan: HostPlan) -> "tuple[Algorithm, TorchNetwork]":
    """Algorithm and network. Torch is imported here, while the template compiles beside."""
    import torch

    from rollout.learners.ppo import PPO
    from rollout.learners.torch_network import TorchNetwork, keep_freed_memory

    settings = experiment.learner
    keep_freed_memory()
    torch.set_num_threads(settings.num_threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parameters = initial_parameters(plan.network, experiment.seed)
    network = TorchNetwork(plan.network, parameters, device)
    return PPO(network, experiment.algorithm, experiment.seed), network


def _run(learner: Learner) -> Iterator[Progress]:
    from rollout.learners.optimizer import NonFiniteLossError

    try:
        yield from learner.run()
    except NonFiniteLossError as error:
        raise RunFailed(f"after {learner.update} updates: {error}") from error


def _make_receiver(
    cluster: Cluster, network: "TorchNetwork", events: "queue.SimpleQueue[Event]"
) -> Receiver:
    from rollout.learners.torch_network import allocate, allocate_pinned

    plan = cluster.plan
    memory = allocate_pinned if network.device.type == "cuda" else allocate
    inbox = Inbox(
        run=plan.run,
        schema=plan.schema,
        num_envs=plan.num_envs,
        num_actors=plan.num_actors,
        num_actions=plan.network.num_actions,
        policy_lag=plan.policy_lag,
    )
    batches = [Batch(plan.schema, plan.num_envs, memory) for _ in range(plan.policy_lag + 1)]
    return Receiver(cluster, inbox, batches, events)
