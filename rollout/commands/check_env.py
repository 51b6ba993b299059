"""`rollout check-env`: whether an environment does all that the fleet relies on."""

import contextlib
import io
import json
import os
import sys
import time
import tomllib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout.commands.arguments import AsJson
from rollout.env_source import EnvSource

if TYPE_CHECKING:
    from rollout.envs.checks.check_report import Check, CheckReport

MARKS = {"passed": "✓", "failed": "✗", "warning": "!", "not applicable": "–", "not tried": "–"}
COLORS = {"passed": "green", "failed": "bold red", "warning": "yellow"}
NAME_WIDTH = 14


def check_env(
    env: Annotated[
        str,
        typer.Argument(
            metavar="ENV",
            help="A bundled id, package.module:Name, looked for in this folder first, "
            "gymnasium:ID, or an experiment file.",
            show_default=False,
        ),
    ],
    params: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PARAM=VALUE", help="Params over the defaults: force=12.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Begins what is random.")] = 0,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", metavar="N", min=1, help="Of each environment in a check, at most."
        ),
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """Try an environment in every way that a fleet relies on.

    Whether it compiles, keeps inside its arrays and spaces, gives the same bits twice, split
    differently, from a snapshot and in plain Python, ends its episodes, and how fast it is. What is
    wrong is named with its file and line, and the environment, episode and step. Of one of
    Gymnasium's: which of these powers it has, such as a state that can be saved.

    Exit status: 0 if no check fails, 1 if one does, 2 if there is no such environment or param.

    \b
    Example:
      rollout check-env CartPole-v1
      rollout check-env walk:Walk wind=0.1
      rollout check-env gymnasium:HalfCheetah-v5
    """
    from rollout.envs.checks.check_env import check_env as check
    from rollout.envs.checks.check_foreign_env import check_foreign_env
    from rollout.envs.foreign.foreign_env import ForeignEnv
    from rollout.envs.registry import find_any_env

    chosen = dict(map(_parsed, params or ()))
    source = _source(env, chosen)
    with contextlib.redirect_stdout(sys.stderr):  # what its module prints is not our answer
        definition = find_any_env(source)
    began = time.monotonic()
    view = None if as_json else _View()
    tell = view.tell if view else lambda _: None
    if isinstance(definition, ForeignEnv):
        report = check_foreign_env(source, seed=seed, num_steps=steps, on_progress=tell)
    else:
        report = check(definition, source.params, seed=seed, num_steps=steps, on_progress=tell)
    if view is None:
        typer.echo(json.dumps({"env": env} | report.as_dict(), indent=2))
    else:
        view.tell_of_untried(report)
        typer.echo(f"\n{env}: {_counted(report)}, in {time.monotonic() - began:.1f} s")
    raise typer.Exit(0 if report.has_passed else 1)


def _source(env: str, params: dict[str, Any]) -> EnvSource:
    """What is named, or an experiment file trains in."""
    if env.endswith(".toml"):
        from rollout.experiment import load_experiment

        overrides = [f"env.params.{name}={json.dumps(value)}" for name, value in params.items()]
        return load_experiment(env, overrides, reads_algorithm=False).env.source
    return EnvSource(id=env, params=params, folder=os.getcwd())


def _parsed(param: str) -> tuple[str, Any]:
    """(name, value) of `name=value`, its value as TOML has it."""
    name, equals, value = param.partition("=")
    if not equals:
        raise typer.BadParameter(f"{param!r}, wanted PARAM=VALUE")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value  # which no param can be, and the environment says so best


def _counted(report: "CheckReport") -> str:
    counts = {status: sum(check.status == status for check in report.checks) for status in MARKS}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


class _View:
    """Shows each check when it is done; on a terminal also the one under way."""

    def __init__(self) -> None:
        from rich.console import Console

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal may lack the marks
        self._console = Console(highlight=False)
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal

    def tell(self, found: "str | Check") -> None:
        if self._is_live:
            typer.echo("\r\x1b[2K", nl=False)  # away with what was under way
        if isinstance(found, str):
            if self._is_live:
                typer.echo(f"… {_shown(found)}", nl=False)
        elif found.status != "not tried":
            self._show(found.status, _shown(found.name), found.finding)

    def tell_of_untried(self, report: "CheckReport") -> None:
        """One line for all checks that were not tried for the same reason."""
        untried: dict[str, list[str]] = {}
        for check in report.checks:
            if check.status == "not tried":
                untried.setdefault(check.finding, []).append(_shown(check.name))
        for finding, names in untried.items():
            self._show("not tried", "not tried", f"{finding}: {', '.join(names)}")

    def _show(self, status: str, name: str, finding: str) -> None:
        mark = MARKS[status]
        if not self._console.is_terminal:  # whoever reads it wants whole lines
            indent = "\n" + " " * (NAME_WIDTH + 3)
            typer.echo(f"{mark} {name:{NAME_WIDTH}} {finding}".replace("\n", indent))
            return
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_column(width=1)
        row.add_column(width=NAME_WIDTH)
        row.add_column(overflow="fold")
        color = COLORS.get(status, "dim")
        dim = "" if status in COLORS else "dim"
        row.add_row(Text(mark, color), Text(name, dim), Text(finding, dim))
        self._console.print(row)


def _shown(name: str) -> str:
    return name.replace("_", " ")
