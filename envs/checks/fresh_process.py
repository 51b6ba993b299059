"""Doing something in a fresh process, which may crash or hang without harm to this one."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any

from rollout.envs.pickling import pickled, unpickled

# What the process runs. What it is to do comes by its standard input, which stays open: when it
# ends, so has the process that asked, and this one follows.
PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from rollout.envs.checks.fresh_process import serve
serve()
"""
STDERR = 2  # where it prints to: what it says must not mix with what a command of ours prints
PRINTED_LINES = 20  # of an environment that prints in every step, the rest is not shown


class ProcessFailed(Exception):
    """A process that ended, or fell silent, before it was done; the message says which."""


def in_fresh_process(
    function: Callable[..., Iterator[Any]], *arguments: Any, silence_s: float | None = None
) -> Generator[Any, None, None]:
    """What a generator function yields, there. It yields what JSON can hold.

    arguments: anything that can be pickled, and environments of any module or none.
    silence_s: how long to wait for each thing. Raises ProcessFailed. The process ends when this is
    closed.
    """
    try:
        task = _message((function, arguments))
    except Exception as error:
        raise ProcessFailed(f"it cannot be sent to another process: {error}") from error
    results, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, str(write)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(write,),
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
    )
    os.close(write)
    assert process.stdin and process.stdout
    printed = threading.Thread(target=_pass_on, args=(process.stdout,), daemon=True)
    printed.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, as we are about to see
            process.stdin.write(task)
            process.stdin.flush()
        for message in _messages(results, silence_s):
            if "error" in message:
                raise ProcessFailed(message["error"])
            if "done" in message:
                return
            yield message["value"]
        raise ProcessFailed(_how_it_ended(process.wait()))
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        printed.join(1.0)  # a child of its own may go on printing
        os.close(results)


def _pass_on(printed: IO[bytes]) -> None:
    """Show the first lines that the process prints, and take the others from it."""
    with printed:
        for n, line in enumerate(iter(lambda: printed.readline(2**16), b"")):
            if n < PRINTED_LINES:
                os.write(STDERR, line)
            elif n == PRINTED_LINES:
                os.write(STDERR, b"(what more it prints is not shown)\n")


def _messages(results: int, silence_s: float | None) -> Iterator[dict[str, Any]]:
    """JSON objects, a line each, until the other end is closed."""
    rest = b""
    while True:
        if not select.select([results], [], [], silence_s)[0]:
            raise ProcessFailed(f"nothing came back for {silence_s:g} s")
        read = os.read(results, 2**16)
        *lines, rest = (rest + read).split(b"\n")
        yield from map(json.loads, lines)
        if not read:
            return


def _how_it_ended(status: int) -> str:
    if status < 0:
        return f"the process was killed by {signal.Signals(-status).name}"
    return f"the process ended with status {status}"


def _message(task: tuple) -> bytes:
    """Three parts: sys.path, the length of the rest, the rest."""
    encoded = pickled(task)
    return f"{json.dumps(sys.path)}\n{len(encoded)}\n".encode() + encoded


def serve() -> None:
    """Do, in the fresh process, what comes by standard input."""
    stdin = sys.stdin.buffer
    size = int(stdin.readline())
    task = stdin.read(size)
    threading.Thread(target=_end_when_closed, args=(stdin,), daemon=True).start()
    try:
        function, arguments = unpickled(task)
        for value in function(*arguments):
            _tell({"value": value})
        _tell({"done": True})
    except Exception as error:
        _tell({"error": f"{type(error).__name__}: {error}"})


def end_with(value: Any) -> None:
    """In a fresh process, from any thread: let this be the last thing that is yielded."""
    _tell({"value": value})
    _tell({"done": True})
    os._exit(0)


def _tell(message: dict[str, Any]) -> None:
    os.write(int(sys.argv[1]), json.dumps(message).encode() + b"\n")


def _end_when_closed(stdin: io.BufferedReader) -> None:
    stdin.read()
    os._exit(1)
