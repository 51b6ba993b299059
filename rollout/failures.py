"""Environments that fail: how often, at which step, and a file from which to replay it.

failures/env-I-step-S.safetensors holds the weights that acted, the state of that one environment
at the start of the unroll, and, as JSON in its metadata, all else that the unroll is a function of.
Reading one parses JSON and safetensors, and executes nothing. Replaying it makes the environment
that it names, with the params that it gives: replay your own files, or read them before.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import safetensors.numpy

from rollout.env_source import EnvSource
from rollout.envs.philox import CLOCK
from rollout.errors import OperatorError, RunFailed
from rollout.experiment_rules import MAX_FRAME_STACK
from rollout.layer_source import layer_source
from rollout.learners.layers import Conv
from rollout.learners.network import OBSERVATION, ModuleSpec, Network
from rollout.learners.unroll import UnrollSchema
from rollout.run_directory import write_atomically

MOST_FAILURES = 3  # of an environment at the same step: then it is not by chance
MOST_IN_A_ROW = 9  # at any steps: even if half of all episodes fail, hardly so many in a row do
ENOUGH_STEPS = 10_000  # a life that costs a second's restart, and learns from so many, is worth it

FORMAT = 4  # raised when a reader of today could not read it

MOST_REMEMBERED = 100_000  # failures that happen once each: no reason to grow for ever

Ending = Literal["exception", "signal", "hang", "exit"]

_Word = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class EnvFailures:
    """How often environments failed, each at which step."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], int] = {}

    def __repr__(self) -> str:
        worst = max(self._counts.values(), default=0)
        return f"EnvFailures({len(self._counts)} steps, {worst} at most of the same)"

    def record(self, env: int, step: int) -> int:
        """Count a failure; returns how many this makes of this environment at this step.

        step: any number that is the same when the environment comes to the same place again.
        """
        count = self._counts.pop((env, step), 0) + 1
        if len(self._counts) >= MOST_REMEMBERED:
            del self._counts[next(iter(self._counts))]  # the one that is longest ago
        self._counts[env, step] = count
        return count


@dataclass
class Row:
    """Failures of one environment, see FailureRows. ts: the steps of its episodes they were at."""

    num_completed: int
    num_steps: int
    ts: list[int] = field(default_factory=list)


class FailureRows:
    """Failures of environments with hidden state, of each in a row: no episode was completed since.

    A new life begins with another episode, so what fails in step 200 of each comes to that place at
    another step of its life every time; it completes no episode, though. One that fails now and
    then does. What never completes any, as its episodes have no end, gets far instead.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    def __repr__(self) -> str:
        longest = max((len(row.ts) for row in self._rows.values()), default=0)
        return f"FailureRows({len(self._rows)} environments, {longest} failures at most)"

    def record(self, env: int, num_completed: int, num_steps: int, t: int) -> tuple[int, bool]:
        """Count a failure; returns how many are in the row now, and whether these are enough.

        num_completed: episodes of the environment. num_steps: of its whole life. t: the step of the
        episode it failed at.
        """
        row = self._rows.get(env)
        if (
            row is None
            or row.num_completed < num_completed
            or (num_steps - row.num_steps >= ENOUGH_STEPS and t not in row.ts)
        ):
            row = self._rows[env] = Row(num_completed, num_steps)
        row.num_steps = num_steps
        row.ts.append(t)
        is_enough = row.ts.count(t) >= MOST_FAILURES or len(row.ts) >= MOST_IN_A_ROW
        return len(row.ts), is_enough


class FailureFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a failure's file says in JSON.

    env: its number in the run. unroll_index: of the unroll, in the environment's history. t: the
    step of the unroll, from 0, in which it failed; -1 if it is not known. weights_version: of the
    weights. ended: how it ended; error: what is known of that, for people, with the exception's
    text or the signal's name.
    """

    env_source: EnvSource
    seed: _Word
    env: _Word
    unroll_index: _Count
    t: Annotated[int, msgspec.Meta(ge=-1)]
    weights_version: _Count
    network: Network
    schema: UnrollSchema
    ended: Ending
    error: str
    greedy: bool = False

    @property
    def step(self) -> int:
        """Steps of the environment's history before the one in which it failed."""
        return self.unroll_index * self.schema.unroll_length + max(self.t, 0)


class Failure(FailureFacts, frozen=True, kw_only=True, eq=False):
    """An unroll of one environment that was not finished.

    weights: float32 [P], the flat vector that acted. env_state: uint8 [state_bytes], the
    environment at the start of the unroll (rollout.envs.batch: restore); [0] for a fresh one.
    """

    weights: np.ndarray
    env_state: np.ndarray

    def __repr__(self) -> str:
        return f"Failure({self.env_source.id!r}, env={self.env}, step={self.step}, {self.error!r})"


_FACTS = FailureFacts.__struct_fields__


def save_failure(folder: Path, failure: Failure) -> Path:
    """Write a failure into a run's `failures`, made if missing; returns the file's path.

    One of the same environment and step is replaced. Raises RunFailed if the disk does not take it.
    """
    facts = _encode(failure)
    arrays = {
        "weights": np.ascontiguousarray(failure.weights, np.float32),
        "env_state": np.ascontiguousarray(failure.env_state, np.uint8),
    }
    metadata = {"format": str(FORMAT), "failure": facts, "sha256": _digest(facts, arrays)}
    path = folder / f"env-{failure.env}-step-{failure.step}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.numpy.save(arrays, metadata))
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror}") from error
    return path


def load_failure(path: Path) -> Failure:
    """Read and verify what `save_failure` wrote. Raises OperatorError for anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OperatorError(
            f"{path}: cannot be read: {error.strerror}; a run that ends by a failing environment "
            "says which file it wrote"
        ) from error
    try:
        arrays = safetensors.numpy.load(content)
        metadata = _metadata(content)
    except Exception as error:  # whatever comes of a header that somebody else wrote
        raise _bad(path, f"not a safetensors file ({error})") from error
    found = metadata.get("format")
    if found != str(FORMAT):
        raise _bad(path, f"format={found!r}, this version of rollout reads {FORMAT}")
    text = metadata.get("failure", "")
    try:
        facts = msgspec.json.decode(text, type=FailureFacts)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _bad(path, str(error)) from error
    if metadata.get("sha256") != _digest(text, arrays):
        raise _bad(path, "its sha256 is not that of its content: it was altered")
    problems = list(_problems(facts, arrays))
    if problems:
        raise _bad(path, "; ".join(problems))
    return Failure(
        **{name: getattr(facts, name) for name in _FACTS},
        weights=arrays["weights"],
        env_state=arrays["env_state"],
    )


def _encode(failure: Failure) -> str:
    facts = {name: getattr(failure, name) for name in _FACTS}
    facts["error"] = _encodable(failure.error)
    source = failure.env_source
    facts["env_source"] = msgspec.structs.replace(source, folder=_encodable(source.folder))
    network = failure.network
    if isinstance(network, ModuleSpec):
        facts["network"] = msgspec.structs.replace(network, folder=_encodable(network.folder))
    return msgspec.json.encode(facts).decode()


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in a safetensors file, whose header the library has accepted."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__") or {}


def _digest(facts: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _bad(path: Path, what: str) -> OperatorError:
    return OperatorError(f"{path}: not a failure that can be replayed: {what}")


def _problems(facts: FailureFacts, arrays: dict[str, np.ndarray]) -> Iterator[str]:
    """What does not fit together, so that compiled code may rely on it."""
    wrong = list(_network_problems(facts.network)) + list(_schema_problems(facts))
    if wrong:
        yield from wrong
        return
    wanted = {
        "weights": ("float32", (facts.network.num_parameters,)),
        "env_state": ("uint8", (facts.schema.state_bytes,)),
    }
    if arrays.keys() != wanted.keys():
        yield f"arrays {', '.join(sorted(arrays)) or 'none'}, wanted {', '.join(wanted)}"
        return
    for name, (dtype, shape) in wanted.items():
        array = arrays[name]
        is_fresh = name == "env_state" and array.shape == (0,)
        if array.dtype != dtype or not (array.shape == shape or is_fresh):
            yield f"{name} is {array.dtype} {list(array.shape)}, wanted {dtype} {list(shape)}"
    if len(arrays["env_state"]) >= CLOCK.itemsize:
        clock = np.frombuffer(arrays["env_state"].tobytes()[: CLOCK.itemsize], CLOCK)[0]
        if (clock["env"], clock["seed"]) != (facts.env, facts.seed):
            yield (
                f"env_state is of environment {clock['env']} of seed {clock['seed']}, "
                f"wanted {facts.env} of {facts.seed}"
            )


def _schema_problems(facts: FailureFacts) -> Iterator[str]:
    schema = facts.schema
    if not 1 <= schema.unroll_length < 2**16:
        yield f"unroll_length={schema.unroll_length}"
    elif facts.t >= schema.unroll_length:
        yield f"t={facts.t} in an unroll of {schema.unroll_length} steps"
    if schema.observation_shape != facts.network.observation_shape:
        yield (
            f"observations {schema.observation_shape} for a network that reads "
            f"{facts.network.observation_shape}"
        )
    if schema.env_state_bytes < CLOCK.itemsize:
        yield f"env_state_bytes={schema.env_state_bytes}, wanted at least {CLOCK.itemsize}"
    if schema.core_size != facts.network.core_size:
        yield f"core_size={schema.core_size} for a network with {facts.network.core_size}"
    if schema.frame_stack != facts.network.frame_stack:
        yield f"frame_stack={schema.frame_stack} for a network with {facts.network.frame_stack}"
    for dtype in (schema.observation_dtype, schema.action_dtype):
        if not _is_dtype(dtype):
            yield f"dtype {dtype!r}"


def _is_dtype(text: str) -> bool:
    return re.fullmatch(r"[<|](b1|[iu][1248]|f[48])", text) is not None


def _network_problems(network: Network) -> Iterator[str]:
    """Source code is made of a network: of its names, which must be plain, and of its sizes."""
    if not network.observation_shape or min(network.observation_shape) < 1:
        yield f"observations {network.observation_shape}"
        return
    if not 1 <= network.frame_stack <= MAX_FRAME_STACK:
        yield f"frame_stack={network.frame_stack}"
        return
    for part in network.parts:
        if not _is_dtype(part.dtype) or min((part.offset + 1, part.size, *part.categories)) < 1:
            yield f"part {part}"
            return
    if min((network.head.num_outputs, *network.head.choices)) < 1:
        yield f"head {network.head}"
        return
    if isinstance(network, ModuleSpec):  # the rest is compared with what its class makes
        sizes = (size for _, shape, _ in network.named_arrays for size in shape)
        if min((1, *sizes)) < 0 or not network.named_arrays:
            yield f"parameters {network.named_arrays}"
        return
    names = Counter([OBSERVATION, *(layer.name for layer in network.layers)])
    for name, count in names.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) or count > 1:
            yield f"layer {name!r}"
            return
    widths = {OBSERVATION: network.num_inputs}
    for layer in network.layers:
        if isinstance(layer, Conv) and not _is_convolution(layer):
            yield f"layer {layer.name}: {layer}"
            return
        if widths.get(layer.source) != layer.inputs or layer.outputs < 1:
            yield f"layer {layer.name}: {layer.inputs} inputs from {layer.source!r}"
            return
        widths[layer.name] = layer.outputs
    buffers = Counter(name for layer in network.layers for name, _ in layer_source(layer).buffers)
    for name, count in buffers.items():
        if count > 1:
            yield f"{count} buffers {name!r}"
    for columns, count in ((network.outputs, network.head.num_outputs), (network.value, 1)):
        width = widths.get(columns.buffer, 0) if columns.buffer != OBSERVATION else 0
        if not 0 <= columns.start < columns.stop <= width or columns.stop - columns.start != count:
            yield f"{count} outputs in {columns}"


def _is_convolution(layer: Conv) -> bool:
    sizes = (*layer.image, layer.channels, layer.kernel, layer.stride)
    return min(sizes) >= 1 and layer.kernel <= min(layer.image[:2]) and math.isfinite(layer.scale)
