"""`rollout replay`: a run, or the failure of an environment, once more."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rollout.commands.arguments import AsJson
from rollout.errors import OperatorError

if TYPE_CHECKING:
    from rollout.failure_replay import Outcome
    from rollout.failures import Failure


def replay(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run's directory, or a file from its folder `failures`.",
            show_default=False,
        ),
    ],
    updates: Annotated[
        int | None,
        typer.Option(
            "--updates",
            metavar="N",
            min=0,
            help="Of a run: how many; else as many as its newest checkpoint has seen.",
            show_default=False,
        ),
    ] = None,
    python: Annotated[
        bool,
        typer.Option("--python", help="Of a failure: as plain Python, where breakpoint() works."),
    ] = False,
    pdb: Annotated[
        bool,
        typer.Option(
            "--pdb", help="Of a failure: as --python, and open a debugger where it fails."
        ),
    ] = False,
    as_json: AsJson = False,
    report_to: Annotated[int | None, typer.Option("--report-to", hidden=True)] = None,
) -> None:
    """Do again what a run did, or what an environment failed in.

    A run is acted and trained anew from its beginning, in this one process, and its parameters are
    compared with those of its checkpoints. Exit status: 0 if they are equal or there was nothing to
    compare with, 1 if they differ.

    A failure is one unroll of one environment, acted by the same weights from the same state. Exit
    status: 1 if it fails again, 0 if not.

    Ctrl-C ends it with status 130, unless it shows where an environment hangs.

    \b
    Examples:
      rollout replay runs/cartpole_ppo-20260101-120000
      rollout replay runs/mine-20260101-120000/failures/env-17-step-4711.safetensors --pdb
    """
    if report_to is not None:
        _be_child(path, python, report_to)
        return
    with _interruptible():
        _replay(path, updates, python, pdb, as_json)


def _replay(path: Path, updates: int | None, python: bool, pdb: bool, as_json: bool) -> None:
    if path.is_dir():
        if python or pdb:
            raise OperatorError(
                f"{path}: a run, and --python and --pdb are for a failure; name a file in "
                f"{path / 'failures'}"
            )
        _replay_run(path, updates, as_json)
        return
    if updates is not None:
        raise OperatorError(f"{path}: not a run's directory, and --updates is for a run")
    if pdb and as_json:
        raise OperatorError("--pdb talks to people, --json to programs; leave one out")
    if pdb:
        _debug_failure(path)
    else:
        _replay_failure(path, python, as_json)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Have Ctrl-C end the command with a line and its status."""
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    _make_interrupts_exceptions()
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends it at once
        typer.echo("interrupted; nothing was changed", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)


# A run


def _replay_run(path: Path, updates: int | None, as_json: bool) -> None:
    from rollout.replay import RunReplay
    from rollout.replay_report import run_progress, run_report, run_text
    from rollout.run_directory import RunDirectory

    run = RunReplay(RunDirectory.open(path), updates)
    since = time.monotonic()
    with run_progress(run.num_updates, sys.stderr if as_json else sys.stdout) as tell:
        compared = run.compare(tell)
    found = run_report(run, compared, time.monotonic() - since)
    typer.echo(json.dumps(found, indent=2) if as_json else run_text(found))
    raise typer.Exit(1 if found["equal"] is False else 0)


# A failure


def _replay_failure(path: Path, python: bool, as_json: bool) -> None:
    """In a child process: a failure may take its process with it."""
    from rollout.failures import load_failure
    from rollout.replay_report import failure_head

    failure = load_failure(path)
    if not as_json:
        typer.echo(failure_head(path, failure))
        if failure.ended == "hang":
            end = "shows the line it is at" if python else "ends it; with --python it shows where"
            typer.echo(f"If it hangs again, Ctrl-C {end}.")
    outcome = _act_in_child(path, python, failure)
    _end(path, failure, outcome, python, as_json)


def _act_in_child(path: Path, python: bool, failure: "Failure") -> "Outcome":
    """The outcome, or the exit of this process where the child could not even begin."""
    import msgspec

    from rollout.failure_replay import Outcome

    command = [sys.executable, "-P", "-m", "rollout", "replay", str(path)]
    reading, writing = os.pipe()
    # Ctrl-C reaches both processes, and the child decides; a handler, unlike SIG_IGN, it does not
    # inherit.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(
            [*command, "--report-to", str(writing), *(["--python"] if python else [])],
            pass_fds=[writing],
            stdout=sys.stderr.fileno(),  # whatever an environment prints
        )
        os.close(writing)
        with open(reading, "rb") as pipe:
            report = pipe.read()
        status = child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if not report and status == -signal.SIGINT:
        raise KeyboardInterrupt
    if not report:
        raise typer.Exit(status if status > 0 else 1)  # it has said why
    began, _, ended = report.partition(b"\n")
    assert began == b"began"
    if ended:
        return msgspec.json.decode(ended, type=Outcome)
    if status == -signal.SIGINT:
        return Outcome(ended="hang", error="Ctrl-C")
    if status < 0:
        return Outcome(ended="signal", error=signal.Signals(-status).name)
    return Outcome(ended="exit", error=f"status {status}")


def _be_child(path: Path, python: bool, report_to: int) -> None:
    """Act the unroll, and write `began` and then the outcome to a pipe."""
    import faulthandler

    import msgspec

    from rollout import processes
    from rollout.failure_replay import load_code, replay_failure
    from rollout.failures import load_failure

    processes.die_with_parent(os.getppid())
    if python:
        faulthandler.enable()
    else:
        faulthandler.disable()  # it would show none of the author's lines
    failure = load_failure(path)
    load_code(failure, jit=not python)
    os.write(report_to, b"began\n")
    if python:  # compiled code would not notice; there it ends the process
        _make_interrupts_exceptions()
    outcome = replay_failure(failure, jit=not python).outcome
    os.write(report_to, msgspec.json.encode(outcome))


def _debug_failure(path: Path) -> None:
    import pdb  # noqa: T100

    from rollout.failure_replay import replay_failure
    from rollout.failures import load_failure
    from rollout.replay_report import failure_head, outcome_text

    failure = load_failure(path)
    typer.echo(failure_head(path, failure))
    if failure.ended == "hang":
        typer.echo("If it hangs again, Ctrl-C opens the debugger where it is.")
    replayed = replay_failure(failure, jit=False)
    if replayed.traceback is not None:
        typer.echo(f"now          {outcome_text(replayed.outcome)}")
        pdb.post_mortem(replayed.traceback)
        raise typer.Exit(1)
    _end(path, failure, replayed.outcome, python=True, as_json=False)


def _make_interrupts_exceptions() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, where __main__.py has it end the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(
    path: Path, failure: "Failure", outcome: "Outcome", python: bool, as_json: bool
) -> NoReturn:
    """Say what became of it, and end with the status that tells the same."""
    from rollout.replay_report import failure_report, outcome_text, verdict

    if as_json:
        typer.echo(json.dumps(failure_report(path, failure, outcome), indent=2))
    else:
        typer.echo(f"now          {outcome_text(outcome)}")
        if outcome.lines:
            typer.echo(outcome.lines.rstrip("\n"))
        typer.echo(verdict(failure, outcome, python))
    raise typer.Exit(0 if outcome.ended is None else 1)
