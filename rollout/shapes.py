"""What an environment means for the network that acts in it and for the unrolls that come of it."""

from typing import TYPE_CHECKING

from rollout.envs.batch import state_bytes, state_fields
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.layouts import action_layout, observation_layout
from rollout.envs.registry import AnyEnv
from rollout.learners.network import (
    CategoricalHead,
    GaussianHead,
    Head,
    InputPart,
    NetworkSpec,
    make_mlp,
)
from rollout.learners.unroll import FLOAT32, UnrollSchema

if TYPE_CHECKING:  # actors use this file too, and need no pydantic
    from rollout.experiment import MlpSettings


def make_network(settings: "MlpSettings", env: AnyEnv) -> NetworkSpec:
    """The network that [network] asks for, in the shape of the environment."""
    return make_mlp(
        observation_layout(env.observation_space).shape,
        head_of(env),
        settings.hidden_sizes,
        settings.activation,
        settings.value_network,
        parts_of(env),
        (settings.core.kind, settings.core.size) if settings.core else None,
    )


def parts_of(env: AnyEnv) -> tuple[InputPart, ...]:
    """How a network reads the observations of an environment."""
    layout = observation_layout(env.observation_space)
    if layout.is_plain:
        return ()
    return tuple(
        InputPart(part.offset, part.dtype.str, part.size, part.categories) for part in layout.parts
    )


def head_of(env: AnyEnv) -> Head:
    """The distribution over the actions of an environment."""
    layout = action_layout(env.action_space)
    return CategoricalHead(layout.choices) if layout.choices else GaussianHead(*layout.shape)


def make_schema(
    env: AnyEnv, unroll_length: int, has_value: bool, core_size: int = 0
) -> UnrollSchema:
    """What the unrolls of an environment look like, and of a network that remembers so much."""
    shown, taken = observation_layout(env.observation_space), action_layout(env.action_space)
    return UnrollSchema(
        unroll_length=unroll_length,
        observation_shape=shown.shape,
        observation_dtype=shown.dtype.str,
        action_shape=taken.shape,
        action_dtype=taken.dtype.str,
        has_value=has_value,
        mask_size=taken.mask_size if hasattr(env, "action_mask") else 0,
        state_bytes=state_bytes(env) + FLOAT32.itemsize * core_size,
        state_fields=state_fields(env),
        core_size=core_size,
        has_no_ops=isinstance(env, ForeignEnv) and env.has_no_ops,
    )
