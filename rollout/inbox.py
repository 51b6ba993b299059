"""What the learner decides about each message that arrives, without any socket.

However often a message arrives, its effect is once: an unroll is accepted when it is the next of
its actor's present life, and refused, by name, in every other case.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.plan import share_of
from rollout.wire import Header, Kind, routing_id


class Verdict(IntEnum):
    """What is done with a message. Only ACCEPTED changes anything."""

    ACCEPTED = 0
    DUPLICATE = 1  # has been accepted before: acknowledge it again
    OUT_OF_ORDER = 2  # one before it is missing
    FOREIGN_RUN = 3
    MALFORMED = 4  # no message of ours, or one with a number in it that cannot be
    STALE_INCARNATION = 5  # from a former life of this actor
    WRONG_SCHEMA = 6  # its unrolls would look different from ours


class Judgement(NamedTuple):
    """unroll: views of the payload, checked; only of an unroll that was accepted."""

    verdict: Verdict
    unroll: Unroll | None = None


@dataclass
class ActorState:
    """What the learner knows of one actor. next_sequence: of the unroll that may come next."""

    incarnation: int
    next_sequence: int = 0
    first_unroll: int = 0


@dataclass(frozen=True)
class InboxStatistics:
    """Messages by verdict, and actors that have said hello."""

    verdicts: dict[str, int]
    num_actors: int


class Inbox:
    """Judges every message of a run in lockstep.

    newest_version: of the weights that have been published; no unroll can have been acted with
    later ones. It bounds what an actor can have accepted ahead of the others.
    """

    def __init__(
        self,
        run: bytes,
        schema: UnrollSchema,
        num_envs: int,
        num_actors: int,
        num_actions: int,
        policy_lag: int,
    ) -> None:
        self.run = run
        self.schema = schema
        self.num_envs = num_envs
        self.num_actors = num_actors
        self.num_actions = num_actions
        self.policy_lag = policy_lag
        self.newest_version = -1
        self.actors: dict[int, ActorState] = {}
        # All kinds from the start: the learner's thread reads while the receiver's counts.
        self._verdicts = dict.fromkeys(Verdict, 0)

    def __repr__(self) -> str:
        return (
            f"Inbox({len(self.actors)} of {self.num_actors} actors, {self.statistics().verdicts})"
        )

    def statistics(self) -> InboxStatistics:
        counts = {verdict.name.lower(): count for verdict, count in self._verdicts.items() if count}
        return InboxStatistics(counts, len(self.actors))

    def judge(self, header: Header, sender: bytes, payload: memoryview | bytes) -> Judgement:
        """What to do with a message that `wire.decode_header` could read.

        sender: the routing id it came under, which must be the header's actor and incarnation.
        """
        judgement = self._judge(header, sender, payload)
        self.count(judgement.verdict)
        return judgement

    def count(self, verdict: Verdict) -> None:
        """Count a verdict that was reached before there was a header."""
        self._verdicts[verdict] += 1

    def _judge(self, header: Header, sender: bytes, payload: memoryview | bytes) -> Judgement:
        if header.run != self.run:
            return Judgement(Verdict.FOREIGN_RUN)
        if not self._is_from_an_actor(header, sender):
            return Judgement(Verdict.MALFORMED)
        known = self.actors.get(header.actor)
        if known is not None and header.incarnation < known.incarnation:
            return Judgement(Verdict.STALE_INCARNATION)
        if header.kind == Kind.HELLO:
            return Judgement(self._judge_hello(header, payload))
        if header.kind != Kind.UNROLL or known is None or header.incarnation != known.incarnation:
            return Judgement(Verdict.MALFORMED)
        return self._judge_unroll(header, payload, known)

    def _is_from_an_actor(self, header: Header, sender: bytes) -> bool:
        return (
            header.actor < self.num_actors
            and sender == routing_id(header.actor, header.incarnation)
            and (header.first_env, header.num_envs)
            == share_of(header.actor, self.num_actors, self.num_envs)
        )

    def _judge_hello(self, header: Header, payload: memoryview | bytes) -> Verdict:
        if bytes(payload) != self.schema.digest:
            return Verdict.WRONG_SCHEMA
        known = self.actors.get(header.actor)
        if known is not None and known.incarnation == header.incarnation:
            return Verdict.DUPLICATE
        next_unroll = 0 if known is None else known.first_unroll + known.next_sequence
        self.actors[header.actor] = ActorState(header.incarnation, first_unroll=next_unroll)
        return Verdict.ACCEPTED

    def _judge_unroll(
        self, header: Header, payload: memoryview | bytes, known: ActorState
    ) -> Judgement:
        if not self._has_possible_numbers(header, known):
            return Judgement(Verdict.MALFORMED)
        if header.sequence < known.next_sequence:
            return Judgement(Verdict.DUPLICATE)
        if header.sequence > known.next_sequence:
            return Judgement(Verdict.OUT_OF_ORDER)
        try:
            unroll = Unroll.view(
                self.schema, payload, header.num_envs, header.num_finals, header.num_episodes
            )
        except ValueError:  # its length is not what the counts say
            return Judgement(Verdict.MALFORMED)
        if not unroll.is_sound(self.num_actions):
            return Judgement(Verdict.MALFORMED)
        known.next_sequence += 1
        return Judgement(Verdict.ACCEPTED, unroll)

    def _has_possible_numbers(self, header: Header, known: ActorState) -> bool:
        longest = self.schema.unroll_length * header.num_envs
        return (
            header.num_finals <= longest
            and header.num_episodes <= longest
            and header.unroll_index == known.first_unroll + header.sequence
            and header.weights_version == max(0, header.unroll_index - self.policy_lag)
            and header.weights_version <= self.newest_version
        )
