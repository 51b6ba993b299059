"""The states of all environments, as the learner holds them.

Every unroll brings the states that follow it. A replacement actor begins with the newest ones; a
checkpoint saves those that follow the last unrolls trained on. And because the states tell episode
and step, an unroll can be seen to continue what went before: nothing is left out, nothing twice.
"""

from collections import Counter

import numpy as np

from rollout.envs.philox import CLOCK
from rollout.learners.unroll import Batch, Unroll
from rollout.ledger import LEARNER_DIED

SHARES_CUT = "shares_cut"  # another actor got the environment
MEMORY = "memory"  # its actor's had grown too far
OTHER = "other"  # its actor ended, nobody knows why
NOT_GIVEN = -1


class EnvStates:
    """State of every environment, uint8 [num_envs, state_bytes]; the first bytes are its clock.

    newest: after its last accepted unroll. trained: after its last unroll trained on.
    num_unrolls, num_trained: how many of each environment, int64 [num_envs].
    num_completed: episodes played to their end, of each with hidden state, int64 [num_envs].
    episodes_lost: of environments with hidden state, not played to their end, by reason: how the
    actor ended (failing_envs.ending, MEMORY or OTHER), SHARES_CUT, LEARNER_DIED.
    has_hidden_state: the clock is all there is, and whoever takes over begins a new episode.
    """

    def __init__(
        self,
        num_envs: int,
        state_bytes: int,
        seed: int,
        has_hidden_state: bool = False,
        length_at: int | None = None,
    ) -> None:
        """All environments at the beginning of episode 0.

        length_at: where in a state four bytes say how much of it was saved; None if all always is.
        """
        self.newest = np.zeros((num_envs, state_bytes), np.uint8)
        self._clocks(self.newest)["env"] = np.arange(num_envs)
        self._clocks(self.newest)["seed"] = seed
        self.trained = self.newest.copy()
        self.num_unrolls = np.zeros(num_envs, np.int64)
        self.num_trained = np.zeros(num_envs, np.int64)
        self.num_completed = np.zeros(num_envs, np.int64)
        self._cut = np.full(num_envs, NOT_GIVEN)  # of the share in which it was last given
        self.has_hidden_state, self._length_at = has_hidden_state, length_at
        self.episodes_lost: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"EnvStates({len(self.newest)} environments, {self.episodes_lost} episodes lost)"

    def put(self, states: np.ndarray) -> None:
        """Go on from a checkpoint."""
        self.newest[:] = states
        self.trained[:] = states

    def put_counts(self, num_unrolls: np.ndarray) -> None:
        """Have so many unrolls of each environment behind us."""
        self.num_unrolls[:] = num_unrolls
        self.num_trained[:] = num_unrolls

    def give(self, envs: np.ndarray, cut: int, ended: str = OTHER) -> bytes:
        """What whoever takes these environments over begins with (rollout.envs.batch: restore).

        cut: of the share in which they are given. ended: how the last life that had it did.
        """
        states = self.newest[envs].tobytes()
        hiding = envs[self._are_hidden(envs)]
        if hiding.size:
            self._restart(hiding, cut, ended)
        self._cut[envs] = cut
        return states

    def continues(self, envs: np.ndarray, unroll: Unroll) -> bool:
        """Whether an unroll of these environments begins where they are held to be."""
        before, after = self._clocks(self.newest)[envs], self._clocks(unroll.env_state)
        if not (
            np.array_equal(before["env"], after["env"])
            and np.array_equal(before["seed"], after["seed"])
        ):
            return False
        T = len(unroll.reward)
        ended = unroll.terminated | unroll.truncated
        rows_after = ended[::-1].argmax(axis=0)  # the last end, where there is one
        has_end = ended.any(axis=0)
        steps = np.where(has_end, rows_after, T)
        if len(unroll.no_op):
            is_counted = np.arange(T)[:, None] >= T - steps
            steps = steps - np.count_nonzero(unroll.no_op & is_counted, axis=0)
        t = np.where(has_end, steps, before["t"] + steps)
        episode = before["episode"] + np.count_nonzero(ended, axis=0)
        return np.array_equal(after["t"], t) and np.array_equal(after["episode"], episode)

    def accept(self, envs: np.ndarray, unroll: Unroll) -> None:
        """These environments are further now."""
        if self.has_hidden_state:
            ended = unroll.terminated | unroll.truncated
            self.num_completed[envs] += np.count_nonzero(ended, axis=0)
        self.num_unrolls[envs] += 1
        self.newest[envs] = unroll.env_state

    def train(self, batch: Batch) -> None:
        """The batch has been trained on."""
        self.trained[batch.env] = batch.env_state
        np.add.at(self.num_trained, batch.env, 1)  # an environment may be there twice

    def _are_hidden(self, envs: np.ndarray) -> np.ndarray:
        """Whose states are clocks and no more: of most environments all, or none."""
        if self._length_at is None:
            return np.full(len(envs), self.has_hidden_state)
        lengths = self.newest[envs, self._length_at : self._length_at + 4]
        return np.logical_not(lengths.any(axis=1))

    def _restart(self, envs: np.ndarray, cut: int, ended: str) -> None:
        """Environments with hidden state were handed on: an episode that was under way is lost."""
        clocks = self._clocks(self.newest)
        under_way = envs[clocks["t"][envs] > 0]
        last = self._cut[under_way]
        for reason, is_it in (
            (ended, last == cut),
            (SHARES_CUT, (last != cut) & (last != NOT_GIVEN)),
            (LEARNER_DIED, last == NOT_GIVEN),
        ):
            if is_it.any():
                self.episodes_lost[reason] += int(np.count_nonzero(is_it))
        clocks["episode"][under_way] += 1
        clocks["t"][under_way] = 0

    @staticmethod
    def _clocks(states: np.ndarray) -> np.ndarray:
        """The clocks in states [N, state_bytes], as a view [N]."""
        return np.ndarray(len(states), CLOCK, states, strides=(states.shape[1],))
