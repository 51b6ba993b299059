"""An environment on trial: what every check begins with."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rollout.envs.batch import Envs, record_dtype
from rollout.envs.checks.checked_run import CheckedRun
from rollout.envs.checks.hang_watch import HangWatch
from rollout.envs.checks.random_play import Player
from rollout.envs.compiled_env import CompiledEnv

NUM_ENVS = 8
AT_ONCE_BYTES = 2**28  # of the states of environments that play together
LIMIT_S = 5.0  # a check is content with fewer steps by then: simulators may be slow
HIDDEN = "has_hidden_state = True: no two runs can be compared"


@dataclass
class Trial:
    """An environment, and how it is tried.

    num_steps: how many each environment does in a check. run: what checked mode found, once
    `check_runs` is done.
    """

    env: type[CompiledEnv]
    params: Mapping[str, Any] | None
    seed: int
    num_steps: int
    watch: HangWatch = field(default_factory=HangWatch)
    run: CheckedRun = field(init=False)

    def as_many_as_fit(self, wanted: int) -> int:
        """How many environments, if states are so large that memory is short; at least two."""
        return min(wanted, max(2, AT_ONCE_BYTES // record_dtype(self.env).itemsize))

    def envs(self, num_envs: int = NUM_ENVS, *, seed: int | None = None, **how: Any) -> Envs:
        seed = self.seed if seed is None else seed
        return Envs(self.env, num_envs, seed, params=self.params, **how)

    def player(self, *parts: Envs, t: int = 0) -> Player:
        """These, or NUM_ENVS new ones; t: which step's actions come next."""
        return Player(parts or [self.envs()], self.seed, t)

    def play(self, player: Player, num_steps: int, limit_s: float = LIMIT_S) -> None:
        end = time.monotonic() + limit_s
        for _ in range(num_steps):
            player.step()
            if time.monotonic() > end:
                return


def counted(num_steps: int, num_envs: int = NUM_ENVS) -> str:
    """`1,000 steps of 8 environments`."""
    steps = f"{num_steps:,} step{'s' * (num_steps != 1)}"
    return f"{steps} of {num_envs:,} environment{'s' * (num_envs != 1)}"
