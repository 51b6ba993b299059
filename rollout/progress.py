"""What the learner tells of a run after each update."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rollout.envs.errors import EnvError
from rollout.errors import RolloutError, RunFailed
from rollout.run_directory import RunDirectory
from rollout.summary import Summary


@dataclass(frozen=True)
class Progress:
    """A run after `update` updates; yielded by the learner's loop, read by logs and live views.

    update: updates done. env_steps: steps trained on. wall_s: seconds since it began.
    env_steps_per_s: since the first update (0 before there are two).
    episode_return_mean, episode_length_mean: over the last 100 episodes, or None before the first.
    num_episodes: finished so far. episode_returns, episode_lengths: of those in this update's
        batch, in the order (t, environment).
    losses: what the algorithm reports, by TensorBoard name. policy_lag: mean of the weights
        versions between those of this batch's unrolls and the newest when it was trained on.
    num_actors_alive, num_actors: actor processes.
    time_split: shares of wall time since the last update, by name (each 0 … 1): `learner/update`,
        `learner/wait`, `learner/other`; `actor/act`, `actor/wait_weights`, `actor/wait_credit`
        (of the actors' time for this batch).
    fleet: the account of all unrolls, and what befell the fleet, by name.
    stop: progress towards each stop condition, 0 … 1, by key of the [stop] table.
    stop_reason: why the run ends with this update, or None.
    """

    update: int
    env_steps: int
    wall_s: float
    env_steps_per_s: float
    episode_return_mean: float | None
    episode_length_mean: float | None
    num_episodes: int
    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    losses: Mapping[str, float]
    policy_lag: float
    num_actors_alive: int
    num_actors: int
    time_split: Mapping[str, float] = field(default_factory=dict)
    fleet: Mapping[str, float] = field(default_factory=dict)
    stop: Mapping[str, float] = field(default_factory=dict)
    stop_reason: str | None = None


class View(Protocol):
    """Who is told how a run goes, besides its files."""

    def phase(self, text: str) -> None:
        """What the run is doing while there are no updates."""
        ...

    def notice(self, text: str) -> None:
        """Something happened that the run survives: a death, a full disk."""
        ...

    def write(self, progress: Progress) -> bool | str | None:
        """An update is done. True, or a reason, ends the run with it: saved, as by Ctrl-C."""
        ...

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is on the disk."""
        ...

    def finish(self, summary: Summary, run: RunDirectory) -> None:
        """The run has ended by a stop condition, by a signal, or because somebody asked."""
        ...


class Callback:
    """A View that nothing is done by; override what is wanted."""

    def phase(self, text: str) -> None: ...
    def notice(self, text: str) -> None: ...
    def write(self, progress: Progress) -> bool | str | None: ...
    def saved(self, checkpoint: Path) -> None: ...
    def finish(self, summary: Summary, run: RunDirectory) -> None: ...


class Views:
    """Several as one: each is told, in their order.

    Errors of theirs that would pass for ones of the input, before anything was learned, are told as
    what they are.
    """

    def __init__(self, views: Iterable[View | Callable[[Progress], bool | str | None]]) -> None:
        """A function is called after each update."""
        self._views: list[Any] = [_as_view(view) for view in views]

    def phase(self, text: str) -> None:
        self._tell("phase", text)

    def notice(self, text: str) -> None:
        self._tell("notice", text)

    def write(self, progress: Progress) -> str | None:
        """The reason of the first that wants the run to end; all are told before."""
        reasons = []
        for view, answer in zip(self._views, self._tell("write", progress), strict=True):
            if isinstance(answer, str):
                reasons.append(f"{_name(view)}: {answer}")
            elif answer is not None and not isinstance(answer, bool | np.bool):
                raise TypeError(f"{_name(view)} returned {answer!r}, wanted True, a reason or None")
            elif answer:
                reasons.append(_name(view))
        return reasons[0] if reasons else None

    def saved(self, checkpoint: Path) -> None:
        self._tell("saved", checkpoint)

    def finish(self, summary: Summary, run: RunDirectory) -> None:
        self._tell("finish", summary, run)

    def _tell(self, method: str, *arguments: Any) -> list[Any]:
        answers = []
        for view in self._views:
            try:
                answers.append(getattr(view, method)(*arguments))
            except (EnvError, RolloutError) as error:
                raise RunFailed(f"{_name(view)} failed: {type(error).__name__}: {error}") from error
        return answers


class _Function(Callback):
    """A function of a user's as a View."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def write(self, progress: Progress) -> Any:
        return self.function(progress)


def _as_view(view: Any) -> Any:
    if isinstance(view, type):
        raise TypeError(f"callback {view.__name__} is a class; give an object, {view.__name__}()")
    if hasattr(view, "write"):
        missing = [name for name in vars(Callback) if name[0] != "_" and not hasattr(view, name)]
        if missing:
            raise TypeError(
                f"callback {view!r} has no {', '.join(missing)}; derive its class from "
                "rollout.Callback"
            )
        return view
    if not callable(view):
        raise TypeError(f"callback {view!r}; wanted a function of Progress, or a rollout.Callback")
    return _Function(view)


def _name(view: Any) -> str:
    function = view.function if isinstance(view, _Function) else type(view)
    return f"callback {getattr(function, '__qualname__', function)}"
