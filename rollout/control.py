"""What learner, host agent and template say to each other: small typed messages.

Between learner and agent they are the first frame on a ZeroMQ socket (weights ride in a second
one); between agent and template they go through pipes (plan.write_record).
"""

import msgspec


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


# learner → agent


class Announce(_Message):
    """A weights version exists. digest: sha256 of its bytes."""

    version: int
    size_bytes: int
    digest: bytes


class Weights(_Message):
    """The version that was pulled; its bytes are the next frame."""

    version: int


class Stop(_Message):
    """End the actors and answer with Stopped."""


# agent → learner


class Hello(_Message):
    """A host agent is there; run: the run it was started for."""

    run: bytes


class Pull(_Message):
    """Send this version."""

    version: int


class Failed(_Message):
    """The host cannot go on; reason: a whole sentence for the operator."""

    reason: str


class Stopped(_Message):
    """The actors have ended; produced: unrolls that each of them has made."""

    produced: list[int]


# template → agent, and on to the learner


class Ready(_Message):
    """The environment is compiled; compile_s: how long that took."""

    compile_s: float


class ActorStarted(_Message):
    """An actor was forked."""

    actor: int
    pid: int


class ActorExited(_Message):
    """An actor has ended. status: as os.waitstatus_to_exitcode gives it, negative for a signal."""

    actor: int
    pid: int
    status: int


class ActorError(_Message):
    """What an actor had to say before it ended."""

    actor: int
    error: str


# agent → template


class Fork(_Message):
    """Fork actors first, …, first + count - 1."""

    first: int
    count: int
    incarnation: int


ToAgent = Announce | Weights | Stop
FromTemplate = Ready | ActorStarted | ActorExited | ActorError
ToLearner = Hello | Pull | Failed | Stopped | FromTemplate

encode = msgspec.msgpack.encode
decode_to_agent = msgspec.msgpack.Decoder(ToAgent).decode
decode_to_learner = msgspec.msgpack.Decoder(ToLearner).decode
