"""`rollout chaos`: what becomes of an experiment whose processes are killed, stopped and slowed."""

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout.chaos_faults import Kind, plan_faults
from rollout.commands.arguments import AsJson, ExperimentFile, Overrides
from rollout.errors import OperatorError, RunFailed

if TYPE_CHECKING:
    from rollout.chaos import Outcome
    from rollout.chaos_report import Teller
    from rollout.experiment import Experiment

CHECKPOINTS = 25  # in a run whose learner will be killed, unless its settings say otherwise
UNKNOWN_EVERY = 50  # updates between them where nobody knows how many there will be


def chaos(
    file: ExperimentFile,
    overrides: Overrides = None,
    kills: Annotated[
        int, typer.Option("--kills", metavar="N", min=0, help="Faults, of all kinds.")
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Begins what is random.")] = 0,
    only: Annotated[
        list[Kind] | None,
        typer.Option("--only", help="Faults of this kind; more than once for several kinds."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="A new or empty directory for both runs; else runs/NAME-chaos-TIME.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference/--no-reference",
            help="Whether to run the experiment undisturbed as well, to compare with.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Run an experiment while its processes are killed, stopped and slowed at random.

    Before, it is run undisturbed. actor, template, host and learner are killed (SIGKILL); the
    learner then goes on from its newest checkpoint. stop and slow hit any of them (SIGSTOP and
    SIGCONT). Shown are the account of all unrolls, how long the run took to recover, what
    throughput was lost, and in lockstep whether the parameters are the same.

    Exit status: 0 if the account balances, every process came back, nothing is left behind, and in
    lockstep the parameters are equal; 1 if not, 2 for bad input, 130 after Ctrl-C.

    \b
    Example:
      rollout chaos configs/cartpole_ppo.toml --kills 30 --seed 1
      rollout chaos configs/cartpole_ppo.toml --kills 200 --only actor fleet.num_actors=3
    """
    from rollout.chaos import make_place
    from rollout.chaos_report import Teller, make_report, print_report
    from rollout.experiment import load_experiment
    from rollout.run_directory import RUNS

    experiment = load_experiment(file, overrides or [])
    kinds = sorted(set(only or Kind))
    if not reference and experiment.stop.env_steps is None:
        raise OperatorError(
            f"{file}: without stop.env_steps nobody knows how long the run will be; set it, or "
            "leave --no-reference out"
        )
    name = f"{experiment.name}-chaos-{time.strftime('%Y%m%d-%H%M%S')}"
    place = make_place(RUNS / name if run_dir is None else run_dir)
    arguments = [str(file), *(overrides or []), *_checkpoints(experiment, kinds)]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, _interrupt)
    tell = Teller()
    try:
        undisturbed = None
        num_updates = _num_updates(experiment)
        if reference:
            undisturbed = _run(arguments, place / "undisturbed", experiment, [], tell)
            num_updates = undisturbed.updates
            if undisturbed.summary is None or undisturbed.status:
                raise RunFailed(f"the undisturbed run failed: {undisturbed.error}")
        faults = plan_faults(kinds, kills, seed, num_updates)
        disturbed = _run(arguments, place / "disturbed", experiment, faults, tell, num_updates)
    except KeyboardInterrupt:
        tell.line(f"interrupted; nothing runs any more, what there is of the runs is in {place}")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    hides = experiment.env.find().has_hidden_state
    report = make_report(experiment.fleet.mode, seed, undisturbed, disturbed, hides)
    if as_json:
        typer.echo(json.dumps({"runs": str(place)} | report, indent=2))
    else:
        print_report(place, report)
    raise typer.Exit(1 if report["failures"] else 0)


def _interrupt(_number: int, _frame: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the run that goes on ends within a limit
    raise KeyboardInterrupt


def _checkpoints(experiment: "Experiment", kinds: list[Kind]) -> list[str]:
    """Overrides with which a killed learner does not have to begin all over again."""
    if Kind.learner not in kinds or experiment.checkpoint.every_updates is not None:
        return []
    updates = _num_updates(experiment)
    every = max(1, updates // CHECKPOINTS) if updates else UNKNOWN_EVERY
    return [f"checkpoint.every_updates={every}"]


def _num_updates(experiment: "Experiment") -> int:
    """As many as stop.env_steps makes; 0 without."""
    return -(-(experiment.stop.env_steps or 0) // experiment.batch_size)


def _run(
    arguments: list[str],
    path: Path,
    experiment: "Experiment",
    faults: list[Any],
    tell: "Teller",
    num_updates: int = 0,
) -> "Outcome":
    from rollout.chaos import Disturber, TrainProcess

    tell.line(f"{path.name} run, in {path}")
    with TrainProcess(arguments, path) as train:
        disturber = Disturber(train, experiment.fleet.num_actors, faults)
        outcome = disturber.run(tell.progress(num_updates, len(faults)))
    tell.line(f"{path.name} run ended after {outcome.updates:,} updates")
    return outcome
