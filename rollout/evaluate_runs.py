"""How good the policies of runs are, and the experiments that made them."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.checkpoint import Checkpoint, open_checkpoint
from rollout.envs.errors import EnvError
from rollout.errors import OperatorError, RolloutError
from rollout.evaluation import Episodes, averages, play_episodes
from rollout.policy import Policy
from rollout.run_directory import RunDirectory
from rollout.run_groups import Group, find_runs, group_runs

KINDS = ("deterministic", "sampled")


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run's directory, one of its checkpoints, and the policy of that."""

    path: Path
    checkpoint: Checkpoint
    policy: Policy


@dataclass(frozen=True, eq=False)
class RunEvaluation:
    """The episodes that a run's policy has played."""

    run: OpenRun
    deterministic: Episodes
    sampled: Episodes

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        checkpoint = self.run.checkpoint
        return {
            "run": str(self.run.path),
            "checkpoint": str(checkpoint.path),
            "update": checkpoint.update,
            "env": checkpoint.experiment.env.id,
            "experiment_seed": checkpoint.experiment.seed,
            **{kind: getattr(self, kind).as_dict() for kind in KINDS},
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` has played. groups: which of the runs are one experiment."""

    runs: tuple[RunEvaluation, ...]
    groups: tuple[Group, ...]

    def __repr__(self) -> str:
        return f"Evaluation({len(self.runs)} runs of {len(self.groups)} experiments)"

    def as_dict(self) -> dict[str, Any]:
        """For programs. Nothing is pooled across experiments, nor across environments."""
        return {
            "runs": [run.as_dict() for run in self.runs],
            "experiments": [self.of_group(group) for group in self.groups],
        }

    def of_group(self, group: Group) -> dict[str, Any]:
        """What its runs tell together; the interquartile mean is over all of their episodes."""
        runs = [self.runs[member] for member in group.members]
        return {
            "experiment": group.label,
            "env": group.env_id,
            "runs": [str(run.run.path) for run in runs],
            **{kind: averages([getattr(run, kind) for run in runs]) for kind in KINDS},
        }


def evaluate(
    runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    episodes: int = 100,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    env: Any = None,
    network: Any = None,
    tell: Callable[[str], None] | None = None,
) -> Evaluation:
    """Play the policies of runs, each twice: with the likeliest actions, and with sampled ones.

    runs: a run's directory, a folder of runs, or several of either. episodes: of each run, and
    each kind; none is one of training's. seed: which evaluation; another number plays other
    episodes. checkpoint: see load_policy; of several runs a name, a number, or `best`. env,
    network: what was given to `train` as `env` and as `network`. tell: is called with what is being
    done, now and then.

    Raises OperatorError, ConfigError or EnvError before anything is played if one of the runs
    cannot be had, and EnvError if an episode does not end.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}; wanted at least 1")
    places = [runs] if isinstance(runs, str | os.PathLike) else [*runs]
    if not places:
        raise ValueError("no runs to evaluate")
    return play_runs(open_runs(places, checkpoint, env, network), episodes, seed, tell)


def open_runs(
    places: Iterable[str | os.PathLike[str]],
    checkpoint: str | os.PathLike[str] | None = None,
    env: Any = None,
    network: Any = None,
) -> list[OpenRun]:
    """The runs at these places, as `evaluate` takes them. Raises for all that cannot be had."""
    paths = find_runs(Path(place) for place in places)
    opened, problems = [], []
    for path in paths:
        try:
            run = RunDirectory.open(path, env, network)
            loaded = open_checkpoint(run, checkpoint)
            if len(paths) > 1 and loaded.path.parent.resolve() != run.checkpoints.resolve():
                raise OperatorError(
                    f"{path}: {loaded.path} is not a checkpoint of this run; of several runs, name "
                    "one by its update or as `best`"
                )
            opened.append(OpenRun(path, loaded, Policy.from_checkpoint(loaded)))
        except (RolloutError, EnvError) as error:
            if len(paths) == 1:
                raise
            problems.append(str(error))
    if problems:
        raise OperatorError("\n".join(problems))
    return opened


def play_runs(
    runs: Sequence[OpenRun], episodes: int, seed: int = 0, tell: Callable[[str], None] | None = None
) -> Evaluation:
    """Play their policies; see `evaluate`."""
    found = []
    for number, run in enumerate(runs, 1):
        place = f"run {number} of {len(runs)}: " if len(runs) > 1 else ""
        found.append(
            RunEvaluation(
                run, *(_play(run.policy, episodes, seed, kind, place, tell) for kind in KINDS)
            )
        )
    groups = group_runs([run.checkpoint.state["experiment"] for run in runs])
    return Evaluation(tuple(found), tuple(groups))


def _play(
    policy: Policy,
    episodes: int,
    seed: int,
    kind: str,
    place: str,
    tell: Callable[[str], None] | None,
) -> Episodes:
    def tell_count(played: int) -> None:
        if tell is not None:
            tell(f"{place}{kind}, {played:,} of {episodes:,} episodes")

    return play_episodes(policy, episodes, kind == "deterministic", seed, tell_count)
