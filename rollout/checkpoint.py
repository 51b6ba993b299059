"""Checkpoints: a run's state on disk, whole or not there at all.

    checkpoints/update-00000120/
        arrays.safetensors      every array; the policy's parameters are called `parameters/NAME`
        state.json              all the rest, experiment and env_steps among it
        manifest.json           sha256 of the two

A checkpoint is written beside its place, synced and renamed: a reader finds a whole one or none. At
every moment, whoever is killed in it, there is a whole one once there has been one.
Reading one parses JSON and safetensors; nothing in it is ever executed.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rollout.errors import ConfigError, OperatorError, RunFailed
from rollout.experiment import Experiment, as_experiment
from rollout.learners.network import Network
from rollout.run_directory import RunDirectory, sync_directory, write_synced

log = logging.getLogger(__name__)

FORMAT = 2  # raised when what a reader needs changes

PARAMETERS = "parameters/"  # begins the names of the policy's parameters

ARRAYS, STATE, MANIFEST = "arrays.safetensors", "state.json", "manifest.json"

BEST = "best"  # instead of a name: the checkpoint with the highest mean return

_PREFIX = "update-"
_REPLACEMENT = ".new"  # ends the name of a checkpoint whose place another one still has


class DamagedCheckpoint(OperatorError):
    """A checkpoint with a file that is missing, truncated or altered. what: which, and how."""

    def __init__(self, what: str, next_move: str) -> None:
        self.what = what
        super().__init__(f"{what}; {next_move}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read and verified.

    env, network: its environment, and the class of its network's module, where they were given as
    objects.
    """

    path: Path
    update: int
    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]
    env: Any = None
    network: Any = None

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.arrays)} arrays)"

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What was being run when it was saved. config.toml may have changed since.

        The module of an algorithm of somebody's own is not imported, see `learnable`. Raises
        OperatorError if that experiment cannot be had here, for want of its environment say.
        """
        return self._experiment(reads_algorithm=False)

    def learnable(self, algorithm: Any = None) -> Experiment:
        """The same, for who goes on learning: its algorithm is there, and takes its settings.

        algorithm: the class, if that was given as an object. Raises OperatorError.
        """
        return self._experiment(algorithm=algorithm)

    def _experiment(self, **options: Any) -> Experiment:
        try:
            return as_experiment(
                self.state["experiment"], env=self.env, network=self.network, **options
            )
        except ConfigError as error:
            problems = "; ".join(error.problems)
            raise OperatorError(
                f"{self.path / STATE}: its experiment does not work here: {problems}"
            ) from error


def save_checkpoint(
    folder: Path,
    update: int,
    arrays: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint of `update`, and remove all but the newest `keep` and the best.

    folder: the run's `checkpoints`; made if missing. arrays: see `named_parameters`; every dtype
    but structured ones. state: what JSON can hold. It needs `experiment`, as by
    `model_dump(mode="json")`; the best is the one with the highest `episode_return_mean`. Another
    checkpoint of the same update is replaced, and those of later updates are removed: the run has
    been resumed from before them. Returns its path. Raises RunFailed if the disk does not take it,
    and all is as it was.
    """
    assert "experiment" in state, "a checkpoint says which experiment it belongs to"
    content = {
        ARRAYS: safetensors.numpy.save({n: np.asarray(a, order="C") for n, a in arrays.items()}),
        STATE: _json(state),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    content[MANIFEST] = _json({"format": FORMAT, "update": update, "sha256": digests})
    place = folder / f"{_PREFIX}{update:08d}"
    beside = folder / f".partial-{place.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy_up(folder)  # after a process that died while it wrote
        beside.mkdir()
        for name, data in content.items():
            write_synced(beside / name, data)
        sync_directory(beside)
        beside.rename(_replacement(place) if place.exists() else place)
        sync_directory(folder)
        _tidy_up(folder)
        for path in _superfluous(list_checkpoints(folder), place, keep):
            _hide(path)
        _tidy_up(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunFailed(f"{place}: cannot write a checkpoint: {error.strerror}") from error
    return place


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the oldest first."""
    numbered = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            digits = path.name.removeprefix(_PREFIX).removesuffix(_REPLACEMENT)
            is_named = path.name.startswith(_PREFIX) and digits.isascii() and digits.isdigit()
            if is_named and path.is_dir():
                numbered.append((int(digits), path.name, path))
    return [path for *_, path in sorted(numbered)]


def find_checkpoint(run: RunDirectory, name: str | os.PathLike[str]) -> Path:
    """The checkpoint a person means: by its path, its name, its update's number, or as the best."""
    text = os.fspath(name)
    known = list_checkpoints(run.checkpoints)
    if text == BEST:
        best = _best(known)
        if best is None:
            raise OperatorError(
                f"{run.path}: no checkpoint knows a mean return, so none is the best; the newest "
                "is used when none is named"
            )
        return best
    for path in known:
        if text in (path.name, str(path)) or _is_number(text, path):
            return path
    if Path(text, MANIFEST).is_file():
        return Path(text)
    names = ", ".join(path.name for path in known[-5:]) or "none"
    raise OperatorError(f"{run.path}: no checkpoint {text!r}; there is {names}")


def load_newest(run: RunDirectory) -> Checkpoint:
    """A run's newest good checkpoint; each damaged one that is newer is warned of.

    Raises OperatorError if no checkpoint is good.
    """
    damaged: list[DamagedCheckpoint] = []
    for path in reversed(list_checkpoints(run.checkpoints)):
        try:
            found = load_checkpoint(path, *run.given)
        except DamagedCheckpoint as error:
            damaged.append(error)
            continue
        for error in damaged:
            log.warning("%s; using %s instead", error.what, found.path.name)
        return found
    if damaged:
        older = f", and the older ones ({len(damaged) - 1}) are no better" if damaged[1:] else ""
        raise OperatorError(
            f"{damaged[0].what}{older}; copy a good checkpoint back to {run.checkpoints}, or start "
            "a new run"
        )
    raise OperatorError(
        f"{run.path}: no checkpoint in it; a run writes one when it ends and every "
        f"checkpoint.every_minutes ({run.experiment.checkpoint.every_minutes:g})"
    )


def open_checkpoint(run: RunDirectory, name: str | os.PathLike[str] | None) -> Checkpoint:
    """The checkpoint a person means, see `find_checkpoint`; without a name, the newest good one.

    Raises OperatorError if there is none, or if the one that was named is damaged.
    """
    if name is None:
        return load_newest(run)
    return load_checkpoint(find_checkpoint(run, name), *run.given)


def load_checkpoint(path: Path, env: Any = None, network: Any = None) -> Checkpoint:
    """Read and verify a checkpoint.

    env, network: see Checkpoint. Raises DamagedCheckpoint if a file is missing, truncated or
    altered, or of another format.
    """
    manifest = _object(path / MANIFEST, _read(path / MANIFEST))
    if manifest.get("format") != FORMAT:
        raise _damaged(
            path / MANIFEST,
            f"format={manifest.get('format')!r}, this version of rollout reads {FORMAT}",
        )
    update, digests = manifest.get("update"), manifest.get("sha256")
    if type(update) is not int or not isinstance(digests, dict):
        raise _damaged(path / MANIFEST, "is not what rollout writes")
    content = {}
    for name in (ARRAYS, STATE):
        content[name] = _read(path / name)
        found = hashlib.sha256(content[name]).hexdigest()
        if found != digests.get(name):
            raise _damaged(
                path / name,
                f"{len(content[name]):,} bytes with sha256 {found[:12]}…, {MANIFEST} says "
                f"{str(digests.get(name))[:12]}…: truncated or altered",
            )
    state = _object(path / STATE, content[STATE])
    if not isinstance(state.get("experiment"), dict):
        raise _damaged(path / STATE, "does not say which experiment it belongs to")
    return Checkpoint(path, update, _arrays(path / ARRAYS, content[ARRAYS]), state, env, network)


def named_parameters(spec: Network, flat: np.ndarray) -> dict[str, np.ndarray]:
    """A flat vector of parameters as the arrays of a checkpoint; views."""
    return {PARAMETERS + p.name: p.view(flat) for p in spec.parameters}


def policy_parameters(checkpoint: Checkpoint, spec: Network) -> np.ndarray:
    """The policy's flat vector, float32 [P]. Raises OperatorError if the network differs."""
    flat = np.empty(spec.num_parameters, np.float32)
    file = checkpoint.path / ARRAYS
    for parameter in spec.parameters:
        array = checkpoint.arrays.get(PARAMETERS + parameter.name)
        found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
        if array is None or array.shape != parameter.shape or array.dtype != np.float32:
            raise OperatorError(
                f"{file}: {PARAMETERS}{parameter.name} is {found}, the experiment's network has "
                f"float32 {list(parameter.shape)}; has the environment, or the network, changed "
                "since?"
            )
        parameter.view(flat)[...] = array
    names = {PARAMETERS + parameter.name for parameter in spec.parameters}
    for name in checkpoint.arrays:
        if name.startswith(PARAMETERS) and name not in names:
            raise OperatorError(
                f"{file}: the experiment's network has no {name}; has it changed since?"
            )
    return flat


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _superfluous(known: list[Path], saved: Path, keep: int) -> list[Path]:
    """Which of the checkpoints to remove, now that `saved` is there."""
    past = [path for path in known if _number(path) <= _number(saved)]
    best = _best(past)
    return [path for path in known if path not in past[-keep:] and path != best]


def _best(checkpoints: list[Path]) -> Path | None:
    """The one with the highest mean return, the newest of several; None if none knows its own."""
    best, highest = None, -math.inf
    for path in checkpoints:  # the oldest first
        mean = _mean_return(path)
        if mean is not None and mean >= highest:
            best, highest = path, mean
    return best


def _mean_return(path: Path) -> float | None:
    """The mean return in an intact state.json, if it is a number."""
    try:
        content = _read(path / STATE)
        digests = _object(path / MANIFEST, _read(path / MANIFEST)).get("sha256")
        state = _object(path / STATE, content)
    except DamagedCheckpoint:
        return None
    if not isinstance(digests, dict) or digests.get(STATE) != hashlib.sha256(content).hexdigest():
        return None
    mean = state.get("episode_return_mean")
    return mean if isinstance(mean, int | float) and not math.isnan(mean) else None


def _replacement(place: Path) -> Path:
    return place.with_name(place.name + _REPLACEMENT)


def _hide(path: Path) -> None:
    """Take a checkpoint away in one step; file by file, half of it would be in sight."""
    path.rename(path.with_name(f".old-{path.name}"))


def _tidy_up(folder: Path) -> None:
    """Give replacements the place of what they replace, and remove what nobody is to see."""
    for path in folder.iterdir():
        if path.name.startswith((".partial-", ".old-")) and path.is_dir():
            shutil.rmtree(path)
    for path in list(folder.glob(f"{_PREFIX}*{_REPLACEMENT}")):
        place = path.with_name(path.name.removesuffix(_REPLACEMENT))
        if place.exists():
            _hide(place)
        path.rename(place)
        shutil.rmtree(path.with_name(f".old-{place.name}"), ignore_errors=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX).removesuffix(_REPLACEMENT))


def _is_number(text: str, path: Path) -> bool:
    digits = text.removeprefix(_PREFIX)
    return digits.isdigit() and int(digits) == _number(path)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        what = "is missing" if file.parent.is_dir() else "no such checkpoint"
        raise _damaged(file, what) from None
    except OSError as error:
        raise _damaged(file, f"cannot be read: {error.strerror}") from error


def _object(file: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(file, "not a JSON object")
    return value


def _arrays(file: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(content)
    except Exception as error:  # whatever the library makes of a header that somebody else wrote
        raise _damaged(file, f"not a safetensors file ({error})") from error


def _damaged(file: Path, what: str) -> DamagedCheckpoint:
    """The error for a file of a checkpoint, with the next older checkpoint as the next move."""
    checkpoint = file.parent
    siblings = list_checkpoints(checkpoint.parent)
    older = siblings[: siblings.index(checkpoint)] if checkpoint in siblings else siblings
    move = f"use --checkpoint {older[-1].name}" if older else "there is no older checkpoint to use"
    return DamagedCheckpoint(f"{file}: {what}", move)
