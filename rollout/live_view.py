"""What a person sees of a run while it goes on.

A table that is drawn anew on a terminal, a line now and then elsewhere. The views fit what
`rollout.api.train` takes; as context managers they leave the terminal as it was.
"""

import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rollout.progress import Callback, Progress
from rollout.run_directory import RunDirectory
from rollout.summary import Summary, show_number

if TYPE_CHECKING:
    from rich.console import RenderableType

TABLE_EVERY_S = 0.2
TABLE_SHARE = 0.01  # of the learner's time that drawing the table may take
LINE_EVERY_S = 2.0
BAR_WIDTH = 24


def make_view(quiet: bool = False, out: TextIO | None = None) -> "QuietView":
    """The view that fits: none but the end if quiet, a table on a terminal, lines elsewhere.

    out: where to, standard output if left out.
    """
    target = sys.stdout if out is None else out
    if target is None:  # pyright: ignore[reportUnnecessaryComparison]  (it was closed)
        target = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(target, io.TextIOWrapper):
        target.reconfigure(errors="replace")  # no character may end a run
    if quiet:
        return QuietView(target)
    if target.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TableView(target)
    return LineView(target)


class QuietView(Callback):
    """Says how the run ended, and nothing before."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._stop_reason: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, progress: Progress) -> None:
        self._stop_reason = progress.stop_reason

    def finish(self, summary: Summary, run: RunDirectory) -> None:
        self.close()
        report = final_report(summary, run, self._stop_reason)
        self._print(report + "\n")

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody looks any more (`| head`): the run goes on
            self._out.write(text)
            self._out.flush()


class LineView(QuietView):
    """A line for the first update, then one every two seconds, and one for the last."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._next = 0.0
        self._unsaid: Progress | None = None

    def phase(self, text: str) -> None:
        self._print(f"{text}\n")

    def notice(self, text: str) -> None:
        self._print(f"{text}\n")

    def write(self, progress: Progress) -> None:
        super().write(progress)
        self._unsaid = progress
        now = time.monotonic()
        if now >= self._next or progress.stop_reason is not None:
            self._next = now + LINE_EVERY_S
            self._say()

    def close(self) -> None:
        if self._unsaid is not None:
            self._say()

    def _say(self) -> None:
        assert self._unsaid is not None
        self._print(progress_line(self._unsaid) + "\n")
        self._unsaid = None


class TableView(QuietView):
    """A table on a terminal, drawn at most five times per second and in 1 % of the time."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._next = 0.0
        self._unseen: Progress | None = None
        self._live: Any = None
        self._has_status = False

    def phase(self, text: str) -> None:
        """On one line that the next phase, or the table, writes over."""
        if self._live is None:
            columns = _columns(self._out)
            self._print(f"\r\x1b[K{text[: columns - 2]} …")
            self._has_status = True

    def notice(self, text: str) -> None:
        """Above the table, where it stays."""
        if self._live is None:
            self._clear_status()
            self._print(f"{text}\n")
        else:
            with contextlib.suppress(OSError):
                self._live.console.print(text, markup=False, highlight=False)

    def write(self, progress: Progress) -> None:
        super().write(progress)
        self._unseen = progress
        now = time.monotonic()
        if now >= self._next or progress.stop_reason is not None:
            self._draw()
            took = time.monotonic() - now
            self._next = now + took + max(TABLE_EVERY_S, took / TABLE_SHARE)

    def close(self) -> None:
        if self._unseen is not None:
            self._draw()
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None
        self._clear_status()

    def _draw(self) -> None:
        assert self._unseen is not None
        progress, self._unseen = self._unseen, None
        if self._live is None:
            self._live = self._make_live()
        with contextlib.suppress(OSError):
            self._live.update(progress_table(progress), refresh=True)

    def _make_live(self) -> Any:
        from rich.console import Console  # 0.05 s that the first phases do not need
        from rich.live import Live

        self._clear_status()
        live = Live(console=Console(file=self._out, highlight=False), auto_refresh=False)
        live.start()
        live.console.show_cursor()  # a second Ctrl-C would leave a terminal without one
        return live

    def _clear_status(self) -> None:
        if self._has_status:
            self._print("\r\x1b[K")
            self._has_status = False


def progress_line(progress: Progress) -> str:
    """One update on one line."""
    parts = [
        f"update {progress.update:,}",
        f"{progress.env_steps:,} steps",
        f"{_rate(progress.env_steps_per_s)} steps/s",
        f"return {_number(progress.episode_return_mean)}",
        f"lag {progress.policy_lag:.3g}",
        f"actors {_actors(progress)}",
        *(f"{key} {share:.0%}" for key, share in progress.stop.items()),
        f"{progress.wall_s:.1f} s",
    ]
    return "  ".join(parts)


def progress_table(progress: Progress) -> "RenderableType":
    """One update as rows of a name and what is known of it."""
    from rich.table import Table
    from rich.text import Text

    rows: list[tuple[str, str | Text]] = [*_rows(progress)]
    for key, share in progress.stop.items():
        filled = round(BAR_WIDTH * min(max(share, 0.0), 1.0))
        bar = ("█" * filled, "green"), ("░" * (BAR_WIDTH - filled), "bright_black")
        rows.append((f"stop.{key}", Text.assemble(*bar, f" {share:4.0%}")))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True, min_width=max(len(name) for name, _ in rows))
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _rows(progress: Progress) -> Iterator[tuple[str, str]]:
    episodes = f"last 100 of {progress.num_episodes:,} episodes"
    length = _number(progress.episode_length_mean)
    yield "return", f"{_number(progress.episode_return_mean)}  ({episodes}, length {length})"
    yield "steps", f"{progress.env_steps:,}  ({_rate(progress.env_steps_per_s)} per second)"
    yield (
        "updates",
        f"{progress.update:,}  in {progress.wall_s:.1f} s, policy lag {progress.policy_lag:.3g}",
    )
    losses = "  ".join(
        f"{name.removeprefix('losses/')} {value:.3g}"
        for name, value in progress.losses.items()
        if name.startswith("losses/")
    )
    if losses:
        yield "losses", losses
    restarts = int(progress.fleet.get("actor_restarts", 0))
    yield "actors", f"{_actors(progress)} alive" + (f", {restarts:,} replaced" if restarts else "")
    if "unrolls_produced" in progress.fleet:
        yield "unrolls", _account(progress.fleet)
    for process, shares in _by_process(progress.time_split).items():
        yield f"{process} time", "  ".join(f"{what} {share:.0%}" for what, share in shares)


def _by_process(time_split: Mapping[str, float]) -> dict[str, list[tuple[str, float]]]:
    """`learner/update` and the like, under `learner`."""
    grouped: dict[str, list[tuple[str, float]]] = {}
    for name, share in time_split.items():
        process, _, what = name.partition("/")
        grouped.setdefault(process, []).append((what.replace("_", " "), share))
    return grouped


def final_report(summary: Summary, run: RunDirectory, stop_reason: str | None) -> str:
    """How a run ended, where it is, and what to type next."""
    goal = run.experiment.stop.episode_return
    mean = f"mean return {_number(summary.episode_return_mean)} over the last 100 episodes"
    steps = f"{summary.env_steps:,} steps at {_rate(summary.env_steps_per_s)} per second"
    if summary.goal_reached_s is not None:
        first = f"Goal reached after {summary.goal_reached_s:.1f} s: {mean} (goal: {goal:g})."
    else:
        because = f" ({stop_reason})" if stop_reason else ""
        missed = f"; the goal, {goal:g}, was not reached" if goal is not None else ""
        first = f"Ended after {summary.wall_s:.1f} s{because}: {mean}{missed}."
    lines = [
        first,
        f"{summary.updates:,} updates, {steps}.",
        *_lost(summary.episodes_lost),
        f"Run: {run.path}",
        "",
        "Next:",
        *(f"  {command}" for command in next_commands(run)),
    ]
    return "\n".join(lines)


def _lost(episodes: Mapping[str, int]) -> Iterator[str]:
    """A line on episodes that were not played to their end, if there are any."""
    by_reason = ", ".join(f"{n:,} by {why.replace('_', ' ')}" for why, n in episodes.items() if n)
    if by_reason:
        yield f"{sum(episodes.values()):,} episodes lost: {by_reason}."


def next_commands(run: RunDirectory) -> Iterator[str]:
    """What may be typed about a run that ended."""
    place = shlex.quote(str(run.path))
    env_id = run.experiment.env.id
    ids = {"env": env_id, "network": run.experiment.network.kind}
    given = [
        f", {table}={named.partition(':')[2]}"
        for (table, named), value in zip(ids.items(), run.given, strict=True)
        if value is not None
    ]
    if given:
        yield f"policy = rollout.load_policy({str(run.path)!r}{''.join(given)})"
        yield f"rollout plot {place}"
        yield f"tensorboard --logdir {place}"
        return
    yield f"rollout eval {place}"
    from rollout.envs.registry import can_render  # with Gymnasium behind it: slow to import

    if can_render(run.experiment.env.find()):
        name = Path(env_id.rpartition(":")[2]).name.partition("-")[0].lower()  # without ALE/
        yield f"rollout eval {place} --video {name}.gif"
    yield f"rollout plot {place}"
    yield f"tensorboard --logdir {place}"


def _actors(progress: Progress) -> str:
    return f"{progress.num_actors_alive:,} of {progress.num_actors:,}"


def _account(fleet: Mapping[str, float]) -> str:
    """The ledger's sum, on one line."""
    dropped = sum(n for name, n in fleet.items() if name.startswith("unrolls_dropped_"))
    text = (
        f"{fleet['unrolls_produced']:,.0f} produced, {fleet['unrolls_trained']:,.0f} trained, "
        f"{fleet['unrolls_in_flight']:,.0f} in flight, {dropped:,.0f} dropped"
    )
    balance = fleet["unrolls_balance"]
    return text + (f", {balance:+,.0f} UNACCOUNTED FOR" if balance else "")


def _number(value: float | None) -> str:
    return "–" if value is None else show_number(value)


def _rate(per_second: float) -> str:
    """0 is no rate: it stands for one that is not known before there are two updates."""
    return f"{per_second:,.0f}" if per_second else "–"


def _columns(out: TextIO) -> int:
    try:
        return max(os.get_terminal_size(out.fileno()).columns, 20)
    except (OSError, ValueError):
        return 80
