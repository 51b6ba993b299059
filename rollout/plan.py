"""What a host must know to run its actors: one record, by the learner, for agent and template."""

import os
import struct
from typing import Any

import msgspec

from rollout.learners.network import NetworkSpec
from rollout.learners.unroll import UnrollSchema


class HostPlan(msgspec.Struct, frozen=True):
    """A run, as far as one host takes part in it.

    run: 16 random bytes. socket_directory, memory_directory: the run's own, 0700; the agent removes
    them at the end. import_path: the folder the command was started in, where environments of the
    user's own are found. window: unacknowledged unrolls an actor may have.
    """

    run: bytes
    socket_directory: str
    memory_directory: str
    import_path: str
    env_id: str
    env_params: dict[str, float | int | bool]
    seed: int
    num_envs: int
    num_actors: int
    policy_lag: int
    window: int
    network: NetworkSpec
    schema: UnrollSchema

    @property
    def name(self) -> str:
        """What the run's directories, and the command lines of its processes, are known by."""
        return run_name(self.run)

    @property
    def unroll_endpoint(self) -> str:
        """Where actors send unrolls to."""
        return f"ipc://{self.socket_directory}/unrolls"

    @property
    def control_endpoint(self) -> str:
        """Where the host agent talks to the learner."""
        return f"ipc://{self.socket_directory}/control"

    def share_of(self, actor: int) -> tuple[int, int]:
        """(first environment, number of environments) of an actor."""
        return share_of(actor, self.num_actors, self.num_envs)

    def weights_version_for(self, unroll_index: int) -> int:
        """The version that acts this unroll in lockstep (DESIGN: lockstep)."""
        return max(0, unroll_index - self.policy_lag)


def run_name(run: bytes) -> str:
    """The part of a run's identity that people get to see."""
    return run.hex()[:12]


def share_of(actor: int, num_actors: int, num_envs: int) -> tuple[int, int]:
    """Contiguous shares; the first `num_envs % num_actors` actors have one environment more."""
    size, more = divmod(num_envs, num_actors)
    return actor * size + min(actor, more), size + (actor < more)


_LENGTH = struct.Struct("<I")


def write_record(pipe: int, record: Any) -> None:
    """Write one msgspec record, its length before it. Up to 4,096 bytes it goes in one piece."""
    encoded = msgspec.msgpack.encode(record)
    message = memoryview(_LENGTH.pack(len(encoded)) + encoded)
    while message:
        message = message[os.write(pipe, message) :]


def read_record(pipe: int, kind: Any) -> Any:
    """The next record, or None at the end of the pipe. Unbuffered: `poll` tells the truth."""
    head = _read_exactly(pipe, _LENGTH.size)
    if head is None:
        return None
    body = _read_exactly(pipe, _LENGTH.unpack(head)[0])
    return None if body is None else msgspec.msgpack.decode(body, type=kind)


def _read_exactly(pipe: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(pipe, size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
