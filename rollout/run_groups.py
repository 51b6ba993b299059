"""Which runs people mean, and which of those are one experiment with several seeds."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.errors import OperatorError
from rollout.experiment import leaves
from rollout.experiment_errors import show_key, show_value
from rollout.run_directory import no_run

MOST_SHOWN = 3  # settings in a label


@dataclass(frozen=True)
class Group:
    """Runs of one experiment: they differ in nothing but seed, [stop] and [checkpoint].

    label: the experiment's name, and the settings by which it differs from others of that name in
    the same environment. members: places in what was grouped.
    """

    env_id: str
    label: str
    members: tuple[int, ...]


def find_runs(places: Iterable[Path]) -> list[Path]:
    """The runs that people name, one by one or all that are in a folder; each once.

    Those of a folder are ordered by name. Raises OperatorError for all places that are neither.
    """
    found: dict[Path, Path] = {}
    problems = []
    for place in places:
        runs = [place] if _is_run(place) else _runs_in(place)
        if not runs:
            problems.append(str(no_run(place)))
        for run in runs:
            found.setdefault(run.resolve(), run)
    if problems:
        raise OperatorError("\n".join(problems))
    return list(found.values())


def group_runs(experiments: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Groups of experiments that are one, those of an environment together; in the order given.

    experiments: their tables, as in config.toml or a checkpoint.
    """
    known: dict[tuple[str, str], dict[_Settings, list[int]]] = {}
    for place, tables in enumerate(experiments):
        same_name = known.setdefault((tables["env"]["id"], tables["name"]), {})
        same_name.setdefault(_settings(tables), []).append(place)
    groups = []
    for env_id in dict.fromkeys(env_id for env_id, _ in known):
        for (found_in, name), experiments_of_name in known.items():
            if found_in != env_id:
                continue
            for label, members in _labelled(name, experiments_of_name):
                groups.append(Group(env_id, label, tuple(members)))
    return groups


_Settings = frozenset[tuple[str, str]]  # dotted keys, and values in JSON


def _settings(tables: Mapping[str, Any]) -> _Settings:
    """What tells an experiment from another one; what is off (None) may be left out."""
    apart = {"seed", "checkpoint"}
    if not tables["algorithm"].get("anneal_lr"):  # towards stop.env_steps
        apart.add("stop")
    rest = {key: value for key, value in tables.items() if key not in apart}
    return frozenset(
        (show_key(path), json.dumps(value, default=str))
        for path, value in leaves(rest)
        if value is not None
    )


def _labelled(
    name: str, experiments: Mapping[_Settings, list[int]]
) -> Iterable[tuple[str, list[int]]]:
    common = frozenset.intersection(*experiments)
    differing = {key for settings in experiments for key, _ in settings - common}
    for settings, members in experiments.items():
        values = {key: show_value(json.loads(value)) for key, value in settings}
        shown = [f"{k}={values[k]}" if k in values else f"no {k}" for k in sorted(differing)]
        if len(shown) > MOST_SHOWN:
            shown[MOST_SHOWN:] = [f"and {len(shown) - MOST_SHOWN} more"]
        yield f"{name} ({', '.join(shown)})" if shown else name, members


def _is_run(place: Path) -> bool:
    return (place / "config.toml").is_file()


def _runs_in(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(place for place in folder.iterdir() if _is_run(place))
    return []
