"""`rollout new-env`: an environment to begin with."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def new_env(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.py", help="What to write; test_FILE.py beside it.", show_default=False
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="CLASS",
            help="Name of the environment; else after the file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a small environment that works, and its test.

    Nothing is overwritten. envs/README.md explains each part, from nothing to a trained policy.

    \b
    Example:
      rollout new-env walk.py
    """
    from rollout.new_env import write_new_env

    new = write_new_env(file, name)
    typer.echo(f"wrote {new.file} and {new.test}\n\nNext:")
    if new.file.parent != Path():
        typer.echo(f"  cd {shlex.quote(str(new.file.parent))}")
    toml = f"{new.file.stem}.toml"
    typer.echo(f"  rollout check-env {new.id}")
    typer.echo(f"  python -m pytest {new.test.name}")
    typer.echo(f"  printf '{_experiment(new.id)}' > {toml}")
    typer.echo(f"  rollout train {toml} --run-dir runs/first")
    typer.echo(f"  rollout eval runs/first --video {new.file.stem}.gif")


def _experiment(env_id: str) -> str:
    """An experiment file, as printf takes it."""
    tables = (
        f'[env]\nid = "{env_id}"\n',
        "[algorithm]\nlearning_rate = 3e-3\n",
        "[stop]\nenv_steps = 300_000\n",
    )
    return "\n".join(tables).replace("\n", "\\n")
