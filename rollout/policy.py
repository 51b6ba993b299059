"""A trained policy to use anywhere: no fleet, no torch."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from rollout.checkpoint import Checkpoint, open_checkpoint, policy_parameters
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.philox import EVALUATION, philox, unit_float64
from rollout.envs.registry import find_env
from rollout.experiment import Experiment
from rollout.learners.network import NetworkSpec
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network, make_schema

# What draws of the stream EVALUATION are for, as the last word of their counter.
SEED_OF_AN_EVALUATION, ACTION_OF_A_POLICY = range(2)


class Policy:
    """The policy of an experiment with certain parameters; `act` chooses actions.

    The compiled code that actors run, so an observation gives the same logits, bit for bit.
    Owned by one process; its first `act` loads the code (0.5 s; more where nobody has compiled it).
    """

    def __init__(self, experiment: Experiment, parameters: np.ndarray) -> None:
        """parameters: float32 [P], the flat vector of the experiment's network; copied."""
        self.experiment = experiment
        self.env: type[CompiledEnv] = find_env(experiment.env.id)
        self.network: NetworkSpec = make_network(experiment.network, self.env)
        if parameters.shape != (self.network.num_parameters,) or parameters.dtype != np.float32:
            raise ValueError(
                f"parameters are {parameters.dtype} {list(parameters.shape)}, "
                f"expected float32 [{self.network.num_parameters}]"
            )
        self.parameters = parameters.copy()
        self.parameters.flags.writeable = False
        self._num_calls = 0

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "Policy":
        """The policy of the checkpoint's own experiment, whatever config.toml says by now.

        Raises OperatorError if that experiment, or its network, cannot be had here.
        """
        experiment = checkpoint.experiment
        network = make_network(experiment.network, find_env(experiment.env.id))
        return cls(experiment, policy_parameters(checkpoint, network))

    def __repr__(self) -> str:
        return f"Policy({self.env.__name__}, {self.network.num_parameters} parameters)"

    def act(self, observation: Any, deterministic: bool = True) -> Any:
        """The action for one observation, as an int, or int64 [N] for a batch [N, …] of them.

        deterministic: the likeliest action; else one drawn from the policy's distribution. Draws
        are reproducible: they depend on the experiment's seed, the number of calls so far and the
        row. Raises ValueError if the observation is not what the environment shows.
        """
        logits = self.logits(observation)
        rows = logits.reshape(-1, self.network.num_actions)
        actions = rows.argmax(axis=1) if deterministic else self._sample(rows)
        return int(actions[0]) if logits.ndim == 1 else actions

    def logits(self, observation: Any) -> np.ndarray:
        """Unnormalised log-probabilities of the actions: float32 [A], or [N, A] for a batch."""
        rows, is_batch = self._rows(observation)
        logits = np.zeros((len(rows), self.network.num_actions), np.float32)
        value = np.zeros(len(rows), np.float32)
        evaluate, workspace = self._compiled
        evaluate(self.parameters, workspace.packed, workspace.scratch, rows, logits, value)
        if not np.isfinite(logits).all():
            raise ValueError("an observation, or a parameter of the policy, is not finite")
        return logits if is_batch else logits[0]

    @functools.cached_property
    def _compiled(self) -> Any:
        from rollout.acting import Workspace, load_acting_kernels  # with Numba: slow to import

        fleet, algorithm = self.experiment.fleet, self.experiment.algorithm
        schema = make_schema(self.env, fleet.unroll_length, algorithm.needs_value)
        kernels = load_acting_kernels(self.env, self.network, schema)
        return kernels.evaluate, Workspace(self.network)

    def _rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """The observation as a contiguous batch, and whether it came as one."""
        shape, dtype = self.env.observation_space.shape, self.env.observation_space.dtype
        assert shape is not None and dtype is not None
        given = np.asarray(observation)
        is_batch = given.ndim == len(shape) + 1
        if given.shape[is_batch:] != shape or not np.can_cast(given.dtype, dtype, "same_kind"):
            wanted = ", ".join(map(str, shape))
            raise ValueError(
                f"observation is {given.dtype} {list(given.shape)}, {self.experiment.env.id} has "
                f"{dtype} [{wanted}], or [N, {wanted}] for a batch"
            )
        rows = given if is_batch else given[np.newaxis]
        return np.ascontiguousarray(rows, dtype), is_batch

    def _sample(self, logits: np.ndarray) -> np.ndarray:
        """An action for each row, by inversion; int64 [N]."""
        rows = np.arange(len(logits), dtype=np.uint64)
        place = (rows, self._num_calls & 0xFFFFFFFF, 0, ACTION_OF_A_POLICY)
        words = philox(self.experiment.seed, EVALUATION, *place)
        self._num_calls += 1
        weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        reached = np.cumsum(weights, axis=1)
        threshold = unit_float64(words[0], words[1]) * reached[:, -1]
        return (threshold[:, np.newaxis] >= reached[:, :-1]).sum(axis=1)


def load_policy(
    run: RunDirectory | str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None = None
) -> Policy:
    """The policy that a run has trained.

    checkpoint: a path, a name (`update-00000120`), a number, or `best` for the one with the highest
    mean return; left out, the newest that is not damaged. Raises OperatorError if there is no such
    run or checkpoint, or if the one that was named is damaged.
    """
    if not isinstance(run, RunDirectory):
        run = RunDirectory.open(Path(run))
    return Policy.from_checkpoint(open_checkpoint(run, checkpoint))


def evaluation_seed(seed: int, number: int) -> int:
    """A seed for evaluation `number` of an experiment: never the experiment's own.

    Environments and actions under it are drawn as in training, but no draw is training's.
    """
    words = philox(seed, EVALUATION, number, 0, 0, SEED_OF_AN_EVALUATION)
    return next(word for word in words if word != seed)
