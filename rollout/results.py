"""What a run leaves besides metrics: checkpoints on its way, a summary at its end."""

import time
from typing import TYPE_CHECKING, Self

import numpy as np

from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.envs.errors import EnvError
from rollout.errors import OperatorError
from rollout.experiment import Experiment
from rollout.learner import Learner
from rollout.run_directory import RunDirectory
from rollout.summary import Ledger, PolicyLag, Summary, params_digest, versions

if TYPE_CHECKING:  # torch is imported while the template starts, not before
    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork


ALGORITHM = "algorithm/"  # begins the names of what the algorithm needs to go on


class CheckpointSaver:
    """Writes checkpoints: when they are due, and when the run ends, but for bad input."""

    def __init__(self, directory: RunDirectory, algorithm: "Algorithm", learner: Learner) -> None:
        self._directory = directory
        self._experiment = directory.experiment
        self._algorithm = algorithm
        self._learner = learner
        self._saved_update = -1
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_bad_input = kind is not None and issubclass(kind, EnvError | OperatorError)
        if not is_bad_input and self._saved_update != self._learner.update:
            self._save()

    def save_if_due(self) -> None:
        """Write one if the settings say so."""
        settings = self._experiment.checkpoint
        updates = self._learner.update - max(self._saved_update, 0)
        minutes = (time.monotonic() - self._saved_at) / 60
        if minutes >= settings.every_minutes or (
            settings.every_updates is not None and updates >= settings.every_updates
        ):
            self._save()

    def _save(self) -> None:
        learner, network = self._learner, self._algorithm.network
        state = {
            f"{ALGORITHM}{name}": np.atleast_1d(tensor.detach().cpu().numpy())
            for name, tensor in self._algorithm.state_dict().items()
        }
        save_checkpoint(
            self._directory.checkpoints,
            learner.update,
            named_parameters(network.spec, network.export()) | state,
            {
                "config_digest": self._experiment.config_digest,
                "env_steps": learner.env_steps,
                "num_episodes": learner.num_episodes,
                "episode_return_mean": learner.episode_return_mean,
            },
            self._experiment.checkpoint.keep,
        )
        self._saved_update = learner.update
        self._saved_at = time.monotonic()


def summarize(
    experiment: Experiment,
    learner: Learner,
    network: "TorchNetwork",
    unrolls_put: list[int],
    wall_s: float,
) -> Summary:
    """What a run that has ended amounts to. unrolls_put: in batches, by actor."""
    num_actors = experiment.fleet.num_actors
    return Summary(
        env_steps=learner.env_steps,
        updates=learner.update,
        wall_s=wall_s,
        env_steps_per_s=learner.env_steps_per_s,
        episode_return_mean=learner.episode_return_mean,
        goal_reached=learner.goal_reached_s is not None,
        goal_reached_s=learner.goal_reached_s,
        params_digest=params_digest(named_parameters(network.spec, network.export())),
        num_actors=num_actors,
        actor_restarts=0,
        policy_lag=PolicyLag(
            mean=learner.policy_lag_sum / max(learner.update, 1), max=learner.policy_lag_max
        ),
        ledger=_ledger(experiment, learner, unrolls_put),
        seed=experiment.seed,
        config_digest=experiment.config_digest,
        versions=versions(),
    )


def _ledger(experiment: Experiment, learner: Learner, put: list[int]) -> Ledger:
    """The account of a fleet that has ended: two counts by the actors' side and by ours."""
    produced = learner.produced or put  # an agent that was killed could not say
    # Between an actor and its batch there are as many unrolls as its window lets there be. If more
    # are missing, or fewer than none, the account does not balance.
    window = experiment.fleet.window
    in_flight = sum(
        min(max(made - arrived, 0), window) for made, arrived in zip(produced, put, strict=True)
    )
    trained = learner.update * experiment.fleet.num_actors
    return Ledger(
        produced=sum(produced),
        trained=trained,
        in_flight=in_flight,
        dropped={"run_ended": sum(put) - trained},
    )
