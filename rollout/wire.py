"""What crosses the wire between an actor and the learner: fixed structs, no text, no objects.

An actor's message is two frames, header and payload; the learner answers with one, a reply.

    actor                                     learner
    HELLO (payload: digest of the schema)  →
                                           ←  WELCOME (the unroll to begin with) or REFUSED
    UNROLL (payload: learners.unroll)      →
                                           ←  ACKNOWLEDGED (sequence), when it is put in a batch

Both structs are little-endian and carry a crc32; a message that does not check is worth nothing.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

PROTOCOL = 1
MAGIC = b"RLOT"


class Kind(IntEnum):
    """What an actor's message is."""

    HELLO = 1
    UNROLL = 2


class Answer(IntEnum):
    """What a reply says."""

    WELCOME = 1
    ACKNOWLEDGED = 2
    REFUSED = 3


class Malformed(Exception):
    """Bytes that are not a message of this protocol."""


class ActorTimes(NamedTuple):
    """Where actors' time went, in microseconds; in a header cut to 32 bits."""

    act_us: int
    wait_weights_us: int
    wait_credit_us: int

    def plus(self, other: "ActorTimes") -> "ActorTimes":
        return ActorTimes(*(mine + its for mine, its in zip(self, other, strict=True)))


class Header(NamedTuple):
    """The first frame of an actor's message.

    run: 16 random bytes. incarnation: counts the lives of an actor. sequence: of the unroll in this
    incarnation, from 0. unroll_index: of the unroll in its environments' history. The last three
    are the actor's `times` for this unroll.
    """

    kind: int
    run: bytes
    actor: int
    incarnation: int
    sequence: int
    unroll_index: int
    weights_version: int
    first_env: int
    num_envs: int
    num_finals: int
    num_episodes: int
    act_us: int = 0
    wait_weights_us: int = 0
    wait_credit_us: int = 0

    @property
    def times(self) -> ActorTimes:
        return ActorTimes(self.act_us, self.wait_weights_us, self.wait_credit_us)


_HEADER = struct.Struct("<4sHH16sIIQQQIIIIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size


def encode_header(header: Header, payload: bytes | memoryview) -> bytes:
    """The first frame, with a crc32 over itself and the payload."""
    packed = _HEADER.pack(MAGIC, PROTOCOL, *header)
    return packed + _CRC.pack(zlib.crc32(payload, zlib.crc32(packed)))


def decode_header(frame: bytes | memoryview, payload: bytes | memoryview) -> Header:
    """The header in a first frame. Raises Malformed, with the reason, for anything else."""
    if len(frame) != HEADER_BYTES:
        raise Malformed(f"header of {len(frame)} bytes, wanted {HEADER_BYTES}")
    magic, protocol, *fields = _HEADER.unpack_from(frame)
    if magic != MAGIC or protocol != PROTOCOL:
        raise Malformed(f"protocol {magic!r} {protocol}, wanted {MAGIC!r} {PROTOCOL}")
    (crc,) = _CRC.unpack_from(frame, _HEADER.size)
    if crc != zlib.crc32(payload, zlib.crc32(memoryview(frame)[: _HEADER.size])):
        raise Malformed("crc32 differs")
    return Header(*fields)


class Reply(NamedTuple):
    """The learner's answer. number: WELCOME: the unroll_index to begin with; ACKNOWLEDGED: the
    sequence number; REFUSED: a `rollout.inbox.Verdict`."""

    answer: int
    run: bytes
    number: int


_REPLY = struct.Struct("<4sHH16sQ")


def encode_reply(reply: Reply) -> bytes:
    """The only frame of a reply."""
    packed = _REPLY.pack(MAGIC, PROTOCOL, *reply)
    return packed + _CRC.pack(zlib.crc32(packed))


def decode_reply(frame: bytes) -> Reply:
    """The reply in a frame. Raises Malformed for anything else."""
    if len(frame) != _REPLY.size + _CRC.size:
        raise Malformed(f"reply of {len(frame)} bytes, wanted {_REPLY.size + _CRC.size}")
    magic, protocol, *fields = _REPLY.unpack_from(frame)
    (crc,) = _CRC.unpack_from(frame, _REPLY.size)
    if magic != MAGIC or protocol != PROTOCOL or crc != zlib.crc32(frame[: _REPLY.size]):
        raise Malformed("not a reply of this protocol")
    return Reply(*fields)


def routing_id(actor: int, incarnation: int) -> bytes:
    """The name under which the learner's socket knows one life of an actor."""
    return b"A" + struct.pack("<II", actor, incarnation)
