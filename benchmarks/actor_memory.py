"""How much memory does an actor process take?

Proportional set size (what a process has to itself, and its part of what it shares) of the actors
of a real run after a few updates, with 10 and with 200 actors of 16 environments.
What they share with the template is divided among them, so that few actors seem larger than many.
Baseline: ten fresh Python processes, side by side, that import what an actor needs.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import msgspec

from rollout import api
from rollout.plan import HostPlan
from rollout.progress import Progress

AT_UPDATE = 5
WANTED_MB = 8
IMPORTS = "import sys, rollout.actor, rollout.envs.kernels; print(); sys.stdin.read()"


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} tells no Pss")


class Scale(api.Callback):
    """Weighs the actors of a run after some updates."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.mb: tuple[float, ...] = ()

    def write(self, progress: Progress) -> None:
        if progress.update == AT_UPDATE:
            fleet = (self.run / "fleet.msgpack").read_bytes()
            name = msgspec.msgpack.decode(fleet, type=HostPlan).name
            self.mb = tuple(pss_mb(pid) for pid in processes_of(name, "rollout-actor"))


def weigh_fleet(num_actors: int) -> harness.Measurement:
    """The actors of a real run."""
    experiment = {
        "env": {"id": "CartPole-v1", "num_envs": 16 * num_actors},
        "fleet": {"num_actors": num_actors, "unroll_length": 64},
        "stop": {"env_steps": (AT_UPDATE + 1) * 16 * num_actors * 64},
    }
    with tempfile.TemporaryDirectory() as folder:
        scale = Scale(Path(folder) / "run")
        summary = api.train(experiment, run_dir=scale.run, view=scale).summary
    assert summary.ledger.is_balanced and summary.actor_restarts == 0
    assert len(scale.mb) == num_actors
    return harness.Measurement(scale.mb)


def processes_of(run_name: str, comm: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            is_named = entry.name.isdigit() and (entry / "comm").read_text().strip() == comm
            if is_named and run_name in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def fresh_processes(count: int) -> Iterator[list[int]]:
    """Pids of processes that each import by themselves what an actor inherits."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", IMPORTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    yield [process.pid for process in started]
    for process in started:
        process.communicate()


def weigh_fresh_processes() -> harness.Measurement:
    with fresh_processes(10) as pids:
        return harness.Measurement(tuple(pss_mb(pid) for pid in pids))


def main() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    metrics, notes = {}, []
    for num_actors in (10, 200):
        metrics[f"{num_actors}_actors"] = measured = {
            "rollout": weigh_fleet(num_actors),
            "fresh processes": weigh_fresh_processes(),
        }
        largest = max(measured["rollout"].rates)
        notes.append(
            f"{num_actors} actors: the largest has {largest:.1f} MB (wanted: at most {WANTED_MB})"
        )
    notes.append("less is better; 'best' is the largest process")
    harness.report(
        "actor_memory",
        unit="MB of proportional set size per process",
        ours="rollout",
        metrics=metrics,
        config={"env": "CartPole-v1", "envs_per_actor": 16, "unroll_length": 64},
        notes=tuple(notes),
    )


if __name__ == "__main__":
    main()
