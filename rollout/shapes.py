"""What an environment means for the network that acts in it and for the unrolls that come of it."""

from typing import TYPE_CHECKING

import numpy as np
from gymnasium.spaces import Discrete

from rollout.envs.batch import action_dtype, state_bytes
from rollout.envs.compiled_env import CompiledEnv
from rollout.learners.network import NetworkSpec, make_mlp
from rollout.learners.unroll import UnrollSchema

if TYPE_CHECKING:  # actors use this file too, and need no pydantic
    from rollout.experiment import MlpSettings


def make_network(settings: "MlpSettings", env: type[CompiledEnv]) -> NetworkSpec:
    """The network that [network] asks for, in the shape of the environment."""
    assert env.observation_space.shape is not None and isinstance(env.action_space, Discrete)
    return make_mlp(
        env.observation_space.shape,
        int(env.action_space.n),
        settings.hidden_sizes,
        settings.activation,
        settings.value_network,
    )


def make_schema(env: type[CompiledEnv], unroll_length: int, has_value: bool) -> UnrollSchema:
    """What the unrolls of an environment look like."""
    space = env.observation_space
    assert space.shape is not None and space.dtype is not None
    return UnrollSchema(
        unroll_length=unroll_length,
        observation_shape=space.shape,
        observation_dtype=np.dtype(space.dtype).str,
        action_shape=(),
        action_dtype=action_dtype(env).str,
        has_value=has_value,
        state_bytes=state_bytes(env),
    )
