"""Which unrolls each batch of an async run was made of, so that the run can be replayed.

order.jsonl has a line for every update, with the columns of its batch from left to right:

    {"update": 7, "parts": [[0, 16, 6], [40, 8, 7], [16, 24, 6]]}

A part is [first_env, num_envs, weights_version]: the next unroll of environments first_env, …,
first_env + num_envs - 1, acted with that version. Lockstep implies its order and writes none.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from rollout.appender import Appender, cut_lines
from rollout.errors import OperatorError

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class Part(NamedTuple):
    """Neighbouring columns of a batch: one unroll of consecutive environments."""

    first_env: _Count
    num_envs: _Positive
    weights_version: _Count


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The columns of one update's batch."""

    update: _Count
    parts: tuple[Part, ...]


class OrderLog:
    """Appends the orders of a run's batches to its order.jsonl; written as Appender says.

    So nothing but `close` raises: what a full disk refuses waits in memory.
    """

    def __init__(self, path: Path) -> None:
        self._lines = Appender(path)
        self._encode = msgspec.json.Encoder().encode

    def __repr__(self) -> str:
        return f"OrderLog({self._lines!r})"

    @property
    def trouble(self) -> str | None:
        """What is wrong with the disk at the moment, for people; None if nothing is."""
        return self._lines.trouble

    def write(self, update: int, env: np.ndarray, weights_version: np.ndarray) -> None:
        """Record a batch.

        env: [B] int64, the environment of each column; weights_version: [B] int64, what acted it.
        """
        line = {"update": update, "parts": parts_of(env, weights_version)}
        self._lines.append(self._encode(line) + b"\n")

    def flush(self) -> None:
        """Have all orders survive this process; a checkpoint must not be ahead of them."""
        self._lines.flush()

    def close(self) -> None:
        """Raises RunFailed if the disk does not take what is left. Twice is once."""
        self._lines.close()


def parts_of(env: np.ndarray, weights_version: np.ndarray) -> list[list[int]]:
    """[first_env, num_envs, weights_version] of the longest parts, from both of every column."""
    is_first = np.ones(len(env), np.bool_)
    np.not_equal(env[1:], env[:-1] + 1, out=is_first[1:])
    is_first[1:] |= weights_version[1:] != weights_version[:-1]
    first = np.flatnonzero(is_first)
    length = np.diff(first, append=len(env))
    return np.stack([env[first], length, weights_version[first]], axis=1).tolist()


def cut_to(path: Path, update: int) -> bool:
    """Take the orders of `update` and later ones off the end, and a torn line; in one step.

    For a run that is resumed from the checkpoint of `update`. Returns whether the order before it
    is there. Raises RunFailed.
    """
    last = cut_lines(path, update - 1)
    return update == 0 or (last is not None and last.get("update") == update - 1)


def read_order(path: str | os.PathLike[str]) -> Iterator[Order]:
    """The orders of a run's batches, from update 0 on, as far as one asks.

    Raises OperatorError, with the number of the line, for one that is not what OrderLog writes,
    that is not of the next update, or that uses weights from after its time.
    """
    decode = msgspec.json.Decoder(Order).decode
    try:
        with open(path, "rb") as file:
            for update, line in enumerate(file):
                place = f"{os.fspath(path)}:{update + 1}"
                if not line.endswith(b"\n"):
                    raise OperatorError(
                        f"{place}: torn; it was being written when it was read, or when the run "
                        "died (`rollout train --resume` cuts it off)"
                    )
                try:
                    order = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise OperatorError(f"{place}: {error}; {_ALTERED}") from error
                if order.update != update:
                    raise OperatorError(
                        f"{place}: update {order.update}, wanted {update}; a full disk lost what "
                        "is between, or the file was altered"
                    )
                newest = max((part.weights_version for part in order.parts), default=0)
                if newest > update:
                    raise OperatorError(
                        f"{place}: weights version {newest} in update {update}, when there was "
                        f"none after {update}; {_ALTERED}"
                    )
                yield order
    except OSError as error:
        raise OperatorError(
            f"{os.fspath(path)}: cannot be read: {error.strerror}; without it an async run cannot "
            "be replayed"
        ) from error


_ALTERED = "the file was altered"
