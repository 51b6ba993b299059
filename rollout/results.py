"""What a run leaves besides metrics: checkpoints on its way, a summary at its end."""

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rollout.checkpoint import PARAMETERS, Checkpoint, named_parameters, save_checkpoint
from rollout.envs.errors import EnvError
from rollout.errors import OperatorError, RunFailed
from rollout.experiment import Experiment
from rollout.learner import Learner
from rollout.ledger import Account, Ledger
from rollout.progress import View
from rollout.receiver import Receiver, ReceiverStatistics
from rollout.run_directory import RunDirectory
from rollout.summary import PolicyLag, Summary, params_digest, versions

if TYPE_CHECKING:  # torch is imported while the template starts, not before
    import torch

    from rollout.learners.algorithm import Algorithm

log = logging.getLogger(__name__)

ALGORITHM = "algorithm/"  # begins the names of what the algorithm needs to go on
ENV_STATE, ENV_UNROLLS = "env_state", "env_unrolls"
RETRY_S = 10.0  # after a checkpoint that could not be written


class CheckpointSaver:
    """Writes checkpoints: when they are due, and when the run ends, but for bad input.

    A checkpoint holds all that the next update depends on. One that cannot be written is told to
    people and tried again; only the last one must succeed.
    """

    def __init__(
        self,
        directory: RunDirectory,
        algorithm: "Algorithm",
        learner: Learner,
        receiver: Receiver,
        view: View,
        before_save: Sequence[Callable[[], None]] = (),
    ) -> None:
        """before_save: bring to disk what must not be behind a checkpoint."""
        self._directory = directory
        self._experiment = directory.experiment
        self._algorithm = algorithm
        self._learner = learner
        self._receiver = receiver
        self._view = view
        self._before_save = before_save
        self._saved_update = learner.update if learner.update else -1  # or what it resumed from
        self._saved_at = time.monotonic()
        self._retry_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_bad_input = kind is not None and issubclass(kind, EnvError | OperatorError)
        if is_bad_input or self._saved_update == self._learner.update:
            return
        try:
            self.save(is_last=True)
        except RunFailed as error:
            if kind is None:
                run = shlex.quote(str(self._directory.path))
                raise RunFailed(
                    f"{error}; mend that, and `rollout train --resume {run}` goes on from the "
                    "newest one that is whole"
                ) from error
            log.error("%s", error)  # what ends the run says more

    def save_if_due(self) -> None:
        """Write one if the settings say so."""
        if not self._is_due():
            return
        try:
            self.save()
        except RunFailed as error:
            log.warning("%s", error)
            if self._retry_at is None:
                self._view.notice(f"{error}; training goes on, and so do attempts to write one")
            self._retry_at = time.monotonic() + RETRY_S

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._retry_at is not None:
            return now >= self._retry_at
        settings = self._experiment.checkpoint
        updates = self._learner.update - max(self._saved_update, 0)
        is_many = settings.every_updates is not None and updates >= settings.every_updates
        return is_many or now - self._saved_at >= 60 * settings.every_minutes

    def save(self, is_last: bool = False) -> None:
        """Write one now. is_last: the run ends with it. Raises RunFailed."""
        learner, network = self._learner, self._algorithm.network
        snapshot = self._receiver.snapshot(is_last)
        arrays, state = learner.state()
        algorithm = {
            f"{ALGORITHM}{name}": np.atleast_1d(tensor.detach().cpu().numpy())
            for name, tensor in self._algorithm.checkpoint_state().items()
        }
        for bring_to_disk in self._before_save:
            bring_to_disk()
        path = save_checkpoint(
            self._directory.checkpoints,
            learner.update,
            {
                **named_parameters(network.spec, network.export()),
                **algorithm,
                **arrays,
                ENV_STATE: snapshot.env_state,
                ENV_UNROLLS: snapshot.env_unrolls,
            },
            {
                "experiment": self._experiment.model_dump(mode="json"),
                "state_fields": snapshot.state_fields,
                "account": snapshot.account,
                "set_aside": snapshot.set_aside,
                "episodes_lost": snapshot.episodes_lost,
                **state,
            },
            self._experiment.checkpoint.keep,
        )
        self._saved_update = learner.update
        self._saved_at = time.monotonic()
        self._retry_at = None
        self._view.saved(path)


def algorithm_state(checkpoint: Checkpoint) -> "dict[str, torch.Tensor]":
    """What the algorithm needs to go on."""
    import torch

    return {
        name.removeprefix(ALGORITHM): torch.from_numpy(array.copy())
        for name, array in checkpoint.arrays.items()
        if name.startswith(ALGORITHM)
    }


def summarize(
    experiment: Experiment,
    update: int,
    state: Mapping[str, Any],
    parameters: Mapping[str, np.ndarray],
    ledger: Ledger,
    statistics: ReceiverStatistics | None = None,
    env_steps_per_s: float = 0.0,
) -> Summary:
    """What a run that has ended amounts to.

    state: as a checkpoint has it. parameters: of the final policy, by name. statistics: of the
    process that ends; None if there is none left to ask.
    """
    lost = state["episodes_lost"] if statistics is None else statistics.episodes_lost
    aside = len(state["set_aside"]) if statistics is None else statistics.envs_set_aside
    counts = dict(state["policy_lags"])
    return Summary(
        env_steps=state["env_steps"],
        updates=update,
        wall_s=state["wall_s"],
        env_steps_per_s=env_steps_per_s,
        episode_return_mean=state["episode_return_mean"],
        goal_reached=state["goal_reached_s"] is not None,
        goal_reached_s=state["goal_reached_s"],
        params_digest=params_digest(parameters),
        num_actors=experiment.fleet.num_actors,
        actor_restarts=statistics.actor_restarts if statistics else 0,
        memory_restarts=statistics.memory_restarts if statistics else 0,
        host_restarts=statistics.host_restarts if statistics else 0,
        envs_set_aside=aside,
        episodes_lost=dict(lost),
        policy_lag=PolicyLag(_mean_lag(counts), max(counts, default=0), counts),
        ledger=ledger,
        seed=experiment.seed,
        config_digest=experiment.config_digest,
        versions=versions(),
    )


def summary_of(experiment: Experiment, checkpoint: Checkpoint) -> Summary:
    """Of a run that died when all was done but its summary."""
    account = Account(experiment.fleet.window)
    account.put_state(checkpoint.state["account"])
    named = {n: array for n, array in checkpoint.arrays.items() if n.startswith(PARAMETERS)}
    ledger = account.ledger(with_actors=True)
    return summarize(experiment, checkpoint.update, checkpoint.state, named, ledger)


def _mean_lag(counts: Mapping[int, int]) -> float:
    total = sum(lag * count for lag, count in counts.items())
    return total / max(sum(counts.values()), 1)
