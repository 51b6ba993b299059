"""The command `rollout`: which commands there are, and how an error reaches people.

A command is a function in `rollout/commands/`, and appears in COMMANDS once it works.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from rollout import __version__
from rollout.commands.actors import actors
from rollout.commands.chaos import chaos
from rollout.commands.check_env import check_env
from rollout.commands.config import config
from rollout.commands.doctor import doctor
from rollout.commands.envs import envs
from rollout.commands.eval import eval
from rollout.commands.new_env import new_env
from rollout.commands.plot import plot
from rollout.commands.replay import replay
from rollout.commands.train import train
from rollout.errors import RolloutError, require_linux

COMMANDS: tuple[Callable[..., None], ...] = (
    train,
    actors,
    eval,
    plot,
    replay,
    chaos,
    config,
    envs,
    new_env,
    check_env,
    doctor,
)

DEBUG_VARIABLE = "ROLLOUT_DEBUG"

# Without rich's help pages: they take 0.1 s to import. Without typer's tracebacks: ours are decided
# in `main`.
app = typer.Typer(
    name="rollout",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"rollout {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show tracebacks; so does {DEBUG_VARIABLE}=1.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Train policies in CPU-heavy simulators.

    \b
    Example:
      rollout train configs/cartpole_ppo.toml
    """
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command (of sys.argv, unless given), and end the process with its exit status.

    0 when it did what it was asked, 2 for wrong arguments or bad input, 1 for anything else.
    """
    try:
        require_linux()
        app(args=arguments, prog_name="rollout")
    except Exception as error:
        status = 1 if isinstance(error, OSError) else exit_status_of(error)
        if status is None:
            raise
        if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            traceback.print_exc()
            sys.exit(status)
        for line in str(error).splitlines():
            print(f"rollout: {line}", file=sys.stderr)
        sys.exit(status)


def exit_status_of(error: Exception) -> int | None:
    """The exit status of a command that ends with this error; None if it is a mistake of ours."""
    if isinstance(error, RolloutError):
        return error.exit_status
    # If it is an environment's error, its module has been imported; importing it here, for
    # another error, would cost half a second and could fail itself.
    envs = sys.modules.get("rollout.envs.errors")
    return 2 if envs is not None and isinstance(error, envs.EnvError) else None
