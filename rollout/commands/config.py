"""`rollout config`: what would run, and where each value came from."""

import json
from typing import TYPE_CHECKING

import typer

from rollout.commands.arguments import AsJson, ExperimentFile, Overrides

if TYPE_CHECKING:
    from rollout.experiment import Experiment, Resolved


def config(file: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the whole experiment, and where each value came from.

    What it prints is an experiment file itself. Everything that is wrong with FILE is reported at
    once, and nothing is started.

    \b
    Example:
      rollout config configs/cartpole_ppo.toml fleet.num_actors=2
    """
    from rollout.experiment import resolve

    resolved = resolve(file, overrides or ())
    if as_json:
        typer.echo(json.dumps(_as_json(resolved), indent=2))
    else:
        _show(resolved)


def _as_json(resolved: "Resolved") -> dict[str, object]:
    experiment = resolved.experiment
    return {
        "experiment": experiment.model_dump(mode="json"),
        "sources": dict(resolved.sources),
        "batch_size": experiment.batch_size,
        "minibatch_size": experiment.minibatch_size,
        "config_digest": experiment.config_digest,
    }


def _show(resolved: "Resolved") -> None:
    from rich.console import Console
    from rich.text import Text

    from rollout.experiment import resolved_toml
    from rollout.experiment_tables import ModuleSettings
    from rollout.modules import cost_in_words

    experiment = resolved.experiment
    console = Console(highlight=False, soft_wrap=True)
    unset = _unset(experiment)
    table = ""
    for line in [*resolved_toml(experiment, resolved.sources).splitlines(), ""]:
        if line.startswith("["):
            table = line.strip("[]")
            console.print(Text(line, style="bold"))
        elif not line:
            for remark in unset.get(table, []):
                console.print(Text(remark, style="dim"))
            console.print()
        else:
            value, mark, source = line.rpartition("  # ")
            is_chosen = source != "default"
            console.print(
                Text.assemble(value, (mark + source, "cyan" if is_chosen else "dim")),
            )
    batch = f"# a batch: {experiment.batch_size:,} steps"
    if experiment.num_minibatches:
        batch += f", {experiment.num_minibatches} minibatches of {experiment.minibatch_size:,}"
    if isinstance(experiment.network, ModuleSettings):
        console.print(Text(f"# {cost_in_words(experiment.network.kind)}", style="dim"))
    console.print(Text(f"{batch}\n# config_digest: {experiment.config_digest}", style="dim"))


def _unset(experiment: "Experiment") -> dict[str, list[str]]:
    """By table: a remark about each of its keys that has no value."""
    from rollout.experiment import leaves
    from rollout.experiment_errors import keys_of, show_key

    values = experiment.model_dump()
    algorithm = experiment.algorithm
    keys = keys_of(type(experiment), values, {algorithm.kind: type(algorithm)})
    remarks: dict[str, list[str]] = {}
    for path, value in leaves(values):
        if value is None:
            remark = f"# {path[-1]} is unset: {keys[path].field.description}"
            remarks.setdefault(show_key(path[:-1]), []).append(remark)
    return remarks
