"""What the processes of one host share: the weights, and a page of counters. Files in tmpfs.

The host agent creates and writes both; the template maps the page before it forks, so its actors
inherit it. Files are made with `write`: a mapping that outgrows a full tmpfs would end in SIGBUS.
"""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

from rollout.processes import futex_wait, futex_wake_all

COUNTERS_OFFSET = 64  # bytes: the word that actors wait on has a cache line to itself


def shared_memory_directory() -> Path:
    """Where files that live in memory go on this machine."""
    return Path(os.environ.get("ROLLOUT_SHM_DIR") or "/dev/shm")


def host_page_bytes(num_actors: int) -> int:
    """Size of a host's page of counters."""
    return COUNTERS_OFFSET + 8 * num_actors


class HostPage:
    """The newest weights version on this host, and how many unrolls each actor has produced."""

    def __init__(self, path: Path, num_actors: int, create: bool = False) -> None:
        size = host_page_bytes(num_actors)
        if create:
            path.write_bytes(bytes(size))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        # The version plus one, cut to 32 bits: a futex is a uint32. 0 says that there is none yet.
        self._word = ctypes.c_uint32.from_buffer(self._map)
        self.produced = np.frombuffer(self._map, np.uint64, num_actors, COUNTERS_OFFSET)

    def publish(self, version: int) -> None:
        """Tell the host's actors that the file of this version is in its place."""
        self._word.value = version + 1
        futex_wake_all(self._word)

    def wait_version(self, version: int) -> None:
        """Return once `version` or a newer one is published; blocks in the kernel until then."""
        wanted = version + 1
        while (seen := self._word.value) < wanted:
            futex_wait(self._word, seen)


class WeightsFiles:
    """One file per weights version of a host: float32, flat."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, version: int) -> Path:
        return self.directory / f"weights-{version}"

    def write(self, version: int, weights: bytes | memoryview) -> None:
        """Put a version in its place; who can see the file sees all of it."""
        beside = self.directory / f"weights-{version}.partial"
        beside.write_bytes(weights)
        beside.rename(self.path(version))

    def remove(self, version: int) -> None:
        """Forget a version; actors that have it mapped keep it."""
        self.path(version).unlink(missing_ok=True)

    def map(self, version: int) -> np.ndarray:
        """A version's flat vector, read-only; all processes that map it share its memory."""
        with open(self.path(version), "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(mapped, np.float32)
