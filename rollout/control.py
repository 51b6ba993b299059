"""What learner, host agent and template say to each other: small typed messages.

Between learner and agent they are the first frame on a ZeroMQ socket (weights ride in a second
one); between agent and template they go through pipes (plan.write_record).
"""

import msgspec

# learner → agent


class Announce(msgspec.Struct, frozen=True, tag=True):
    """A weights version exists. digest: sha256 of its bytes."""

    version: int
    size_bytes: int
    digest: bytes


class Weights(msgspec.Struct, frozen=True, tag=True):
    """The version that was pulled; its bytes are the next frame."""

    version: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the actors and answer with Stopped."""


# agent → learner


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A host agent is there; run: the run it was started for."""

    run: bytes


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Send this version."""

    version: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The host cannot go on; reason: a whole sentence for the operator."""

    reason: str


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The actors have ended; produced: unrolls that each of them has made."""

    produced: list[int]


# template → agent, and on to the learner


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The environment is compiled; compile_s: how long that took."""

    compile_s: float


class ActorStarted(msgspec.Struct, frozen=True, tag=True):
    """An actor was forked."""

    actor: int
    pid: int


class ActorExited(msgspec.Struct, frozen=True, tag=True):
    """An actor has ended. status: as os.waitstatus_to_exitcode gives it, negative for a signal."""

    actor: int
    pid: int
    status: int


class ActorError(msgspec.Struct, frozen=True, tag=True):
    """What an actor had to say before it ended."""

    actor: int
    error: str


class Unprepared(msgspec.Struct, frozen=True, tag=True):
    """The template could not get ready. is_authors: the environment's author can mend it."""

    error: str
    is_authors: bool


# agent → template


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Fork actors first, …, first + count - 1."""

    first: int
    count: int
    incarnation: int


ToAgent = Announce | Weights | Stop
FromTemplate = Ready | Unprepared | ActorStarted | ActorExited | ActorError
ToLearner = Hello | Pull | Failed | Stopped | FromTemplate

encode = msgspec.msgpack.encode
decode_to_agent = msgspec.msgpack.Decoder(ToAgent).decode
decode_to_learner = msgspec.msgpack.Decoder(ToLearner).decode
