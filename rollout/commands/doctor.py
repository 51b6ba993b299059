"""`rollout doctor`: what this machine can hold."""

import json
from dataclasses import asdict

import typer

from rollout.commands.arguments import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can hold, and what to change.

    Exit status 0, or 1 if something keeps a run from starting.

    \b
    Example:
      rollout doctor
    """
    from rollout.doctor import examine, fewest_actors

    checks = examine()
    limit = fewest_actors(checks)
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        found = {
            "checks": [asdict(check) for check in checks],
            "max_actors": limit.max_actors if limit else None,
        }
        typer.echo(json.dumps(found, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            typer.echo(f"{check.status:4}  {check.name:{width}}  {check.found}")
            if check.next_move:
                typer.echo(f"{'':4}  {'':{width}}  → {check.next_move}")
        if limit:
            typer.echo(f"\nAbout {limit.max_actors:,} actors at most, because of {limit.name}.")
    raise typer.Exit(1 if failed else 0)
