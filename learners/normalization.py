"""Observations and rewards brought to a common scale, by statistics of all that was trained on.

Observations: the network's layer Normalize applies the statistics, which lie among its parameters
and so belong to a version of the weights, with actors, checkpoints and whoever evaluates. Version
u has those of batches 0, …, u - 1: without policy lag, what acted a batch also trains on it.

Rewards: only the learner sees them scaled; episode returns are the environment's own.

The bounds and the small constant are those of Gymnasium's wrappers NormalizeObservation and
NormalizeReward; Andrychowicz et al., "What matters in on-policy RL" (2021), found the first of the
two to matter, Engstrom et al., "Implementation matters in deep RL" (ICLR 2020), the second.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rollout.learners.network import NORMALIZED, NetworkSpec
from rollout.learners.settings import AlgorithmSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch

EPSILON = 1e-8  # added to a variance, for numbers that never change
MOST_REWARD = 10.0  # of a scaled reward, by size
MOST_NUMBERS = 1 << 17  # looked at together: as many as the processor's caches hold


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of rows of n numbers: how many they were, and where they lie.

    mean: float64 [n].   m2: float64 [n], the sum of squared deviations from it.
    """

    count: float
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def none(cls, n: int) -> "Moments":
        """Of no row at all."""
        return cls(0.0, np.zeros(n), np.zeros(n))

    @classmethod
    def of(cls, rows: np.ndarray) -> "Moments":
        """Of rows [R, n], in two passes. A row with a number that is not finite is left out."""
        is_finite = np.isfinite(rows).all(axis=1)
        if not is_finite.all():
            rows = rows[is_finite]
        if len(rows) == 0:
            return cls.none(rows.shape[1])
        deviations = rows.astype(np.float64)
        mean = deviations.mean(axis=0)
        deviations -= mean
        return cls(float(len(rows)), mean, np.square(deviations, out=deviations).sum(axis=0))

    def merged(self, other: "Moments") -> "Moments":
        """Of the rows of both (Chan, Golub and LeVeque 1979, equation 2.1, with means for sums)."""
        count = self.count + other.count
        if count == 0.0:
            return self
        part, shift = other.count / count, other.mean - self.mean
        return Moments(
            count, self.mean + part * shift, self.m2 + other.m2 + self.count * part * shift**2
        )

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviations, float64 [n], more than 0; 1 where there is no row."""
        if self.count == 0.0:
            return np.ones_like(self.m2)
        return np.sqrt(self.m2 / self.count + EPSILON)


class Normalization:
    """What an algorithm has seen so far of observations and rewards, where settings want that.

    settings: with `normalize_rewards` they have `gamma`.
    """

    def __init__(self, network: TorchNetwork, settings: AlgorithmSettings) -> None:
        self._network = network
        self._moments: dict[str, Moments] = {}  # of what is normalized
        if isinstance(network.spec, NetworkSpec) and network.spec.is_normalized:
            self._moments["observation"] = Moments.none(network.spec.frame_inputs)
        if settings.normalize_rewards:
            self._moments["return"] = Moments.none(1)
            self._gamma: float = settings.gamma  # pyright: ignore[reportAttributeAccessIssue]
        self._returns = np.zeros(0)  # discounted, so far in the episode of each environment

    def __repr__(self) -> str:
        counts = (f"{moments.count:.0f} {name}s" for name, moments in self._moments.items())
        return f"Normalization({', '.join(counts)})"

    def scaled_reward(self, batch: Batch) -> np.ndarray:
        """The batch's rewards [T, B] float32; scaled, where wanted, after they are looked at.

        They are divided by the standard deviation of the discounted return so far in an episode,
        this batch's steps included, and clipped.
        """
        if "return" not in self._moments:
            return batch.reward
        returns = self._returns_so_far(batch)
        moments = Moments.of(_steps(batch, returns).reshape(-1, 1))
        self._moments["return"] = self._moments["return"].merged(moments)
        scaled = batch.reward / self._moments["return"].deviation
        return scaled.clip(-MOST_REWARD, MOST_REWARD).astype(np.float32)

    def read_observations(self, batch: Batch) -> None:
        """Have the network's next version normalize by what this batch showed, too."""
        if "observation" not in self._moments:
            return
        spec = self._network.spec
        assert isinstance(spec, NetworkSpec)
        moments = self._moments["observation"]
        rows = torch.from_numpy(_steps(batch, batch.observation[:-1]))
        for piece in rows.split(max(1, MOST_NUMBERS // spec.frame_inputs)):
            moments = moments.merged(Moments.of(self._network.frame_inputs(piece).numpy()))
        self._moments["observation"] = moments
        is_quantity = spec.is_quantity
        for name, numbers in (
            ("mean", np.where(is_quantity, moments.mean, 0.0)),
            ("scale", np.where(is_quantity, 1.0 / moments.deviation, 1.0)),
        ):
            of_stack = torch.from_numpy(np.tile(numbers, spec.frame_stack))
            self._network.parameters[f"{NORMALIZED}.{name}"].copy_(of_stack)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all that is kept, float64; empty where nothing is normalized."""
        state = {}
        for name, moments in self._moments.items():
            state[f"{name}_count"] = torch.tensor([moments.count], dtype=torch.float64)
            state[f"{name}_mean"] = torch.from_numpy(moments.mean.copy())
            state[f"{name}_m2"] = torch.from_numpy(moments.m2.copy())
        if "return" in self._moments:
            state["returns"] = torch.from_numpy(self._returns.copy())
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state; what was not normalized then begins without statistics."""
        for name, moments in self._moments.items():
            if f"{name}_count" in state:
                count, mean, m2 = (state[f"{name}_{x}"].numpy() for x in ("count", "mean", "m2"))
                self._moments[name] = Moments(float(count[0]), mean.copy(), m2.copy())
            else:
                self._moments[name] = Moments.none(len(moments.mean))
        self._returns = state["returns"].numpy().copy() if "returns" in state else np.zeros(0)

    def _returns_so_far(self, batch: Batch) -> np.ndarray:
        """R_t = r_t + γ R_{t-1}, or r_t in an episode's first step; float64 [T, B].

        A column goes on from its environment's column before, in this batch or an earlier one.
        """
        if len(self._returns) != batch.num_envs:  # the first batch, or of another fleet
            self._returns = np.zeros(batch.num_envs)
        returns = np.where(np.isfinite(batch.reward), batch.reward, np.float64(0.0))
        carry = np.where(batch.terminated | batch.truncated, 0.0, self._gamma)
        for columns in _once_each(batch.env):
            env = batch.env[columns]
            some, carried = returns[:, columns], self._returns[env]
            for t in range(len(some)):
                some[t] += carried
                np.multiply(carry[t, columns], some[t], out=carried)
            returns[:, columns] = some
            self._returns[env] = carried
        return returns


def _steps(batch: Batch, column: np.ndarray) -> np.ndarray:
    """Of a column [T, B, …] of a batch the rows that are steps, [R, …]."""
    rows = column.reshape(-1, *column.shape[2:])
    return rows[~batch.no_op.reshape(-1)] if batch.no_op.any() else rows


def _once_each(env: np.ndarray) -> list[np.ndarray]:
    """All places in env [B], in groups that have no environment twice, each one's in order."""
    order = np.argsort(env, kind="stable")
    is_new = np.diff(env[order], prepend=-1) != 0
    first = np.maximum.accumulate(np.where(is_new, np.arange(len(env)), 0))
    which = np.arange(len(env)) - first  # how often its environment came before
    return [np.sort(order[which == k]) for k in range(which.max(initial=-1) + 1)]
