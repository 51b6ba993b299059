"""The learner's loop: receive → batch → update → publish."""

import logging
import math
import queue
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.assembler import FullBatch
from rollout.envs.errors import in_words, raised_at
from rollout.errors import RolloutError
from rollout.events import FleetFailed, FleetStopped, Interrupted, Notice, PhaseChanged
from rollout.experiment import Experiment
from rollout.experiment_tables import StopSettings
from rollout.learning import fraction_done
from rollout.ledger import Ledger
from rollout.order_log import OrderLog
from rollout.progress import Progress, View
from rollout.receiver import Receiver, ReceiverStatistics
from rollout.skipped_steps import describe_skipped
from rollout.supervisor import UNMEASURED_LIMIT_S
from rollout.wire import ActorTimes

if TYPE_CHECKING:  # torch is imported while the template starts, not before
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork

log = logging.getLogger(__name__)

EPISODES = 100  # the mean return that experiments aim at is over the last so many
FLEET_END_S = 10.0  # for the actors' last counts to come in
WEIGHTS = "weights/"  # begins the names of older versions in a checkpoint
QUIET_S = 30.0  # without a batch, after which somebody should look


class UpdateFailed(Exception):
    """An algorithm or a network of a user's own has raised something in an update."""

    def __init__(self, update: int, error: BaseException) -> None:
        place = raised_at(error)
        where = f" at {place}" if place else ""
        super().__init__(f"update {update} failed{where}: {in_words(error)}")


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
    """Trains on batch after batch. What has become of it is in the attributes.

    changed_at: updates from which on another experiment was trained, by who resumed it.

    In lockstep batch u is acted with weights version max(0, u - policy_lag), in async with whatever
    was newest; it is trained on when the newest is version u, and the update makes version u + 1.
    """

    def __init__(
        self,
        experiment: Experiment,
        algorithm: "Algorithm",
        network: "TorchNetwork",
        receiver: Receiver,
        view: View,
        clock: Clock,
        order: OrderLog | None = None,
    ) -> None:
        """order: where to log what async batches are made of."""
        self._experiment = experiment
        self._algorithm = algorithm
        self._network = network
        self._receiver = receiver
        self._view = view
        self._clock = clock
        self._order = order
        self._last_returns: deque[float] = deque(maxlen=EPISODES)
        self._last_lengths: deque[int] = deque(maxlen=EPISODES)
        self._older_weights: dict[int, bytes] = {}  # that unrolls may still be acted with
        self._rate_from = (0, 0.0)  # env steps and seconds at the first update of this process
        self._has_skipped = False  # in the last update
        self.update = 0
        self.first_update = 0  # of this process
        self.env_steps = 0
        self.num_episodes = 0
        self.policy_lags: Counter[int] = Counter()
        self.changed_at: list[int] = []
        self.goal_reached_s: float | None = None
        self.last_update_s = 0.0
        self.interrupted_by: int | None = None

    def __repr__(self) -> str:
        return f"Learner(update={self.update}, env_steps={self.env_steps})"

    def run(self) -> Iterator[Progress]:
        """Train until a stop condition holds or a signal comes; one Progress per update.

        Raises RunFailed when the fleet cannot go on.
        """
        self._publish_older()
        self._publish()
        updated = time.perf_counter()
        while True:
            since = time.perf_counter()
            ready = self._wait_batch()
            if ready is None:
                return
            waited = time.perf_counter()
            losses = self._train_on(ready)
            last_updated, updated = updated, time.perf_counter()
            spent = {"wait": waited - since, "update": updated - waited}
            if self._order is not None:
                self._order.write(self.update, ready.batch.env, ready.batch.weights_version)
            progress = self._count(ready, losses, spent, updated - last_updated)
            self._receiver.trained(ready.batch)
            if progress.stop_reason is None:
                self._publish()
            yield progress
            if progress.stop_reason is not None:
                return

    def _train_on(self, ready: FullBatch) -> dict[str, float]:
        """One update. One that raises changes nothing, so that a checkpoint can be written."""
        algorithm, network = self._algorithm, self._network
        state = {name: value.clone() for name, value in algorithm.checkpoint_state().items()}
        parameters = network.export()
        skipped = algorithm.skipped_steps
        done = fraction_done(self._experiment, self.env_steps)
        try:
            losses = algorithm.train_on(ready.batch, self.update, done)
        except BaseException as error:
            self._tell_skipped(ready, algorithm.skipped_steps - skipped)
            network.load(parameters)
            algorithm.load_checkpoint_state(state)
            if self._is_authors(error):
                raise UpdateFailed(self.update, error) from error
            raise
        self._tell_skipped(ready, algorithm.skipped_steps - skipped)
        return losses

    def _is_authors(self, error: BaseException) -> bool:
        """Whether an algorithm or network of a user's own is to blame, as far as can be seen."""
        from torch import OutOfMemoryError

        from rollout.learners.optimizer import NonFiniteLossError

        experiment = self._experiment
        not_theirs = RolloutError | NonFiniteLossError | MemoryError | OutOfMemoryError
        return (
            ":" in experiment.algorithm.kind + experiment.network.kind
            and isinstance(error, SystemExit | Exception)
            and not isinstance(error, not_theirs)
            and bool(raised_at(error))
        )

    def _tell_skipped(self, ready: FullBatch, skipped: int) -> None:
        """People are told of the first update of several in a row; all are in the log."""
        if skipped:
            text = describe_skipped(self.update, skipped, ready)
            log.warning(text)
            if not self._has_skipped:
                self._view.notice(text)
        self._has_skipped = bool(skipped)

    def _publish_older(self) -> None:
        """Versions that the first unrolls of a resumed run are acted with.

        Who resumed it with a larger policy lag has none so old; the newest takes their place.
        """
        fleet = self._experiment.fleet
        if fleet.mode == "lockstep":
            for version in range(max(0, self.update - fleet.policy_lag), self.update):
                newest = self._network.export().tobytes()
                self._older_weights.setdefault(version, newest)
                self._receiver.publish(version, self._older_weights[version])

    def _publish(self) -> None:
        weights = self._network.export().tobytes()
        self._receiver.publish(self.update, weights)
        fleet = self._experiment.fleet
        if fleet.mode == "lockstep":
            self._older_weights[self.update] = weights
            self._older_weights.pop(self.update - fleet.policy_lag - 1, None)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that the next update depends on, besides algorithm and environments: arrays, rest."""
        arrays: dict[str, np.ndarray] = {
            f"{WEIGHTS}{version}": np.frombuffer(weights, np.float32)
            for version, weights in self._older_weights.items()
            if self.update - self._experiment.fleet.policy_lag <= version < self.update
        }
        arrays["last_returns"] = np.array(self._last_returns, np.float64)
        arrays["last_lengths"] = np.array(self._last_lengths, np.int64)
        return arrays, {
            "env_steps": self.env_steps,
            "num_episodes": self.num_episodes,
            "episode_return_mean": self.episode_return_mean,
            "wall_s": self._clock.seconds(),
            "goal_reached_s": self.goal_reached_s,
            "policy_lags": sorted(self.policy_lags.items()),
            "changed_at": self.changed_at,
        }

    def put_state(
        self, update: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> None:
        """Go on from a checkpoint."""
        self.update = self.first_update = update
        self.env_steps, self.num_episodes = state["env_steps"], state["num_episodes"]
        self.goal_reached_s = state["goal_reached_s"]
        self.last_update_s = state["wall_s"]
        self.policy_lags = Counter(dict(state["policy_lags"]))
        self.changed_at = list(state["changed_at"])
        self._last_returns.extend(arrays["last_returns"].tolist())
        self._last_lengths.extend(arrays["last_lengths"].tolist())
        self._older_weights = {
            int(name.removeprefix(WEIGHTS)): array.tobytes()
            for name, array in arrays.items()
            if name.startswith(WEIGHTS)
        }

    def stop_fleet(self) -> None:
        """End the actors, so that the account is final."""
        self._receiver.stop_fleet()
        deadline = time.monotonic() + FLEET_END_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._receiver.events.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(event, FleetStopped):
                return

    @property
    def episode_return_mean(self) -> float | None:
        """Over the last 100 episodes."""
        return float(np.mean(self._last_returns)) if self._last_returns else None

    @property
    def env_steps_per_s(self) -> float:
        """Steps trained on per second, since the first update of this process."""
        if self.update < self.first_update + 2:
            return 0.0
        steps, seconds = self._rate_from
        return (self.env_steps - steps) / max(self.last_update_s - seconds, 1e-9)

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
                case Notice():
                    self._view.notice(event.text)
                case FleetFailed():
                    raise event.error
                case Interrupted():
                    self.interrupted_by = event.signal_number
                    return None

    def _seconds_left(self) -> float:
        limit = self._experiment.stop.wall_s
        return math.inf if limit is None else max(limit - self._clock.seconds(), 0.0)

    def _say_that_nothing_comes(self) -> None:
        statistics = self._receiver.statistics()
        alive, num_actors = statistics.num_actors_alive, statistics.num_actors
        text = f"no batch for {QUIET_S:.0f} s ({alive} of {num_actors} actors alive); still waiting"
        if self.update == 0:
            check, hang_s = self._experiment.env.how_to_check, self._experiment.fleet.hang_s
            limit = f"an unroll {hang_s:g}" if hang_s else f"a step {UNMEASURED_LIMIT_S:g}"
            text += (
                f"; if its environment never returns, {check} says where; "
                f"{limit} s at most (fleet.hang_s)"
            )
        log.warning(text)
        self._view.notice(text)

    def _count(
        self,
        ready: FullBatch,
        losses: dict[str, float],
        spent_s: dict[str, float],
        whole_s: float,
    ) -> Progress:
        batch = ready.batch
        lags = self.update - batch.weights_version
        self.policy_lags.update(_histogram(lags))
        self.update += 1
        self.env_steps += self._experiment.batch_size
        self.num_episodes += len(batch.episode_return)
        self._last_returns.extend(batch.episode_return.tolist())
        self._last_lengths.extend(batch.episode_length.tolist())
        self.last_update_s = self._clock.seconds()
        if self.update == self.first_update + 1:
            self._rate_from = self.env_steps, self.last_update_s
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
            policy_lag=float(lags.mean()),
            num_actors_alive=statistics.num_actors_alive,
            num_actors=statistics.num_actors,
            fleet=_lag_numbers(lags) | _fleet_numbers(statistics, ready.ledger),
            time_split=_time_split(ready.times, spent_s, whole_s),
            stop=self._stop_fractions(),
            stop_reason=self._stop_reason(),
        )

    def _stop_reason(self) -> str | None:
        stop, mean = self._experiment.stop, self.episode_return_mean
        returns = len(self._last_returns)
        if is_goal_reached(stop, mean, returns):
            self.goal_reached_s = self.last_update_s
        return stop_reason(stop, mean, returns, self.env_steps, self.last_update_s)

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


def is_goal_reached(stop: StopSettings, mean: float | None, num_episodes: int) -> bool:
    """mean: over the last `num_episodes` episodes; there must be 100."""
    if stop.episode_return is None or mean is None or num_episodes < EPISODES:
        return False
    return math.isfinite(mean) and mean >= stop.episode_return


def stop_reason(
    stop: StopSettings, mean: float | None, num_episodes: int, env_steps: int, wall_s: float
) -> str | None:
    """Which condition ends a run that has come so far, in words; None if it goes on."""
    if is_goal_reached(stop, mean, num_episodes):
        return f"mean return {mean:.1f} reached stop.episode_return={stop.episode_return:g}"
    if stop.env_steps is not None and env_steps >= stop.env_steps:
        return f"{env_steps} steps reached stop.env_steps={stop.env_steps}"
    if stop.wall_s is not None and wall_s >= stop.wall_s:
        return f"{wall_s:.1f} s reached stop.wall_s={stop.wall_s:g}"
    return None


def _histogram(lags: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(lags, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _lag_numbers(lags: np.ndarray) -> dict[str, float]:
    """How the policy lags of a batch's columns are spread."""
    half, most = np.percentile(lags, [50, 95])
    return {
        "policy_lag_p50": float(half),
        "policy_lag_p95": float(most),
        "policy_lag_max": float(lags.max()),
    }


def _fleet_numbers(statistics: ReceiverStatistics, ledger: Ledger | None) -> dict[str, float]:
    """What befell the fleet, and the account of all unrolls, by name."""
    numbers: dict[str, float] = {
        "actor_restarts": statistics.actor_restarts,
        "memory_restarts": statistics.memory_restarts,
        "host_restarts": statistics.host_restarts,
        "envs_set_aside": statistics.envs_set_aside,
        "episodes_lost": sum(statistics.episodes_lost.values()),
        "refused": statistics.control_refused
        + sum(count for name, count in statistics.verdicts.items() if name != "accepted"),
    }
    for reason, count in statistics.episodes_lost.items():
        numbers[f"episodes_lost_{reason}"] = count
    for unit, totals in (("unrolls", ledger.unrolls), ("steps", ledger.steps)) if ledger else ():
        numbers[f"{unit}_produced"] = totals.produced
        numbers[f"{unit}_trained"] = totals.trained
        numbers[f"{unit}_in_flight"] = totals.in_flight
        for reason, count in totals.dropped.items():
            numbers[f"{unit}_dropped_{reason}"] = count
        numbers[f"{unit}_balance"] = totals.balance
    return numbers


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
