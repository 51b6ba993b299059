"""`rollout actors`: more actors for a run that goes on."""

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from rollout.errors import OperatorError


def actors(
    run: Annotated[
        str,
        typer.Option(
            "--connect",
            metavar="RUN",
            help="The directory of a run that goes on, on this machine.",
            show_default=False,
        ),
    ],
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            "-n",
            metavar="N",
            min=1,
            help="How many; else one per usable core.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Add actors to a run that goes on.

    The environments are shared out anew, so that all actors have some; more actors than there are
    environments wait. Ctrl-C hands the environments back first and then ends the actors, twice ends
    them at once. The run itself goes on either way, with the same curve in lockstep.

    Exit status: 0 when they left as they were told to, by Ctrl-C or because the run ended; 1 when
    the run's process died, or the environment could not be prepared; 2 for a wrong RUN.

    \b
    Example:
      rollout actors --connect runs/cartpole_ppo-20260101-120000 --num 4
    """
    if "://" in run:
        raise OperatorError(
            f"{run}: actors on other machines come in a later version; --connect wants the "
            "directory of a run on this machine, as runs/NAME-TIME"
        )
    from rollout.joining import LeaveAtOnce, find_running, join

    num_actors = len(os.sched_getaffinity(0)) if num is None else num
    shown = f"{num_actors} actor{'s' if num_actors > 1 else ''}"
    has_left = False

    def say_that_we_leave() -> None:
        nonlocal has_left
        has_left = True
        with contextlib.suppress(OSError):  # straight: a handler may interrupt any other print
            os.write(1, b"leaving...\n")

    with find_running(Path(run)) as running:
        began = time.monotonic()
        who = f"{run}, of process {running.learner_pid}"
        try:
            parting = join(
                running,
                num_actors,
                on_joined=lambda: _say(f"{shown} joined {who}; Ctrl-C takes them out again"),
                on_leaving=say_that_we_leave,
            )
        except LeaveAtOnce:
            _say(f"{shown} ended at once, {_after(began)}; the run goes on without them")
            raise typer.Exit(130) from None
    if parting.failure:
        typer.echo(f"rollout: {parting.failure}; see {Path(run) / 'run.log'}", err=True)
        raise typer.Exit(1)
    if parting.has_learner_died:
        typer.echo(
            f"rollout: process {running.learner_pid} of {run} died, and {shown} ended with it, "
            f"{_after(began)}; `rollout train --resume {run}` goes on with the run",
            err=True,
        )
        raise typer.Exit(1)
    _say(f"{shown} left{'' if has_left else ' when the run ended'}, {_after(began)}")


def _after(began: float) -> str:
    return f"at {time.strftime('%H:%M:%S')} after {time.monotonic() - began:.1f} s"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone, which ends nothing
        typer.echo(text)
