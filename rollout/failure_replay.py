"""One failed unroll once more: the same environment, state and weights, in this process.

Compiled, as it happened, or as plain Python, where a debugger sees the author's lines.
"""

import contextlib
import os
import re
import threading
import traceback
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rollout.envs import philox
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.philox import CLOCK
from rollout.envs.registry import AnyEnv, find_any_env
from rollout.errors import OperatorError
from rollout.failures import Ending, Failure
from rollout.finite_check import NotFinite, check_finite
from rollout.learners.network import ModuleSpec
from rollout.modules import construct_as
from rollout.shapes import make_schema

# Files between us and an author's function, and those that it calls of ours.
_AROUND = (
    "acting.py",
    "acting_kernel.py",
    "batch.py",
    "batch_kernel.py",
    "finite_check.py",
    "module_actor.py",
    "module_stepping_kernel.py",
    "foreign/foreign_envs.py",
    "foreign/looped_envs.py",
    "foreign/parallel_games.py",
    "foreign/vector_envs.py",
    "stepping_actor.py",
    Path(__file__).name,
)
_BELOW = ("records.py", "philox.py", "philox_compiled.py")


LINES_S = 3.0  # for plain Python to find the lines in which compiled code has failed


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the unroll this time.

    ended: None if it came to its end. error: as in a Failure. t: the step of the unroll it was at,
    -1 before the first. episode, episode_step: of the environment, then. lines: the author's, from
    the outermost to where it failed, with their source; None of each if nobody could tell.
    """

    ended: Ending | None
    error: str = ""
    t: int | None = None
    episode: int | None = None
    episode_step: int | None = None
    lines: str | None = None

    def is_same(self, failure: Failure) -> bool:
        """Whether it failed as it did then, at the same step where that is known."""
        is_same_step = failure.t < 0 or self.t is None or self.t == failure.t
        is_same_error = _is_alike(self.error, failure.error) or self.ended == "hang"
        return self.ended == failure.ended and is_same_step and is_same_error


# What compiled code shows of a value in an f-string; plain Python shows the value.
UNSHOWN = re.compile(r"<object type:[^>]*>")


def _is_alike(now: str, then: str) -> bool:
    """Whether an error's text is (within) another one, but for values that were not shown."""
    kind = now.partition(":")[0]
    pieces = UNSHOWN.split(then[max(0, then.find(kind)) :])
    return now in then or re.match(".*".join(map(re.escape, pieces)), now, re.DOTALL) is not None


@dataclass(frozen=True)
class Replayed:
    """The outcome, and for a debugger the traceback from the author's function on."""

    outcome: Outcome
    traceback: types.TracebackType | None = field(default=None, repr=False)


def find_failed_env(failure: Failure) -> AnyEnv:
    """The environment, from where it came from, or from the current folder if that is gone.

    Raises EnvError if it is not there, and OperatorError if it is not what it was.
    """
    source = failure.env_source
    if not os.path.isdir(source.folder):
        source = msgspec.structs.replace(source, folder=os.getcwd())
    env = find_any_env(source)
    then = failure.schema
    now = make_schema(env, then.unroll_length, then.has_value, then)
    if now != then:
        names = [n for n in then.__dataclass_fields__ if getattr(then, n) != getattr(now, n)]
        changes = ", ".join(f"{n} {getattr(then, n)} then, {getattr(now, n)} now" for n in names)
        raise OperatorError(
            f"environment {source.id} is not what it was when it failed: {changes}; get back the "
            "version of then"
        )
    return env


def start_of(failure: Failure) -> tuple[int, int]:
    """(episode, step of it) in which the unroll began."""
    if not len(failure.env_state):
        return 0, 0
    clock = np.frombuffer(failure.env_state.tobytes()[: CLOCK.itemsize], CLOCK)[0]
    return int(clock["episode"]), int(clock["t"])


def load_code(failure: Failure, jit: bool = True) -> AnyEnv:
    """Import and compile what the unroll needs. Raises EnvError, NetworkError or OperatorError."""
    from rollout.make_actor import load_kernels  # with Numba: slow to import

    env = find_failed_env(failure)
    if isinstance(failure.network, ModuleSpec):
        construct_as(failure.network)
    load_kernels(env, failure.network, failure.schema, jit)
    return env


def replay_failure(failure: Failure, jit: bool = True) -> Replayed:
    """Act the unroll once more. Ctrl-C, in plain Python, is an outcome as well: it hung.

    A failure by signal, or one that exits, takes this process with it; and what is compiled does
    not end by Ctrl-C. Raises EnvError for an environment that cannot be had.
    """
    from rollout.make_actor import make_actor  # with Numba: slow to import

    env = load_code(failure, jit)  # first: what does not compile is another failure than this one
    weights = failure.weights.copy()
    weights.flags.writeable = False  # the form in which kernels take them
    position = np.full(1, -1, np.int64)
    actor = None
    try:
        actor = make_actor(
            env,
            1,
            failure.seed,
            failure.network,
            failure.schema,
            params=failure.env_source.params,
            first_env=failure.env,
            position=position,
            begin=not len(failure.env_state),
            jit=jit,
        )
        if len(failure.env_state):
            actor.restore(failure.env_state.tobytes())
        actor.act(weights, failure.greedy)
        check_finite(actor, failure.network.parts, weights, position)
    except BaseException as error:  # whatever an author's code raises, SystemExit too
        if actor is None and isinstance(error, EnvError):  # params that it does not take
            raise
        episode, step = 0, 0
        if isinstance(error, NotFinite):  # seen when the unroll was over
            episode, step = error.episode, error.step
        elif actor is not None:
            clock = actor.envs.clocks[0]
            episode, step = int(clock["episode"]), int(clock["t"])
        authored = _authored(error.__traceback__)
        is_interrupt = isinstance(error, KeyboardInterrupt)
        outcome = Outcome(
            ended="hang" if is_interrupt else "exception",
            error="Ctrl-C" if is_interrupt else f"{type(error).__name__}: {error}",
            t=int(position[0]),
            episode=episode,
            episode_step=step,
            lines="".join(traceback.format_tb(authored)) if authored else None,
        )
        replayed = Replayed(outcome, authored)
        is_compiled = jit and not isinstance(env, ForeignEnv)
        return _with_lines_of_now(failure, replayed) if is_compiled else replayed
    return Replayed(Outcome(ended=None))


def _with_lines_of_now(failure: Failure, compiled: Replayed) -> Replayed:
    """The same as plain Python tells it, if it fails alike.

    Machine code names the lines of the file that it was compiled from, and is kept for as long as
    only comments change, or the file's place. Plain Python may take for ever: it is given LINES_S.
    """
    found: list[Replayed] = []

    def replay() -> None:
        with contextlib.suppress(Exception), np.errstate(all="ignore"):  # as in compiled code
            found.append(replay_failure(failure, jit=False))

    thread = threading.Thread(target=replay, daemon=True)
    thread.start()
    thread.join(LINES_S)
    for plain in found:
        now, then = plain.outcome, compiled.outcome
        if _is_alike(now.error, then.error) and _place(now) == _place(then):
            return plain
    return compiled


def _place(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.ended, outcome.t, outcome.episode, outcome.episode_step


def _authored(error_traceback: types.TracebackType | None) -> types.TracebackType | None:
    """The part of a traceback that is an author's: what our loops call, without our helpers."""
    here, kit = (Path(file).resolve().parent for file in (__file__, philox.__file__))
    ours = {str(folder / name) for folder in (here, kit) for name in _AROUND}
    helpers = {str(kit / name) for name in _BELOW}

    def is_one_of(entry: types.TracebackType, files: set[str]) -> bool:
        return str(Path(entry.tb_frame.f_code.co_filename).resolve()) in files

    entries = []
    while error_traceback is not None:
        entries.append(error_traceback)
        error_traceback = error_traceback.tb_next
    around = [place for place, entry in enumerate(entries) if is_one_of(entry, ours)]
    entries = entries[around[-1] + 1 :] if around else entries
    while entries and is_one_of(entries[-1], helpers):
        entries.pop()
    chain = None
    for entry in reversed(entries):
        chain = types.TracebackType(chain, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return chain
