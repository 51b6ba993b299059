"""How good a policy is: whole episodes, under draws that training never sees.

Each episode has an environment of its own and is its first one. Counting all episodes that end
within some number of steps would favour short ones: an environment ends more of those.
"""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.envs.errors import EnvError
from rollout.errors import OperatorError
from rollout.policy import Policy, evaluation_seed

if TYPE_CHECKING:
    from rollout.envs.batch import Envs

CHUNK = 256  # environments played at once
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
    parts = [
        _play_chunk(policy, first, min(CHUNK, num_episodes - first), deterministic, seed)
        for first in range(0, num_episodes, CHUNK)
    ]
    return Episodes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _play_chunk(
    policy: Policy, first_env: int, num_envs: int, deterministic: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    actor = _make_actor(policy, first_env, num_envs, UNROLL_LENGTH, seed)
    returns = np.zeros(num_envs, np.float64)
    lengths = np.zeros(num_envs, np.int64)
    for _ in range(0, policy.env.max_episode_steps or MAX_STEPS, UNROLL_LENGTH):
        actor.act(policy.parameters, greedy=deterministic)
        unroll = actor.buffer.unroll()
        in_time = np.argsort(unroll.episode_t, kind="stable")
        ended, place = np.unique(unroll.episode_env[in_time], return_index=True)
        is_first = lengths[ended] == 0
        envs, first = ended[is_first], in_time[place[is_first]]
        returns[envs], lengths[envs] = unroll.episode_return[first], unroll.episode_length[first]
        if lengths.all():
            return returns, lengths
    raise EnvError(
        f"{policy.experiment.env.id}: {np.sum(lengths == 0)} of {num_envs} episodes did not end "
        f"within {MAX_STEPS:,} steps; give the environment max_episode_steps"
    )


def _make_actor(policy: Policy, first_env: int, num_envs: int, length: int, seed: int) -> Any:
    from rollout.acting import UnrollActor  # with Numba behind them: slow to import
    from rollout.envs.batch import Envs
    from rollout.shapes import make_schema

    experiment = policy.experiment
    params = experiment.env.params
    envs = Envs(policy.env, num_envs, seed, first_env=first_env, params=params)
    schema = make_schema(policy.env, length, experiment.algorithm.needs_value)
    return UnrollActor(envs, policy.network, schema)


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
    if not hasattr(policy.env, "render"):
        raise OperatorError(
            f"--video {file}: {policy.experiment.env.id} has no render(state, params), so there is "
            "nothing to show"
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
    """Write one deterministic episode as a GIF, a frame per step; returns the number of steps.

    A frame shows what a step began with; equal ones in a row become a longer one.
    """
    from PIL import Image

    frames = [
        Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
        for frame in _frames(policy, evaluation_seed(policy.experiment.seed, number))
    ]
    try:
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
    except OSError as error:
        raise OperatorError(f"--video {file}: cannot be written: {error.strerror}") from error
    return len(frames)


def _frames(policy: Policy, seed: int) -> Iterator[np.ndarray]:
    actor = _make_actor(policy, 0, 1, 1, seed)
    shape: tuple[int, ...] | None = None
    for _ in range(MAX_FRAMES):
        frame = _frame(actor.envs)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise EnvError(f"{policy.experiment.env.id}: render gave {shape}, then {frame.shape}")
        yield frame
        actor.act(policy.parameters, greedy=True)
        if actor.buffer.num_episodes:
            return


def _frame(envs: "Envs") -> np.ndarray:
    """What the author's `render` gives; raises EnvError if that is no picture."""
    name = envs.env.__qualname__
    try:
        frame = envs.render(0)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise EnvError(
            f"environment {name}: render fails at {last.filename}:{last.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error
    is_array = isinstance(frame, np.ndarray)
    if not (is_array and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        found = f"{frame.dtype} {list(frame.shape)}" if is_array else type(frame).__name__
        raise EnvError(
            f"environment {name}: render returns {found}, wanted uint8 [height, width, 3]"
        )
    return frame
