"""Checkpoints: a run's state on disk, whole or not there at all.

    checkpoints/update-00000120/
        arrays.safetensors      every array; the policy's parameters are called `parameters/NAME`
        state.json              all the rest, config_digest and env_steps among it
        manifest.json           sha256 of the two

A checkpoint is written beside its place, synced and renamed: a reader finds a whole one or none.
Reading one parses JSON and safetensors; nothing in it is ever executed.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rollout.errors import OperatorError, RunFailed
from rollout.learners.network import NetworkSpec
from rollout.run_directory import RunDirectory, sync_directory, write_synced

FORMAT = 1  # raised when a reader of today could not read it

PARAMETERS = "parameters/"  # begins the names of the policy's parameters

ARRAYS, STATE, MANIFEST = "arrays.safetensors", "state.json", "manifest.json"

_PREFIX = "update-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read and verified."""

    path: Path
    update: int
    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.arrays)} arrays)"


def save_checkpoint(
    folder: Path,
    update: int,
    arrays: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint of `update` and remove all but the newest `keep`; returns its path.

    folder: the run's `checkpoints`; made if missing. arrays: see `named_parameters`; every dtype
    but structured ones. state: what JSON can hold; `config_digest` is needed. Another checkpoint of
    the same update is replaced. Raises RunFailed if the disk does not take it.
    """
    assert "config_digest" in state, "a checkpoint says which experiment it belongs to"
    content = {
        ARRAYS: safetensors.numpy.save({n: np.ascontiguousarray(a) for n, a in arrays.items()}),
        STATE: _json(state),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    content[MANIFEST] = _json({"format": FORMAT, "update": update, "sha256": digests})
    place = folder / f"{_PREFIX}{update:08d}"
    beside = folder / f".partial-{place.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_hidden(folder)  # left by a process that died while it wrote
        beside.mkdir()
        for name, data in content.items():
            write_synced(beside / name, data)
        sync_directory(beside)
        _hide(place)
        beside.rename(place)
        for old in list_checkpoints(folder)[:-keep]:
            _hide(old)
        sync_directory(folder)
        _remove_hidden(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunFailed(f"{place}: cannot write a checkpoint: {error.strerror}") from error
    return place


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the oldest first."""
    numbered = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            digits = path.name.removeprefix(_PREFIX)
            if path.name.startswith(_PREFIX) and digits.isascii() and digits.isdigit():
                numbered.append((int(digits), path))
    return [path for _, path in sorted(numbered)]


def latest_checkpoint(run: RunDirectory) -> Path:
    """A run's newest checkpoint. Raises OperatorError if it has none."""
    checkpoints = list_checkpoints(run.checkpoints)
    if not checkpoints:
        raise OperatorError(
            f"{run.path}: no checkpoint in it; a run writes one when it ends and every "
            f"checkpoint.every_minutes ({run.experiment.checkpoint.every_minutes:g})"
        )
    return checkpoints[-1]


def find_checkpoint(run: RunDirectory, name: str | os.PathLike[str] | None) -> Path:
    """The checkpoint a person means: a path, a name, an update's number, or (None) the newest."""
    if name is None:
        return latest_checkpoint(run)
    text = os.fspath(name)
    known = list_checkpoints(run.checkpoints)
    for path in known:
        if text in (path.name, str(path)) or _is_number(text, path):
            return path
    if Path(text, MANIFEST).is_file():
        return Path(text)
    names = ", ".join(path.name for path in known[-5:]) or "none"
    raise OperatorError(f"{run.path}: no checkpoint {text!r}; there is {names}")


def load_checkpoint(path: Path, config_digest: str) -> Checkpoint:
    """Read and verify a checkpoint of the experiment with this config_digest.

    Raises OperatorError if a file is missing, truncated or altered, or of another experiment.
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
    if state.get("config_digest") != config_digest:
        raise OperatorError(
            f"{path}: of another experiment (its config_digest begins with "
            f"{str(state.get('config_digest'))[:12]}, that of the run's config.toml with "
            f"{config_digest[:12]}); undo the change to config.toml, or name the "
            "checkpoint's own run"
        )
    return Checkpoint(path, update, _arrays(path / ARRAYS, content[ARRAYS]), state)


def named_parameters(spec: NetworkSpec, flat: np.ndarray) -> dict[str, np.ndarray]:
    """A flat vector of parameters as the arrays of a checkpoint; views."""
    return {PARAMETERS + p.name: p.view(flat) for p in spec.parameters}


def policy_parameters(checkpoint: Checkpoint, spec: NetworkSpec) -> np.ndarray:
    """The policy's flat vector, float32 [P]. Raises OperatorError if the network differs."""
    flat = np.empty(spec.num_parameters, np.float32)
    file = checkpoint.path / ARRAYS
    for parameter in spec.parameters:
        array = checkpoint.arrays.get(PARAMETERS + parameter.name)
        found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
        if array is None or array.shape != parameter.shape or array.dtype != np.float32:
            raise OperatorError(
                f"{file}: {PARAMETERS}{parameter.name} is {found}, the network in config.toml has "
                f"float32 {list(parameter.shape)}; name the checkpoint's own run"
            )
        parameter.view(flat)[...] = array
    return flat


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _hide(path: Path) -> None:
    """Take a checkpoint away in one step; file by file, half of it would be in sight."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_name(f".old-{path.name}"))


def _remove_hidden(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith((".partial-", ".old-")):
            shutil.rmtree(path)


def _is_number(text: str, path: Path) -> bool:
    digits = text.removeprefix(_PREFIX)
    return digits.isdigit() and int(digits) == int(path.name.removeprefix(_PREFIX))


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


def _damaged(file: Path, what: str) -> OperatorError:
    """The error for a file of a checkpoint, with the next older checkpoint as the next move."""
    checkpoint = file.parent
    siblings = list_checkpoints(checkpoint.parent)
    older = siblings[: siblings.index(checkpoint)] if checkpoint in siblings else siblings
    move = f"use --checkpoint {older[-1].name}" if older else "there is no older checkpoint to use"
    return OperatorError(f"{file}: {what}; {move}")
