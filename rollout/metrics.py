"""What a run measures, on disk: `metrics.jsonl` for programs, TensorBoard's event files for people.

Both use the same names (CleanRL's where it has one). metrics.jsonl gets a line for every update.
TensorBoard gets a point at most every 0.2 s, and the last update: a run may make a hundred updates
per second, which no plot shows and no disk wants. Episodes of updates in between count in the next
point; nothing else is lost, since metrics.jsonl has it.

Loading TensorBoard's writer costs 0.15 to 0.5 s. So points are kept in memory for the first seconds
(a small experiment may reach its goal in them) and written when these are over, or at `close`.
"""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from rollout.errors import RunFailed
from rollout.progress import Progress
from rollout.run_directory import RunDirectory

POINT_EVERY_S = 0.2
TENSORBOARD_AFTER_S = 5.0
FLUSH_EVERY_S = 0.5  # lines of metrics.jsonl that may be missing after a SIGKILL


class MetricsLog:
    """Writes a run's metrics; `close` brings everything to disk. Costs under 0.1 ms per update.

    An object with `write(progress)`, like a live view.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._lines = open(run.metrics, "ab", buffering=1 << 16)  # noqa: SIM115
        self._began = time.monotonic()
        self._next_flush = self._began
        self._next_point = self._began
        self._episodes = _Episodes()
        self._point: dict[str, float] | None = None  # the newest update's, not yet in a point
        self._step = 0
        self._waiting: list[tuple[float, int, dict[str, float]]] = []
        self._events: Any = None

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
        self.close()

    def write(self, progress: Progress) -> None:
        """Record one update. Raises RunFailed if the disk does not take it."""
        point = scalars(progress)
        line = {
            "update": progress.update,
            "global_step": progress.env_steps,
            "wall_s": progress.wall_s,
            **point,
        }
        now = time.monotonic()
        try:
            self._lines.write(msgspec.json.encode(line) + b"\n")  # NaN and infinity become null
            if now >= self._next_flush:
                self._lines.flush()
                self._next_flush = now + FLUSH_EVERY_S
        except OSError as error:
            raise RunFailed(f"{self._run.metrics}: cannot be written: {error.strerror}") from error
        self._episodes.add(len(progress.episode_returns), point)
        self._point, self._step = point, progress.env_steps
        if now >= self._next_point:
            self._put_point()
            self._next_point = now + POINT_EVERY_S
            if now - self._began >= TENSORBOARD_AFTER_S:
                self._write_points()

    def close(self) -> None:
        """Write what is left, the last update among it. Twice is once."""
        if self._lines.closed:
            return
        try:
            self._lines.close()
            if self._point is not None:
                self._put_point()
            self._write_points()
            if self._events is not None:
                self._events.close()
        except OSError as error:
            raise RunFailed(f"{self._run.path}: cannot write metrics: {error.strerror}") from error

    def _put_point(self) -> None:
        assert self._point is not None
        self._waiting.append((time.time(), self._step, self._point | self._episodes.means()))
        self._point, self._episodes = None, _Episodes()

    def _write_points(self) -> None:
        """Hand the waiting points to TensorBoard's writer: one event each, with all its scalars."""
        if not self._waiting:
            return
        from tensorboard.compat.proto.summary_pb2 import (  # generated: no stubs
            Summary,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from torch.utils.tensorboard import FileWriter

        if self._events is None:
            self._events = FileWriter(str(self._run.tensorboard), max_queue=64, flush_secs=2)
        for wall_time, step, point in self._waiting:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.items()]
            self._events.add_summary(Summary(value=values), step, wall_time)
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
