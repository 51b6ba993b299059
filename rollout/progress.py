"""What the learner tells of a run after each update."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rollout.run_directory import RunDirectory
from rollout.summary import Summary


@dataclass(frozen=True)
class Progress:
    """A run after `update` updates; yielded by the learner's loop, read by logs and live views.

    update: updates done. env_steps: steps trained on. wall_s: seconds since it began.
    env_steps_per_s: since the first update (0 before there are two).
    episode_return_mean, episode_length_mean: over the last 100 episodes, or None before the first.
    num_episodes: finished so far. episode_returns, episode_lengths: of those in this update's
        batch, in the order (t, environment).
    losses: what the algorithm reports, by TensorBoard name. policy_lag: mean of the weights
        versions between those of this batch's unrolls and the newest when it was trained on.
    num_actors_alive, num_actors: actor processes.
    time_split: shares of wall time since the last update, by name (each 0 … 1): `learner/update`,
        `learner/wait`, `learner/other`; `actor/act`, `actor/wait_weights`, `actor/wait_credit`
        (of the actors' time for this batch).
    fleet: the account of all unrolls, and what befell the fleet, by name.
    stop: progress towards each stop condition, 0 … 1, by key of the [stop] table.
    stop_reason: why the run ends with this update, or None.
    """

    update: int
    env_steps: int
    wall_s: float
    env_steps_per_s: float
    episode_return_mean: float | None
    episode_length_mean: float | None
    num_episodes: int
    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    losses: Mapping[str, float]
    policy_lag: float
    num_actors_alive: int
    num_actors: int
    time_split: Mapping[str, float] = field(default_factory=dict)
    fleet: Mapping[str, float] = field(default_factory=dict)
    stop: Mapping[str, float] = field(default_factory=dict)
    stop_reason: str | None = None


class View(Protocol):
    """Who is told how a run goes, besides its files."""

    def phase(self, text: str) -> None:
        """What the run is doing while there are no updates."""
        ...

    def notice(self, text: str) -> None:
        """Something happened that the run survives: a death, a full disk."""
        ...

    def write(self, progress: Progress) -> None: ...

    def finish(self, summary: Summary, run: RunDirectory) -> None: ...


class NoView:
    """Tells nobody."""

    def phase(self, text: str) -> None: ...
    def notice(self, text: str) -> None: ...
    def write(self, progress: Progress) -> None: ...
    def finish(self, summary: Summary, run: RunDirectory) -> None: ...
