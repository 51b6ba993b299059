"""`rollout plot`: the learning curves of runs, as a picture."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rollout.commands.arguments import Runs
from rollout.commands.progress_line import ProgressLine
from rollout.errors import OperatorError

if TYPE_CHECKING:
    from rollout.curves import Curve

OF_ONE, OF_SEVERAL = "learning_curve.png", "learning_curves.png"


class Axis(StrEnum):
    """What a learning curve goes over."""

    steps = "steps"
    seconds = "seconds"
    both = "both"


def plot(
    runs: Runs,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.png",
            help=f"Where to; else {OF_ONE} in the run's directory, or for several runs "
            f"{OF_SEVERAL} here. Only a picture of this command's is written over.",
            show_default=False,
        ),
    ] = None,
    x: Annotated[Axis, typer.Option("--x", help="What the curves go over.")] = Axis.both,
) -> None:
    """Draw learning curves of runs, over steps and over seconds, as a PNG.

    Runs of one experiment, which differ in nothing but the seed and how long they ran, are one
    line: their mean, in a band from the least to the greatest of them, where all of them are;
    elsewhere they are thin lines of their own. Another experiment has another colour, another
    environment panels of its own. A dashed grey line is the goal, stop.episode_return. Runs may be
    under way.

    \b
    Needs matplotlib:
      pip install 'rollout-cluster[plots]'

    \b
    Example:
      rollout plot runs/cartpole_ppo-20260101-120000
      rollout plot runs/cartpole_ppo-* runs/cartpole_impala-* --out curves.png --x steps
    """
    from rollout.curves import load_curve
    from rollout.plot import AXES, check_file, draw, write_figure
    from rollout.run_groups import find_runs, group_runs

    paths = find_runs(runs)
    if out is None:
        out = paths[0] / OF_ONE if len(paths) == 1 else Path(OF_SEVERAL)
    check_file(out)
    curves: list[Curve] = []
    with ProgressLine() as line:
        for number, path in enumerate(paths, 1):
            line.show(f"reading {path} ({number} of {len(paths)})")
            curves.append(load_curve(path))
    _tell(curves)
    curves = [curve for curve in curves if len(curve.mean_return)]
    write_figure(draw(curves, tuple(AXES) if x is Axis.both else (x.value,)), out)
    count = len(group_runs([curve.tables for curve in curves]))
    typer.echo(f"{out}: {_count(len(curves), 'run')} of {_count(count, 'experiment')}")


def _tell(curves: Sequence["Curve"]) -> None:
    """What people should know of them. Raises OperatorError if there is nothing to draw."""
    for curve in curves:
        if curve.damaged is not None:
            typer.echo(f"rollout: {curve.damaged}", err=True)
    empty = [curve for curve in curves if not len(curve.mean_return)]
    if len(empty) == len(curves):
        raise OperatorError(
            f"nothing to draw: no episode has ended in {', '.join(str(c.run) for c in empty)}"
        )
    for curve in curves:
        if not len(curve.mean_return):
            typer.echo(f"rollout: {curve.run}: no episode has ended in it; left out", err=True)
        elif not curve.is_over:
            what = "has not come to its end; drawn as far as it is"
            typer.echo(f"rollout: {curve.run}: {what}", err=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
