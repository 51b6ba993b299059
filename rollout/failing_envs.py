"""Environments in whose steps actors died: who it was, at which step, and when it is enough.

An actor's death says where it was (control.ActorEnded); which step of the environment's life that
is shows only when its next life has said how many unrolls were lost with the former one. With
hidden state no step of a life comes again, and what counts is whether episodes are completed.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollout.control import ActorEnded
from rollout.env_states import EnvStates
from rollout.envs.philox import CLOCK, episode_seed
from rollout.errors import RunFailed
from rollout.experiment_rules import MAX_UNROLL_LENGTH
from rollout.failures import (
    MOST_FAILURES,
    Ending,
    EnvFailures,
    Failure,
    FailureRows,
    save_failure,
)
from rollout.host_memory import NOWHERE
from rollout.learners.network import ModuleSpec
from rollout.plan import HostPlan
from rollout.published_weights import PublishedWeights
from rollout.supervisor import how_ended, signal_name


@dataclass(frozen=True)
class Failing:
    """An environment that failed too often. text: what people are told.

    env: NOWHERE if it is one of a vector environment, and nobody knows which.
    """

    env: int
    text: str


class FailingEnvs:
    """folder: for files from which a failure can be replayed."""

    def __init__(
        self, plan: HostPlan, states: EnvStates, weights: PublishedWeights, folder: Path
    ) -> None:
        self._plan = plan
        self._states = states
        self._weights = weights
        self._folder = folder
        self._failures = EnvFailures()
        self._rows = FailureRows()
        self._suspects: dict[int, tuple[int, ActorEnded]] = {}  # by actor: environment, and end

    def __repr__(self) -> str:
        counted = self._rows if self._states.has_hidden_state else self._failures
        return f"FailingEnvs({counted!r}, {len(self._suspects)} suspected)"

    @property
    def versions(self) -> set[int]:
        """Of the weights, that may have to be explained."""
        return {ended.weights_version for _, ended in self._suspects.values()}

    def suspect(self, env: int, ended: ActorEnded) -> None:
        """An actor died in a step of this environment."""
        self._suspects[ended.actor] = env, ended

    def place(self, env: int, ended: ActorEnded) -> str:
        """Where an actor died: the environment, and what helps to see it do so again."""
        text = f"environment {env} of {self._plan.env_source.id}"
        if ended.place < 0:
            text += " or one that is stepped with it"
        if ended.episode < 0:
            return text
        seed = episode_seed(self._plan.seed, env, ended.episode)
        steps = f"{ended.episode_t:,} step{'' if ended.episode_t == 1 else 's'}"
        return f"{text}, {steps} after reset(seed={seed})"

    def forget(self, actor: int) -> None:
        """Its host is gone, which says nothing of environments."""
        self._suspects.pop(actor, None)

    def settle(self, actor: int, lost: int) -> Failing | None:
        """An actor lives again; what it had died of, if that was the last time it may happen.

        If unrolls before that step were lost as well it cannot be replayed yet: the next life
        begins with them.
        """
        env, ended = self._suspects.pop(actor, (NOWHERE, None))
        if ended is None:
            return None
        unroll_index = int(self._states.num_unrolls[env])
        step = (unroll_index + lost) * self._plan.schema.unroll_length + ended.t
        if self._states.has_hidden_state:
            t = ended.episode_t if ended.episode_t >= 0 else step
            num_completed = int(self._states.num_completed[env])
            count, is_enough = self._rows.record(env, num_completed, step, t)
            how = f"failed {count} times without completing an episode in between"
        else:
            count = self._failures.record(env, step)
            is_enough = count >= (MOST_FAILURES**2 if lost else MOST_FAILURES)
            how = f"failed {count} times at its step {step}"
        if not is_enough:
            return None
        is_one = ended.place >= 0
        move = f"{self._folder.parent / 'run.log'} shows where"
        network = self._plan.network
        is_object = isinstance(network, ModuleSpec) and network.is_object
        if is_one and not (is_object or self._plan.env_source.is_object):
            # what was given as an object no command can do again
            move = self._save(self._describe(ended, env, unroll_index, lost))
        return Failing(
            env if is_one else NOWHERE,
            f"environment {env} {how}: the actor {how_ended(ended)}, in {self.place(env, ended)}; "
            f"{move}",
        )

    def _save(self, failure: Failure) -> str:
        """Write a failure's file; returns what to do with it."""
        try:
            file = save_failure(self._folder, failure)
        except RunFailed as error:
            return f"no replay file: {error}"
        return f"`rollout replay {shlex.quote(str(file))} --python` shows where"

    def _describe(self, ended: ActorEnded, env: int, unroll_index: int, lost: int) -> Failure:
        """All that is needed to do it again, from the newest state on."""
        plan = self._plan
        version = ended.weights_version
        if plan.is_lockstep:
            version = max(0, unroll_index - plan.policy_lag)
        if version not in self._weights:
            version = self._weights.newest
        schema, state, t = plan.schema, self._states.newest[env].copy(), ended.t
        if self._states.has_hidden_state and 0 <= ended.episode_t < MAX_UNROLL_LENGTH:
            # The whole episode, since only the seed it began with is known.
            clock = np.frombuffer(state, CLOCK, 1)
            clock["episode"], clock["t"] = ended.episode, 0
            t = ended.episode_t
            schema, unroll_index = replace(schema, unroll_length=t + 1), 0
        elif lost:
            t = NOWHERE
        return Failure(
            env_source=plan.env_source,
            seed=plan.seed,
            env=env,
            unroll_index=unroll_index,
            t=t,
            weights_version=version,
            network=plan.network,
            schema=schema,
            ended=ending(ended),
            error=_error(ended),
            weights=np.array(self._weights.vector(version)),
            env_state=state,
        )


def ending(ended: ActorEnded) -> Ending:
    """How an actor ended, in a word."""
    if ended.hung_s > 0:
        return "hang"
    if ended.status < 0:
        return "signal"
    return "exception" if ended.error else "exit"


def _error(ended: ActorEnded) -> str:
    if ended.hung_s > 0:
        return f"{ended.hung_s:.1f} s"
    return ended.error or (
        signal_name(-ended.status) if ended.status < 0 else f"exit status {ended.status}"
    )
