"""`check_env`: whether a compiled environment keeps the promises that the kit builds on."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rollout.envs.checks.check_report import Check, CheckReport, Status, failed, not_tried
from rollout.envs.checks.fresh_process import ProcessFailed, in_fresh_process
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.registry import as_env

SILENCE_S = 600.0  # no check takes as long, unless Numba has very much to compile


def check_env(
    env: type[CompiledEnv] | str,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    num_steps: int = 1000,
    hang_s: float = 30.0,
    on_progress: Callable[[str | Check], None] = lambda _: None,
) -> CheckReport:
    """Try an environment in every way the kit relies on; nothing it does wrong is raised.

    env: a definition, a bundled id, or `package.module:Name`. params: in place of the defaults.
    num_steps: of each environment in a check; slow simulators do fewer. hang_s: how long a call of
    one of its functions may take. on_progress: called with the name of each check that begins, and
    with each Check that is done.

    Raises EnvError where it is not the environment that is wrong, but how this was called.
    """
    env = as_env(env)
    env.make_params(params)
    for name, value, low, stop in (
        ("seed", seed, 0, 2**32),
        ("num_steps", num_steps, 1, 2**31),
    ):
        if not (isinstance(value, int | np.integer) and low <= value < stop):
            raise EnvError(f"{name}={value!r}, wanted an integer from {low} to {stop - 1}")
    # In another process, where nothing is compiled yet.
    arguments = (env, params, int(seed), int(num_steps), hang_s)
    return report_from(_checks, arguments, env.__qualname__, on_progress)


def report_from(
    checks: Callable[..., Iterator[Any]],
    arguments: tuple[Any, ...],
    subject: str,
    on_progress: Callable[[str | Check], None],
) -> CheckReport:
    """What `checks` finds in a process of its own, which may crash or hang.

    It yields the names of all checks, and then for each its name, and what it found, as a dict.
    """
    names: list[str] = []
    found_checks: list[Check] = []

    def add(check: Check) -> None:
        found_checks.append(check)
        on_progress(check)

    try:
        with contextlib.closing(
            in_fresh_process(checks, *arguments, silence_s=SILENCE_S)
        ) as values:
            for found in values:
                if isinstance(found, list):
                    names = found
                elif isinstance(found, str):
                    on_progress(found)
                else:
                    add(Check(**found | {"status": Status(found["status"])}))
    except ProcessFailed as error:
        name = names[len(found_checks)] if names else "process"
        add(failed(str(error)).named(name))
    last = found_checks[-1].name
    for name in names[len(found_checks) :]:
        add(not_tried(last).named(name))
    return CheckReport(subject, tuple(found_checks))


def _checks(*arguments: Any) -> Iterator[Any]:
    """In the process."""
    from rollout.envs.checks.all_checks import names_and_checks

    yield from names_and_checks(*arguments)
