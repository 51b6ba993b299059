"""Acting in one process: environments and a policy, an unroll per call."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from rollout.envs import kernels, philox
from rollout.envs.batch import Envs, env_bindings, load_env_kernels
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_envs import ForeignEnvs
from rollout.envs.layouts import action_layout, observation_layout
from rollout.envs.registry import AnyEnv
from rollout.learners.network import (
    LOG_STD_RANGE,
    CategoricalHead,
    GaussianHead,
    Head,
    Network,
    NetworkSpec,
)
from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.policy_kernel import block_size, num_packed, num_scratch, policy_source
from rollout.policy_memory import PolicyMemory
from rollout.shapes import is_head_of, parts_of

E = TypeVar("E", Envs, ForeignEnvs)

HERE = Path(__file__).parent
TEMPLATE = HERE / "acting_kernel.py"


class Workspace:
    """What the compiled policy works in besides its arguments; owned by one process."""

    def __init__(self, network: NetworkSpec) -> None:
        self.packed = np.zeros(num_packed(network), np.float32)
        self.scratch = np.zeros(num_scratch(network), np.float32)
        self.noise = np.zeros(block_size(network) * action_size(network.head), np.float32)
        self.env_action = np.zeros(action_size(network.head), action_dtype(network.head))

    def kernel_arguments(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order `act_unroll` takes them."""
        return self.packed, self.scratch, self.noise, self.env_action


class UnrollBuffer:
    """Memory for one unroll: a payload to send, and room for the longest tails.

    fixed, room: views of the two, without tails and with the longest. Pages are only touched as
    far as they are written, so the room costs address space, not memory.
    """

    def __init__(self, schema: UnrollSchema, num_envs: int) -> None:
        self.schema = schema
        self.num_envs = num_envs
        longest = schema.unroll_length * num_envs
        self._memory = np.empty(schema.max_size_bytes(num_envs), np.uint8)
        self._payload = np.empty(schema.max_size_bytes(num_envs), np.uint8)
        fixed = schema.size_bytes(num_envs, 0, 0)
        self.room = Unroll.view(schema, self._memory, num_envs, longest, longest)
        self.fixed = Unroll.view(schema, self._payload[:fixed], num_envs, 0, 0)
        self.num_finals = 0
        self.num_episodes = 0

    def kernel_arguments(self) -> tuple[np.ndarray, ...]:
        """The arrays that `act_unroll` writes, in its order."""
        room, fixed = self.room, self.fixed
        return (
            fixed.observation,
            fixed.action,
            fixed.action_mask,
            fixed.reward,
            fixed.terminated,
            fixed.truncated,
            fixed.behavior_log_prob,
            fixed.value,
            room.final_t,
            room.final_env,
            room.final_observation,
            room.final_value,
            room.episode_t,
            room.episode_env,
            room.episode_return,
            room.episode_length,
        )

    def seal(self, num_finals: int, num_episodes: int) -> memoryview:
        """Put the tails behind the fixed part; returns the payload, valid until the next unroll."""
        self.num_finals, self.num_episodes = num_finals, num_episodes
        size = self.room.write_tails(self._payload, self.schema, num_finals, num_episodes)
        return self._payload.data[:size]

    def unroll(self) -> Unroll:
        """The sealed unroll, as views of the payload."""
        finals, episodes = self.num_finals, self.num_episodes
        size = self.schema.size_bytes(self.num_envs, finals, episodes)
        return Unroll.view(self.schema, self._payload[:size], self.num_envs, finals, episodes)


class EnvsWithPolicy(Generic[E]):
    """N environments, and the memory of the policy that acts in them."""

    def __init__(self, envs: E, network: Network, schema: UnrollSchema) -> None:
        self.envs = envs
        self.buffer = UnrollBuffer(schema, envs.num_envs)
        self.memory = PolicyMemory.at_start(schema, envs.num_envs)
        self._num_parameters = network.num_parameters

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.envs!r})"

    def restore(
        self, states: bytes | memoryview, position: np.ndarray | None = None, stride: int = 1
    ) -> None:
        """Go on from states as they end an unroll; see rollout.envs.batch: restore."""
        schema, envs = self.buffer.schema, self.envs
        if len(states) != envs.num_envs * schema.state_bytes:
            raise EnvError(
                f"states of {len(states)} bytes; {envs.num_envs} environments "
                f"{envs.env.__qualname__} with their policy have {schema.state_bytes} each"
            )
        rows = np.frombuffer(states, np.uint8).reshape(envs.num_envs, schema.state_bytes)
        envs.restore(rows[:, : schema.env_state_bytes].tobytes(), position, stride)
        self.memory = PolicyMemory.from_bytes(schema, rows[:, schema.env_state_bytes :])
        self.memory.clear(envs.clocks["t"] == 0)  # or the episode was given up

    def _begin_unroll(self, weights: np.ndarray) -> None:
        check_weights(weights, self._num_parameters)
        unroll = self.buffer.fixed
        unroll.core_state[:] = self.memory.core_state
        unroll.frames[:] = self.memory.frames.reshape(unroll.frames.shape)

    def _end_unroll(self, num_finals: int, num_episodes: int) -> memoryview:
        """The payload, with the states that it led to."""
        states, env_state_bytes = self.buffer.fixed.env_state, self.buffer.schema.env_state_bytes
        snapshot = np.frombuffer(self.envs.snapshot(), np.uint8)
        states[:, :env_state_bytes] = snapshot.reshape(len(states), env_state_bytes)
        states[:, env_state_bytes:] = self.memory.to_bytes()
        return self.buffer.seal(num_finals, num_episodes)


class UnrollActor(EnvsWithPolicy[Envs]):
    """N environments with a policy: each `act` is one unroll, one compiled call."""

    def __init__(
        self,
        envs: Envs,
        network: Network,
        schema: UnrollSchema,
        position: np.ndarray | None = None,
    ) -> None:
        """position: int64 [1], where the kernel says which environment it is at."""
        super().__init__(envs, network, schema)
        self.position = np.zeros(1, np.int64) if position is None else position
        assert isinstance(network, NetworkSpec)
        self._workspace = Workspace(network)
        self._act_unroll = load_acting_kernels(envs.env, network, schema, envs.jit).act_unroll

    def act(self, weights: np.ndarray, greedy: bool = False) -> memoryview:
        """Act T steps with the flat vector `weights`; the payload is valid until the next call.

        greedy: take the likeliest action instead of a sampled one. Raises ValueError for weights of
        another shape than the network's, beyond which the kernel would read.
        """
        self._begin_unroll(weights)
        finals, episodes = self._act_unroll(
            *self.envs.kernel_arguments(),
            *self.memory,
            weights,
            *self._workspace.kernel_arguments(),
            greedy,
            self.position,
            *self.buffer.kernel_arguments(),
        )
        return self._end_unroll(int(finals), int(episodes))


def check_weights(weights: np.ndarray, num_parameters: int) -> None:
    """Raises ValueError for what is no flat vector of a network's: kernels would read beyond it."""
    wanted = (num_parameters,)
    if weights.shape != wanted or weights.dtype != np.float32 or not weights.flags.c_contiguous:
        raise ValueError(
            f"weights are {weights.dtype} {list(weights.shape)}, "
            f"wanted float32 {list(wanted)}, contiguous"
        )


def load_acting_kernels(
    env: type[CompiledEnv], network: NetworkSpec, schema: UnrollSchema, jit: bool = True
) -> Any:
    """The functions of acting_kernel.py for one environment and network; once per process.

    Raises EnvError where the network does not fit the environment.
    """
    return _load_acting_kernels(env, network, schema, jit)


@functools.cache
def _load_acting_kernels(
    env: type[CompiledEnv], network: NetworkSpec, schema: UnrollSchema, jit: bool
) -> Any:
    check_network(env, network, schema)
    bindings = one_env_bindings(env, jit)
    workspace, buffer = Workspace(network), UnrollBuffer(schema, 2)
    weights = read_only(np.zeros(network.num_parameters, np.float32))
    examples = {
        "act_unroll": (
            *Envs(env, 2, 0, jit=jit, begin=False).kernel_arguments(),
            *PolicyMemory.at_start(schema, 2),
            weights,
            *workspace.kernel_arguments(),
            True,
            np.zeros(1, np.int64),
            *buffer.kernel_arguments(),
        ),
    }
    return load_with_policy(
        TEMPLATE, env, network, schema, bindings | {"HAS_VALUE": schema.has_value}, examples, jit
    )


def one_env_bindings(env: type[CompiledEnv], jit: bool) -> dict[str, Any]:
    """What a kernel needs that steps one environment after the other itself."""
    env_kernels = load_env_kernels(env, jit)
    names = ("step_one", "observe_one", "end_episode", "mask_one")
    return env_bindings(env, jit) | {name: getattr(env_kernels, name) for name in names}


def load_with_policy(
    template: Path,
    env: AnyEnv,
    network: NetworkSpec,
    schema: UnrollSchema,
    bindings: Mapping[str, Any],
    examples: Mapping[str, tuple],
    jit: bool = True,
) -> Any:
    """A template's functions behind those of the policy and its head, and of evaluate_kernel.py."""
    head, head_bindings = head_kernel(env, network.head)
    workspace, shown = Workspace(network), observation_layout(env.observation_space)
    evaluate = (
        read_only(np.zeros(network.num_parameters, np.float32)),
        workspace.packed,
        workspace.scratch,
        np.zeros((2, *shown.shape), shown.dtype),
        *PolicyMemory.at_start(schema, 2),
        np.zeros((2, network.head.num_outputs), np.float32),
        np.zeros(2, np.float32),
    )
    before = [policy_source(network), head.read_text(), (HERE / "evaluate_kernel.py").read_text()]
    return kernels.load_kernels(
        template,
        {"OBSERVATION_SIZE": shown.size} | dict(bindings) | head_bindings,
        {**examples, "evaluate": evaluate},
        jit,
        preamble="\n\n".join([*before, ""]),
    )


def check_network(env: AnyEnv, network: Network, schema: UnrollSchema) -> None:
    """Raises EnvError where a network does not fit an environment."""
    if network.observation_shape != schema.observation_shape:
        raise EnvError(
            f"the network reads observations {network.observation_shape}, "
            f"{env.__qualname__} gives {schema.observation_shape}"
        )
    if network.core_size != schema.core_size:
        raise EnvError(
            f"the network remembers {network.core_size} numbers, unrolls have {schema.core_size}"
        )
    if network.frame_stack != schema.frame_stack:
        raise EnvError(
            f"the network stacks {network.frame_stack} frames, unrolls are for {schema.frame_stack}"
        )
    if network.parts != parts_of(env):
        raise EnvError(
            f"the network reads {len(network.parts)} parts of an observation, they are not those "
            f"of {env.__qualname__}"
        )
    if not is_head_of(env, network.head):
        raise EnvError(
            f"the network chooses by {network.head}, the actions of {env.__qualname__} are "
            f"{env.action_space}"
        )


def action_size(head: Head) -> int:
    """Numbers of one action; as many random ones choose it."""
    return len(head.choices) if isinstance(head, CategoricalHead) else head.size


def action_dtype(head: Head) -> type[np.float32] | type[np.int32]:
    """Of those numbers."""
    return np.float32 if isinstance(head, GaussianHead) else np.int32


def head_kernel(env: AnyEnv, head: Head) -> tuple[Path, dict[str, Any]]:
    """The template that chooses actions, and what it needs to know."""
    layout = action_layout(env.action_space)
    both = {"ACTION_STREAM": philox.ACTION, "ACTION_SIZE": action_size(head)}
    if isinstance(head, CategoricalHead):
        return HERE / "categorical_kernel.py", both | {
            "CHOICES": head.choices,
            "IS_SINGLE": layout.shape == (),
        }
    return HERE / "gaussian_kernel.py", both | {
        "LOW": np.array(layout.low, np.float32),
        "HIGH": np.array(layout.high, np.float32),
        "IS_DEPENDENT": head.std == "dependent",
        "IS_SQUASHED": bool(head.bounds),
        "LOG_SCALE": head.log_scale,
        "LOG_STD_RANGE": LOG_STD_RANGE,
    }


def read_only(array: np.ndarray) -> np.ndarray:
    """The same memory, not writable: the form in which kernels take weights."""
    view = array.view()
    view.flags.writeable = False
    return view
