"""`rollout train`: learner and local fleet, until a stop condition holds."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from rollout.commands.arguments import AsJson, ExperimentFile, Overrides


def train(
    file: ExperimentFile,
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
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but how the run ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy, until a condition under [stop] holds.

    Ctrl-C once ends the run with a checkpoint, twice at once. Exit status: 0 when a condition under
    [stop] ended the run, goal reached or not; 130 after Ctrl-C; 2 for bad input; 1 otherwise.
    With --json the summary is all there is on standard output, progress goes to standard error.

    \b
    Example:
      rollout train configs/cartpole_ppo.toml seed=3 fleet.num_actors=2
    """
    from rollout.api import train as train_experiment
    from rollout.live_view import make_view
    from rollout.processes import seconds_since_start, set_name

    set_name("rollout-learner")
    started = time.monotonic() - seconds_since_start()
    with make_view(quiet, sys.stderr if as_json else sys.stdout) as view:
        result = train_experiment(
            file, overrides or (), run_dir=run_dir, view=view, started=started
        )
    if as_json:
        shown = result.summary.as_dict() | {"run": str(result.run_dir)}
        typer.echo(json.dumps(shown, indent=2))
    if result.interrupted_by is not None:
        name = signal.Signals(result.interrupted_by).name
        typer.echo(f"rollout: {name}: the run ended early; it was saved first", err=True)
        raise typer.Exit(128 + result.interrupted_by)
