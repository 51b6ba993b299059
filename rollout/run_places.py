"""Where a run has its sockets and shared files: directories `rollout-NAME…`, each with a lock.

Every process that uses such a directory holds a shared lock on the file `lock` in it for as long as
it lives, so who gets the exclusive one knows that all of them are dead: that their numbers are
final, or that what they left may be removed. The kernel lets go of a lock when its holder dies.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

from rollout.errors import OperatorError

LOCK = "lock"
NAME = re.compile(r"rollout-[0-9a-f]{12}(-|$)")
START_S = 60.0  # a directory without a lock may be that of a run which is just being started
RETRY_S = 0.002  # nothing signals that a lock is free, but waiting for it for good


def shared_memory_directory() -> Path:
    """Where files that live in memory go on this machine."""
    return Path(os.environ.get("ROLLOUT_SHM_DIR") or "/dev/shm")


def socket_directory() -> Path:
    """Where a run's directory of sockets goes on this machine."""
    chosen = os.environ.get("XDG_RUNTIME_DIR")
    return Path(chosen) if chosen and os.access(chosen, os.W_OK) else Path(tempfile.gettempdir())


def make_directory(parent: Path, name: str) -> Path:
    """Make a directory that only this user can enter. Raises OperatorError."""
    directory = parent / name
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise _unusable(directory, error) from error
    return directory


def is_ours(directory: Path, name: str) -> bool:
    """Whether this is a directory that a host of the run NAME has made, as this user."""
    if not directory.is_absolute() or ".." in directory.parts:
        return False
    if not directory.name.startswith(f"rollout-{name}-"):
        return False
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def hold(directory: Path) -> int:
    """Be one of those who use a run's directory, as long as the returned descriptor is open.

    Processes forked from this one are, too; those it starts otherwise are not. Raises
    OperatorError.
    """
    try:
        lock = _open_lock(directory)
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError as error:
        raise _unusable(directory, error) from error
    return lock


def wait_unheld(directory: Path, timeout_s: float) -> bool:
    """Whether, within this time, all who hold the directory have died.

    So have those of a directory that is gone, or that nobody has held yet.
    """
    deadline = time.monotonic() + timeout_s
    try:
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        while not _is_unheld(lock):
            if time.monotonic() > deadline:
                return False
            time.sleep(RETRY_S)
        return True
    finally:
        os.close(lock)


def sweep(parent: Path) -> list[Path]:
    """Remove what dead runs of this user have left in `parent`; returns what was removed.

    Directories named as ours are, with a lock that nobody holds. One without a lock is removed only
    if it is empty, and old enough for nobody to be about to use it. Others may sweep meanwhile.
    """
    try:
        found = [Path(entry) for entry in os.scandir(parent) if NAME.match(entry.name)]
    except OSError:
        return []
    return [directory for directory in found if _sweep_one(directory)]


def _sweep_one(directory: Path) -> bool:
    try:
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return False
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(directory / LOCK, flags)
        except FileNotFoundError:
            if time.time() - status.st_mtime < START_S:
                return False
            directory.rmdir()
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Held until it is gone: who opens it now finds out (_open_lock), and others who sweep
            # leave it to us.
            shutil.rmtree(directory)
        finally:
            os.close(lock)
        return True
    except OSError:  # someone holds it, is removing it, or has put something into it
        return False


def _is_unheld(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _open_lock(directory: Path) -> int:
    """The lock of a directory, made if it is not there yet.

    A lock file that is there and not held means death, so it is made and taken under another name.
    """
    path = directory / LOCK
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    beside = directory / f"{LOCK}.{os.getpid()}"
    lock = os.open(beside, flags | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.link(beside, path)
    except FileExistsError:  # another process was faster
        os.close(lock)
        return os.open(path, flags)
    finally:
        beside.unlink()
    return lock


def _unusable(directory: Path, error: OSError) -> OperatorError:
    return OperatorError(
        f"cannot make {directory}: {error.strerror}; "
        "XDG_RUNTIME_DIR, TMPDIR and ROLLOUT_SHM_DIR say where such directories go"
    )
