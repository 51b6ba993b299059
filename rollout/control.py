"""What learner, host agent and template say to each other: small typed messages.

Between learner and agent they are the first frame on a ZeroMQ socket (weights ride in a second
one); between agent and template they go through pipes (plan.write_record).

Actors are known to the learner by their number, which is theirs in the whole run. On its host an
actor also has a slot, from 0: its number is the host's `first_actor` plus the slot.
"""

from typing import Any

import msgspec

# learner → agent


class Take(msgspec.Struct, frozen=True, tag=True):
    """You are in: fork actors first_actor, …, each in its life `incarnation` and those after it."""

    first_actor: int
    incarnation: int


class Cut(msgspec.Struct, frozen=True, tag=True):
    """The environments are shared out anew: actors let go of theirs before unroll `first_unroll`.

    number: of the cut; actors with a share of an older one ask for another.
    """

    number: int
    first_unroll: int


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
    """A host agent is there, and offers actors.

    run: the run it was started for. pid: its own. memory_directory: where its page lies.
    """

    run: bytes
    pid: int
    num_actors: int
    memory_directory: str


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Send this version."""

    version: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Give this host's environments to others, then send Stop."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The host cannot go on; reason: a whole sentence for the operator."""

    reason: str


class ActorEnded(msgspec.Struct, frozen=True, tag=True):
    """An actor's life is over; the agent starts the next one.

    status: as os.waitstatus_to_exitcode gives it, negative for a signal. error: what the actor had
    to say, or nothing; raised_at: FILE:LINE, if that is known. hung_s: seconds in one unroll after
    which the agent killed it; 0 if it did not. place, t: where in its share, and at which step of
    its unroll, it stepped an environment; both -1 if it did not, and place if it stepped all at
    once. episode, episode_t: the number of the environment's episode, and the steps of it that were
    done; -1 where it has no seed of its own, or compiled code steps it. outgrown_bytes: by how much
    its memory had grown when it ended for that; 0 if it did not.
    """

    actor: int
    incarnation: int
    pid: int
    status: int
    error: str
    hung_s: float
    place: int
    t: int
    weights_version: int
    raised_at: str = ""
    episode: int = -1
    episode_t: int = -1
    outgrown_bytes: int = 0


class TemplateEnded(msgspec.Struct, frozen=True, tag=True):
    """The template died, and its actors with it; the agent starts another."""

    how: str


class GaveUp(msgspec.Struct, frozen=True, tag=True):
    """An actor ended again and again without an unroll in between, first with `first_error`."""

    actor: int
    first_error: str


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The actors have ended. produced, produced_steps: of each of them, over all its lives."""

    produced: list[int]
    produced_steps: list[int]


# template → agent; the first three go on to the learner


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The environment is compiled; compile_s: how long that took. notice: for people, or empty."""

    compile_s: float
    notice: str = ""


class Unprepared(msgspec.Struct, frozen=True, tag=True):
    """The template could not get ready. is_authors: the environment's author can mend it."""

    error: str
    is_authors: bool


class ActorStarted(msgspec.Struct, frozen=True, tag=True):
    """An actor was forked."""

    actor: int
    incarnation: int
    pid: int


class NotForked(msgspec.Struct, frozen=True, tag=True):
    """The kernel would not let an actor be forked."""

    actor: int
    error: str


class ActorExited(msgspec.Struct, frozen=True, tag=True):
    """An actor's process was reaped. status: as os.waitstatus_to_exitcode gives it."""

    pid: int
    status: int


class ActorPaused(msgspec.Struct, frozen=True, tag=True):
    """An actor was stopped (SIGSTOP), or goes on (SIGCONT)."""

    pid: int
    is_paused: bool


class ActorError(msgspec.Struct, frozen=True, tag=True):
    """What an actor has to say before it ends. raised_at: FILE:LINE, if that is known."""

    pid: int
    error: str
    raised_at: str = ""


class ActorOutgrew(msgspec.Struct, frozen=True, tag=True):
    """An actor ends between two unrolls, as its memory has grown by more than it may.

    is_at_once: whether it had so in the first unroll of this life.
    """

    pid: int
    size_bytes: int
    is_at_once: bool


# agent → template


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Fork an actor."""

    actor: int
    slot: int
    incarnation: int


ToAgent = Take | Cut | Announce | Weights | Stop
FromTemplate = (
    Ready
    | Unprepared
    | ActorStarted
    | NotForked
    | ActorExited
    | ActorPaused
    | ActorError
    | ActorOutgrew
)
ToLearner = (
    Hello
    | Pull
    | Leave
    | Failed
    | Stopped
    | Ready
    | Unprepared
    | ActorStarted
    | ActorEnded
    | TemplateEnded
    | GaveUp
)

encode = msgspec.msgpack.encode
_to_agent = msgspec.msgpack.Decoder(ToAgent)
_to_learner = msgspec.msgpack.Decoder(ToLearner)


def decode_to_agent(message: bytes) -> ToAgent:
    """What the learner says. Raises msgspec.DecodeError for anything else."""
    return _decode(_to_agent, message)


def decode_to_learner(message: bytes) -> ToLearner:
    """What a host agent says. Raises msgspec.DecodeError for anything else."""
    return _decode(_to_learner, message)


def _decode(decoder: msgspec.msgpack.Decoder, message: bytes) -> Any:
    try:
        return decoder.decode(message)
    except (UnicodeDecodeError, RecursionError) as error:  # text that is none; too many brackets
        raise msgspec.DecodeError(str(error)) from error
