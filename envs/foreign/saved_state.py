"""The state of a gymnasium.Env as bytes, for those that can tell it: exact recovery and resume.

That are environments with a pair of methods of their own, `snapshot() -> bytes` and
`restore(bytes)`; Atari's (ale-py) and MuJoCo's of Gymnasium. Around them may be wrappers whose
attributes are plain data, as most are. `trying_out.py` sees whether what is restored goes on alike.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import msgspec
import numpy as np

from rollout.envs.foreign.plain_data import NotPlain, read_attributes, write_attributes

# Of which nothing changes, or that are seen to otherwise.
PASSED_OVER = frozenset(
    {
        *("env", "spec", "metadata", "render_mode", "observation_space", "action_space"),
        *("_cached_spec", "_metadata", "_observation_space", "_action_space"),
        *("_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"),
    }
)
ATARI_OBJECTS = frozenset({"ale", "_action_set"})
MUJOCO_OBJECTS = frozenset({"model", "data", "mujoco_renderer"})
# MuJoCo computes these from the state, a step behind it; rewards are differences of some.
MUJOCO_DERIVED = ("xpos", "xquat", "xipos", "geom_xpos", "site_xpos", "subtree_com")


class Layer(NamedTuple):
    """One wrapper, or the environment within: how its part is saved, and restored."""

    save: Callable[[], bytes]
    restore: Callable[[bytes], object]


class StateSaver:
    """Saves and restores an environment with all its wrappers.

    Raises NotPlain that says why that cannot be; `save` may, too.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self._layers = []
        while isinstance(env, gymnasium.Wrapper):
            self._layers.append(_pair_of(env) or _attributes_of(env))
            env = env.env
        layer = _pair_of(env) or _atari_layer(env) or _mujoco_layer(env)
        if layer is None:
            raise NotPlain(
                f"{type(env).__name__} has no pair of methods snapshot() -> bytes and "
                "restore(bytes)"
            )
        self._layers.append(layer)

    def save(self) -> bytes:
        return msgspec.msgpack.encode([layer.save() for layer in self._layers])

    def restore(self, saved: bytes) -> None:
        parts = msgspec.msgpack.decode(saved, type=list[bytes])
        for layer, part in zip(self._layers, parts, strict=True):
            layer.restore(part)


def _pair_of(env: gymnasium.Env) -> Layer | None:
    """The author's own pair of methods."""
    snapshot, restore = (getattr(type(env), name, None) for name in ("snapshot", "restore"))
    if not (callable(snapshot) and callable(restore)):
        return None

    def save() -> bytes:
        saved = snapshot(env)
        if not isinstance(saved, bytes):
            raise NotPlain(
                f"{type(env).__name__}.snapshot returns {type(saved).__name__}, wanted bytes"
            )
        return saved

    return Layer(save, lambda saved: restore(env, saved))


def _attributes_of(env: gymnasium.Env, others: frozenset[str] = frozenset()) -> Layer:
    """others: attributes that are seen to otherwise."""
    passed_over = PASSED_OVER | others
    return Layer(
        lambda: read_attributes(env, passed_over), lambda saved: write_attributes(env, saved)
    )


def _joined(*layers: Layer) -> Layer:
    def restore(saved: bytes) -> None:
        for layer, part in zip(
            layers, msgspec.msgpack.decode(saved, type=list[bytes]), strict=True
        ):
            layer.restore(part)

    return Layer(lambda: msgspec.msgpack.encode([layer.save() for layer in layers]), restore)


def _atari_layer(env: Any) -> Layer | None:
    """The emulator with its random numbers, and what AtariEnv knows besides."""
    module = sys.modules.get("ale_py")
    if module is None or not isinstance(env, module.env.AtariEnv):
        return None
    repeats = env.ale.getFloat("repeat_action_probability")
    if repeats > 0:
        raise NotPlain(
            "ale-py does not save which action was the last one, that may be repeated; "
            f"repeat_action_probability is {repeats:g}, with 0 states are exact"
        )
    emulator = Layer(
        lambda: env.ale.cloneState(include_rng=True).serialize(),
        lambda saved: env.ale.restoreState(module.ALEState(saved)),
    )
    return _joined(emulator, _attributes_of(env, ATARI_OBJECTS))


def _mujoco_layer(env: Any) -> Layer | None:
    """All that MuJoCo's next step depends on, its solver's first guess too."""
    module = sys.modules.get("gymnasium.envs.mujoco.mujoco_env")
    if module is None or not isinstance(env, module.MujocoEnv):
        return None
    mujoco, model, data = module.mujoco, env.model, env.data
    which = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(model, which))
    derived = [getattr(data, name) for name in MUJOCO_DERIVED]

    def save() -> bytes:
        mujoco.mj_getState(model, data, state, which)
        return state.tobytes() + b"".join(array.tobytes() for array in derived)

    def restore(saved: bytes) -> None:
        numbers = np.frombuffer(saved)
        mujoco.mj_setState(model, data, numbers[: state.size].copy(), which)
        start = state.size
        for array in derived:
            array[...] = numbers[start : start + array.size].reshape(array.shape)
            start += array.size

    return _joined(Layer(save, restore), _attributes_of(env, MUJOCO_OBJECTS))
