"""`rollout train`: learner and local fleet, until a stop condition holds."""

import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rollout.commands.arguments import AsJson, Overrides
from rollout.errors import OperatorError

if TYPE_CHECKING:
    from rollout.summary import Summary


def train(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="An experiment file; left out with --resume.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="A new or empty directory for the run; else runs/NAME-TIME.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with this run from its newest checkpoint, in its directory.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but how the run ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy, until a condition under [stop] holds.

    Ctrl-C once ends the run with a checkpoint, twice at once. Exit status: 0 when a condition under
    [stop] ended the run, goal reached or not; 130 after Ctrl-C; 2 for bad input; 1 otherwise.
    With --json the summary is all there is on standard output, progress goes to standard error.

    --resume RUN goes on with a run as its config.toml says, with KEY=VALUE over it: what the
    learning curve depends on changes only if it is named there. Actors may be more or fewer.

    \b
    Example:
      rollout train configs/cartpole_ppo.toml seed=3 fleet.num_actors=2
      rollout train --resume runs/cartpole_ppo-20260101-120000 fleet.num_actors=7
    """
    experiment, overrides = _what_to_train(file, overrides or [], run_dir, resume)
    from rollout.api import train as train_experiment
    from rollout.live_view import make_view
    from rollout.processes import seconds_since_start, set_name

    set_name("rollout-learner")
    started = time.monotonic() - seconds_since_start()
    with make_view(quiet, sys.stderr if as_json else sys.stdout) as view:
        result = train_experiment(
            experiment, overrides, run_dir=run_dir, resume=resume, view=view, started=started
        )
    if as_json:
        shown = result.summary.as_dict() | {"run": str(result.run_dir)}
        typer.echo(json.dumps(shown, indent=2))
    go_on = f"rollout train --resume {shlex.quote(str(result.run_dir))}"
    if result.was_finished:
        typer.echo(
            f"rollout: {result.run_dir} has finished, there was nothing to do; to go on, move the "
            f"condition that ended it: {go_on} {_further(result.summary)}",
            err=True,
        )
    if result.interrupted_by is not None:
        name = signal.Signals(result.interrupted_by).name
        typer.echo(
            f"rollout: {name}: the run ended early; it was saved first, and `{go_on}` goes on",
            err=True,
        )
        raise typer.Exit(128 + result.interrupted_by)


def _what_to_train(
    file: str | None, overrides: list[str], run_dir: Path | None, resume: Path | None
) -> tuple[Path | None, list[str]]:
    """The experiment file of a new run, None for one that is resumed; overrides."""
    if resume is None:
        if file is None:
            raise OperatorError("nothing to train: name an experiment FILE, or --resume RUN")
        return Path(file), overrides
    if run_dir is not None:
        raise OperatorError(
            f"--run-dir {run_dir}: a run that is resumed stays in its directory, {resume}; leave "
            "--run-dir out"
        )
    if file is None:
        return None, overrides
    if "=" not in file:
        raise OperatorError(
            f"{file}: a run that is resumed has an experiment, {resume / 'config.toml'}; leave the "
            "file out, or say what is to change as KEY=VALUE"
        )
    return None, [file, *overrides]


def _further(summary: "Summary") -> str:
    """An override with which a run that has finished would go on."""
    if summary.goal_reached:
        return "stop.episode_return=…"
    return f"stop.env_steps={2 * summary.env_steps}"
