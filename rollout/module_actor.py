"""Acting with a user's own module: torch says what to choose from, a pass for each step.

Compiled code chooses, and steps the environments that are compiled; so all else is as with a
compiled policy: the same draws, the same unrolls, the same states.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from rollout.acting import (
    EnvsWithPolicy,
    UnrollBuffer,
    action_dtype,
    action_size,
    check_network,
    head_kernel,
    one_env_bindings,
)
from rollout.envs import kernels
from rollout.envs.batch import Envs
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.foreign_envs import ForeignEnvs
from rollout.envs.registry import AnyEnv
from rollout.learners.module_network import ModuleNetwork
from rollout.learners.network import Head, ModuleSpec, Network
from rollout.learners.unroll import UnrollSchema
from rollout.policy_memory import PolicyMemory
from rollout.stepping_actor import CLOCK_RECORD, SteppingActor

HERE = Path(__file__).parent


class ModulePolicy:
    """A module, and the arrays that choosing by it needs, for N environments."""

    def __init__(self, network: ModuleNetwork, num_envs: int) -> None:
        spec = network.spec
        assert isinstance(spec, ModuleSpec)
        self._network = network
        self._head_offset = spec.head_offset
        self.log_std = np.zeros(spec.num_parameters - spec.head_offset, np.float32)
        self.noise = np.zeros(num_envs * action_size(spec.head), np.float32)

    def load(self, weights: np.ndarray) -> None:
        """Take the flat vector float32 [P] for all that follows."""
        self._network.load(weights)
        self.log_std[:] = weights[self._head_offset :]

    def evaluate(
        self, clocks: np.ndarray, envs: np.ndarray, observation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the head reads, float32 [N, A], and values [N], of observations [N, …].

        envs: whose they are, integers [N], places in clocks. Whose number is the row's place: so it
        has the same bits wherever the environment is acted, and beside which others.
        """
        return self._network.evaluate(observation, clocks["env"][envs].astype(np.int64))


class ModuleActor(EnvsWithPolicy[Envs]):
    """N environments with a module: each `act` is one unroll, as UnrollActor's."""

    def __init__(
        self,
        envs: Envs,
        network: ModuleNetwork,
        schema: UnrollSchema,
        position: np.ndarray | None = None,
    ) -> None:
        """position: see UnrollActor."""
        super().__init__(envs, network.spec, schema)
        self.position = np.zeros(1, np.int64) if position is None else position
        self._policy = ModulePolicy(network, envs.num_envs)
        head = network.spec.head
        self._env_action = np.zeros(action_size(head), action_dtype(head))
        self._kernels = load_module_kernels(envs.env, network.spec, schema, envs.jit)

    def act(self, weights: np.ndarray, greedy: bool = False) -> memoryview:
        """As UnrollActor's."""
        self._begin_unroll(weights)
        policy, envs, schema = self._policy, self.envs, self.buffer.schema
        policy.load(weights)
        unroll, room = self.buffer.fixed, self.buffer.room
        arrays, everyone = envs.kernel_arguments(), np.arange(envs.num_envs)
        choosing = policy.log_std, policy.noise, self._env_action, greedy, self.position
        written = self.buffer.kernel_arguments()
        finals = episodes = 0
        self._kernels.observe_all(
            *arrays, schema.unroll_length, self.position, unroll.observation[0]
        )
        for t in range(schema.unroll_length):
            outputs, value = policy.evaluate(envs.clocks, everyone, unroll.observation[t])
            if schema.has_value:
                unroll.value[t] = value
            counts = t, finals, episodes
            finals, episodes = self._kernels.step_all(
                *arrays, *counts, outputs, *choosing, *written
            )
        if schema.has_value:
            last = room.final_env[:finals], room.final_observation[:finals]
            _, room.final_value[:finals] = policy.evaluate(envs.clocks, *last)
            _, unroll.value[-1] = policy.evaluate(envs.clocks, everyone, unroll.observation[-1])
        return self._end_unroll(finals, episodes)


class ModuleSteppingActor(SteppingActor):
    """N environments that Python steps, with a module."""

    def __init__(
        self,
        envs: ForeignEnvs,
        network: ModuleNetwork,
        schema: UnrollSchema,
        position: np.ndarray | None = None,
    ) -> None:
        self._policy = ModulePolicy(network, envs.num_envs)
        super().__init__(envs, network.spec, schema, position)

    def _load_policy(self, network: Network) -> None:
        assert isinstance(network, ModuleSpec)
        self._everyone = np.arange(self.envs.num_envs)
        self._kernels = load_module_kernels(self.envs.env, network, self.buffer.schema)

    def _take_weights(self, weights: np.ndarray) -> None:
        self._policy.load(weights)

    def _choose(self, clocks: np.ndarray, greedy: bool, *chosen: np.ndarray) -> None:
        observation, action, action_mask, behavior_log_prob, value, env_action = chosen
        policy = self._policy
        outputs, value[:] = policy.evaluate(self.envs.clocks, self._everyone, observation)
        self._kernels.choose_all(
            clocks, outputs, policy.log_std, policy.noise, greedy,
            action, action_mask, behavior_log_prob, env_action,
        )  # fmt: skip

    def _evaluate(
        self,
        weights: np.ndarray,
        envs: np.ndarray,
        observation: np.ndarray,
        memory: PolicyMemory,
        value: np.ndarray,
    ) -> None:
        _, value[:] = self._policy.evaluate(self.envs.clocks, envs, observation)


def load_module_kernels(
    env: AnyEnv, network: Network, schema: UnrollSchema, jit: bool = True
) -> Any:
    """The functions of module_choosing_kernel.py or module_stepping_kernel.py; once per process.

    Raises EnvError where the network does not fit the environment.
    """
    check_network(env, network, schema)
    if isinstance(env, ForeignEnv):
        return _load_choosing(env, network.head, schema)
    return _load_stepping(env, network.head, schema, jit)


@functools.cache
def _load_choosing(env: ForeignEnv, head: Head, schema: UnrollSchema) -> Any:
    unroll, (template, bindings) = UnrollBuffer(schema, 2).fixed, head_kernel(env, head)
    examples = {
        "choose_all": (
            np.zeros(2, CLOCK_RECORD).view(np.uint8),
            *_choosing(head),
            True,
            unroll.action[0],
            unroll.action_mask[0],
            unroll.behavior_log_prob[0],
            np.zeros((2, action_size(head)), action_dtype(head)),
        ),
    }
    return kernels.load_kernels(
        HERE / "module_choosing_kernel.py",
        bindings | {"CLOCK_RECORD": CLOCK_RECORD, "HAS_MASK": False},
        examples,
        preamble=f"{template.read_text()}\n\n",
    )


@functools.cache
def _load_stepping(env: type[CompiledEnv], head: Head, schema: UnrollSchema, jit: bool) -> Any:
    buffer, (template, bindings) = UnrollBuffer(schema, 2), head_kernel(env, head)
    arrays = Envs(env, 2, 0, jit=jit, begin=False).kernel_arguments()
    position = np.zeros(1, np.int64)
    examples = {
        "observe_all": (*arrays, 1, position, buffer.fixed.observation[0]),
        "step_all": (
            *arrays,
            *(0, 0, 0),
            *_choosing(head),
            np.zeros(action_size(head), action_dtype(head)),
            True,
            position,
            *buffer.kernel_arguments(),
        ),
    }
    return kernels.load_kernels(
        HERE / "module_stepping_kernel.py",
        one_env_bindings(env, jit) | bindings,
        examples,
        jit,
        preamble=f"{template.read_text()}\n\n",
    )


def _choosing(head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs, log_std and noise, for two environments."""
    shapes = (2, head.num_outputs), 1, 2 * action_size(head)
    outputs, log_std, noise = (np.zeros(shape, np.float32) for shape in shapes)
    return outputs, log_std, noise
