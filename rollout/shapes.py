"""What an environment means for the network that acts in it and for the unrolls that come of it."""

from typing import TYPE_CHECKING

from gymnasium.spaces import Discrete

from rollout.envs.batch import state_bytes
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.layouts import action_layout, observation_layout
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
    shown, taken = observation_layout(env.observation_space), action_layout(env.action_space)
    return UnrollSchema(
        unroll_length=unroll_length,
        observation_shape=shown.shape,
        observation_dtype=shown.dtype.str,
        action_shape=taken.shape,
        action_dtype=taken.dtype.str,
        has_value=has_value,
        state_bytes=state_bytes(env),
    )
