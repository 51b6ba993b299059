"""How good a policy is: whole episodes, under draws that training never sees.

Each episode has an environment of its own and is its first one. Counting all episodes that end
within some number of steps would favour short ones: an environment ends more of those.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.envs.errors import EnvError, raised_at
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.layouts import action_layout
from rollout.envs.registry import can_render
from rollout.errors import OperatorError
from rollout.policy import Policy, evaluation_seed

if TYPE_CHECKING:
    from rollout.acting import UnrollActor
    from rollout.envs.batch import Envs

CHUNK = 256  # environments played at once
FOREIGN_CHUNK = 16  # of those that Python steps, which may be large
UNROLL_LENGTH = 128
MAX_STEPS = 100_000  # of one episode, where the environment has no limit of its own
RESAMPLES = 2000
VIDEO_FORMATS = (".gif",)
FRAME_MS = 30
MAX_FRAMES = 2000


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes that were played: their returns, float64 [E], and lengths in steps, int64 [E]."""

    returns: np.ndarray
    lengths: np.ndarray

    def __repr__(self) -> str:
        return f"Episodes({len(self.returns)}, mean return {self.returns.mean():g})"

    def as_dict(self) -> dict[str, Any]:
        """What is worth knowing of them, for people and programs."""
        return {
            "mean": float(self.returns.mean()),
            "interval_95": list(bootstrap_interval(self.returns)),
            "median": float(np.median(self.returns)),
            "min": float(self.returns.min()),
            "max": float(self.returns.max()),
            "length_mean": float(self.lengths.mean()),
            "length_min": int(self.lengths.min()),
            "length_max": int(self.lengths.max()),
        }


def play_episodes(
    policy: Policy, num_episodes: int, deterministic: bool, number: int = 0
) -> Episodes:
    """Play episodes, environment i's first one each; the same for whoever asks again.

    deterministic: take the likeliest action. number: of this evaluation; another number plays other
    episodes. Raises EnvError if an episode does not end.
    """
    seed = evaluation_seed(policy.experiment.seed, number)
    chunk, group = CHUNK, 1
    if isinstance(policy.env, ForeignEnv):
        group = policy.env.group
        chunk = -(-FOREIGN_CHUNK // group) * group
    played = -(-num_episodes // group) * group  # whole games
    parts = [
        _play_chunk(policy, first, min(chunk, played - first), deterministic, seed)
        for first in range(0, played, chunk)
    ]
    columns = (np.concatenate(column)[:num_episodes] for column in zip(*parts, strict=True))
    return Episodes(*columns)


def _play_chunk(
    policy: Policy, first_env: int, num_envs: int, deterministic: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    actor = _make_actor(policy, first_env, num_envs, UNROLL_LENGTH, seed)
    try:
        returns = np.zeros(num_envs, np.float64)
        lengths = np.zeros(num_envs, np.int64)
        for _ in range(0, policy.env.max_episode_steps or MAX_STEPS, UNROLL_LENGTH):
            actor.act(policy.parameters, greedy=deterministic)
            unroll = actor.buffer.unroll()
            in_time = np.argsort(unroll.episode_t, kind="stable")
            ended, place = np.unique(unroll.episode_env[in_time], return_index=True)
            is_first = lengths[ended] == 0
            envs, first = ended[is_first], in_time[place[is_first]]
            returns[envs], lengths[envs] = (
                unroll.episode_return[first],
                unroll.episode_length[first],
            )
            if lengths.all():
                return returns, lengths
    finally:
        actor.envs.close()
    raise EnvError(
        f"{policy.experiment.env.id}: {np.sum(lengths == 0)} of {num_envs} episodes did not end "
        f"within {MAX_STEPS:,} steps; give the environment max_episode_steps"
    )


def _make_actor(
    policy: Policy, first_env: int, num_envs: int, length: int, seed: int, pictures: bool = False
) -> Any:
    from rollout.make_actor import make_actor  # with Numba behind it: slow to import
    from rollout.shapes import make_schema

    experiment = policy.experiment
    return make_actor(
        policy.env,
        num_envs,
        seed,
        policy.network,
        make_schema(policy.env, length, experiment.algorithm.needs_value),
        params=experiment.env.params,
        first_env=first_env,
        pictures=pictures,
    )


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """An interval for the mean (Efron's percentile bootstrap): means of resampled values.

    The same for the same values.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // len(values))
    means = np.concatenate(
        [
            values[generator.integers(len(values), size=(min(at_once, left), len(values)))].mean(1)
            for left in range(RESAMPLES, 0, -at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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
    actor = _make_actor(policy, 0, 1, 1, seed, pictures=True)
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
        if not policy.env.has_hidden_state:
            frames.append(_frame(_without_reset(actor, before)))
        break
    return frames, num_steps


def _without_reset(actor: "UnrollActor", before: bytes) -> "Envs":
    """The environment after the step that has ended its episode, where `actor` began the next.

    before: its state before that step. In plain Python.
    """
    from rollout.envs.batch import Envs, load_env_kernels, record_dtype  # with Numba
    from rollout.envs.records import records

    env, layout = actor.envs.env, action_layout(actor.envs.env.action_space)
    ended = Envs(env, 1, 0, jit=False, begin=False)
    ended.record_bytes[:] = np.frombuffer(before, np.uint8)
    ended.params[:] = actor.envs.params
    action = actor.buffer.unroll().action[0, 0]
    if not layout.choices:
        action = np.clip(action, layout.low, layout.high).astype(np.float32)
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
