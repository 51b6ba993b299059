"""What an environment means for the network that acts in it and for the unrolls that come of it."""

from typing import TYPE_CHECKING, overload

import numpy as np
from gymnasium.spaces import Box

from rollout.envs.batch import state_bytes, state_fields
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.layouts import action_layout, observation_layout
from rollout.envs.registry import AnyEnv
from rollout.learners.network import (
    CategoricalHead,
    CoreSpec,
    Filters,
    GaussianHead,
    Head,
    InputPart,
    Network,
    NetworkSpec,
    make_conv,
    make_mlp,
)
from rollout.learners.unroll import FLOAT32, UnrollSchema

if TYPE_CHECKING:  # actors use this file too, and need no pydantic
    from rollout.experiment import ConvSettings, MlpSettings, NetworkSettings


@overload
def make_network(
    settings: "MlpSettings | ConvSettings", env: AnyEnv, seed: int = 0
) -> NetworkSpec: ...


@overload
def make_network(settings: "NetworkSettings", env: AnyEnv, seed: int = 0) -> Network: ...


def make_network(settings: "NetworkSettings", env: AnyEnv, seed: int = 0) -> Network:
    """The network that [network] asks for, in the shape of the environment.

    seed: of the experiment, under which a module of a user's own is made. Raises ValueError where
    it cannot read the environment's observations, and NetworkError for such a module.
    """
    from rollout.experiment import ModuleSettings

    if isinstance(settings, ModuleSettings):
        from rollout.module_trial import specify

        return specify(settings, env, seed)
    if settings.kind == "conv":
        return _make_conv(settings, env)
    return make_mlp(
        observation_layout(env.observation_space).shape,
        head_of(env),
        settings.hidden_sizes,
        settings.activation,
        settings.value_network,
        parts_of(env),
        core_of(settings),
    )


def core_of(settings: "MlpSettings | ConvSettings") -> CoreSpec | None:
    """The recurrent layer that [network] asks for, if any."""
    return (settings.core.kind, settings.core.size) if settings.core else None


def _make_conv(settings: "ConvSettings", env: AnyEnv) -> NetworkSpec:
    space = env.observation_space
    if not isinstance(space, Box) or len(space.shape) != 3:
        shown = f"{space.shape} numbers" if isinstance(space, Box) else f"a {type(space).__name__}"
        raise ValueError(
            f'network.kind="conv" reads images, a Box of shape (height, width, channels) or '
            f"(channels, height, width); {env.__qualname__} shows {shown}; try "
            'network.kind="mlp"'
        )
    axis = settings.channels_axis
    if axis == "auto":
        axis = "first" if space.shape[0] < min(space.shape[1:]) else "last"
    try:
        return make_conv(
            space.shape,
            head_of(env),
            [
                Filters(*numbers)
                for numbers in zip(
                    settings.channels, settings.kernel_sizes, settings.strides, strict=False
                )
            ],
            settings.hidden_sizes,
            settings.activation,
            settings.value_network,
            scale=1.0 / 255.0 if is_in_bytes(space) else 1.0,
            channels_first=axis == "first",
            core=core_of(settings),
        )
    except ValueError as error:
        raise ValueError(
            f"{error}; {env.__qualname__} shows images of shape {space.shape}, the channels "
            f"{axis}; try smaller network.kernel_sizes or network.strides, or another "
            "network.channels_axis"
        ) from None


def is_in_bytes(space: Box) -> bool:
    """Whether it holds pictures as usual, from 0 to 255; networks scale those to [0, 1]."""
    return bool(space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all())


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
