"""What `rollout replay` says: how far it is, and what came of replaying a run, or a failure."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from rollout.failure_replay import Outcome, start_of
from rollout.failures import Failure

if TYPE_CHECKING:  # whoever replays a failure does not wait for what a run needs
    from rollout.replay import Comparison, RunReplay

LINE_EVERY_S = 2.0

# A run


@contextlib.contextmanager
def run_progress(total: int, out: TextIO) -> Iterator[Callable[[int], None]]:
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


def run_report(run: "RunReplay", compared: "list[Comparison]", wall_s: float) -> dict[str, Any]:
    """All there is to tell of a run that was replayed, as JSON can hold it."""
    last = compared[-1]
    found = {
        "run": str(run.run.path),
        "updates": last.update,
        **last.as_dict(),
        "compared": [one.as_dict() for one in compared],
        "changed_versions": run.changed_versions(),
        "wall_s": wall_s,
    }
    del found["update"]
    return found


def run_text(found: dict[str, Any]) -> str:
    """The same for people."""
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


# A failure


def failure_head(path: Path, failure: Failure) -> str:
    """What is known of a failure before it is replayed."""
    episode, step = start_of(failure)
    place = f"at step {failure.t} of the unroll" if failure.t >= 0 else "nobody knows at which step"
    return "\n".join(
        [
            str(path),
            f"environment  {failure.env_source.id}, number {failure.env}, seed {failure.seed}",
            f"unroll       number {failure.unroll_index}, from step {step} of episode {episode} "
            f"on, weights version {failure.weights_version}",
            f"then         {failure.ended}: {failure.error}, {place}",
        ]
    )


def outcome_text(outcome: Outcome) -> str:
    """What became of it now."""
    if outcome.ended is None:
        return "acted to the end of the unroll"
    what = f"{outcome.ended}: {outcome.error}"
    if outcome.t is None:
        return what
    place = f"at step {outcome.t} of the unroll" if outcome.t >= 0 else "before its first step"
    return f"{what}, {place} (step {outcome.episode_step} of episode {outcome.episode})"


def verdict(failure: Failure, outcome: Outcome, python: bool) -> str:
    """Whether it is the same as then, and what may be the reason if not."""
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


def failure_report(path: Path, failure: Failure, outcome: Outcome) -> dict[str, Any]:
    """All there is to tell of a failure that was replayed, as JSON can hold it."""
    return {
        "file": str(path),
        "env_id": failure.env_source.id,
        "env": failure.env,
        "step": failure.step,
        "then": {"ended": failure.ended, "error": failure.error, "t": failure.t},
        "now": msgspec.to_builtins(outcome),
        "failed": outcome.ended is not None,
        "same": outcome.is_same(failure),
    }
