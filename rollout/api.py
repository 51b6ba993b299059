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
from typing import TYPE_CHECKING, Protocol, Self

from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.cluster import Cluster, make_plan
from rollout.errors import OperatorError, RunFailed, require_linux
from rollout.experiment import Experiment, ExperimentSource, as_experiment
from rollout.host import remove_run
from rollout.inbox import Inbox
from rollout.learner import Learner
from rollout.learners.network import initial_parameters
from rollout.learners.unroll import Batch
from rollout.metrics import MetricsLog
from rollout.plan import HostPlan
from rollout.processes import seconds_since_start
from rollout.progress import Progress
from rollout.receiver import Event, Interrupted, Receiver
from rollout.run_directory import RunDirectory
from rollout.summary import Ledger, PolicyLag, Summary, params_digest, versions

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork
    from rollout.policy import Policy

BATCHES = 2  # one fills while another is trained on


class View(Protocol):
    """Who is told how a run goes, besides its files."""

    def phase(self, text: str) -> None: ...
    def write(self, progress: Progress) -> None: ...
    def finish(self, summary: Summary, run_dir: Path) -> None: ...


class NoView:
    """Tells nobody."""

    def phase(self, text: str) -> None: ...
    def write(self, progress: Progress) -> None: ...
    def finish(self, summary: Summary, run_dir: Path) -> None: ...


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
) -> Result:
    """Train until a stop condition of the experiment holds, or until Ctrl-C, which saves first.

    experiment: a TOML file's path, a mapping, or an Experiment. overrides: `key=value` each.
    run_dir: a new or empty directory; by default runs/NAME-TIME. Raises ConfigError, EnvError and
    OperatorError before anything has started, RunFailed when the fleet dies. Nothing is left
    running.
    """
    require_linux()
    view = view or NoView()
    experiment = as_experiment(experiment, overrides)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with (
        _signals_to(events),
        _planned(experiment) as plan,  # what it refuses leaves no run directory behind
        RunDirectory.create(experiment, run_dir) as directory,
        _logging_to(directory.log),
        _started(plan, directory) as cluster,
    ):
        view.phase("starting the learner and compiling the environment")
        algorithm, network = _make_learning(experiment, plan)
        receiver = _make_receiver(cluster, network, events)
        try:
            learner = Learner(experiment, algorithm, network, receiver, view)
            saver = _Saver(experiment, directory, network, learner)
            with saver, MetricsLog(directory) as metrics:
                for progress in _run(learner):
                    metrics.write(progress)
                    view.write(progress)
                    saver.save_if_due()
            view.phase("stopping the actors")
            learner.stop_fleet()
            summary = _summarize(experiment, learner, network, receiver)
        finally:
            receiver.close()
        directory.write_summary(summary)
    view.finish(summary, directory.path)
    return Result(summary, directory.path, learner.interrupted_by)


@contextlib.contextmanager
def _signals_to(events: "queue.SimpleQueue[Event]") -> Iterator[None]:
    """Make the first SIGINT or SIGTERM an event; a second one does what it does elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield  # whoever runs this in a thread of their own keeps their own handlers
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def drain(number: int, _frame: object) -> None:
        for each in watched:
            signal.signal(each, signal.SIG_DFL)
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
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            raise OperatorError(
                f"learner.device={settings.device}: torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} CUDA devices; set learner.device=auto or cpu"
            )
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
    batches = [Batch(plan.schema, plan.num_envs, memory) for _ in range(BATCHES)]
    return Receiver(cluster, inbox, batches, events)


class _Saver:
    """Writes checkpoints: when they are due, and always when the run ends, however it does."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        network: "TorchNetwork",
        learner: Learner,
    ) -> None:
        self._experiment = experiment
        self._directory = directory
        self._network = network
        self._learner = learner
        self._saved_update = -1
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved_update != self._learner.update:
            self._save()

    def save_if_due(self) -> None:
        settings = self._experiment.checkpoint
        updates = self._learner.update - max(self._saved_update, 0)
        minutes = (time.monotonic() - self._saved_at) / 60
        if minutes >= settings.every_minutes or (
            settings.every_updates is not None and updates >= settings.every_updates
        ):
            self._save()

    def _save(self) -> None:
        learner = self._learner
        save_checkpoint(
            self._directory.checkpoints,
            learner.update,
            named_parameters(self._network.spec, self._network.export()),
            {
                "config_digest": self._experiment.config_digest,
                "env_steps": learner.env_steps,
                "episode_return_mean": learner.episode_return_mean,
            },
            self._experiment.checkpoint.keep,
        )
        self._saved_update = learner.update
        self._saved_at = time.monotonic()


def _summarize(
    experiment: Experiment, learner: Learner, network: "TorchNetwork", receiver: Receiver
) -> Summary:
    num_actors = experiment.fleet.num_actors
    return Summary(
        env_steps=learner.env_steps,
        updates=learner.update,
        wall_s=seconds_since_start(),
        env_steps_per_s=learner.env_steps_per_s,
        episode_return_mean=learner.episode_return_mean,
        goal_reached=learner.goal_reached_s is not None,
        goal_reached_s=learner.goal_reached_s,
        params_digest=params_digest(named_parameters(network.spec, network.export())),
        num_actors=num_actors,
        actor_restarts=0,
        policy_lag=PolicyLag(
            mean=learner.policy_lag_sum / max(learner.update, 1), max=learner.policy_lag_max
        ),
        ledger=_ledger(experiment, learner, receiver),
        seed=experiment.seed,
        config_digest=experiment.config_digest,
        versions=versions(),
    )


def _ledger(experiment: Experiment, learner: Learner, receiver: Receiver) -> Ledger:
    """The account of a fleet that has ended: two counts by the actors' side and by ours."""
    put = receiver.statistics().unrolls_put
    produced = learner.produced or put  # an agent that was killed could not say
    # Between an actor and its batch there are as many unrolls as its window lets there be. If more
    # are missing, or fewer than none, the account does not balance.
    window = experiment.fleet.window
    in_flight = sum(
        min(max(made - arrived, 0), window) for made, arrived in zip(produced, put, strict=True)
    )
    trained = learner.update * experiment.fleet.num_actors
    return Ledger(
        produced=sum(produced),
        trained=trained,
        in_flight=in_flight,
        dropped={"run_ended": sum(put) - trained},
    )
