"""`rollout replay`: a run, or the failure of an environment, once more."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from rollout.commands.arguments import AsJson
from rollout.errors import OperatorError

if TYPE_CHECKING:
    from rollout.failure_replay import Outcome
    from rollout.failures import Failure
    from rollout.replay import RunReplay

LINE_EVERY_S = 2.0


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

    \b
    Examples:
      rollout replay runs/cartpole_ppo-20260101-120000
      rollout replay runs/mine-20260101-120000/failures/env-17-step-4711.safetensors --pdb
    """
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
    if report_to is not None:
        _be_child(path, python, report_to)
    elif pdb:
        _debug_failure(path)
    else:
        _replay_failure(path, python, as_json)


# A run


def _replay_run(path: Path, updates: int | None, as_json: bool) -> None:
    from rollout.replay import RunReplay
    from rollout.run_directory import RunDirectory

    run = RunReplay(RunDirectory.open(path), updates)
    since = time.monotonic()
    with _progress(run.num_updates, sys.stderr if as_json else sys.stdout) as tell:
        compared = run.compare(tell)
    last = compared[-1]
    found = {
        "run": str(path),
        "updates": last.update,
        **last.as_dict(),
        "compared": [one.as_dict() for one in compared],
        "changed_versions": run.changed_versions(),
        "wall_s": time.monotonic() - since,
    }
    del found["update"]
    typer.echo(json.dumps(found, indent=2) if as_json else _run_report(run, found))
    raise typer.Exit(1 if last.is_equal is False else 0)


def _run_report(run: "RunReplay", found: dict[str, Any]) -> str:
    lines = [f"{found['run']}: {found['updates']:,} updates replayed in {found['wall_s']:.1f} s"]
    for one in found["compared"]:
        theirs = one["checkpoint_digest"] or "no checkpoint of this update"
        lines += [
            f"update {one['update']:,}",
            f"  replayed    {one['digest']}",
            f"  checkpoint  {theirs}",
        ]
    lines.append(
        {True: "equal", False: "different", None: "nothing to compare with"}[found["equal"]]
    )
    if found["equal"] is False:
        changed = found["changed_versions"]
        shown = ", ".join(f"{n} {then} then, {now} now" for n, (then, now) in changed.items())
        lines.append(
            "Another processor or GPU, or other versions of libraries, give other bits; so do an "
            "environment whose code has changed, and settings that changed when the run was "
            f"resumed. Versions: {shown or 'the same'}."
        )
    return "\n".join(lines)


@contextlib.contextmanager
def _progress(total: int, out: TextIO) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of updates done: a bar on a terminal, else lines."""
    if out.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("updates"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(file=out), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda update: bar.update(task, completed=update)
        return
    said = time.monotonic()

    def tell(update: int) -> None:
        nonlocal said
        if time.monotonic() >= said + LINE_EVERY_S:
            said = time.monotonic()
            print(f"update {update:,} of {total:,}", file=out, flush=True)

    yield tell


# A failure


def _replay_failure(path: Path, python: bool, as_json: bool) -> None:
    """In a child process: a failure may take its process with it."""
    from rollout.failures import load_failure

    failure = load_failure(path)
    if not as_json:
        typer.echo(_head(path, failure))
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
        faulthandler.enable()  # compiled, it would show none of the author's lines
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

    failure = load_failure(path)
    typer.echo(_head(path, failure))
    if failure.ended == "hang":
        typer.echo("If it hangs again, Ctrl-C opens the debugger where it is.")
    _make_interrupts_exceptions()
    replayed = replay_failure(failure, jit=False)
    if replayed.traceback is not None:
        typer.echo(f"now          {_what(replayed.outcome)}")
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
    if as_json:
        typer.echo(json.dumps(_as_dict(path, failure, outcome), indent=2))
    else:
        typer.echo(f"now          {_what(outcome)}")
        if outcome.lines:
            typer.echo(outcome.lines.rstrip("\n"))
        typer.echo(_verdict(failure, outcome, python))
    raise typer.Exit(0 if outcome.ended is None else 1)


def _head(path: Path, failure: "Failure") -> str:
    from rollout.failure_replay import start_of

    episode, step = start_of(failure)
    place = f"at step {failure.t} of the unroll" if failure.t >= 0 else "nobody knows at which step"
    return "\n".join(
        [
            str(path),
            f"environment  {failure.env_id}, number {failure.env}, seed {failure.seed}",
            f"unroll       number {failure.unroll_index}, from step {step} of episode {episode} "
            f"on, weights version {failure.weights_version}",
            f"then         {failure.ended}: {failure.error}, {place}",
        ]
    )


def _what(outcome: "Outcome") -> str:
    if outcome.ended is None:
        return "acted to the end of the unroll"
    what = f"{outcome.ended}: {outcome.error}"
    if outcome.t is None:
        return what
    place = f"at step {outcome.t} of the unroll" if outcome.t >= 0 else "before its first step"
    return f"{what}, {place} (step {outcome.episode_step} of episode {outcome.episode})"


def _verdict(failure: "Failure", outcome: "Outcome", python: bool) -> str:
    if outcome.ended is not None:
        return "It failed again" + (
            ", in the same way." if outcome.is_same(failure) else ", but otherwise than then."
        )
    why = (
        "state that is not in its record, a machine or libraries other than then, or code that "
        "has been mended since"
    )
    if python:
        why += ", or plain Python, which rounds otherwise than compiled code (leave --python out)"
    return f"It did not fail this time. What may be the reason: {why}."


def _as_dict(path: Path, failure: "Failure", outcome: "Outcome") -> dict[str, Any]:
    import msgspec

    return {
        "file": str(path),
        "env_id": failure.env_id,
        "env": failure.env,
        "step": failure.step,
        "then": {"ended": failure.ended, "error": failure.error, "t": failure.t},
        "now": msgspec.to_builtins(outcome),
        "failed": outcome.ended is not None,
        "same": outcome.is_same(failure),
    }
