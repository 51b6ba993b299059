"""Acting where Python steps the environments: a compiled call for each step, T steps an unroll."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rollout.acting import (
    EnvsWithPolicy,
    UnrollBuffer,
    Workspace,
    action_dtype,
    action_size,
    check_network,
    load_with_policy,
    read_only,
)
from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.foreign_envs import EpisodeEnd, ForeignEnvs
from rollout.envs.layouts import observation_layout
from rollout.learners.network import GaussianHead, Network, NetworkSpec
from rollout.learners.unroll import UnrollSchema
from rollout.policy_memory import PolicyMemory

TEMPLATE = Path(__file__).parent / "choosing_kernel.py"
CLOCK_RECORD = np.dtype([("clock", philox.CLOCK)])  # of an environment that is nothing else


class SteppingActor(EnvsWithPolicy[ForeignEnvs]):
    """N environments with a policy: each `act` is one unroll, as UnrollActor's.

    The policy chooses for all of them at once, in the same bits as in the compiled loop; then
    Python steps one after the other.
    """

    def __init__(
        self,
        envs: ForeignEnvs,
        network: Network,
        schema: UnrollSchema,
        position: np.ndarray | None = None,
    ) -> None:
        """position: int64 [1], becomes i * T + t before step t of environment i."""
        super().__init__(envs, network, schema)
        if position is not None:
            envs.say_position(position, schema.unroll_length)
        self._began = envs.clocks  # at the unroll's start
        self._num_outputs = network.head.num_outputs
        self._load_policy(network)
        unroll, has_value = self.buffer.fixed, schema.has_value
        no_value = np.zeros(envs.num_envs, np.float32)
        head = network.head
        env_action = np.zeros((envs.num_envs, action_size(head)), action_dtype(head))
        # what was not squashed the environments clip themselves, in their own precision
        is_squashed = isinstance(head, GaussianHead) and head.bounds
        self._choosing = [  # what choosing_kernel.choose_all writes in each step, as views
            (
                unroll.observation[t],
                unroll.action[t],
                unroll.action_mask[t],
                unroll.behavior_log_prob[t],
                unroll.value[t] if has_value else no_value,
                env_action,
            )
            for t in range(schema.unroll_length)
        ]
        self._stepping = [  # and what ForeignEnvs.step reads and writes
            (
                env_action if is_squashed else unroll.action[t],
                unroll.observation[t + 1],
                unroll.reward[t],
                unroll.terminated[t],
                unroll.truncated[t],
                unroll.no_op[t] if schema.has_no_ops else None,
            )
            for t in range(schema.unroll_length)
        ]

    def act(self, weights: np.ndarray, greedy: bool = False) -> memoryview:
        """Act T steps with the flat vector `weights`; the payload is valid until the next call.

        greedy: take the likeliest action instead of a sampled one. Raises ValueError for weights of
        another shape than the network's, and EnvError for what an environment returns that cannot
        be.
        """
        self._begin_unroll(weights)
        self._take_weights(weights)
        unroll, envs = self.buffer.fixed, self.envs
        clocks = envs.clocks.view(np.uint8)
        self._began = envs.clocks.copy()
        finals = episodes = 0
        final_memories = []
        unroll.observation[0] = envs.observation()
        for t, (chosen, stepped) in enumerate(zip(self._choosing, self._stepping, strict=True)):
            self._choose(clocks, greedy, *chosen)
            if not np.isfinite(unroll.behavior_log_prob[t]).all():
                self._check_finite(t, finals)  # before the environments are given such actions
            for end in envs.step(*stepped, t):
                episodes = self._put_episode(end, t, episodes)
                finals = self._put_final(end, t, finals)
                if end.final_observation is not None:
                    final_memories.append(self.memory.pick([end.env]))
                self.memory.clear(end.env)
            if self.buffer.schema.has_no_ops:
                self.memory.clear(unroll.no_op[t])
        self._check_finite(len(self._choosing), finals)
        if self.buffer.schema.has_value:
            room = self.buffer.room
            everyone = np.arange(envs.num_envs)
            last = unroll.observation[-1], self.memory.pick(everyone), unroll.value[-1]
            self._evaluate(weights, everyone, *last)
            if final_memories:
                there = PolicyMemory(*map(np.concatenate, zip(*final_memories, strict=True)))
                last = room.final_observation[:finals], there, room.final_value[:finals]
                self._evaluate(weights, room.final_env[:finals], *last)
        return self._end_unroll(finals, episodes)

    def _load_policy(self, network: Network) -> None:
        """Get ready what the next three call."""
        assert isinstance(network, NetworkSpec)
        self._workspace = Workspace(network)
        self._kernels = load_choosing_kernels(self.envs.env, network, self.buffer.schema)

    def _take_weights(self, weights: np.ndarray) -> None:
        packed, *_ = self._workspace.kernel_arguments()
        self._kernels.pack_weights(weights, packed)

    def _choose(self, clocks: np.ndarray, greedy: bool, *chosen: np.ndarray) -> None:
        """chosen: see `_choosing`."""
        packed, scratch, noise, _ = self._workspace.kernel_arguments()
        self._kernels.choose_all(clocks, *self.memory, packed, scratch, noise, greedy, *chosen)

    def _put_episode(self, end: EpisodeEnd, t: int, episodes: int) -> int:
        room = self.buffer.room
        room.episode_t[episodes], room.episode_env[episodes] = t, end.env
        room.episode_return[episodes] = end.episode_return
        room.episode_length[episodes] = end.episode_length
        return episodes + 1

    def _put_final(self, end: EpisodeEnd, t: int, finals: int) -> int:
        if end.final_observation is None:
            return finals
        room = self.buffer.room
        room.final_t[finals], room.final_env[finals] = t, end.env
        room.final_observation[finals] = end.final_observation
        return finals + 1

    def _evaluate(
        self,
        weights: np.ndarray,
        envs: np.ndarray,
        observation: np.ndarray,
        memory: PolicyMemory,
        value: np.ndarray,
    ) -> None:
        """Write the values [N] of observations [N, …], and change the memory to that after them.

        envs: whose they are, integers [N]: places among the environments here.
        """
        packed, scratch, *_ = self._workspace.kernel_arguments()
        outputs = np.zeros((len(value), self._num_outputs), np.float32)
        self._kernels.evaluate(weights, packed, scratch, observation, *memory, outputs, value)

    def _check_finite(self, steps: int, finals: int) -> None:
        """Raises EnvError if an observation, or a reward, is not; the position is where, then.

        steps: how many are done.
        """
        unroll, room = self.buffer.fixed, self.buffer.room
        for name, found in self._quantities(unroll.observation[: steps + 1]):
            self._check(found, name, lambda t, i: (max(0, t - 1), i))
        self._check(unroll.reward[:steps], "the reward", lambda t, i: (t, i))
        for name, found in self._quantities(room.final_observation[:finals]):
            self._check(found, name, lambda k, *_: (room.final_t[k], room.final_env[k]))

    def _episode_at(self, t: int, i: int) -> tuple[int, int]:
        """The number of the episode at step t of environment i, and how many steps are done."""
        unroll, began = self.buffer.fixed, self._began[i]
        ends = np.flatnonzero(unroll.terminated[:t, i] | unroll.truncated[:t, i])
        done = t - 1 - ends[-1] if len(ends) else began["t"] + t
        return int(began["episode"]) + len(ends), int(done)

    def _quantities(self, observation: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The parts of observations [..., *layout.shape] that are floats, with their names."""
        layout = observation_layout(self.envs.env.observation_space)
        whole: Any = observation if layout.record is None else observation.view(layout.record)
        for part in layout.parts:
            if part.dtype.kind == "f":
                keys = filter(None, part.name.split("."))
                yield f"observation {part.name}".strip(), functools.reduce(_entry, keys, whole)

    def _check(self, found: np.ndarray, name: str, place: Callable[..., tuple[Any, Any]]) -> None:
        """place: (t, environment) of an index."""
        if not np.isfinite(found).all():
            wrong = tuple(np.argwhere(~np.isfinite(found))[0])
            t, i = map(int, place(*wrong[:2]))
            self.envs.position[0] = i * self.buffer.schema.unroll_length + t
            self.envs.say_episode(*self._episode_at(t, i))
            env = self.envs.env.__name__
            raise EnvError(f"{env}: {name} is {found[wrong]}, wanted a finite number")


def _entry(record: Any, key: str) -> Any:
    return record[key]


def load_choosing_kernels(env: ForeignEnv, network: NetworkSpec, schema: UnrollSchema) -> Any:
    """The functions of choosing_kernel.py; once per process.

    Raises EnvError where the network does not fit the environment.
    """
    return _load_choosing_kernels(env, network, schema)


@functools.cache
def _load_choosing_kernels(env: ForeignEnv, network: NetworkSpec, schema: UnrollSchema) -> Any:
    check_network(env, network, schema)
    bindings = {"CLOCK_RECORD": CLOCK_RECORD, "HAS_VALUE": schema.has_value, "HAS_MASK": False}
    packed, scratch, noise, env_action = Workspace(network).kernel_arguments()
    unroll = UnrollBuffer(schema, 2).fixed
    examples = {
        "pack_weights": (read_only(np.zeros(network.num_parameters, np.float32)), packed),
        "choose_all": (
            np.zeros(2, CLOCK_RECORD).view(np.uint8),
            *PolicyMemory.at_start(schema, 2),
            packed,
            scratch,
            noise,
            True,
            unroll.observation[0],
            unroll.action[0],
            unroll.action_mask[0],
            unroll.behavior_log_prob[0],
            np.zeros(2, np.float32),
            np.zeros((2, len(env_action)), env_action.dtype),
        ),
    }
    return load_with_policy(TEMPLATE, env, network, schema, bindings, examples)
