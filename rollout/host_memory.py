"""What the processes of one host share: the weights, and a page of numbers. Files in tmpfs.

The host agent creates both; the template maps the page before it forks, so its actors inherit it.
Files are made with `write`: a mapping that outgrows a full tmpfs would end in SIGBUS.
"""

import ctypes
import mmap
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rollout.processes import futex_wait, futex_wake_all

HEAD = np.dtype(
    [
        ("changes", np.uint32),  # a futex; raised by whatever an actor may wait for
        ("cut", np.uint32),  # number of the newest cut of the environments into shares
        ("version", np.int64),  # newest weights version; -1 when there is none
        ("cut_unroll", np.int64),  # first unroll of that cut's shares
    ]
)

# An actor's own numbers; a cache line each. They go on from life to life.
SLOT = np.dtype(
    {
        # unrolls sealed; steps in them, see `Slot.count`; when the unroll in the making was begun
        # (time.monotonic_ns; 0: none is); the longest one; the environment being stepped;
        # the weights that act it; the number of its episode, and the steps of it that are done
        "names": [
            "produced",
            "produced_steps",
            "began_ns",
            "longest_ns",
            "position",
            "version",
            "episode",
        ],
        "formats": [np.uint64, (np.uint64, 2), *[np.int64] * 4, (np.int32, 2)],
        "offsets": [0, 8, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)
HEAD_BYTES = 64
NOWHERE = -1
FADING = 0.99  # of the longest unroll's time, from one unroll to the next


def host_page_bytes(num_actors: int) -> int:
    """Size of a host's page."""
    return HEAD_BYTES + SLOT.itemsize * num_actors


class Moment(NamedTuple):
    """Where an actor was when it died, see SLOT. position: NOWHERE outside of an unroll.

    episode, episode_t: NOWHERE where compiled code steps the environment.
    """

    position: int
    weights_version: int
    episode: int = -1
    episode_t: int = -1


class HostPage:
    """What this host's actors wait for, and what each of them has done."""

    def __init__(self, path: Path, num_actors: int, create: bool = False) -> None:
        size = host_page_bytes(num_actors)
        if create:
            path.write_bytes(bytes(size))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._head = np.frombuffer(self._map, HEAD, 1)
        self._word = ctypes.c_uint32.from_buffer(self._map)
        self.slots = np.frombuffer(self._map, SLOT, num_actors, HEAD_BYTES)
        if create:
            self._head["version"] = NOWHERE

    @property
    def version(self) -> int:
        """The newest weights version on this host; -1 when there is none."""
        return int(self._head["version"][0])

    @property
    def cut(self) -> tuple[int, int]:
        """The newest cut, and the first unroll of its shares."""
        return int(self._head["cut"][0]), int(self._head["cut_unroll"][0])

    def publish(self, version: int) -> None:
        """Tell the host's actors that the file of this version is in its place."""
        self._head["version"] = version
        self._wake()

    def publish_cut(self, number: int, first_unroll: int) -> None:
        """Tell them that the environments are shared out anew."""
        self._head["cut_unroll"] = first_unroll  # before the number that makes it count
        self._head["cut"] = number
        self._wake()

    def wait_version(self, version: int, cut: int, unroll: int) -> bool:
        """Return once `version` or a newer one is published: True; blocks in the kernel until then.

        False as soon as, instead, the environments are shared out anew after `cut`, from `unroll`
        on or earlier: whoever has a share of `cut` lets go of it.
        """
        while True:
            seen = self._word.value
            newest, first_unroll = self.cut
            # One cut is over before the next is told of: older shares than that are over, too.
            if newest > cut and (unroll >= first_unroll or newest > cut + 1):
                return False
            if self.version >= version:
                return True
            futex_wait(self._word, seen)

    def produced(self) -> np.ndarray:
        """Unrolls sealed by each actor, over all its lives: int64 [num_actors]."""
        return self.slots["produced"].astype(np.int64)

    def produced_steps(self) -> np.ndarray:
        """Steps in them: int64 [num_actors]."""
        rows = np.arange(len(self.slots))
        parity = (self.slots["produced"] % 2).astype(np.intp)
        return self.slots["produced_steps"][rows, parity].astype(np.int64)

    def end_life(self, slot: int) -> Moment:
        """Tell where a dead actor was; it is nowhere then."""
        record = self.slots[slot]
        is_acting = record["began_ns"] != 0
        version = int(record["version"])
        moment = Moment(NOWHERE, version)
        if is_acting:
            moment = Moment(int(record["position"]), version, *record["episode"].tolist())
        record["began_ns"] = 0
        record["position"] = record["episode"] = NOWHERE
        return moment

    def _wake(self) -> None:
        self._word.value = (self._word.value + 1) & 0xFFFFFFFF
        futex_wake_all(self._word)


class Slot:
    """One actor's numbers on its host's page; written by its present life only.

    position: int64 [1], written by the acting kernel before each step: (place in the share) × T +
    (step of the unroll), or NOWHERE. episode: int32 [2], written where Python steps the
    environments: the number of the episode, and the steps of it that are done.
    """

    def __init__(self, page: HostPage, index: int) -> None:
        record = page.slots[index : index + 1]
        self._produced = record["produced"]
        self._steps = record["produced_steps"][0]
        self._began_ns = record["began_ns"]
        self._longest_ns = record["longest_ns"]
        self._version = record["version"]
        self.position, self.episode = record["position"], record["episode"][0]
        self.rest()

    @property
    def produced(self) -> tuple[int, int]:
        """Unrolls and steps so far, by all lives."""
        count = int(self._produced[0])
        return count, int(self._steps[count % 2])

    def begin(self, weights_version: int) -> None:
        """An unroll is begun, or environments are."""
        self._version[0] = weights_version
        self._began_ns[0] = time.monotonic_ns()

    def count(self, steps: int) -> None:
        """An unroll is sealed.

        Its steps go where they count only once the number of unrolls has grown: a death in between
        leaves both numbers as they were.
        """
        count, total = self.produced
        self._steps[(count + 1) % 2] = total + steps
        self._produced[0] = count + 1
        took = time.monotonic_ns() - int(self._began_ns[0])
        # It fades, or one that was stopped in the middle would count for ever.
        faded = int(self._longest_ns[0]) * FADING
        self._longest_ns[0] = max(took, int(faded))
        self.rest()

    def rest(self) -> None:
        """Nothing of an environment's is being run."""
        self.position[0] = NOWHERE
        self.episode[:] = NOWHERE
        self._began_ns[0] = 0


class WeightsFiles:
    """One file per weights version of a host: float32, flat."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, version: int) -> Path:
        return self.directory / f"weights-{version}"

    def write(self, version: int, weights: bytes | memoryview) -> None:
        """Put a version in its place; who can see the file sees all of it."""
        beside = self.directory / f"weights-{version}.partial"
        try:
            beside.write_bytes(weights)
            beside.rename(self.path(version))
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def remove(self, version: int) -> None:
        """Forget a version; actors that have it mapped keep it."""
        self.path(version).unlink(missing_ok=True)

    def map(self, version: int) -> np.ndarray:
        """A version's flat vector, read-only; all processes that map it share its memory.

        Raises FileNotFoundError if it has been removed.
        """
        # Not a Path: it interns its parts, whose table grew by a megabyte with the first versions.
        with open(f"{self.directory}/weights-{version}", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(mapped, np.float32)

    def map_newest(self, page: "HostPage") -> tuple[int, np.ndarray]:
        """The newest version there is, and its vector."""
        while True:
            version = page.version
            try:
                return version, self.map(version)
            except FileNotFoundError:  # a newer one came in between
                continue
