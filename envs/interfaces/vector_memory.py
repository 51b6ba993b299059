"""What a vector environment works in between its calls, and the kernels compiled for that."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from rollout.envs.batch import env_bindings, load_env_kernels
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.interfaces.observation_batch import ObservationBatch
from rollout.envs.layouts import action_layout

TEMPLATE = Path(__file__).parent / "vector_kernel.py"
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
BEGAN, RETURN, LENGTH, TIME = range(4)  # rows of Memory.episodes


class Memory:
    """Arrays of N environments that outlive a step.

    given_dtype: of actions as `step_chosen` takes them. action_kinds: of dtypes that can become
    these. ended: which wait for their reset.
    episodes: rows BEGAN, RETURN, LENGTH, TIME of each environment's episode.
    """

    def __init__(self, env: type[CompiledEnv], num_envs: int) -> None:
        taken = action_layout(env.action_space)
        self.given_dtype = np.int64 if taken.choices else np.float32
        self.action_kinds = "iu" if taken.choices else "iuf"
        self.action = np.zeros((num_envs, *taken.shape), taken.dtype)
        self.ended = np.zeros(num_envs, np.bool_)
        self.episodes = np.zeros((4, num_envs))
        self.observations = ObservationBatch(env.observation_space, num_envs)
        self.row = np.zeros(self.observations.row_bytes, np.uint8)
        self.final_block, self.final_seen = self.observations.allocate()
        mask_size = taken.mask_size if hasattr(env, "action_mask") else 0
        self.final_mask = np.zeros((num_envs, mask_size), np.bool_)


@functools.cache
def load_vector_kernels(env: type[CompiledEnv], jit: bool) -> Any:
    """The functions of vector_kernel.py for one environment; loaded once per process."""
    from rollout.envs import kernels  # loads Numba

    inner = load_env_kernels(env, jit)
    memory = Memory(env, 2)
    taken = action_layout(env.action_space)
    bindings = env_bindings(env, jit) | {
        "begin_episode": inner.begin_episode,
        "next_episode": inner.next_episode,
        "step_one": inner.step_one,
        "observe_one": inner.observe_one,
        "mask_one": inner.mask_one,
        "ACTION_SIZE": memory.action[0].size,
        "CHOICES": taken.choices,
        "FIELDS": memory.observations.fields,
        "NEXT_STEP": MODES.index(AutoresetMode.NEXT_STEP),
        "SAME_STEP": MODES.index(AutoresetMode.SAME_STEP),
        "DISABLED": MODES.index(AutoresetMode.DISABLED),
        "BEGAN": BEGAN,
        "RETURN": RETURN,
        "LENGTH": LENGTH,
        "TIME": TIME,
    }
    head = (np.zeros(1, np.uint8), np.zeros(1, np.uint8))
    flags, now = np.zeros(2, np.bool_), 0.0
    shown, mask = memory.final_block, memory.final_mask
    kept = (memory.ended, memory.episodes, memory.row, shown, mask)
    examples = {
        "begin_chosen": (*head, flags, np.zeros(2, np.int64), now, *kept),
        "step_chosen": (
            *head,
            memory.action.astype(memory.given_dtype),
            memory.action,
            0,
            0,
            now,
            *kept,
            np.zeros(2),
            flags,
            flags,
            shown,
            mask,
        ),
    }
    return kernels.load_kernels(TEMPLATE, bindings, examples, jit)
