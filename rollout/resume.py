"""Going on with a run: from which checkpoint, with which experiment, and what may have changed.

What the learning curve depends on changes only when somebody says so: a difference between
config.toml and the checkpoint that no override names is refused. What says where, how carefully and
for how long a run goes on (see Experiment.curve) may differ without a word.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rollout.checkpoint import Checkpoint, load_newest, policy_parameters
from rollout.errors import OperatorError, RunFailed
from rollout.experiment import Experiment, leaves, resolve, resolved_toml
from rollout.experiment_errors import show_key, show_value
from rollout.learners.network import Network
from rollout.learners.unroll import UnrollSchema
from rollout.results import ENV_STATE
from rollout.run_directory import RunDirectory, write_atomically

# What no override allows, by table or key, and why.
NEVER = {
    "env.id": "a policy does not fit another environment",
    "network": "the parameters do not fit another network",
    "algorithm.kind": "the optimizer's state does not fit another algorithm",
}

# With another one of these, states of the environments do not fit.
OF_STATES = ("env.num_envs", "env.params", "seed")


@dataclass(frozen=True)
class Change:
    """A key whose value differs from the checkpoint's; None is a value that is left out."""

    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{_shown(self.before)} there, {_shown(self.now)} now"


@dataclass(frozen=True)
class Resumption:
    """How a run will go on.

    before: the checkpoint's experiment. changes: what differs from it, by dotted key.
    """

    experiment: Experiment
    before: Experiment
    checkpoint: Checkpoint
    changes: Mapping[str, Change]

    def __repr__(self) -> str:
        return f"Resumption({self.checkpoint!r}, changes={list(self.changes)})"

    @property
    def changes_curve(self) -> bool:
        """Whether the learning curve is another experiment's from here on."""
        return self.experiment.curve != self.before.curve

    @property
    def keeps_states(self) -> bool:
        """Whether environments go on where they were; else all begin with a reset."""
        return not any(_is_of(key, OF_STATES) for key in self.changes)

    @property
    def warning(self) -> str | None:
        """What people should know about the changes."""
        if self.keeps_states:
            return None
        keys = ", ".join(key for key in self.changes if _is_of(key, OF_STATES))
        return f"{keys} changed, so every environment starts a new episode"


def plan_resume(
    run: RunDirectory, overrides: Iterable[str] = (), algorithm: Any = None
) -> Resumption:
    """How a run goes on: from its newest good checkpoint, as config.toml and `key=value` say.

    algorithm: its class, if that was given as an object. Changes nothing. Raises ConfigError for
    what is wrong with the two, and OperatorError if no checkpoint is good, or for changes that
    nobody asked for or that cannot be.
    """
    checkpoint = load_newest(run)
    env, network = run.given
    resolved = resolve(run.config, overrides, env=env, algorithm=algorithm, network=network)
    before = checkpoint.learnable(algorithm)
    changes = _differences(before, resolved.experiment)
    resumption = Resumption(resolved.experiment, before, checkpoint, changes)
    _refuse_the_impossible(run, resumption)
    curve = {*_values(before.curve), *_values(resolved.experiment.curve)}
    silent = {
        key: change
        for key, change in changes.items()
        if key in curve and resolved.sources.get(key) != "override"
    }
    if silent:
        raise OperatorError(_silent_changes(run, checkpoint, silent))
    return resumption


def check_fit(resumption: Resumption, network: Network, schema: UnrollSchema) -> None:
    """Raises OperatorError if the checkpoint is of another network or other environment states."""
    checkpoint = resumption.checkpoint
    policy_parameters(checkpoint, network)
    if not resumption.keeps_states:
        return
    kept, now = checkpoint.arrays[ENV_STATE], schema.state_fields
    then = checkpoint.state.get("state_fields", now)
    if kept.shape[1] != schema.state_bytes or then != now:
        env = resumption.experiment.env.find()
        sizes = f"{schema.state_bytes} bytes", f"{kept.shape[1]} bytes"
        is_now, was = (now, then) if then != now else sizes
        raise OperatorError(
            f"the state of {env.__qualname__} is {is_now}, in {checkpoint.path.name} it "
            f"is {was}: it was changed since; undo that, or start a new run"
        )


def begin_resume(run: RunDirectory, resumption: Resumption) -> None:
    """Have config.toml, and `run`, say what the run goes on as. Raises RunFailed."""
    if resumption.experiment != run.experiment:
        try:
            write_atomically(run.config, resolved_toml(resumption.experiment).encode())
        except OSError as error:
            raise RunFailed(f"{run.config}: cannot be written: {error.strerror}") from error
    run.experiment = resumption.experiment


def _differences(before: Experiment, now: Experiment) -> dict[str, Change]:
    old, new = _values(before.model_dump(mode="json")), _values(now.model_dump(mode="json"))
    changes = {key: Change(old.get(key), new.get(key)) for key in {**old, **new}}
    return {key: change for key, change in changes.items() if change.before != change.now}


def _refuse_the_impossible(run: RunDirectory, resumption: Resumption) -> None:
    checkpoint, changes = resumption.checkpoint, resumption.changes
    found = [
        f"  {key}: {changes[key]}: {reason}"
        for kind, reason in NEVER.items()
        for key in changes
        if _is_of(key, (kind,))
    ]
    if found:
        raise OperatorError(
            "\n".join(
                [
                    f"{run.path}: cannot go on from {checkpoint.path.name} with a change of",
                    *found,
                    f"undo it, or start a new run: rollout train {shlex.quote(str(run.config))} …",
                ]
            )
        )
    set_aside = checkpoint.state.get("set_aside") if resumption.keeps_states else None
    if set_aside and resumption.experiment.fleet.mode == "lockstep":
        raise OperatorError(
            f"{run.path}: environments set aside: {', '.join(map(str, set_aside))}; lockstep "
            "cannot do without them, so resume it with fleet.mode=async"
        )


def _silent_changes(
    run: RunDirectory, checkpoint: Checkpoint, changes: Mapping[str, Change]
) -> str:
    named = " ".join(
        shlex.quote(f"{key}={_typed(change.now)}")
        for key, change in changes.items()
        if change.now is not None
    )
    say = f", or say so: rollout train --resume {shlex.quote(str(run.path))} {named}"
    return "\n".join(
        [
            f"{run.config}: not what {checkpoint.path.name} was trained with:",
            *(f"  {key}: {change}" for key, change in changes.items()),
            f"undo it in {run.config}{say if named else ''}",
        ]
    )


def _values(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {show_key(path): value for path, value in leaves(tables)}


def _is_of(key: str, tables: Iterable[str]) -> bool:
    return any(key == table or key.startswith(f"{table}.") for table in tables)


def _shown(value: Any) -> str:
    return "left out" if value is None else show_value(value)


def _typed(value: Any) -> str:
    """A value as one types it behind key=; text needs no quotes there."""
    return value if isinstance(value, str) else show_value(value)
