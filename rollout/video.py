"""Pictures of a policy that plays: one deterministic episode as a GIF."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.envs.errors import EnvError, raised_at
from rollout.envs.registry import can_render
from rollout.errors import OperatorError
from rollout.evaluation import make_player
from rollout.learners.network import GaussianHead, Head
from rollout.policy import Policy, evaluation_seed
from rollout.shapes import quantities_for_env

if TYPE_CHECKING:
    from rollout.acting import UnrollActor
    from rollout.envs.batch import Envs

VIDEO_FORMATS = (".gif",)
FRAME_MS = 30
MAX_FRAMES = 2000


def check_video(policy: Policy, file: Path) -> None:
    """Raises OperatorError if no video of the policy can be written there; before any work."""
    if file.suffix.lower() not in VIDEO_FORMATS:
        raise OperatorError(
            f"--video {file}: unknown format {file.suffix!r}; wanted a name that ends in "
            f"{' or '.join(VIDEO_FORMATS)}"
        )
    if not can_render(policy.env):
        raise OperatorError(
            f"--video {file}: {policy.experiment.env.id} has no render(state, params), or no "
            "render mode rgb_array, so there is nothing to show"
        )
    try:
        is_new = not file.exists()
        with open(file, "ab"):
            pass
        if is_new:
            file.unlink()
    except OSError as error:
        raise OperatorError(f"--video {file}: cannot be written: {error.strerror}") from error


def write_video(policy: Policy, file: Path, number: int = 0) -> int:
    """Write one deterministic episode as a GIF; returns the number of steps.

    A frame shows what a step began with, the last one what the last step led to (of environments
    with hidden state there is none such); equal ones in a row become a longer one.
    """
    from PIL import Image

    pictures, num_steps = _play(policy, evaluation_seed(policy.experiment.seed, number))
    frames = [
        Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE)
        for picture in pictures
    ]
    try:
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    except OSError as error:
        raise OperatorError(f"--video {file}: cannot be written: {error.strerror}") from error
    return num_steps


def _play(policy: Policy, seed: int) -> tuple[list[np.ndarray], int]:
    """Pictures of a deterministic episode, and how many steps it has."""
    actor = make_player(policy, 0, 1, 1, seed, pictures=True)
    try:
        frames, num_steps = _frames(policy, actor)
    finally:
        actor.envs.close()
    for frame in frames:
        if frame.shape != frames[0].shape:
            shapes = f"{frames[0].shape}, then {frame.shape}"
            raise EnvError(f"{policy.experiment.env.id}: render gave {shapes}")
    return frames, num_steps


def _frames(policy: Policy, actor: Any) -> tuple[list[np.ndarray], int]:
    frames, num_steps = [_frame(actor.envs)], 0
    while num_steps < MAX_FRAMES:
        num_steps += 1
        before = actor.envs.snapshot()
        actor.act(policy.parameters, greedy=True)
        if not actor.buffer.num_episodes:
            frames.append(_frame(actor.envs))
            continue
        if isinstance(policy.env, type) and not policy.env.has_hidden_state:  # compiled
            frames.append(_frame(_without_reset(actor, policy.network.head, before)))
        break
    return frames, num_steps


def _without_reset(actor: "UnrollActor", head: Head, before: bytes) -> "Envs":
    """The environment after the step that has ended its episode, where `actor` began the next.

    before: its state before that step. In plain Python.
    """
    from rollout.envs.batch import Envs, load_env_kernels, record_dtype  # with Numba
    from rollout.envs.records import records

    env = actor.envs.env
    ended = Envs(env, 1, 0, jit=False, begin=False)
    ended.record_bytes[:] = np.frombuffer(before, np.uint8)
    ended.params[:] = actor.envs.params
    action = actor.buffer.unroll().action[0, 0]
    if isinstance(head, GaussianHead):
        action = quantities_for_env(env, head, action)
    load_env_kernels(env, jit=False).step_one(
        records(ended.record_bytes, record_dtype(env)),
        records(ended.params_bytes, env.params_dtype()),
        0,
        action,
    )
    return ended


def _frame(envs: "Envs") -> np.ndarray:
    """What the author's `render` gives; raises EnvError if that is no picture."""
    name = envs.env.__qualname__
    try:
        frame = envs.render(0)
    except Exception as error:
        raise EnvError(
            f"environment {name}: render fails at {raised_at(error)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    is_array = isinstance(frame, np.ndarray)
    if not (is_array and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        found = f"{frame.dtype} {list(frame.shape)}" if is_array else type(frame).__name__
        raise EnvError(
            f"environment {name}: render returns {found}, wanted uint8 [height, width, 3]"
        )
    return frame
