"""What a host must know to run its actors: one record, by the learner, for agent and template."""

import os
import struct
from typing import Any, Literal

import msgspec

from rollout.env_source import EnvSource
from rollout.learners.network import Network
from rollout.learners.unroll import UnrollSchema


class HostPlan(msgspec.Struct, frozen=True):
    """A run, as far as one host takes part in it.

    run: 16 random bytes. socket_directory: the run's own, 0700; the learner's. memory_directory:
    this host's own, 0700. num_actors: of this host. window: unacknowledged unrolls an actor may
    have. hang_s: seconds an unroll may take; None: derived from those measured. max_actor_memory:
    bytes that an actor's memory may grow by; None: no limit.
    """

    run: bytes
    socket_directory: str
    memory_directory: str
    env_source: EnvSource
    seed: int
    num_envs: int
    num_actors: int
    mode: Literal["lockstep", "async"]
    policy_lag: int
    window: int
    hang_s: float | None
    max_actor_memory: int | None
    network: Network
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
        """Where host agents talk to the learner."""
        return f"ipc://{self.socket_directory}/control"

    @property
    def is_lockstep(self) -> bool:
        return self.mode == "lockstep"


class HostStart(msgspec.Struct, frozen=True):
    """What a host agent or a template is started with; it goes through the pipe of its parent only.

    env: the environment itself, pickled, if it was given as an object; network: likewise the class
    of its module. The plan does not have them: that one also lies in the run's directory, where
    nothing may be unpickled from.
    """

    plan: HostPlan
    env: bytes = b""
    network: bytes = b""


def run_name(run: bytes) -> str:
    """The part of a run's identity that people get to see."""
    return run.hex()[:12]


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
