"""`rollout eval`: how good a run's policy is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout.commands.arguments import AsJson

if TYPE_CHECKING:
    from rollout.checkpoint import Checkpoint
    from rollout.run_directory import RunDirectory

KINDS = ("deterministic", "sampled")


def eval(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run's directory.", show_default=False)
    ],
    episodes: Annotated[
        int,
        typer.Option(
            "--episodes", metavar="N", min=1, max=10_000_000, help="How many to play, twice."
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
            help="A name, an update, or `best`: of the highest mean return. Else the newest.",
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option("--video", metavar="FILE.gif", help="Show one deterministic episode there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play a run's policy, and say how good it is.

    Twice: with the likeliest actions, and with sampled ones. No episode is one of training's. The
    interval is a 95 % bootstrap interval of the mean.

    \b
    Example:
      rollout eval runs/cartpole_ppo-20260101-120000 --episodes 1000 --video cartpole.gif
    """
    from rollout.checkpoint import open_checkpoint
    from rollout.evaluation import play_episodes
    from rollout.policy import Policy
    from rollout.run_directory import RunDirectory
    from rollout.video import check_video, write_video

    directory = RunDirectory.open(run)
    loaded = open_checkpoint(directory, checkpoint)
    policy = Policy.from_checkpoint(loaded)
    if video is not None:
        check_video(policy, video)
    found = _head(directory, loaded) | {"seed": seed, "episodes": episodes}
    for kind in KINDS:
        is_deterministic = kind == "deterministic"
        found[kind] = play_episodes(policy, episodes, is_deterministic, seed).as_dict()
    found["video"] = None if video is None else str(video)
    found["video_steps"] = 0 if video is None else write_video(policy, video, seed)
    typer.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _head(run: "RunDirectory", checkpoint: "Checkpoint") -> dict[str, Any]:
    return {
        "run": str(run.path),
        "checkpoint": str(checkpoint.path),
        "update": checkpoint.update,
        "env": checkpoint.experiment.env.id,
    }


def _table(found: dict[str, Any]) -> str:
    from rollout.summary import show_number

    lines = [
        f"{found['checkpoint']}: {found['env']}, {found['episodes']:,} episodes each",
        f"{'':13}  {'return':>10}  {'95 % interval':>23}  "
        f"{'median':>10}  {'min':>10}  {'max':>10}  {'length':>10}",
    ]
    for kind in KINDS:
        row = found[kind]
        low, high = map(show_number, row["interval_95"])
        numbers = (row[name] for name in ("median", "min", "max", "length_mean"))
        lines.append(
            f"{kind:13}  {show_number(row['mean']):>10}  {f'{low} – {high}':>23}  "
            + "  ".join(f"{show_number(number):>10}" for number in numbers)
        )
    if found["video"]:
        lines.append(f"video: {found['video']} ({found['video_steps']} steps)")
    return "\n".join(lines)
