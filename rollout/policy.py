"""A trained policy to use anywhere: no fleet, and no torch but for a module of one's own."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.checkpoint import Checkpoint, open_checkpoint, policy_parameters
from rollout.envs.foreign.actions import action_reader
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.observations import Misfit, observation_writer
from rollout.envs.layouts import action_layout, observation_layout, observation_rows
from rollout.envs.philox import EVALUATION, philox, unit_float64
from rollout.envs.registry import AnyEnv
from rollout.experiment import Experiment
from rollout.learners.network import (
    LOG_STD,
    LOG_STD_RANGE,
    GaussianHead,
    ModuleSpec,
    Network,
    NetworkSpec,
)
from rollout.learners.unroll import UnrollSchema
from rollout.modules import make_module
from rollout.policy_memory import PolicyMemory
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network, make_schema, quantities_for_env

if TYPE_CHECKING:
    from rollout.learners.module_network import ModuleNetwork

# What draws of the stream EVALUATION are for, as the last word of their counter.
SEED_OF_AN_EVALUATION, ACTION_OF_A_POLICY = range(2)


class Policy:
    """The policy of an experiment with certain parameters; `act` chooses actions.

    The compiled code that actors run, so an observation gives the same logits, bit for bit. Owned
    by one process; its first `act` loads the code (0.5 s; more where nobody has compiled it). A
    module of a user's own is executed by torch, as in actors; rows of other places in a batch may
    differ in the last bits.
    """

    def __init__(
        self, experiment: Experiment, parameters: np.ndarray, network: Network | None = None
    ) -> None:
        """parameters: float32 [P], the flat vector of the experiment's network; copied.

        network: the specification of that, if somebody has made it already.
        """
        self.experiment = experiment
        self.env: AnyEnv = experiment.env.find()
        self.network = network or make_network(experiment.network, self.env, experiment.seed)
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
        network = make_network(experiment.network, experiment.env.find(), experiment.seed)
        return cls(experiment, policy_parameters(checkpoint, network), network)

    def __repr__(self) -> str:
        return f"Policy({self.env.__name__}, {self.network.num_parameters} parameters)"

    def act(
        self,
        observation: Any,
        deterministic: bool = True,
        *,
        action_mask: Any = None,
        memory: Any = None,
    ) -> Any:
        """The action for one observation, or an action for each of a batch [N, …] of them.

        An int, or int64 [N], for Discrete actions; int64 [N, n] for MultiDiscrete; float32 [N, n],
        within the bounds, for Box. An observation of a Dict is a dictionary of arrays.

        Of a gymnasium.Env: an observation as it shows them, an action as it takes them; a batch
        only where both are those of the kit's spaces (`policy.env.observation_space`).

        deterministic: the likeliest action, or the mean, squashed if actions are; else one drawn
        from the policy's distribution. Draws are reproducible: they depend on the experiment's
        seed, the number of calls so far and the row. action_mask: bool [A], or [N, A], what is
        allowed. Raises ValueError if the observation is not what the environment shows.

        Of a network that remembers (network.core, network.frame_stack) it is (action, memory): what
        is to be given with the next observation of the same episode, uint8 [M] or [N, M]. At an
        episode's first give none, or a row of zeros.
        """
        outputs, next_memory = self.outputs(observation, memory)
        action = self._choose(outputs, deterministic, action_mask)
        return (action, next_memory) if self.schema.memory_bytes else action

    def _choose(self, outputs: np.ndarray, deterministic: bool, action_mask: Any) -> Any:
        head = self.network.head
        rows = outputs.reshape(-1, head.num_outputs)
        if isinstance(head, GaussianHead):
            if action_mask is not None:
                raise ValueError("action_mask is for choices; these actions are quantities")
            action = self._unsquashed(head, rows, deterministic)
            actions = quantities_for_env(self.env, head, action)
        else:
            actions = self._choices(self._allowed(rows, action_mask), deterministic)
        env = self.env
        if isinstance(env, ForeignEnv) and env.gym_action_space != env.action_space:
            taken = action_reader(env.gym_action_space)(actions)
            return taken if outputs.ndim > 1 else taken[0]
        if outputs.ndim > 1:
            return actions
        return actions[0] if actions.ndim > 1 else int(actions[0])

    def outputs(self, observation: Any, memory: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """What the head reads, and the next memory.

        Logits of choices; of quantities means, and more, see GaussianHead.

        float32 [A] and uint8 [M], or [N, A] and [N, M] for a batch.
        """
        rows, is_batch = self._rows(observation)
        remembered = self._memory(memory, len(rows))
        if isinstance(self.network, ModuleSpec):
            outputs, _ = self._module.evaluate(rows, np.arange(len(rows)))
        else:
            outputs = np.zeros((len(rows), self.network.head.num_outputs), np.float32)
            value = np.zeros(len(rows), np.float32)
            evaluate, workspace = self._compiled
            work = (workspace.packed, workspace.scratch)
            evaluate(self.parameters, *work, rows, *remembered, outputs, value)
        if not np.isfinite(outputs).all():
            raise ValueError("an observation, or a parameter of the policy, is not finite")
        after = remembered.to_bytes()
        return (outputs, after) if is_batch else (outputs[0], after[0])

    def _memory(self, memory: Any, rows: int) -> PolicyMemory:
        """A copy of what was given."""
        if memory is None:
            return PolicyMemory.at_start(self.schema, rows)
        given, size = np.asarray(memory), self.schema.memory_bytes
        if given.dtype != np.uint8 or given.size != rows * size:
            raise ValueError(
                f"memory is {given.dtype} {list(given.shape)}, wanted uint8 [{rows}, {size}]"
            )
        return PolicyMemory.from_bytes(self.schema, given.reshape(rows, size))

    def _rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Rows [N, *layout.shape], and whether the observation was a batch."""
        env = self.env
        if not isinstance(env, ForeignEnv) or env.gym_observation_space == env.observation_space:
            return observation_rows(env.observation_space, observation)
        layout = observation_layout(env.observation_space)
        rows = np.zeros((1, *layout.shape), layout.dtype)
        try:
            observation_writer(env.gym_observation_space)(rows[0], observation)
        except Misfit as error:
            raise ValueError(str(error)) from None
        return rows, False

    @functools.cached_property
    def schema(self) -> UnrollSchema:
        """What unrolls of the experiment look like, with what the policy remembers."""
        return self.schema_of(self.experiment.fleet.unroll_length)

    def schema_of(self, unroll_length: int) -> UnrollSchema:
        """The same of another length."""
        needs_value = self.experiment.algorithm.needs_value
        return make_schema(self.env, unroll_length, needs_value, self.network)

    @functools.cached_property
    def _compiled(self) -> Any:
        from rollout.acting import Workspace  # with Numba: slow to import
        from rollout.make_actor import load_kernels

        assert isinstance(self.network, NetworkSpec)
        kernels = load_kernels(self.env, self.network, self.schema)
        return kernels.evaluate, Workspace(self.network)

    @functools.cached_property
    def _module(self) -> "ModuleNetwork":
        assert isinstance(self.network, ModuleSpec)
        module = make_module(self.network, self.experiment.given_network)
        module.load(self.parameters)
        return module

    def _allowed(self, logits: np.ndarray, action_mask: Any) -> np.ndarray:
        """The logits, float64 [N, A], of what is allowed; the others are -inf."""
        logits = logits.astype(np.float64)
        if action_mask is None:
            return logits
        mask = np.asarray(action_mask, np.bool_)
        if mask.shape not in (logits.shape, logits.shape[1:]):
            raise ValueError(f"action_mask is {list(mask.shape)}, wanted {list(logits.shape)}")
        starts = np.cumsum((0, *self.network.head.choices[:-1]))
        if not np.logical_or.reduceat(mask, starts, axis=-1).all():
            raise ValueError("action_mask allows no action; one of each choice must stay allowed")
        return np.where(mask, logits, -np.inf)

    def _choices(self, logits: np.ndarray, deterministic: bool) -> np.ndarray:
        """int64 [N], or [N, n] where there are several choices."""
        choices = self.network.head.choices
        starts = np.cumsum((0, *choices[:-1]))
        uniforms = None if deterministic else self._uniforms(len(logits), len(choices))
        columns = []
        for j, (start, count) in enumerate(zip(starts, choices, strict=True)):
            part = logits[:, start : start + count]
            if uniforms is None:
                columns.append(part.argmax(axis=1))
                continue
            reached = np.cumsum(np.exp(part - part.max(axis=1, keepdims=True)), axis=1)
            threshold = uniforms[0][:, j] * reached[:, -1]
            columns.append((threshold[:, np.newaxis] >= reached[:, :-1]).sum(axis=1))
        is_single = action_layout(self.env.action_space).shape == ()
        return columns[0] if is_single else np.stack(columns, axis=1)

    def _unsquashed(
        self, head: GaussianHead, outputs: np.ndarray, deterministic: bool
    ) -> np.ndarray:
        """Actions as an unroll has them, float32 [N, n]."""
        mean = outputs[:, : head.size]
        if deterministic:
            return mean
        if head.std == "dependent":
            output = outputs[:, head.size :]
            lowest, highest = LOG_STD_RANGE
            limit = np.where(output > 0.0, highest, -lowest)
            log_std = limit * np.tanh(output / limit)
        else:
            log_std = self.network.parameter(LOG_STD).view(self.parameters)
        first, second = self._uniforms(*mean.shape)
        normal = np.sqrt(-2.0 * np.log(1.0 - first)) * np.cos(2.0 * np.pi * second)
        return mean + (np.exp(log_std) * normal).astype(np.float32)

    def _uniforms(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Two float64 [rows, columns] in [0, 1), new ones with every call."""
        row = np.arange(rows, dtype=np.uint64)[:, np.newaxis]
        column = np.arange(columns, dtype=np.uint64)
        place = (row, self._num_calls & 0xFFFFFFFF, column, ACTION_OF_A_POLICY)
        words = philox(self.experiment.seed, EVALUATION, *place)
        self._num_calls += 1
        return unit_float64(words[0], words[1]), unit_float64(words[2], words[3])


def load_policy(
    run: RunDirectory | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    env: Any = None,
    network: Any = None,
) -> Policy:
    """The policy that a run has trained.

    checkpoint: a path, a name (`update-00000120`), a number, or `best` for the one with the highest
    mean return; left out, the newest that is not damaged. env, network: what was given to `train`
    as `env` and as `network`. Raises OperatorError if there is no such run or checkpoint, or if the
    one that was named is damaged.
    """
    if not isinstance(run, RunDirectory):
        run = RunDirectory.open(Path(run), env, network)
    return Policy.from_checkpoint(open_checkpoint(run, checkpoint))


def evaluation_seed(seed: int, number: int) -> int:
    """A seed for evaluation `number` of an experiment: never the experiment's own.

    Environments and actions under it are drawn as in training, but no draw is training's.
    """
    words = philox(seed, EVALUATION, number, 0, 0, SEED_OF_AN_EVALUATION)
    return next(word for word in words if word != seed)
