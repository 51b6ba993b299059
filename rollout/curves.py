"""Learning curves: what runs wrote into metrics.jsonl, and several of them as one.

Read as they are: a run may still be under way, be resumed, or have lost a line to a full disk; and
its environment need not be installed here.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rollout.errors import OperatorError

CONFIG, METRICS, SUMMARY = "config.toml", "metrics.jsonl", "summary.json"

POINTS = 1000  # of a curve; no picture shows more

Points = tuple[np.ndarray, np.ndarray]  # x [U] and y [U]


@dataclass(frozen=True, eq=False)
class Curve:
    """A run's mean return over the last 100 episodes, after each update that knows one.

    tables: its experiment, as in config.toml. env_steps: int64 [U], rising. wall_s: float64 [U],
    seconds since it began, without those between its end and a resumption. mean_return: float64
    [U]. is_over: whether it has ended. damaged: what was left out, for people; None if nothing was.
    """

    run: Path
    tables: Mapping[str, Any]
    env_steps: np.ndarray
    wall_s: np.ndarray
    mean_return: np.ndarray
    is_over: bool
    damaged: str | None

    def __repr__(self) -> str:
        return f"Curve({str(self.run)!r}, {len(self.mean_return)} updates)"

    @property
    def goal(self) -> float | None:
        """The mean return that ends the run."""
        goal = self.tables["stop"].get("episode_return")
        return float(goal) if isinstance(goal, int | float) else None


@dataclass(frozen=True, eq=False)
class Band:
    """Several curves as one, where all of them are: at x [P], the mean [P], and low and high [P].

    low and high are the least and the greatest of the curves.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class _Line(msgspec.Struct):
    """What matters here of a line of metrics.jsonl; see rollout.metrics."""

    global_step: int
    wall_s: float
    mean_return: float | None = msgspec.field(name="charts/episodic_return_mean_100", default=None)


def load_curve(run: Path) -> Curve:
    """A run's learning curve; empty before its first episode has ended.

    Raises OperatorError if its config.toml or metrics.jsonl cannot be read.
    """
    tables = _read_config(run / CONFIG)
    try:
        with open(run / METRICS, "rb") as file:
            rows, damaged = _read_lines(file)
    except FileNotFoundError:
        rows, damaged = [], []
    except OSError as error:
        raise OperatorError(f"{error.filename}: cannot be read: {error.strerror}") from error
    shown = None
    if damaged:
        lines = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        first = "" if len(damaged) == 1 else f", the first is line {damaged[0]}"
        shown = f"{run / METRICS}: {lines} damaged{first}; left out"
    known = [row for row in rows if row.mean_return is not None]
    return Curve(
        run,
        tables,
        np.array([row.global_step for row in known], np.int64),
        np.array([row.wall_s for row in known], np.float64),
        np.array([row.mean_return for row in known], np.float64),
        (run / SUMMARY).exists(),
        shown,
    )


def thinned(x: np.ndarray, y: np.ndarray) -> Points:
    """At most POINTS of the points [U] of a curve, the first and the last among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(np.int64))
    return x[kept], y[kept]


def band(curves: Sequence[Points]) -> Band | None:
    """Curves (x [U], y [U]), x rising, as one; None if there is no x where all of them are.

    In between its points a curve is straight. Where one is not, not yet or no more, there is no
    mean: that of the others would leap, up or down, though none of them did.
    """
    low = max(x[0] for x, _ in curves)
    high = min(x[-1] for x, _ in curves)
    if low >= high:
        return None
    at = np.linspace(low, high, POINTS)
    values = np.stack([np.interp(at, x, y) for x, y in curves])
    return Band(at, values.mean(0), values.min(0), values.max(0))


def outside(x: np.ndarray, y: np.ndarray, low: float, high: float) -> list[Points]:
    """The parts of a curve (x [U], y [U]), x rising, that lie before low and after high."""
    parts = []
    if x[0] < low:
        before = x < low
        parts.append((np.append(x[before], low), np.append(y[before], np.interp(low, x, y))))
    if x[-1] > high:
        after = x > high
        parts.append((np.append(high, x[after]), np.append(np.interp(high, x, y), y[after])))
    return parts


def _read_config(file: Path) -> dict[str, Any]:
    """An experiment's tables, as far as they are needed here."""
    try:
        tables = tomllib.loads(file.read_text())
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML, or UTF-8
        raise OperatorError(f"{file}: not TOML ({error}); it was altered") from error
    wanted = {"name": str, "env": dict, "algorithm": dict, "stop": dict}
    for key, kind in wanted.items():
        if not isinstance(tables.get(key), kind):
            raise OperatorError(f"{file}: has no {key}, as every run's has; it was altered")
    if not isinstance(tables["env"].get("id"), str):
        raise OperatorError(f"{file}: has no env.id, as every run's has; it was altered")
    return tables


def _read_lines(file: Any) -> tuple[list[_Line], list[int]]:
    """The lines that make sense, and the numbers of those that do not.

    A last line without its end is being written, or was when the run was killed: it is passed over.
    """
    rows: list[_Line] = []
    damaged: list[int] = []
    for number, row in _decoded(file):
        is_later = row is not None and (
            not rows or (row.global_step > rows[-1].global_step and row.wall_s >= rows[-1].wall_s)
        )
        if row is not None and is_later:
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def _decoded(file: Any) -> Iterator[tuple[int, _Line | None]]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield number, decoder.decode(line)
        except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
            yield number, None
