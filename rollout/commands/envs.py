"""`rollout envs`: the environments that come bundled, or all about one."""

import json
import os
from typing import Annotated, Any

import typer

from rollout.commands.arguments import AsJson
from rollout.env_source import EnvSource


def envs(
    env: Annotated[
        str | None,
        typer.Argument(
            metavar="[ENV]",
            help="One to tell all about; package.module:Name and gymnasium:ID, too.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the bundled environments, or tell all about one.

    All is its spaces, time limit, and the defaults of what `env.params` may set. An environment of
    your own is named package.module:Name in an experiment file, one of Gymnasium's gymnasium:ID.

    \b
    Example:
      rollout envs Breakout-MinAtar
    """
    from rollout.envs.registry import BUNDLED

    if env is not None:
        about = _as_dict(env, _find(env))
        typer.echo(json.dumps(about, indent=2) if as_json else _details(about))
        return
    found = [_as_dict(env_id, _find(env_id)) for env_id in BUNDLED]
    if as_json:
        for about in found:
            del about["inputs"]  # hundreds of names
        typer.echo(json.dumps(found, indent=2))
        return
    width = max(len(about["id"]) for about in found)
    for about in found:
        typer.echo(f"{about['id']:{width}}  {about['description']}")


def _details(about: dict[str, Any]) -> str:
    params = ", ".join(f"{name} = {json.dumps(v)}" for name, v in about["params"].items())
    limit, inputs = about["max_episode_steps"], about["inputs"]
    return "\n".join(
        [
            f"{about['id']}  {about['description']}",
            f"  observation  {about['observation_space']}",
            f"  network      reads {len(inputs):,} numbers, {_few(inputs)}",
            f"  action       {about['action_space']}",
            f"  params       {params or 'none'}",
            f"  time limit   {f'{limit:,} steps' if limit else 'none'}",
            f"  video        {'yes' if about['has_video'] else 'no'}",
        ]
    )


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else ", ".join([*names[:3], "…", names[-1]])


def _find(env_id: str) -> Any:
    from rollout.envs.registry import find_any_env

    return find_any_env(EnvSource(id=env_id, folder=os.getcwd()))


def _as_dict(env_id: str, env: Any) -> dict[str, Any]:
    from rollout.envs.layouts import observation_layout
    from rollout.envs.registry import can_render

    return {
        "id": env_id,
        "description": (env.__doc__ or "").strip().partition("\n")[0],
        "observation_space": _space(env.observation_space),
        "inputs": observation_layout(env.observation_space).names(),
        "action_space": _space(env.action_space),
        "params": dict(env.params),
        "max_episode_steps": env.max_episode_steps,
        "has_video": can_render(env),
    }


def _space(space: Any) -> str:
    """A space on one line; a Box with its extremes."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        return str(space)
    shape = ", ".join(map(str, space.shape))
    return f"Box [{shape}] {space.dtype}, {space.low.min():g} to {space.high.max():g}"
