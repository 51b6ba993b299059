"""What the learner decides about each message that arrives, without any socket.

However often a message arrives, its effect is once: an unroll is accepted when it is the next of
its actor's present life and continues the states its environments are held to be in, and refused,
by name, in every other case.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rollout.env_states import EnvStates
from rollout.finite_check import first_non_finite
from rollout.learners.network import InputPart
from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.ledger import Account
from rollout.shares import Share, Shares
from rollout.wire import Header, Kind, Malformed, Verdict, decode_greeting, routing_id

LIVES_PER_AGENT = 1 << 16  # incarnations of an actor under one host agent
NO_LIFE = 1 << 32  # a first incarnation that no header can reach: of actors that are gone


class Judgement(NamedTuple):
    """unroll, env: views of the payload, checked, and its environments, int64 [N]; only of an
    unroll that was accepted. lost: of a HELLO: unrolls that died with the actor's former life.
    reason: more than the verdict says, or nothing."""

    verdict: Verdict
    unroll: Unroll | None = None
    env: np.ndarray | None = None
    lost: int = 0
    reason: str = ""


@dataclass
class ActorState:
    """What the learner knows of one actor's present life.

    next_sequence: of the unroll that may come next. num_acknowledged: unrolls it has credit for.
    """

    incarnation: int
    next_sequence: int = 0
    num_acknowledged: int = 0
    weights_version: int = 0


@dataclass(frozen=True)
class InboxStatistics:
    """Messages by verdict."""

    verdicts: dict[str, int]


class Inbox:
    """Judges every message of a run; keeps shares, states and account true to its verdicts.

    newest_version: of the weights that have been published; no unroll can have been acted with
    later ones. num_actors: numbers of actors from there on belong to nobody.
    first_incarnation: by actor: its host's present life cannot have forked earlier ones.
    """

    def __init__(
        self,
        run: bytes,
        schema: UnrollSchema,
        choices: tuple[int, ...],
        policy_lag: int | None,
        shares: Shares,
        states: EnvStates,
        account: Account,
        parts: tuple[InputPart, ...] = (),
    ) -> None:
        """policy_lag: of lockstep; None in async. choices: see `Unroll.is_sound`. parts: how the
        network reads an observation."""
        self.run = run
        self.schema = schema
        self.choices = choices
        self.policy_lag = policy_lag
        self.shares = shares
        self.states = states
        self.account = account
        self.parts = parts
        self.newest_version = -1
        self.num_actors = 0
        self.first_incarnation: dict[int, int] = {}
        self.actors: dict[int, ActorState] = {}
        # All kinds from the start: the learner's thread reads while the receiver's counts.
        self._verdicts = dict.fromkeys(Verdict, 0)

    def __repr__(self) -> str:
        return (
            f"Inbox({len(self.actors)} of {self.num_actors} actors, {self.statistics().verdicts})"
        )

    def statistics(self) -> InboxStatistics:
        counts = {verdict.name.lower(): count for verdict, count in self._verdicts.items() if count}
        return InboxStatistics(counts)

    def judge(self, header: Header, sender: bytes, payload: memoryview | bytes) -> Judgement:
        """What to do with a message that `wire.decode_header` could read.

        sender: the routing id it came under, which must be the header's actor and incarnation.
        """
        judgement = self._judge(header, sender, payload)
        self.count(judgement.verdict)
        return judgement

    def acknowledge(self, header: Header) -> None:
        """The unroll with this header is in a batch: its actor may send another."""
        known = self.actors[header.actor]
        if header.incarnation == known.incarnation:
            known.num_acknowledged = header.sequence + 1

    def count(self, verdict: Verdict) -> None:
        """Count a verdict that was reached before there was a header."""
        self._verdicts[verdict] += 1

    def _judge(self, header: Header, sender: bytes, payload: memoryview | bytes) -> Judgement:
        if header.run != self.run:
            return Judgement(Verdict.FOREIGN_RUN)
        if header.actor >= self.num_actors or sender != routing_id(
            header.actor, header.incarnation
        ):
            return Judgement(Verdict.MALFORMED)
        known = self.actors.get(header.actor)
        first_incarnation = self.first_incarnation.get(header.actor, 0)
        if header.incarnation < max(first_incarnation, known.incarnation if known else 0):
            return Judgement(Verdict.STALE_INCARNATION)
        if header.incarnation >= first_incarnation + LIVES_PER_AGENT:
            return Judgement(Verdict.MALFORMED)
        if header.kind == Kind.HELLO:
            return self._judge_hello(header, payload, known)
        if header.kind != Kind.UNROLL or known is None or header.incarnation != known.incarnation:
            return Judgement(Verdict.MALFORMED)
        return self._judge_unroll(header, payload, known)

    def _judge_hello(
        self, header: Header, payload: memoryview | bytes, known: ActorState | None
    ) -> Judgement:
        try:
            greeting = decode_greeting(payload)
        except Malformed:
            return Judgement(Verdict.MALFORMED)
        if greeting.schema_digest != self.schema.digest:
            return Judgement(Verdict.WRONG_SCHEMA)
        produced = greeting.produced, greeting.produced_steps
        if max(produced) >= 2**62 or not self.account.is_possible(header.actor, *produced):
            return Judgement(Verdict.MALFORMED)
        lost = 0
        if known is None or header.incarnation > known.incarnation:
            lost = self.account.settle(header.actor, *produced)
            self.actors[header.actor] = ActorState(header.incarnation)
        self.shares.ask(header.actor)
        return Judgement(Verdict.ACCEPTED, lost=lost)

    def _judge_unroll(
        self, header: Header, payload: memoryview | bytes, known: ActorState
    ) -> Judgement:
        if header.sequence < known.next_sequence:
            return Judgement(Verdict.DUPLICATE)
        share = self.shares.of(header.actor)
        if share is None or not self._has_possible_numbers(header, known, share):
            return Judgement(Verdict.MALFORMED)
        if header.sequence > known.next_sequence:
            return Judgement(Verdict.OUT_OF_ORDER)
        try:
            unroll = Unroll.view(
                self.schema, payload, header.num_envs, header.num_finals, header.num_episodes
            )
        except ValueError:  # its length is not what the counts say
            return Judgement(Verdict.MALFORMED)
        if not unroll.is_sound(self.choices):
            return Judgement(Verdict.MALFORMED)
        wrong = first_non_finite(unroll, self.parts)
        if wrong is not None:
            name, index = wrong
            return Judgement(Verdict.NOT_FINITE, reason=f"{name}{list(index)}")
        env = self.shares.order[share.first_env : share.first_env + share.num_envs]
        if not self.states.continues(env, unroll):
            return Judgement(Verdict.DISCONTINUOUS)
        known.next_sequence += 1
        known.weights_version = header.weights_version
        self.states.accept(env, unroll)
        self.shares.accepted(header.actor)
        self.account.accept(header.actor, self.schema.unroll_length * header.num_envs)
        return Judgement(Verdict.ACCEPTED, unroll, env)

    def _has_possible_numbers(self, header: Header, known: ActorState, share: Share) -> bool:
        longest = self.schema.unroll_length * header.num_envs
        ahead = header.sequence - known.next_sequence
        return (
            (header.first_env, header.num_envs) == (share.first_env, share.num_envs)
            and header.sequence < known.num_acknowledged + self.account.window
            and header.num_finals <= longest
            and header.num_episodes <= longest
            and header.unroll_index == share.next_unroll + ahead
            and self.shares.allows(share, header.unroll_index)
            and self._is_possible_version(header, known)
        )

    def _is_possible_version(self, header: Header, known: ActorState) -> bool:
        version = header.weights_version
        if self.policy_lag is None:
            return known.weights_version <= version <= self.newest_version
        wanted = max(0, header.unroll_index - self.policy_lag)
        return version == wanted and version <= self.newest_version
