"""The directory a run writes into, and others read from.

config.toml       the resolved experiment, runnable as it is
metrics.jsonl     one JSON object per update
events.out.*      the same for TensorBoard
order.jsonl       which unrolls each batch was made of; see the learner, in async mode
checkpoints/      see checkpoint.py
failures/         one file per failing environment, for `rollout replay`
fleet.msgpack     as long as the run goes on: how further actors join it
run.log           what happened besides
summary.json      at the end; see summary.py
learning_curve.png  drawn by `rollout plot`
lock              held, by flock, as long as a process writes into this directory
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shlex
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rollout.errors import OperatorError, RunFailed
from rollout.experiment import Experiment, load_experiment, resolved_toml
from rollout.summary import Summary

RUNS = Path("runs")  # where runs without a place of their own go

MOST_RUNS_SHOWN = 5


class RunDirectory:
    """One run's files. Who writes into them holds their lock until `close`, or until it dies."""

    def __init__(self, path: Path, experiment: Experiment, lock: int | None) -> None:
        """Use `create`, `open` or `open_to_resume`.

        lock: an open file that holds the lock; None for readers.
        """
        self.path = path
        self.experiment = experiment
        self._lock = lock
        self._is_new = False

    @classmethod
    def create(
        cls, experiment: Experiment, path: str | os.PathLike[str] | None = None
    ) -> "RunDirectory":
        """A directory for a new run, at `path` or `runs/NAME-TIME`, with its lock and config.toml.

        Raises OperatorError if `path` is in use, holds something, or cannot be written.
        """
        place = RUNS if path is None else Path(path)
        try:
            place = _make_fresh(experiment.name) if path is None else _make_empty(place)
            lock = _take_lock(place)
            if os.listdir(place) != ["lock"]:  # another start was between its check and its lock
                os.close(lock)
                raise _not_empty(place)
            _sign(lock)
            run = cls(place, experiment, lock)
            run._is_new = True
            try:
                write_atomically(run.config, resolved_toml(experiment).encode())
            except BaseException:
                run.close()
                raise
            return run
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = error.strerror if isinstance(error, OSError) else error
            raise OperatorError(
                f"{place}: cannot write a run there: {reason}; name another place with --run-dir"
            ) from error

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], env: Any = None, network: Any = None
    ) -> "RunDirectory":
        """A run to read, with its experiment. Raises OperatorError if there is none at `path`.

        env, network: its environment, and the class of its network's module, where they were given
        as objects. The module of an algorithm of
        somebody's own is not imported: only who learns needs it (`plan_resume`, `RunReplay`).
        """
        place = Path(path)
        if not (place / "config.toml").is_file():
            raise no_run(place)
        experiment = load_experiment(
            place / "config.toml", env=env, network=network, reads_algorithm=False
        )
        return cls(place, experiment, None)

    @classmethod
    def open_to_resume(
        cls, path: str | os.PathLike[str], env: Any = None, network: Any = None
    ) -> "RunDirectory":
        """A run to go on with, and its lock, which is all that changes in it.

        env, network: see `open`. Raises OperatorError if there is no run at `path`, if it is in
        use, or if it has never written a checkpoint.
        """
        run = cls.open(path, env, network)
        try:
            run._lock = _take_lock(run.path, "wait for it, or end it with Ctrl-C there")
            if not any(run.checkpoints.glob("update-*")):
                raise OperatorError(
                    f"{run.path}: no checkpoint in it, so there is nothing to go on from; start "
                    f"it anew with `rollout train {shlex.quote(str(run.config))}`"
                )
            if run.log.exists():
                open(run.log, "ab").close()
            _sign(run._lock)
        except OSError as error:
            run.close()
            raise OperatorError(
                f"{error.filename or run.path}: cannot be written: {error.strerror}; resuming "
                "needs to"
            ) from error
        except BaseException:
            run.close()
            raise
        return run

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r}{', locked' if self._lock is not None else ''})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Take a new run's files away again, and the directory if nothing else is in it.

        A run that was opened to resume keeps all it has.
        """
        if not self._is_new:
            return
        lock = self.path / "lock"
        for file in (self.config, self.log, self.metrics, self.order, self.fleet, lock):
            file.unlink(missing_ok=True)
        for events in self.path.glob("events.out.*"):
            events.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @property
    def given(self) -> tuple[Any, Any]:
        """Its environment, and the class of its network's module, where they were objects."""
        return self.experiment.env.given, self.experiment.given_network

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def order(self) -> Path:
        """Which unrolls each batch was made of, one JSON object per update; async mode only."""
        return self.path / "order.jsonl"

    @property
    def fleet(self) -> Path:
        """How further actors join the run; there as long as it goes on."""
        return self.path / "fleet.msgpack"

    @property
    def failures(self) -> Path:
        """Folder of what `rollout replay` needs to replay environments that failed."""
        return self.path / "failures"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files: the run itself, so that TensorBoard shows its name."""
        return self.path

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def write_summary(self, summary: Summary) -> None:
        """Write summary.json, whole or not at all. Raises RunFailed."""
        text = json.dumps(summary.as_dict(), indent=2, allow_nan=False) + "\n"
        try:
            write_atomically(self.summary, text.encode())
        except OSError as error:
            raise RunFailed(f"{self.summary}: cannot be written: {error.strerror}") from error

    def read_summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None while the run goes on, or if it died."""
        try:
            return json.loads(self.summary.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OperatorError(f"{self.summary}: not JSON ({error}); it was altered") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place, sync it, rename it: whoever opens it finds all or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_synced(beside, content)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_directory(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, down to the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring the names in a directory down to the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _make_fresh(name: str) -> Path:
    """runs/NAME-TIME, or with -2, -3, … behind it for those who start in the same second."""
    RUNS.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        place = RUNS / (stem + suffix)
        with contextlib.suppress(FileExistsError):
            place.mkdir()
            return place
    raise AssertionError("count() has no end")


def _make_empty(place: Path) -> Path:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OperatorError(
            f"{place}: there is a file, a run needs a directory; name another with --run-dir"
        ) from None
    content = os.listdir(place)
    if "lock" in content:
        os.close(_take_lock(place))  # in use is the better answer, where it is true
    if [name for name in content if name != "lock"]:
        raise _not_empty(place)
    return place


def _take_lock(
    place: Path, next_move: str = "wait for it, or name another directory with --run-dir"
) -> int:
    """An open file that holds the directory's lock. Children do not inherit it over exec."""
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        if error.errno != errno.EWOULDBLOCK:
            raise
        raise OperatorError(
            f"{place}: in use by process {owner or '(starting)'}; {next_move}"
        ) from None
    return lock


def _sign(lock: int) -> None:
    """Say in the lock who holds it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _not_empty(place: Path) -> OperatorError:
    what = "holds a run already" if (place / "config.toml").exists() else "is not empty"
    return OperatorError(f"{place}: {what}; --run-dir wants a new or an empty directory")


def no_run(place: Path) -> OperatorError:
    """The error of who named a place that is no run."""
    what = "not a run (it holds no config.toml)" if place.exists() else "no such directory"
    return OperatorError(f"{place}: {what}; {_known_runs(place)}")


def _known_runs(place: Path) -> str:
    """The next move of someone who named no run."""
    for folder in (place, RUNS):
        with contextlib.suppress(OSError):
            runs = [run for run in folder.iterdir() if (run / "config.toml").is_file()]
            runs.sort(key=lambda run: run.stat().st_mtime, reverse=True)
            if runs:
                shown = ", ".join(str(run) for run in runs[:MOST_RUNS_SHOWN])
                return f"newest runs: {shown}"
    return "`rollout train CONFIG` makes one"
