"""The learner's loop: receive → batch → update → publish."""

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rollout.assembler import FullBatch
from rollout.experiment import Experiment
from rollout.progress import Progress, View
from rollout.receiver import FleetFailed, FleetStopped, Interrupted, PhaseChanged, Receiver
from rollout.wire import ActorTimes

if TYPE_CHECKING:  # torch is imported while the template starts, not before
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork

log = logging.getLogger(__name__)

EPISODES = 100  # the mean return that experiments aim at is over the last so many
FLEET_END_S = 10.0  # for the actors' last counts to come in
QUIET_S = 30.0  # without a batch, after which somebody should look


class Clock:
    """Wall seconds since a run began.

    started: when that was, by time.monotonic(): when the process began for the command line, when
    `rollout.train` was called for everybody else.
    """

    def __init__(self, started: float) -> None:
        self._started = started

    def seconds(self) -> float:
        return time.monotonic() - self._started


class Learner:
    """Trains on batch after batch, in lockstep with the fleet.

    Batch u is acted with weights version max(0, u - policy_lag), and trained on when the newest is
    version u; the update makes version u + 1. What has become of it is in the attributes.
    """

    def __init__(
        self,
        experiment: Experiment,
        algorithm: "Algorithm",
        network: "TorchNetwork",
        receiver: Receiver,
        view: View,
        clock: Clock,
    ) -> None:
        self._experiment = experiment
        self._algorithm = algorithm
        self._network = network
        self._receiver = receiver
        self._view = view
        self._clock = clock
        self._last_returns: deque[float] = deque(maxlen=EPISODES)
        self._last_lengths: deque[int] = deque(maxlen=EPISODES)
        self.update = 0
        self.env_steps = 0
        self.num_episodes = 0
        self.policy_lag_sum = 0
        self.policy_lag_max = 0
        self.goal_reached_s: float | None = None
        self.first_update_s: float | None = None
        self.last_update_s = 0.0
        self.interrupted_by: int | None = None
        self.produced: list[int] = []

    def __repr__(self) -> str:
        return f"Learner(update={self.update}, env_steps={self.env_steps})"

    def run(self) -> Iterator[Progress]:
        """Train until a stop condition holds or a signal comes; one Progress per update.

        Raises RunFailed when the fleet cannot go on.
        """
        self._receiver.publish(0, self._network.export().tobytes())
        updated = time.perf_counter()
        while True:
            since = time.perf_counter()
            ready = self._wait_batch()
            if ready is None:
                return
            waited = time.perf_counter()
            losses = self._algorithm.update(ready.batch, self.update, self._fraction_done())
            last_updated, updated = updated, time.perf_counter()
            spent = {"wait": waited - since, "update": updated - waited}
            progress = self._count(ready, losses, spent, updated - last_updated)
            self._receiver.recycle(ready.batch)
            if progress.stop_reason is None:
                self._receiver.publish(self.update, self._network.export().tobytes())
            yield progress
            if progress.stop_reason is not None:
                return

    def stop_fleet(self) -> None:
        """End the actors and collect what they have produced."""
        self._receiver.stop_fleet()
        deadline = time.monotonic() + FLEET_END_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._receiver.events.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(event, FleetStopped):
                self.produced = event.produced
                return

    @property
    def episode_return_mean(self) -> float | None:
        """Over the last 100 episodes."""
        return float(np.mean(self._last_returns)) if self._last_returns else None

    @property
    def env_steps_per_s(self) -> float:
        """Steps trained on per second, since the first update."""
        if self.first_update_s is None or self.update < 2:
            return 0.0
        steps = self.env_steps - self._experiment.batch_size
        return steps / max(self.last_update_s - self.first_update_s, 1e-9)

    def _wait_batch(self) -> FullBatch | None:
        """The next batch; None when the run is to end without one."""
        while True:
            left_s = self._seconds_left()
            try:
                event = self._receiver.events.get(timeout=min(left_s, QUIET_S))
            except queue.Empty:
                if left_s <= QUIET_S:
                    return None  # stop.wall_s is over
                self._say_that_nothing_comes()
                continue
            match event:
                case FullBatch():
                    return event
                case PhaseChanged():
                    self._view.phase(event.text)
                case FleetFailed():
                    raise event.error
                case Interrupted():
                    self.interrupted_by = event.signal_number
                    return None

    def _seconds_left(self) -> float:
        limit = self._experiment.stop.wall_s
        return math.inf if limit is None else max(limit - self._clock.seconds(), 0.0)

    def _say_that_nothing_comes(self) -> None:
        alive = self._receiver.statistics().num_actors_alive
        num_actors = self._experiment.fleet.num_actors
        text = f"no batch for {QUIET_S:.0f} s ({alive} of {num_actors} actors alive); still waiting"
        log.warning(text)
        self._view.phase(text)

    def _fraction_done(self) -> float:
        limit = self._experiment.stop.env_steps
        return 0.0 if limit is None else min(self.env_steps / limit, 1.0)

    def _count(
        self,
        ready: FullBatch,
        losses: dict[str, float],
        spent_s: dict[str, float],
        whole_s: float,
    ) -> Progress:
        batch = ready.batch
        policy_lag = self.update - batch.weights_version
        self.policy_lag_sum += policy_lag
        self.policy_lag_max = max(self.policy_lag_max, policy_lag)
        self.update += 1
        self.env_steps += self._experiment.batch_size
        self.num_episodes += len(batch.episode_return)
        self._last_returns.extend(batch.episode_return.tolist())
        self._last_lengths.extend(batch.episode_length.tolist())
        self.last_update_s = self._clock.seconds()
        if self.first_update_s is None:
            self.first_update_s = self.last_update_s
        statistics = self._receiver.statistics()
        return Progress(
            update=self.update,
            env_steps=self.env_steps,
            wall_s=self.last_update_s,
            env_steps_per_s=self.env_steps_per_s,
            episode_return_mean=self.episode_return_mean,
            episode_length_mean=float(np.mean(self._last_lengths)) if self._last_lengths else None,
            num_episodes=self.num_episodes,
            episode_returns=batch.episode_return,
            episode_lengths=batch.episode_length,
            losses=losses,
            policy_lag=policy_lag,
            num_actors_alive=statistics.num_actors_alive,
            num_actors=self._experiment.fleet.num_actors,
            time_split=_time_split(ready.times, spent_s, whole_s),
            stop=self._stop_fractions(),
            stop_reason=self._stop_reason(),
        )

    def _stop_reason(self) -> str | None:
        stop = self._experiment.stop
        mean = self.episode_return_mean
        if stop.episode_return is not None and len(self._last_returns) == EPISODES:
            assert mean is not None
            if math.isfinite(mean) and mean >= stop.episode_return:
                self.goal_reached_s = self.last_update_s
                return f"mean return {mean:.1f} reached stop.episode_return={stop.episode_return:g}"
        if stop.env_steps is not None and self.env_steps >= stop.env_steps:
            return f"{self.env_steps} steps reached stop.env_steps={stop.env_steps}"
        if stop.wall_s is not None and self.last_update_s >= stop.wall_s:
            return f"{self.last_update_s:.1f} s reached stop.wall_s={stop.wall_s:g}"
        return None

    def _stop_fractions(self) -> dict[str, float]:
        stop = self._experiment.stop
        fractions = {}
        if stop.episode_return is not None:
            mean = self.episode_return_mean or 0.0
            is_positive = stop.episode_return > 0
            fractions["episode_return"] = mean / stop.episode_return if is_positive else math.nan
        if stop.env_steps is not None:
            fractions["env_steps"] = self.env_steps / stop.env_steps
        if stop.wall_s is not None:
            fractions["wall_s"] = self.last_update_s / stop.wall_s
        return {
            key: min(max(share, 0.0), 1.0) for key, share in fractions.items() if share == share
        }


def _time_split(times: ActorTimes, spent_s: dict[str, float], whole_s: float) -> dict[str, float]:
    """Shares of the time since the last update; what the learner did besides is `other`."""
    whole_s = max(whole_s, 1e-9)
    split = {f"learner/{name}": spent / whole_s for name, spent in spent_s.items()}
    split["learner/other"] = max(1.0 - sum(split.values()), 0.0)
    whole_us = max(sum(times), 1)
    return split | {
        "actor/act": times.act_us / whole_us,
        "actor/wait_weights": times.wait_weights_us / whole_us,
        "actor/wait_credit": times.wait_credit_us / whole_us,
    }
