"""How much memory does an actor process take?

Proportional set size (what a process has to itself, and its part of what it shares) of the actors
of a real fleet that has streamed a few unrolls, with 10 and with 200 actors of 16 environments.
What they share with the template is divided among them, so that few actors seem larger than many.
Baseline: ten fresh Python processes, side by side, that import what an actor needs.
"""

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness

from rollout.assembler import FullBatch
from rollout.cluster import Cluster, make_plan
from rollout.experiment import Experiment
from rollout.inbox import Inbox
from rollout.learners.network import initial_parameters
from rollout.learners.unroll import Batch
from rollout.receiver import FleetFailed, Receiver

NUM_BATCHES = 5
WANTED_MB = 8
IMPORTS = "import sys, rollout.actor, rollout.envs.kernels; print(); sys.stdin.read()"


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} tells no Pss")


@contextlib.contextmanager
def fleet(num_actors: int) -> Iterator[list[int]]:
    """Pids of actors that have sent some unrolls, all of which came into batches."""
    plan = make_plan(
        Experiment.from_dict(
            {
                "env": {"id": "CartPole-v1", "num_envs": 16 * num_actors},
                "fleet": {"num_actors": num_actors, "unroll_length": 64},
                "stop": {"env_steps": 1},
            }
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(plan, Path(folder) / "run.log")
        inbox = Inbox(plan.run, plan.schema, plan.num_envs, num_actors, 2, plan.policy_lag)
        batches = [Batch(plan.schema, plan.num_envs) for _ in range(2)]
        receiver = Receiver(cluster, inbox, batches, queue.SimpleQueue())
        try:
            stream(receiver, initial_parameters(plan.network, 0).tobytes())
            assert receiver.statistics().num_actors_alive == num_actors
            yield processes_of(plan.name, "rollout-actor")
        finally:
            receiver.close()
            cluster.close()


def stream(receiver: Receiver, weights: bytes) -> None:
    version = 0
    while version < NUM_BATCHES:
        receiver.publish(version, weights)
        while not isinstance(event := receiver.events.get(timeout=120), FullBatch):
            if isinstance(event, FleetFailed):
                raise event.error
        assert event.unroll_index == version and event.batch.is_full
        receiver.recycle(event.batch)
        version += 1


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


def measure(group: contextlib.AbstractContextManager[list[int]]) -> harness.Measurement:
    with group as pids:
        return harness.Measurement(tuple(pss_mb(pid) for pid in pids))


def main() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    metrics, notes = {}, []
    for num_actors in (10, 200):
        metrics[f"{num_actors}_actors"] = measured = {
            "rollout": measure(fleet(num_actors)),
            "fresh processes": measure(fresh_processes(10)),
        }
        assert len(measured["rollout"].rates) == num_actors
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
