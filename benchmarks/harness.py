"""What all benchmarks share: repeats, medians, one JSON line, a table.

A benchmark measures several things in turn, again and again, so that a noisy minute hits them all:

    measured = measure({"compiled": (step, steps_per_call), "gymnasium": (other, other_steps)})
    report(
        "env_step_throughput",
        unit="env steps/s",
        ours="compiled",
        metrics={"cartpole_1024_envs": measured},
        config={"env": "CartPole-v1"},
    )

Each callable does its work once, compiled and checked before, and comes with how much work that is.
`report` prints tables to stderr and one JSON line to stdout: of each metric the unit, median and
spread of `ours` and of each baseline, and the ratios; config, commit, CPU, cores. The best repeat
stands beside the median: on a machine with other work on it, the best is nearer to what the code
can do, and the median to what it did.
"""

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Each one runs for so much of its turn before it is timed: caches, the processor's clock, and the
# threads of the one before, which may still be at work, are its own then.
SETTLING_PART = 1 / 3


@dataclass(frozen=True)
class Measurement:
    """Rates of one thing, in units of work per second, one per repeat."""

    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def best(self) -> float:
        return max(self.rates)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        low, _, high = statistics.quantiles(self.rates, n=4)
        return (high - low) / 2 / self.median


def measure(
    calls: Mapping[str, tuple[Callable[[], object], float]],
    repeats: int = 15,
    seconds_per_repeat: float = 0.1,
) -> dict[str, Measurement]:
    """Rates of calls, each given with the units of work it does, measured in turn."""
    rounds = {name: _rounds(call, seconds_per_repeat) for name, (call, _) in calls.items()}
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, work) in calls.items():
            _timed(call, math.ceil(rounds[name] * SETTLING_PART))  # what others left behind passes
            rates[name].append(rounds[name] * work / _timed(call, rounds[name]))
    return {name: Measurement(tuple(values)) for name, values in rates.items()}


def _timed(call: Callable[[], object], rounds: int) -> float:
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    return time.perf_counter() - start


def _rounds(call: Callable[[], object], seconds: float) -> int:
    """How often to call for about `seconds`; warms up on the way."""
    rounds = 1
    while (took := _timed(call, rounds)) < seconds / 4:
        rounds *= 2
    return max(1, round(rounds * seconds / took))


def report(
    benchmark: str,
    *,
    unit: str,
    ours: str,
    metrics: Mapping[str, Mapping[str, Measurement]],
    config: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Print a table per metric to stderr and one JSON line to stdout; returns the line."""
    line = {
        "benchmark": benchmark,
        "unit": unit,
        "metrics": {
            name: _summary(measured[ours])
            | {
                "baselines": {
                    other: _summary(one) | {"ratio": rounded(measured[ours].median / one.median)}
                    for other, one in measured.items()
                    if other != ours
                }
            }
            for name, measured in metrics.items()
        },
        "config": dict(config),
        "notes": list(notes),
        "machine": machine(),
    }
    for name, measured in metrics.items():
        print_table(f"{name}, {unit}", measured, ours)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(line), flush=True)
    return line


def _summary(one: Measurement) -> dict[str, float]:
    return {
        "median": rounded(one.median),
        "best": rounded(one.best),
        "spread": round(one.spread, 3),
    }


def print_table(title: str, measurements: Mapping[str, Measurement], ours: str) -> None:
    """For people: one row per measurement, fastest first."""
    width = max(map(len, measurements))
    print(f"\n{title}", file=sys.stderr)
    print(
        f"  {'':{width}} {'median':>12} {'best':>12} {'spread':>7} {'ours / it':>9}",
        file=sys.stderr,
    )
    for name, one in sorted(measurements.items(), key=lambda item: -item[1].median):
        ratio = measurements[ours].median / one.median
        print(
            f"  {name:{width}} {short(one.median):>12} {short(one.best):>12} "
            f"{one.spread:7.1%} {ratio:9.2f}",
            file=sys.stderr,
        )


def short(number: float) -> str:
    """1234567.0 as '1.23 M'."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.2f}{suffix}"
    return f"{number:.3g}"


def rounded(number: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{number:.4g}")


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "commit": commit(),
        "cpu": cpu(),
        "cores": _cores,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The checkout's commit, with a + if files differ from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True)
        return result.stdout.strip()

    try:
        return (git("rev-parse", "--short", "HEAD") or "unknown") + (
            "+" if git("diff", "HEAD", "--name-only") else ""
        )
    except OSError:
        return "unknown"


def cpu() -> str:
    """The processor by name, family and model (virtual machines hide the name)."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return (
        f"{fields.get('model name', platform.machine())} "
        f"(family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}, "
        f"{float(fields.get('cpu MHz', 0)) / 1000:.1f} GHz)"
    )


_cores = len(os.sched_getaffinity(0))  # before `pin_to_one_core`


def pin_to_one_core() -> None:
    """Stay on one core, if the system lets us: half the spread comes from moving between them."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
