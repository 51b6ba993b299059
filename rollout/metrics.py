"""What a run measures, on disk: `metrics.jsonl` for programs, TensorBoard's event files for people.

Both use the same names (CleanRL's where it has one). metrics.jsonl gets a line for every update.
TensorBoard gets a point at most every 0.2 s, and the last update: a run may make a hundred updates
per second, which no plot shows and no disk wants. Episodes of updates in between count in the next
point; nothing else is lost, since metrics.jsonl has it.

Loading TensorBoard's formats costs 0.2 s. So points are kept in memory for the first seconds (a
small experiment may reach its goal in them) and written when these are over, or at `close`.

A disk that is full stops no run: see Appender.
"""

import contextlib
import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from rollout.appender import Appender, cut_lines
from rollout.errors import RunFailed
from rollout.progress import Progress
from rollout.run_directory import RunDirectory

if TYPE_CHECKING:  # slow to import, and not needed by short runs
    from rollout.event_file import EventFile

log = logging.getLogger(__name__)

POINT_EVERY_S = 0.2
TENSORBOARD_AFTER_S = 5.0


class MetricsLog:
    """Writes a run's metrics; `close` brings everything to disk. Costs under 0.1 ms per update.

    An object with `write(progress)`, like a live view.
    """

    def __init__(self, run: RunDirectory, from_update: int | None = None) -> None:
        """from_update: the update a run is resumed from; what is there of later ones is cut off."""
        self._run = run
        self._first_step = 0
        if from_update is not None:
            last = cut_lines(run.metrics, from_update)
            self._first_step = 0 if last is None else last.get("global_step", 0) + 1
        self._lines = Appender(run.metrics)
        self._began = time.monotonic()
        self._next_point = self._began
        self._episodes = _Episodes()
        self._point: dict[str, float] | None = None  # the newest update's, not yet in a point
        self._step = 0
        self._waiting: list[tuple[float, int, dict[str, float]]] = []
        self._events: EventFile | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"MetricsLog({str(self._run.path)!r}, {len(self._waiting)} points waiting)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except RunFailed as failed:
            if error is None:
                raise
            log.warning("%s", failed)  # what ends the run says more

    @property
    def trouble(self) -> str | None:
        """What is wrong with the disk at the moment, for people; None if nothing is."""
        return self._lines.trouble or (self._events.trouble if self._events else None)

    def write(self, progress: Progress) -> None:
        """Record one update."""
        point = scalars(progress)
        line = {
            "update": progress.update,
            "global_step": progress.env_steps,
            "wall_s": progress.wall_s,
            **point,
        }
        now = time.monotonic()
        self._lines.append(msgspec.json.encode(line) + b"\n")  # NaN and infinity become null
        self._episodes.add(len(progress.episode_returns), point)
        self._point, self._step = point, progress.env_steps
        if now >= self._next_point:
            self._put_point()
            self._next_point = now + POINT_EVERY_S
            if now - self._began >= TENSORBOARD_AFTER_S:
                self._write_points()

    def flush(self) -> None:
        """Have the lines so far survive this process; a checkpoint must not be ahead of them."""
        self._lines.flush()

    def close(self) -> None:
        """Write what is left, the last update among it. Twice is once.

        Raises RunFailed if the disk does not take it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.ExitStack() as closed:
            closed.callback(self._lines.close)
            if self._point is not None:
                self._put_point()
            self._write_points()
            if self._events is not None:
                closed.callback(self._events.close)

    def _put_point(self) -> None:
        assert self._point is not None
        self._waiting.append((time.time(), self._step, self._point | self._episodes.means()))
        self._point, self._episodes = None, _Episodes()

    def _write_points(self) -> None:
        """Add the waiting points to TensorBoard's file: one event each, with all its scalars."""
        if not self._waiting:
            return
        if self._events is None:
            from rollout.event_file import EventFile

            self._events = EventFile(self._run.tensorboard, self._first_step)
        for wall_time, step, point in self._waiting:
            self._events.add(wall_time, step, point)
        self._waiting.clear()


def scalars(progress: Progress) -> dict[str, float]:
    """An update's numbers by TensorBoard name; what is not known yet is left out."""
    found: dict[str, float] = {"charts/SPS": float(progress.env_steps_per_s)}
    if len(progress.episode_returns):
        found["charts/episodic_return"] = float(progress.episode_returns.mean())
        found["charts/episodic_length"] = float(progress.episode_lengths.mean())
    if progress.episode_return_mean is not None:
        found["charts/episodic_return_mean_100"] = float(progress.episode_return_mean)
    if progress.episode_length_mean is not None:
        found["charts/episodic_length_mean_100"] = float(progress.episode_length_mean)
    for name, value in progress.losses.items():
        found[name] = float(value)
    found |= {f"fleet/{name}": float(value) for name, value in progress.fleet.items()}
    found["fleet/policy_lag"] = progress.policy_lag
    found["fleet/num_actors_alive"] = progress.num_actors_alive
    found["fleet/num_episodes"] = progress.num_episodes
    for name, share in progress.time_split.items():
        found[f"stats/{name}"] = float(share)
    return found


@dataclass
class _Episodes:
    """The episodes of the updates since the last point: their mean belongs to it."""

    count: int = 0
    returns: float = 0.0
    lengths: float = 0.0

    def add(self, count: int, point: dict[str, float]) -> None:
        if count:
            self.count += count
            self.returns += count * point["charts/episodic_return"]
            self.lengths += count * point["charts/episodic_length"]

    def means(self) -> dict[str, float]:
        """By TensorBoard name; nothing without episodes."""
        if not self.count:
            return {}
        return {
            "charts/episodic_return": self.returns / self.count,
            "charts/episodic_length": self.lengths / self.count,
        }
