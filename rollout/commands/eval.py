"""`rollout eval`: how good the policies of runs are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout.commands.arguments import AsJson, Runs
from rollout.commands.progress_line import ProgressLine
from rollout.errors import OperatorError

if TYPE_CHECKING:
    from rollout.evaluate_runs import Evaluation

COLUMNS = ("median", "min", "max", "length_mean")


def eval(
    runs: Runs,
    episodes: Annotated[
        int,
        typer.Option(
            "--episodes",
            metavar="N",
            min=1,
            max=10_000_000,
            help="How many to play of each run, twice.",
        ),
    ] = 100,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=2**32 - 1,
            help="Which evaluation: another number plays other episodes. None are training's.",
        ),
    ] = 0,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="NAME",
            help="A name, an update, or `best`: of the highest mean return. Else the newest. Of "
            "several runs, each one's.",
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option("--video", metavar="FILE.gif", help="Show one deterministic episode there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play the policies of runs, and say how good they are.

    Twice: with the likeliest actions, and with sampled ones. No episode is one of training's. The
    interval of a run is a 95 % bootstrap interval of its mean return: what other episodes would
    have led to.

    Several runs have a row each. Those of one experiment, which differ in nothing but the seed and
    how long they ran, are summed up by the interquartile mean (IQM) of all their episodes, the mean
    of the middle half. Its 95 % interval is by the stratified bootstrap: runs are resampled, and
    episodes within each run, so it tells what other seeds would have led to.

    With --json, one run is one object; several are {"runs": [an object each], "experiments": […]}.

    \b
    Example:
      rollout eval runs/cartpole_ppo-20260101-120000 --episodes 1000 --video cartpole.gif
      rollout eval runs/cartpole_ppo-* --episodes 1000
    """
    from rollout.evaluate_runs import open_runs, play_runs

    opened = open_runs(runs, checkpoint)
    if video is not None:
        if len(opened) > 1:
            raise OperatorError(
                f"--video {video}: shows one run, and these are {len(opened)}; name one"
            )
        from rollout.video import check_video

        check_video(opened[0].policy, video)
    with ProgressLine() as line:
        evaluation = play_runs(opened, episodes, seed, line.show)
    asked = {"seed": seed, "episodes": episodes}
    if len(opened) > 1:
        _warn_of_equal_seeds(evaluation)
        found = asked | evaluation.as_dict()
        typer.echo(json.dumps(found, indent=2) if as_json else _tables(evaluation, found))
        return
    found = evaluation.runs[0].as_dict() | asked
    found |= {"video": None, "video_steps": 0}
    if video is not None:
        from rollout.video import write_video

        num_steps = write_video(opened[0].policy, video, seed)
        found |= {"video": str(video), "video_steps": num_steps}
    typer.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _warn_of_equal_seeds(evaluation: "Evaluation") -> None:
    for group in evaluation.groups:
        by_seed: dict[int, list[str]] = {}
        for run in (evaluation.runs[member].run for member in group.members):
            by_seed.setdefault(run.checkpoint.experiment.seed, []).append(str(run.path))
        for seed, paths in by_seed.items():
            if len(paths) > 1:
                typer.echo(
                    f"rollout: {', '.join(paths)}: of one experiment and one seed, {seed}, so they "
                    "count as several but tell no more than one; the interval is too narrow",
                    err=True,
                )


def _table(found: dict[str, Any]) -> str:
    """One run."""
    from rollout.evaluate_runs import KINDS

    lines = [
        f"{found['checkpoint']}: {found['env']}, {found['episodes']:,} episodes each",
        _head("", 13),
        *(_row(kind, 13, found[kind]) for kind in KINDS),
    ]
    if found["video"]:
        lines.append(f"video: {found['video']} ({found['video_steps']} steps)")
    return "\n".join(lines)


def _tables(evaluation: "Evaluation", found: dict[str, Any]) -> str:
    """Several runs, by experiment."""
    from rollout.evaluate_runs import KINDS

    width = max(len(run["checkpoint"]) for run in found["runs"]) + 2
    lines: list[str] = []
    for group, about in zip(evaluation.groups, found["experiments"], strict=True):
        count = len(group.members)
        lines += ["", f"{group.env_id}, {group.label}: {count} {'runs' if count > 1 else 'run'}"]
        for kind in KINDS:
            lines.append(_head(f"{kind}, {found['episodes']:,} episodes each", width))
            for member in group.members:
                run = found["runs"][member]
                lines.append(_row(f"  {run['checkpoint']}", width, run[kind]))
            pooled = about[kind]
            summed_up = {"mean": pooled["iqm"], "interval_95": pooled["iqm_interval_95"]}
            lines.append(_row("  interquartile mean", width, summed_up))
    return "\n".join(lines[1:])


def _head(title: str, width: int) -> str:
    return (
        f"{title:{width}}  {'return':>10}  {'95 % interval':>23}  "
        f"{'median':>10}  {'min':>10}  {'max':>10}  {'length':>10}"
    )


def _row(title: str, width: int, numbers: dict[str, Any]) -> str:
    from rollout.summary import show_number

    low, high = map(show_number, numbers["interval_95"])
    others = (f"  {show_number(numbers[name]):>10}" for name in COLUMNS if name in numbers)
    return (
        f"{title:{width}}  {show_number(numbers['mean']):>10}  {f'{low} – {high}':>23}"
        + "".join(others)
    )
