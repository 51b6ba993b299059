"""Pictures of learning curves; needs matplotlib, the extra `plots`.

Drawn without pyplot, so there is no window and no state; always with the Agg backend.
"""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.curves import Curve, Points, band, outside, thinned
from rollout.errors import OperatorError
from rollout.run_directory import write_atomically
from rollout.run_groups import Group, group_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people of all kinds of sight tell apart, without their yellow: it
# is too pale for a line. After the last one come other kinds of line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("solid", "dashed", "dashdot", "dotted")
SHADE: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
THIN: dict[str, Any] = {"linewidth": 0.6}
GOAL: dict[str, Any] = {"color": "0.45", "linestyle": (0, (6, 3)), "linewidth": 1.0}

MADE_BY = "rollout plot"  # in the file's metadata: what may be replaced
PANEL_INCHES = (5.5, 3.6)
ENTRY_INCHES = 0.22
DOTS_PER_INCH = 150

AXES = {  # name: label, attribute of Curve
    "steps": ("environment steps", "env_steps"),
    "seconds": ("wall time (seconds)", "wall_s"),
}


def draw(curves: Sequence[Curve], axes: Sequence[str] = tuple(AXES)) -> "Figure":
    """A figure with a row for each environment and a column for each of `axes`.

    Runs of one experiment, which differ in nothing but seed, [stop] and [checkpoint], are one line,
    their mean, in a band from the least to the greatest of them, where all of them are; elsewhere
    they are thin lines of their own. Raises OperatorError without matplotlib.
    """
    figure_class = _figure_class()
    groups = group_runs([curve.tables for curve in curves])
    envs = list(dict.fromkeys(group.env_id for group in groups))
    of_env = {env: [group for group in groups if group.env_id == env] for env in envs}
    width, height = PANEL_INCHES
    heights = [height + ENTRY_INCHES * len(of_env[env]) for env in envs]
    figure = figure_class(
        figsize=(width * len(axes), sum(heights)), dpi=DOTS_PER_INCH, layout="constrained"
    )
    rows = figure.subfigures(len(envs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for env_id, row in zip(envs, rows, strict=True):
        row.suptitle(env_id, parse_math=False)
        panels = row.subplots(1, len(axes), sharey=True, squeeze=False)[0]
        members = [[curves[member] for member in group.members] for group in of_env[env_id]]
        has_single = [
            _draw_panel(panel, axis, members) for axis, panel in zip(axes, panels, strict=True)
        ]
        panels[0].set_ylabel("mean return of the last 100 episodes")
        _put_legend(row, of_env[env_id], _goals(members), any(has_single))
    return figure


def check_file(file: Path) -> None:
    """Raises OperatorError if a picture may not be written there; before any work."""
    if file.suffix.lower() != ".png":
        raise OperatorError(
            f"--out {file}: unknown format {file.suffix!r}; wanted a name that ends in .png"
        )
    if not file.parent.is_dir():
        raise OperatorError(f"--out {file}: there is no folder {file.parent}")
    if (file.exists() or file.is_symlink()) and not _is_ours(file):
        raise OperatorError(
            f"{file}: is there already, and not by `{MADE_BY}`; move it, or name another file with "
            "--out"
        )


def write_figure(figure: "Figure", file: Path) -> None:
    """Write a PNG, whole or not at all. Raises OperatorError."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": MADE_BY})
    try:
        write_atomically(file, content.getvalue())
    except OSError as error:
        raise OperatorError(
            f"{file}: cannot be written: {error.strerror}; name another file with --out"
        ) from error


def _figure_class() -> "type[Figure]":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        from rollout.envs.foreign.extras import install

        raise OperatorError(f"drawing needs matplotlib; {install('plots')}") from None
    return Figure


def _is_ours(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return picture.info.get("Software") == MADE_BY
    except (OSError, SyntaxError, ValueError):
        return False


def _draw_panel(panel: "Axes", axis: str, groups: Sequence[Sequence[Curve]]) -> bool:
    """Whether runs of a group are seen by themselves anywhere."""
    from matplotlib.ticker import EngFormatter, FuncFormatter

    label, attribute = AXES[axis]
    has_single = False
    for look, curves in zip(_looks(len(groups)), groups, strict=True):
        points = [(getattr(curve, attribute), curve.mean_return) for curve in curves]
        has_single |= _draw_group(panel, points, look)
    for goal in _goals(groups):
        panel.axhline(goal, zorder=1, **GOAL)
    panel.set_xlabel(label)
    panel.set_xlim(left=0.0)
    is_steps = axis == "steps"
    panel.xaxis.set_major_formatter(EngFormatter(sep="") if is_steps else FuncFormatter(_number))
    panel.yaxis.set_major_formatter(FuncFormatter(_number))
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    return has_single


def _draw_group(panel: "Axes", curves: Sequence[Points], look: dict[str, Any]) -> bool:
    """The curves of one experiment's runs; whether one is seen by itself besides their mean."""
    if len(curves) == 1:
        _draw_line(panel, curves[0], look)
        return False
    together = band(curves)
    if together is None:
        singles = [*curves]
    else:
        panel.plot(together.x, together.mean, **look)
        shade = look | SHADE
        panel.fill_between(together.x, together.low, together.high, **shade)
        low, high = together.x[0], together.x[-1]
        singles = [part for x, y in curves for part in outside(x, y, low, high)]
    for single in singles:
        _draw_line(panel, single, look | THIN)
    return bool(singles)


def _draw_line(panel: "Axes", points: Points, look: dict[str, Any]) -> None:
    x, y = thinned(*points)
    panel.plot(x, y, marker="o" if len(x) == 1 else None, markersize=3, **look)


def _looks(count: int) -> list[dict[str, Any]]:
    """Of so many experiments."""
    looks = itertools.cycle(itertools.product(STYLES, COLOURS))
    return [
        {"color": colour, "linestyle": style} for style, colour in itertools.islice(looks, count)
    ]


def _goals(groups: Sequence[Sequence[Curve]]) -> list[float]:
    return sorted({curve.goal for curves in groups for curve in curves if curve.goal is not None})


def _put_legend(row: Any, groups: Sequence[Group], goals: list[float], has_single: bool) -> None:
    """Below the panels of an environment."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = []
    for look, group in zip(_looks(len(groups)), groups, strict=True):
        line, count = Line2D([], [], **look), len(group.members)
        if count == 1:
            entries.append((line, group.label))
        else:
            shade = Patch(color=look["color"], **SHADE)
            entries.append(((shade, line), f"{group.label}: mean of {count} runs, min to max"))
    if has_single:
        entries.append((Line2D([], [], color="0.3", **THIN), "single runs, where not all are"))
    entries += [(Line2D([], [], **GOAL), f"goal: {_number(goal)}") for goal in goals]
    legend = row.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        loc="outside lower center",
        ncols=1 if max(len(label) for _, label in entries) > 50 else 2,
        frameon=False,
        fontsize="small",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _number(value: float, _place: int | None = None) -> str:
    return f"{value:,.10g}".replace("-", "−")
