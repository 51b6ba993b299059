"""All checks of compiled environments, in their order."""

from collections.abc import Iterator, Mapping
from typing import Any

from rollout.envs.checks.check_report import Check, Step, failed, run_checks
from rollout.envs.checks.env_checks import (
    check_action_mask,
    check_autoreset,
    check_compiles,
    check_episodes,
    check_observations,
    check_params,
    check_render,
    check_rewards,
    check_runs,
    check_seeding,
    check_speed,
)
from rollout.envs.checks.equality_checks import (
    check_buffers,
    check_determinism,
    check_partition,
    check_plain_python,
    check_snapshot,
)
from rollout.envs.checks.fresh_process import end_with
from rollout.envs.checks.hang_watch import HangWatch
from rollout.envs.checks.trial import Trial
from rollout.envs.compiled_env import CompiledEnv

# What may write outside its arrays, or never return, is found in checked mode, and nothing else is
# tried then: unchecked, it could crash.
SAFE = ("compiles", "runs", "action_mask")
REPEATABLE = (*SAFE, "determinism")

CHECKS: tuple[Step, ...] = (
    ("compiles", check_compiles, ()),
    ("runs", check_runs, ("compiles",)),
    ("action_mask", check_action_mask, ("compiles", "runs")),
    ("observations", check_observations, SAFE),
    ("rewards", check_rewards, SAFE),
    ("params", check_params, SAFE),
    ("seeding", check_seeding, SAFE),
    ("determinism", check_determinism, SAFE),
    ("partition", check_partition, REPEATABLE),
    ("snapshot", check_snapshot, REPEATABLE),
    ("buffers", check_buffers, REPEATABLE),
    ("plain_python", check_plain_python, REPEATABLE),
    ("episodes", check_episodes, SAFE),
    ("autoreset", check_autoreset, REPEATABLE),
    ("render", check_render, SAFE),
    ("speed", check_speed, SAFE),
)


def names_and_checks(
    env: type[CompiledEnv],
    params: Mapping[str, Any] | None,
    seed: int,
    num_steps: int,
    hang_s: float,
) -> Iterator[Any]:
    """For a process of its own: the names of all checks, then what `run_checks` yields, as JSON."""
    yield [name for name, *_ in CHECKS]
    under_way = ""

    def tell_of_hang(text: str) -> None:
        end_with(failed(text).named(under_way).as_dict())

    with HangWatch(hang_s, tell_of_hang) as watch:
        for found in run_checks(CHECKS, Trial(env, params, seed, num_steps, watch)):
            if isinstance(found, Check):
                yield found.as_dict()
            else:
                under_way = found
                yield found
