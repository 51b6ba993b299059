"""What crosses the wire between an actor and the learner: fixed structs, no text, no objects.

A message is two frames: a struct and a payload.

    actor                                      learner
    HELLO (payload: Greeting)               →
                                            ←  WELCOME (a share; payload: its environments' states)
    UNROLL (payload: learners.unroll)       →
                                            ←  ACKNOWLEDGED (sequence), when it is put in a batch
    HELLO again, when shares are cut anew   →
                                            ←  WELCOME, when the new share is free

or REFUSED, whatever was sent. All structs are little-endian and carry a crc32, which covers the
payload; a message that does not check is worth nothing.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

PROTOCOL = 2
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


REFUSED = "the learner refused this actor's message"  # how such an actor's error begins


class Verdict(IntEnum):
    """What is done with a message. Only ACCEPTED changes anything."""

    ACCEPTED = 0
    DUPLICATE = 1  # has been accepted before: acknowledge it again
    OUT_OF_ORDER = 2  # one before it is missing
    FOREIGN_RUN = 3
    MALFORMED = 4  # no message of ours, or one with a number in it that cannot be
    STALE_INCARNATION = 5  # from a former life of this actor
    WRONG_SCHEMA = 6  # its unrolls would look different from ours
    DISCONTINUOUS = 7  # it does not begin where its environments are held to be
    NOT_FINITE = 8  # NaN or infinity is among its numbers


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

    run: 16 random bytes. incarnation: grows from life to life of an actor. sequence: of the unroll
    in this incarnation, from 0. unroll_index: of the unroll in its environments' history.
    first_env, num_envs: the share it is of; 0 in a HELLO. The last three are the actor's `times`
    for this unroll.
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


class Greeting(NamedTuple):
    """What a HELLO carries.

    produced, produced_steps: all that this actor's lives have sealed so far, this one included.
    """

    schema_digest: bytes
    produced: int
    produced_steps: int


_GREETING = struct.Struct("<32sQQ")


def encode_greeting(greeting: Greeting) -> bytes:
    return _GREETING.pack(*greeting)


def decode_greeting(payload: bytes | memoryview) -> Greeting:
    """The greeting in a HELLO's payload. Raises Malformed."""
    if len(payload) != _GREETING.size:
        raise Malformed(f"greeting of {len(payload)} bytes, wanted {_GREETING.size}")
    return Greeting._make(_GREETING.unpack(payload))


class Reply(NamedTuple):
    """The learner's answer.

    number: WELCOME: the unroll to begin with; ACKNOWLEDGED: the sequence number; REFUSED: a
    Verdict. Of a WELCOME only: cut: which one the share is of; first_env, num_envs: the share, in
    the cut's order of environments.
    """

    answer: int
    run: bytes
    number: int
    cut: int = 0
    first_env: int = 0
    num_envs: int = 0


_REPLY = struct.Struct("<4sHH16sQIII")
REPLY_BYTES = _REPLY.size + _CRC.size


def encode_reply(reply: Reply, payload: bytes | memoryview = b"") -> bytes:
    """The first frame of a reply; the second is the payload."""
    packed = _REPLY.pack(MAGIC, PROTOCOL, *reply)
    return packed + _CRC.pack(zlib.crc32(payload, zlib.crc32(packed)))


def decode_reply(frame: bytes, payload: bytes | memoryview = b"") -> Reply:
    """The reply in a first frame. Raises Malformed for anything else."""
    if len(frame) != REPLY_BYTES:
        raise Malformed(f"reply of {len(frame)} bytes, wanted {REPLY_BYTES}")
    magic, protocol, *fields = _REPLY.unpack_from(frame)
    (crc,) = _CRC.unpack_from(frame, _REPLY.size)
    if magic != MAGIC or protocol != PROTOCOL:
        raise Malformed("not a reply of this protocol")
    if crc != zlib.crc32(payload, zlib.crc32(frame[: _REPLY.size])):
        raise Malformed("crc32 differs")
    return Reply(*fields)


def routing_id(actor: int, incarnation: int) -> bytes:
    """The name under which the learner's socket knows one life of an actor."""
    return b"A" + struct.pack("<II", actor, incarnation)
