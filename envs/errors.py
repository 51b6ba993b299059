"""What goes wrong in an environment, said to its author, and where it was raised."""

import sys
import traceback
from pathlib import Path


class EnvError(Exception):
    """An environment that cannot be found, built or run; the message names it and the next move."""


def in_words(error: BaseException) -> str:
    """What an error is, and what it says if it says anything."""
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)}) was called"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def raised_at(error: BaseException) -> str:
    """FILE:LINE of the author's last frame in an error's traceback; nothing if all are ours.

    Frames of installed packages, or else of Python's own modules, count where there are no others.
    """
    places = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, names = frame.f_code.co_filename, frame.f_globals
        spec = names.get("__spec__")  # knows the name of a module that runs as __main__
        package = str(spec.name if spec else names.get("__name__")).partition(".")[0]
        if package != "rollout":
            is_installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
            is_pythons = package in sys.stdlib_module_names
            places.append((0 if is_pythons else 1 if is_installed else 2, f"{file}:{line}"))
    return max(reversed(places), key=lambda place: place[0], default=(0, ""))[1]
