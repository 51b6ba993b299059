"""NaN and infinity in an unroll: seen before it counts, and named.

An actor looks at each unroll before it seals it, and dies of a wrong one as of an environment that
raises: so who comes to the same place three times ends the run, with a file that replays it. The
learner looks again at what arrives, as at all else in it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rollout.envs.errors import EnvError
from rollout.envs.layouts import observation_layout
from rollout.learners.network import InputPart
from rollout.learners.unroll import Unroll

if TYPE_CHECKING:  # the learner uses this file too, and compiles nothing
    from rollout.envs.registry import AnyEnv
    from rollout.make_actor import Actor


class NotFinite(EnvError):
    """A number of an unroll is not finite. episode, step: of the environment's, then."""

    episode = step = 0


LARGE = 1e18  # a parameter beyond it: its square is near the end of float32

Place = tuple[str, tuple[int, ...]]  # the name of a field, and an index into it


def first_non_finite(unroll: Unroll, parts: tuple[InputPart, ...]) -> Place | None:
    """A number of an unroll that is not finite: an observation's, else a reward, else what follows.

    parts: how a network reads an observation (NetworkSpec.parts).
    """
    for name, numbers in _quantities(unroll, unroll, parts):
        if not np.isfinite(numbers).all():
            return name, tuple(map(int, np.argwhere(~np.isfinite(numbers))[0]))
    return None


def check_finite(
    actor: "Actor",
    parts: tuple[InputPart, ...],
    weights: np.ndarray,
    position: np.ndarray,
) -> None:
    """Raises NotFinite if a number of the unroll that was just acted is not finite.

    parts: see first_non_finite. position: int64 [1], becomes i * T + t then (see UnrollActor).
    """
    buffer = actor.buffer
    if all(
        np.isfinite(numbers).all()
        for _, numbers in _quantities(
            buffer.fixed, buffer.room, parts, buffer.num_finals, buffer.num_episodes
        )
    ):
        return
    env, unroll, clocks = actor.envs.env, buffer.unroll(), actor.envs.clocks
    place = first_non_finite(unroll, parts)
    assert place is not None
    name, index = place
    t, i = _step_of(unroll, name, index)
    position[0] = i * len(unroll.reward) + t
    value = dict(_quantities(unroll, unroll, parts))[name][index]
    what = _shown(env, name, index, parts)
    text = f"{env.__name__}: {what} is {value}, wanted a finite number"
    if name in _OF_POLICY:
        text = f"the policy's {what} is {value} for a finite observation of {env.__name__}"
        if not np.abs(weights).max() < LARGE:
            text += f"; the largest of the weights is {np.abs(weights).max():.3g}"
        text += ", wanted a finite number; try a smaller algorithm.learning_rate"
    episode, step = _episode_at(unroll, clocks[i], t, i)
    where = f"environment {clocks['env'][i]}, seed {clocks['seed'][i]}"
    error = NotFinite(f"{text} ({where}, episode {episode}, step {step})")
    error.episode, error.step = episode, step
    raise error


_OF_POLICY = ("action", "behavior_log_prob", "value", "final_value", "core_state")


def _quantities(
    columns: Unroll,
    tails: Unroll,
    parts: tuple[InputPart, ...],
    num_finals: int | None = None,
    num_episodes: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """All numbers that are floats, by field; those of a Dict's observation by field and part.

    num_finals, num_episodes: rows of the tails that count; None: all.
    """
    observations = {
        "observation": columns.observation,
        "frames": columns.frames,
        "final_observation": tails.final_observation[:num_finals],
    }
    for name, rows in observations.items():
        if not parts and rows.dtype.kind == "f":
            yield name, rows
        for k, part in enumerate(parts):
            dtype = np.dtype(part.dtype)
            if dtype.kind == "f":
                in_bytes = rows[..., part.offset : part.offset + part.size * dtype.itemsize]
                yield f"{name}.{k}", in_bytes.view(dtype)
    yield "reward", columns.reward
    yield "episode_return", tails.episode_return[:num_episodes]
    if columns.action.dtype.kind == "f":
        yield "action", columns.action
    yield "behavior_log_prob", columns.behavior_log_prob
    yield "value", columns.value
    yield "final_value", tails.final_value[:num_finals]
    yield "core_state", columns.core_state


def _step_of(unroll: Unroll, name: str, index: tuple[int, ...]) -> tuple[int, int]:
    """(t, environment) of the step that a number came of."""
    field = name.partition(".")[0]
    if field.startswith("final"):
        return int(unroll.final_t[index[0]]), int(unroll.final_env[index[0]])
    if field == "episode_return":
        return int(unroll.episode_t[index[0]]), int(unroll.episode_env[index[0]])
    if field in ("core_state", "frames"):
        return 0, index[0]
    t, i = index[:2]
    return max(0, t - 1) if field == "observation" else min(t, len(unroll.reward) - 1), i


def _shown(env: "AnyEnv", name: str, index: tuple[int, ...], parts: tuple[InputPart, ...]) -> str:
    """The field, as its author calls it, with the index in one observation."""
    field, _, k = name.partition(".")
    has_t = not field.startswith(("final", "core"))  # of frames it is which one
    inside = index[2:] if has_t else index[1:]
    if k:
        layout = observation_layout(env.observation_space)
        found = {part.offset: part for part in layout.parts}[parts[int(k)].offset]
        inside = tuple(map(int, np.unravel_index(index[-1], found.shape))) if found.shape else ()
        field = f"{field} {found.name}".strip()
    return field + "".join(f"[{j}]" for j in inside)


def _episode_at(unroll: Unroll, clock: np.void, t: int, i: int) -> tuple[int, int]:
    """The number of the episode at step t of environment i, and how many of its steps were done.

    clock: of the environment, after the unroll.
    """
    ends = np.flatnonzero(unroll.terminated[:, i] | unroll.truncated[:, i])
    before, after = ends[ends < t], ends[ends >= t]
    episode = int(clock["episode"]) - len(after)
    if len(before):
        return episode, int(t - 1 - before[-1])
    if not len(after):
        return episode, int(clock["t"]) - (len(unroll.reward) - t)
    is_end = (unroll.episode_t == after[0]) & (unroll.episode_env == i)
    return episode, int(unroll.episode_length[is_end][0]) - 1 - int(after[0] - t)
