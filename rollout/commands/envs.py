"""`rollout envs`: the environments that come bundled."""

import json
from typing import Any

import typer

from rollout.commands.arguments import AsJson


def envs(as_json: AsJson = False) -> None:
    """List the bundled environments.

    With their spaces, time limit, and the defaults of what `env.params` may set. An environment of
    your own is named package.module:Name in an experiment file.

    \b
    Example:
      rollout envs
    """
    from rollout.envs.registry import BUNDLED, find_env

    found = [_as_dict(env_id, find_env(env_id)) for env_id in BUNDLED]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for n, env in enumerate(found):
        params = ", ".join(f"{name} = {json.dumps(v)}" for name, v in env["params"].items())
        limit = env["max_episode_steps"]
        typer.echo(("\n" if n else "") + f"{env['id']}  {env['description']}")
        typer.echo(f"  observation  {env['observation_space']}")
        typer.echo(f"  action       {env['action_space']}")
        typer.echo(f"  params       {params or 'none'}")
        typer.echo(f"  time limit   {f'{limit:,} steps' if limit else 'none'}")
        typer.echo(f"  video        {'yes' if env['has_video'] else 'no'}")


def _as_dict(env_id: str, env: Any) -> dict[str, Any]:
    return {
        "id": env_id,
        "description": (env.__doc__ or "").strip().partition("\n")[0],
        "observation_space": _space(env.observation_space),
        "action_space": _space(env.action_space),
        "params": dict(env.params),
        "max_episode_steps": env.max_episode_steps,
        "has_video": hasattr(env, "render"),
    }


def _space(space: Any) -> str:
    """A space on one line; a Box with its extremes."""
    if hasattr(space, "n"):
        return f"Discrete({space.n})"
    shape = ", ".join(map(str, space.shape))
    return f"Box [{shape}] {space.dtype}, {space.low.min():g} to {space.high.max():g}"
