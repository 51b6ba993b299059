"""What the fleet can do with an environment of Gymnasium's kind, and what it cannot.

It is not for us to say how such an environment should be written (gymnasium.utils.env_checker
does): these checks tell which of a compiled environment's powers it has.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from rollout.env_source import EnvSource
from rollout.envs import philox
from rollout.envs.checks.check_env import report_from
from rollout.envs.checks.check_report import (
    Check,
    CheckReport,
    Result,
    Step,
    failed,
    not_applicable,
    passed,
    run_checks,
    warning,
)
from rollout.envs.foreign.foreign_env import PICTURES, ForeignEnv
from rollout.envs.foreign.making import make_envs
from rollout.envs.foreign.observations import Misfit, check_bounds
from rollout.envs.foreign.trying_out import Trial
from rollout.envs.registry import find_any_env

NUM_ENVS = 4
SPEED_S = 1.0  # at least, for a figure that can be believed
SAMPLES = 200  # observations that are asked whether they lie in their space


def check_foreign_env(
    source: EnvSource,
    *,
    seed: int = 0,
    num_steps: int = 1000,
    on_progress: Callable[[str | Check], None] = lambda _: None,
) -> CheckReport:
    """Try what the fleet does with an environment, in a process of its own.

    source: of one that is not compiled. The other arguments are those of check_env.
    """
    return report_from(_checks, (source, seed, num_steps), source.id, on_progress)


class ForeignTrial:
    """An environment on trial: what the checks share."""

    def __init__(self, source: EnvSource, seed: int, num_steps: int) -> None:
        self.source, self.seed, self.num_steps = source, seed, num_steps
        self.num_envs = NUM_ENVS
        self.threads_before = _num_threads()

    @property
    def env(self) -> ForeignEnv:
        """Made once; see check_made."""
        found = find_any_env(self.source)
        assert isinstance(found, ForeignEnv)
        return found

    def play(self, num_steps: int, first: int = 0, count: int | None = None) -> list[bytes]:
        """What environments first, …, first + count - 1 of all give, step by step, each."""
        count = self.num_envs if count is None else count
        with _Playing(self.env, count, self.seed, first) as acting:
            # All draw the actions of all, so that each gets the same whoever is beside it.
            shown = acting.envs.observation()
            columns = [shown[i].tobytes() for i in range(count)]
            for _ in range(num_steps):
                came = acting.step(acting.draw(self.num_envs)[first : first + count])
                for i in range(count):
                    columns[i] += b"".join(one[i].tobytes() for one in came)
        return columns


class _Playing(Trial):
    """Environments that are closed at the end."""

    def __init__(self, env: ForeignEnv, num_envs: int, seed: int, first_env: int = 0) -> None:
        super().__init__(make_envs(env, num_envs, seed, first_env=first_env), seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.envs.close()


def check_made(trial: ForeignTrial) -> Result:
    env = trial.env
    trial.num_envs = -(-NUM_ENVS // env.group) * env.group
    how = "by a vector environment of its own" if env.is_vector else "one after the other"
    if env.group > 1:
        how = f"as games of {env.group} agents, each an environment"
    started = _num_threads() - trial.threads_before
    if started > 0:
        return passed(
            f"stepped {how}; it starts threads, so that each actor imports it anew", threads=started
        )
    return passed(f"stepped {how}; imported once, before actors are forked")


def check_runs(trial: ForeignTrial) -> Result:
    with _Playing(trial.env, trial.num_envs, trial.seed) as acting:
        lengths: list[int] = []
        ended = 0
        for _ in range(trial.num_steps):
            before = acting.envs.clocks["t"].copy()
            came = acting.step()
            quantities = [came[1]] + ([came[0]] if came[0].dtype.kind == "f" else [])
            if not all(np.isfinite(one).all() for one in quantities):
                return failed("an observation or a reward is not finite")
            is_over = came[2] | came[3]
            lengths += (before[is_over] + 1).tolist()
            ended += int(np.count_nonzero(came[3]))
    limit = trial.env.max_episode_steps
    if not lengths and limit is None and not trial.env.is_vector:
        return warning(
            f"{trial.num_steps:,} steps of {trial.num_envs} environments: no error, but no episode "
            "ended; if it has no time limit of its own, set env.max_episode_steps"
        )
    return passed(
        f"{trial.num_steps:,} steps of {trial.num_envs} environments: no error; {len(lengths):,} "
        f"episodes ended at random play, {ended:,} truncated; time limit {limit or 'its own'}",
        episodes=len(lengths),
        mean_length=float(np.mean(lengths)) if lengths else None,
    )


def check_observations(trial: ForeignTrial) -> Result:
    env = trial.env
    with _Playing(env, trial.num_envs, trial.seed) as acting:
        rows = acting.envs.observation()
        for k in range(min(SAMPLES, trial.num_steps)):
            try:
                for row in rows:
                    check_bounds(env.observation_space, row)
            except Misfit as error:
                if k <= 1:
                    return failed(f"{error}; no run begins with it")
                return warning(f"after {k} steps one lies elsewhere: {error}")
            rows = acting.step()[0]
    return passed("all lie in observation_space")


def check_seeding(trial: ForeignTrial) -> Result:
    steps = min(trial.num_steps, 100)
    first, again = (trial.play(steps) for _ in range(2))
    if first != again:
        return warning(
            "two runs of the same seed differ: take all randomness from self.np_random, or no run "
            "can be repeated"
        )
    middle = trial.num_envs // 2 // trial.env.group * trial.env.group
    if middle and trial.play(steps, middle, trial.num_envs - middle) != first[middle:]:
        return warning(
            "what one gives depends on those beside it: the learning curve will depend on the "
            "number of actors"
        )
    return passed("the same seed gives the same bits, whoever stands beside")


def check_state(trial: ForeignTrial) -> Result:
    env = trial.env
    if env.has_hidden_state:
        return not_applicable(
            f"hidden: {env.hides_state_because}. Where an actor dies, and where a run is resumed, "
            "its episodes begin anew"
        )
    size = env.state_bytes - philox.CLOCK.itemsize
    return passed(
        f"saved in up to {size:,} bytes, and restored in another it goes on in the same bits: "
        "recovery and resuming are exact",
        bytes=size,
    )


def check_render(trial: ForeignTrial) -> Result:
    env = trial.env
    if not env.renders:
        return not_applicable(f"it has no render mode {PICTURES}")
    envs = make_envs(env, 1, trial.seed, pictures=True)
    try:
        picture = envs.render()
    except Exception as error:  # a machine without a screen, mostly
        return warning(f"no picture here: {type(error).__name__}: {error}")
    finally:
        envs.close()
    if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3):
        return failed(f"render returns {type(picture).__name__}, wanted uint8 [height, width, 3]")
    return passed(f"uint8 {list(picture.shape)}")


def check_speed(trial: ForeignTrial) -> Result:
    with _Playing(trial.env, trial.num_envs, trial.seed) as acting:
        steps, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < SPEED_S:
            acting.step()
            steps += trial.num_envs
    return passed(f"{steps / took:,.0f} steps/s of {trial.num_envs} in one process")


CHECKS: tuple[Step, ...] = (
    ("made", check_made, ()),
    ("runs", check_runs, ("made",)),
    ("observations", check_observations, ("made", "runs")),
    ("seeding", check_seeding, ("made", "runs")),
    ("state", check_state, ("made", "runs")),
    ("render", check_render, ("made", "runs")),
    ("speed", check_speed, ("made", "runs")),
)


def _checks(source: EnvSource, seed: int, num_steps: int) -> Iterator[Any]:
    """In the process."""
    yield [name for name, *_ in CHECKS]
    for found in run_checks(CHECKS, ForeignTrial(source, seed, num_steps)):
        yield found if isinstance(found, str) else found.as_dict()


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))
