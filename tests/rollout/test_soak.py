"""A long run with kills all the time: no process grows."""

import contextlib
import os
import random
import signal
import statistics
import time
from collections import defaultdict
from pathlib import Path

import pytest

from rollout.run_directory import RunDirectory

SOAK_S = float(os.environ.get("ROLLOUT_SOAK_S", "60"))
MOST_GROWTH = 1_000_000  # bytes, over the second half
KILL_EVERY_S = 0.5
SAMPLE_EVERY_S = 0.5
STARTING_S = 10.0  # imports, compilation, the first checkpoint

FILE = """
[env]
id = "CartPole-v1"
num_envs = 16
[fleet]
num_actors = 4
unroll_length = 16
mode = "{mode}"
[network]
hidden_sizes = [16]
[algorithm]
update_epochs = 1
[stop]
wall_s = {wall_s}
[checkpoint]
every_updates = 500
"""


def memory_bytes(pid: int) -> int:
    """What a process has written; pages of libraries count otherwise as others come and go."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    raise ProcessLookupError(pid)


@pytest.mark.slow
@pytest.mark.timeout(2 * SOAK_S + 300)
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_no_process_grows_while_actors_are_killed_all_the_time(start, places, mode):
    """Agent and template are killed in the first half only: in the second they are compared."""
    command = start(file=FILE.format(mode=mode, wall_s=SOAK_S + STARTING_S))
    command.wait_update(10)
    chance = random.Random(0)
    began = time.monotonic()
    spared = 0  # an actor that is to live on, and may not grow either
    kills = 0
    samples: dict[str, list[tuple[float, int]]] = defaultdict(list)
    next_kill = next_sample = began
    others_to_kill = ["rollout-host", "rollout-templ"]
    while (age := time.monotonic() - began) < SOAK_S:
        assert command.process.poll() is None, command.said()
        if others_to_kill and age > SOAK_S / (4 * len(others_to_kill)):
            os.kill(places.wait_pids(others_to_kill.pop(), timeout_s=30)[0], signal.SIGKILL)
        actors = [pid for pid in places.pids("rollout-actor") if pid != spared]
        if not spared and not others_to_kill and age > SOAK_S / 3 and actors:
            spared = actors.pop()  # it has long begun when it is first measured
        if actors and time.monotonic() >= next_kill:
            next_kill = time.monotonic() + KILL_EVERY_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(actors), signal.SIGKILL)
                kills += 1
        if age > SOAK_S / 2 and time.monotonic() >= next_sample:
            next_sample = time.monotonic() + SAMPLE_EVERY_S
            for name, pid in watched(places, spared).items():
                with contextlib.suppress(FileNotFoundError):  # one killed late goes late
                    samples[name].append((age, memory_bytes(pid)))
        time.sleep(0.02)
    assert command.wait() == 0, command.said()
    places.assert_gone()
    summary = RunDirectory.open(command.run).read_summary()
    assert summary is not None and summary["ledger"]["balance"] == 0
    assert summary["host_restarts"] == 1 and summary["actor_restarts"] >= kills > SOAK_S / 2
    assert samples.keys() == {"learner", "agent", "template", "actor"}
    growth = {name: growth_bytes([size for _, size in found]) for name, found in samples.items()}
    print(f"{mode}, {SOAK_S:.0f} s, {kills} kills, {summary['updates']} updates: {growth}")
    told = {n: [f"{at:.0f} s: {size / 1e6:.2f} MB" for at, size in f] for n, f in samples.items()}
    assert max(growth.values()) <= MOST_GROWTH, f"{growth}\n{told}"


def watched(places, spared: int) -> dict[str, int]:
    (learner,) = places.pids("rollout-learner")
    (agent,) = places.pids("rollout-host")
    # An actor bears the template's name for a moment, but not its parent's number.
    (template,) = (pid for pid in places.pids("rollout-templ") if parent_of(pid) == agent)
    return {"learner": learner, "agent": agent, "template": template, "actor": spared}


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def growth_bytes(sizes: list[int]) -> int:
    """From the first to the last tenth of the samples."""
    count = max(1, len(sizes) // 10)
    return int(statistics.median(sizes[-count:]) - statistics.median(sizes[:count]))
