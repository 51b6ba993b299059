"""Training from Python: what the command `rollout train` does, as a function."""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.algorithm_trial import try_out
from rollout.cluster import make_plan, remove_run
from rollout.envs.errors import EnvError
from rollout.errors import OperatorError, require_linux
from rollout.events import Event, Interrupted
from rollout.experiment import Experiment, ExperimentSource, as_experiment
from rollout.learner import Clock, stop_reason
from rollout.learners.network import ModuleSpec
from rollout.learning import check_device
from rollout.module_trial import warnings_of
from rollout.modules import cost_in_words
from rollout.order_log import cut_to
from rollout.plan import HostPlan
from rollout.progress import Callback, Progress, View, Views
from rollout.results import summary_of
from rollout.resume import Resumption, begin_resume, check_fit, plan_resume
from rollout.run import Run
from rollout.run_directory import RunDirectory
from rollout.summary import Summary

if TYPE_CHECKING:
    from rollout.policy import Policy


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    interrupted_by: the signal that ended it, or None. was_finished: there was nothing to resume.
    env, network: as they were given to `train`.
    """

    summary: Summary
    run_dir: Path
    interrupted_by: int | None = None
    was_finished: bool = False
    env: Any = None
    network: Any = None

    @property
    def policy(self) -> "Policy":
        """The trained policy; acts without a fleet."""
        from rollout.policy import load_policy

        return load_policy(self.run_dir, env=self.env, network=self.network)


def train(
    experiment: ExperimentSource | None = None,
    overrides: Iterable[str] = (),
    *,
    env: Any = None,
    algorithm: Any = None,
    network: Any = None,
    callbacks: Iterable[View | Callable[[Progress], bool | str | None]] = (),
    run_dir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    view: View | None = None,
    started: float | None = None,
) -> Result:
    """Train until a stop condition of the experiment holds, or until Ctrl-C, which saves first.

    experiment: a TOML file's path, a mapping, or an Experiment. overrides: `key=value` each.
    env: the environment itself, in place of `env.id`: a class, or a function that makes one, from
    wherever; see README. algorithm: the class of an algorithm, a subclass of
    rollout.learners.Algorithm, in place of `algorithm.kind`; the other keys of its table are its
    settings. network: the class of a torch.nn.Module, in place of `network.kind`; see README.
    callbacks: functions that are called with Progress after each update, or objects of
    classes derived from rollout.Callback; one that returns True or a reason ends the run, saved;
    one that raises ends it too, saved, and raises here. run_dir: a new or empty directory; by
    default runs/NAME-TIME. resume: a run to go on with instead, from its newest good checkpoint;
    its own experiment, with overrides. started: when the run's seconds begin to count, by
    time.monotonic(); by default now.

    Raises ConfigError, EnvError, AlgorithmError, NetworkError or OperatorError for what is wrong
    with the input, and leaves no new run directory then; RunFailed when a run that had started
    dies. Nothing is left running. In this process torch then has `learner.num_threads` threads,
    malloc keeps freed memory, and the limit on open files is raised.
    """
    began = time.monotonic() if started is None else started
    require_linux()
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks={callbacks!r}; wanted a list of them")
    view = Views([view or Callback(), *callbacks])
    if (experiment is None) == (resume is None) or (resume is not None and run_dir is not None):
        raise TypeError("train takes an experiment, perhaps with run_dir, or else resume")
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with contextlib.ExitStack() as closing:
        closing.enter_context(_signals_to(events, view))
        if resume is not None:
            directory = closing.enter_context(RunDirectory.open_to_resume(resume, env, network))
            resumption = plan_resume(directory, overrides, algorithm)
            summary = _finished(directory, resumption)
            if summary is not None:
                return Result(summary, directory.path, was_finished=True, env=env, network=network)
            experiment = resumption.experiment
        else:
            assert experiment is not None
            experiment = as_experiment(
                experiment, overrides, env=env, algorithm=algorithm, network=network
            )
            directory = resumption = None
        check_device(experiment.learner.device)
        given = experiment.env.pickled(), experiment.pickled_network()
        plan = closing.enter_context(_planned(experiment))  # refuses before there is a directory
        if ":" in experiment.algorithm.kind:
            for warning in try_out(experiment, plan.network, plan.schema):
                view.notice(warning)
        if isinstance(plan.network, ModuleSpec):
            for text in [*warnings_of(experiment, plan.network), cost_in_words(plan.network.kind)]:
                view.notice(text)
        if directory is None:
            directory = closing.enter_context(_new_directory(experiment, run_dir))
        elif resumption is not None:
            check_fit(resumption, plan.network, plan.schema)  # refuses before anything is changed
            _begin_resume(directory, resumption, view)
            began -= resumption.checkpoint.state["wall_s"]
        run = Run(directory, plan, given, resumption, view, Clock(began), events)
        summary, interrupted_by = run.train()
    view.finish(summary, directory)
    env, network = directory.given
    return Result(summary, directory.path, interrupted_by, env=env, network=network)


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
        with contextlib.suppress(RuntimeError):  # in the middle of writing to the same file
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
    with contextlib.suppress(OperatorError, ValueError):  # damaged: as good as none
        content = directory.read_summary()
        if content is not None:
            return Summary.from_dict(content)
    summary = summary_of(resumption.experiment, resumption.checkpoint)
    directory.write_summary(summary)
    return summary


def _begin_resume(directory: RunDirectory, resumption: Resumption, view: View) -> None:
    """Cut off what the run had written after its checkpoint."""
    begin_resume(directory, resumption)
    directory.summary.unlink(missing_ok=True)
    update = resumption.checkpoint.update
    if resumption.experiment.fleet.mode == "async" and not cut_to(directory.order, update):
        view.notice(f"{directory.order} lacks updates: this run cannot be replayed any more")
    view.notice(f"going on from {resumption.checkpoint.path.name}")
    if resumption.warning:
        view.notice(resumption.warning)
