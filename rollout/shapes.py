"""What an environment means for the network that acts in it and for the unrolls that come of it."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np
from gymnasium.spaces import Box

from rollout.envs.batch import state_bytes, state_fields
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.layouts import ActionLayout, action_layout, observation_layout
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
    with_normalized_inputs,
)
from rollout.learners.unroll import UnrollSchema

if TYPE_CHECKING:  # actors use this file too, and need no pydantic
    from rollout.experiment_tables import (
        ConvSettings,
        GaussianSettings,
        MlpSettings,
        NetworkSettings,
    )


@overload
def make_network(
    settings: "MlpSettings | ConvSettings", env: AnyEnv, seed: int = 0
) -> NetworkSpec: ...


@overload
def make_network(settings: "NetworkSettings", env: AnyEnv, seed: int = 0) -> Network: ...


def make_network(settings: "NetworkSettings", env: AnyEnv, seed: int = 0) -> Network:
    """The network that [network] asks for, in the shape of the environment.

    seed: of the experiment, under which a module of a user's own is made. Raises ValueError where
    it cannot read the environment's observations or choose its actions, and NetworkError for such a
    module.
    """
    from rollout.experiment_tables import ModuleSettings

    if isinstance(settings, ModuleSettings):
        from rollout.module_trial import specify

        return specify(settings, env, seed)
    if settings.kind == "conv":
        return _make_conv(settings, env)
    network = make_mlp(
        observation_layout(env.observation_space).shape,
        head_of(env, settings.gaussian),
        settings.hidden_sizes,
        settings.activation,
        settings.value_network,
        parts_of(env),
        core_of(settings),
        settings.frame_stack,
    )
    return with_normalized_inputs(network) if settings.normalize_observations else network


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
            head_of(env, settings.gaussian),
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
            frame_stack=settings.frame_stack,
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


def head_of(env: AnyEnv, gaussian: "GaussianSettings | None" = None) -> Head:
    """The distribution over the actions of an environment.

    gaussian: [network.gaussian]; None: its defaults. Raises ValueError where it does not fit.
    """
    layout = action_layout(env.action_space)
    if layout.choices:
        if gaussian is not None:
            raise ValueError(
                "[network.gaussian] is for quantities, a Box of actions; the actions of "
                f"{env.__qualname__} are choices, {env.action_space}; leave it out"
            )
        return CategoricalHead(layout.choices)
    (size,) = layout.shape
    if gaussian is None:
        return GaussianHead(size)
    if gaussian.squash == "none":
        return GaussianHead(size, gaussian.std)
    for j, (low, high) in enumerate(_bounds_of(layout)):
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                'network.gaussian.squash="tanh" needs finite bounds of each quantity, one below '
                f"the other; action[{j}] of {env.__qualname__} is from {low} to {high}; change its "
                'action_space, or try network.gaussian.squash="none"'
            )
    return GaussianHead(size, gaussian.std, _bounds_of(layout))


def is_head_of(env: AnyEnv, head: Head) -> bool:
    """Whether it chooses what the environment takes: `head_of` it, with some settings."""
    layout = action_layout(env.action_space)
    if isinstance(head, CategoricalHead):
        return head.choices == layout.choices
    return (
        not layout.choices
        and (head.size,) == layout.shape
        and head.bounds in ((), _bounds_of(layout))
    )


def _bounds_of(layout: ActionLayout) -> tuple[tuple[float, float], ...]:
    return tuple(zip(layout.low, layout.high, strict=True))


def quantities_for_env(env: AnyEnv, head: GaussianHead, action: np.ndarray) -> np.ndarray:
    """What an environment gets for actions as an unroll has them: squashed, or clipped.

    action: float32 [..., n], and so is what is returned.
    """
    layout = action_layout(env.action_space)
    low, high = np.array(layout.low), np.array(layout.high)
    if head.bounds:
        action = low + (high - low) * 0.5 * (1.0 + np.tanh(action.astype(np.float64)))
    return np.clip(action, low, high).astype(np.float32)


def make_schema(
    env: AnyEnv,
    unroll_length: int,
    has_value: bool,
    remembering: Network | UnrollSchema | None = None,
) -> UnrollSchema:
    """What the unrolls of an environment look like.

    remembering: the network that acts, or a schema of its unrolls; None: one without a core that
    stacks no frames.
    """
    shown, taken = observation_layout(env.observation_space), action_layout(env.action_space)
    schema = UnrollSchema(
        unroll_length=unroll_length,
        observation_shape=shown.shape,
        observation_dtype=shown.dtype.str,
        action_shape=taken.shape,
        action_dtype=taken.dtype.str,
        has_value=has_value,
        mask_size=taken.mask_size if hasattr(env, "action_mask") else 0,
        state_fields=state_fields(env),
        core_size=remembering.core_size if remembering else 0,
        frame_stack=remembering.frame_stack if remembering else 1,
        has_no_ops=isinstance(env, ForeignEnv) and env.has_no_ops,
    )
    return replace(schema, state_bytes=state_bytes(env) + schema.memory_bytes)
