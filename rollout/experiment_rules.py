"""Rules that join several keys of an experiment, and the environment's own about its params."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollout.errors import NetworkError
from rollout.experiment_errors import found, nearest, show_key, show_value
from rollout.experiment_file import KeyPath, Layers
from rollout.learners.settings import UnreadAlgorithm

if TYPE_CHECKING:
    from rollout.envs.registry import AnyEnv
    from rollout.experiment import Experiment

# Longer unrolls only delay the next update; this also keeps every index within 32 bits.
MAX_UNROLL_LENGTH = 2**16 - 1
# More are a memory, which network.core is for; every unroll brings the frames before it.
MAX_FRAME_STACK = 32


@dataclass(frozen=True)
class Rule:
    """check(experiment, show) says what is wrong, or None; show(key) is `key=value`.

    A rule is left out when one of its keys, or a key in its table, is wrong by itself.
    """

    keys: tuple[str, ...]
    check: Callable[[Experiment, Callable[[str], str]], str | None]


def broken_rules(
    experiment: Experiment, wrong: Collection[KeyPath], layers: Layers
) -> Iterator[str]:
    """A message for every rule that does not hold. wrong: keys that were replaced by a default."""
    for rule in RULES:
        paths = [tuple(key.split(".")) for key in rule.keys]
        if any(path[: len(w)] == w[: len(path)] for path in paths for w in wrong):
            continue
        sources = {layers.source_of(path) for path in paths if path in layers.sources}
        label = sources.pop().label if len(sources) == 1 else layers.main.label
        what = rule.check(
            experiment, lambda key, label=label: _show(key, experiment, layers, label)
        )
        if what:
            yield f"{label}: {what}"


def _show(key: str, experiment: Experiment, layers: Layers, label: str) -> str:
    """`key=value`, and where it came from if the message does not begin with that."""
    value: Any = experiment
    for name in key.split("."):
        value = getattr(value, name)
    source = layers.sources.get(tuple(key.split(".")))
    origin = source.text.removeprefix("file ") if source else "default"
    suffix = "" if source and source.label == label else f" ({origin})"
    return f"{key}={show_value(value)}{suffix}"


def _stops(experiment: Experiment, show: Callable[[str], str]) -> str | None:
    stop = experiment.stop
    if stop.env_steps is stop.episode_return is stop.wall_s is None:
        return (
            "no condition under [stop], the run would never end; "
            "write env_steps, episode_return or wall_s there"
        )
    return None


def _every_actor_has_an_environment(
    experiment: Experiment, show: Callable[[str], str]
) -> str | None:
    if experiment.fleet.num_actors > experiment.env.num_envs:
        return (
            f"{show('fleet.num_actors')} is more than {show('env.num_envs')}, an actor would have "
            f"no environment; try fleet.num_actors={experiment.env.num_envs}"
        )
    return None


def _minibatches_divide_the_batch(experiment: Experiment, show: Callable[[str], str]) -> str | None:
    num_envs, length = experiment.env.num_envs, experiment.fleet.unroll_length
    parts = experiment.num_minibatches
    if parts is None:
        return None
    if experiment.has_minibatches_of_envs and num_envs % parts:
        fitting = max(1, round(num_envs / parts)) * parts
        who = f"algorithm.kind={show_value(experiment.algorithm.kind)}"
        if experiment.network.core is not None:
            who = "network.core"
        return (
            f"{show('env.num_envs')} is not a multiple of {show('algorithm.num_minibatches')}, "
            f"and {who} needs minibatches of whole environments; try env.num_envs={fitting}"
        )
    if experiment.batch_size % parts == 0:
        return None
    step = parts // math.gcd(parts, num_envs)  # lengths that fit are its multiples
    fitting = max(step, (length + step // 2) // step * step)
    if fitting <= MAX_UNROLL_LENGTH:
        try_this = f"fleet.unroll_length={fitting}"
    else:
        try_this = f"algorithm.num_minibatches={math.gcd(experiment.batch_size, parts)}"
    return (
        f"{show('fleet.unroll_length')} × {show('env.num_envs')} is not a multiple of "
        f"{show('algorithm.num_minibatches')}; try {try_this}"
    )


def _annealing_has_an_end(experiment: Experiment, show: Callable[[str], str]) -> str | None:
    if experiment.algorithm.is_annealed and experiment.stop.env_steps is None:
        return (
            f"{show('algorithm.anneal_lr')} needs stop.env_steps, where learning_rate reaches 0; "
            "write env_steps under [stop], or leave anneal_lr out"
        )
    return None


def _normalized_rewards_have_a_discount(
    experiment: Experiment, show: Callable[[str], str]
) -> str | None:
    algorithm = experiment.algorithm
    if not algorithm.normalize_rewards or isinstance(algorithm, UnreadAlgorithm):
        return None
    if isinstance(getattr(algorithm, "gamma", None), int | float):
        return None
    return (
        f"{show('algorithm.normalize_rewards')} goes by discounted returns, and "
        f"{type(algorithm).__name__} has no gamma; give it a field gamma: float, or leave "
        "normalize_rewards out"
    )


def _only_async_sets_environments_aside(
    experiment: Experiment, show: Callable[[str], str]
) -> str | None:
    fleet = experiment.fleet
    if fleet.on_env_failure == "set_aside" and fleet.mode == "lockstep":
        return (
            f'{show("fleet.on_env_failure")} needs fleet.mode="async", in {show("fleet.mode")} '
            "every environment is part of every batch; leave on_env_failure out, or try "
            "fleet.mode=async"
        )
    return None


def _convolutions_are_whole(experiment: Experiment, show: Callable[[str], str]) -> str | None:
    network = experiment.network
    if network.kind != "conv":
        return None
    keys = ("channels", "kernel_sizes", "strides")
    counts = [len(getattr(network, key)) for key in keys]
    if len(set(counts)) == 1:
        return None
    shown = ", ".join(show(f"network.{key}") for key in keys)
    return (
        f"{shown} "
        f"have {counts[0]}, {counts[1]} and {counts[2]} numbers; write one in each for every "
        "convolution"
    )


RULES = (
    Rule(("stop",), _stops),
    Rule(("fleet.num_actors", "env.num_envs"), _every_actor_has_an_environment),
    Rule(
        ("fleet.unroll_length", "env.num_envs", "algorithm.num_minibatches", "algorithm.kind"),
        _minibatches_divide_the_batch,
    ),
    Rule(("network",), _convolutions_are_whole),
    Rule(("algorithm.anneal_lr", "stop.env_steps"), _annealing_has_an_end),
    Rule(
        ("algorithm.normalize_rewards", "algorithm.kind", "algorithm.gamma"),
        _normalized_rewards_have_a_discount,
    ),
    Rule(("fleet.on_env_failure", "fleet.mode"), _only_async_sets_environments_aside),
)


def network_problems(experiment: Experiment, env: AnyEnv, layers: Layers) -> Iterator[str]:
    """Messages if the network cannot choose the environment's actions, read what it shows, or is
    none."""
    from rollout.shapes import head_of, make_network  # with Gymnasium behind it: slow to import

    network = experiment.network
    try:
        head_of(env, network.gaussian)
    except ValueError as error:
        table = ("network", "gaussian")
        squash = (*table, "squash")
        yield f"{layers.source_of(squash if squash in layers.sources else table).label}: {error}"
        network = network.model_copy(update={"gaussian": None})
    try:
        make_network(network, env, experiment.seed)
    except (ValueError, NetworkError) as error:
        yield f"{layers.source_of(('network', 'kind')).label}: {error}"


def resolve_params(
    env: AnyEnv, chosen: Mapping[str, Any], layers: Layers
) -> tuple[dict[str, Any], list[str]]:
    """All of an environment's params: those chosen, in the type of their default, and the rest.

    Returns the params, and a message for each that the environment does not have or cannot hold.
    One of Gymnasium's was made with those chosen already, and says no more of them.
    """
    from rollout.envs.foreign.foreign_env import ForeignEnv  # slow to import

    params, problems = dict(env.params), []
    if isinstance(env, ForeignEnv):
        return params, problems
    for name, value in chosen.items():
        path = ("env", "params", name)
        label = layers.source_of(path).label
        if name not in params:
            known = nearest(path, [("env", "params", other) for other in env.params])
            what = f"unknown key {show_key(path)}, {env.__qualname__} has none such"
            problems.append(f"{label}: {what}; {known}")
            continue
        default = env.params[name]
        fitting = _in_type_of(default, value)
        if fitting is None:
            problems.append(
                f"{label}: {found(path, value, label)}wanted {_TYPES[type(default)]}; "
                f"leave it out for the environment's default, {show_value(default)}"
            )
        else:
            params[name] = fitting
    return params, problems


_TYPES = {bool: "true or false", int: "an integer of 64 bits", float: "a number"}


def _in_type_of(default: float | int | bool, value: Any) -> float | int | bool | None:
    """The value as the default's type, or None if it would not be the same number."""
    if isinstance(default, bool) or type(value) not in (int, float):
        return value if type(value) is type(default) else None
    if isinstance(default, int):
        return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None
    try:
        return float(value)
    except OverflowError:
        return None
