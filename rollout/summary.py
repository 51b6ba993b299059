"""What a run leaves when it ends: `summary.json`. Its keys are a contract."""

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rollout import __version__

# Whose versions may change a run's numbers.
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "gymnasium", "pyzmq", "safetensors")


@dataclass(frozen=True)
class PolicyLag:
    """Weights versions between an unroll's and the newest when it was trained on, over a run."""

    mean: float
    max: int


@dataclass(frozen=True)
class Ledger:
    """The account of all unrolls of a run.

    produced: sealed by actors. trained: in a batch that was trained on. in_flight: neither, when
    the account was made. dropped: by reason, those that no batch will hold.
    """

    produced: int
    trained: int
    in_flight: int
    dropped: Mapping[str, int]

    @property
    def balance(self) -> int:
        """Unrolls nobody can account for: 0, or something is wrong."""
        return self.produced - self.trained - self.in_flight - sum(self.dropped.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "produced": self.produced,
            "trained": self.trained,
            "in_flight": self.in_flight,
            "dropped": dict(self.dropped),
            "balance": self.balance,
        }


@dataclass(frozen=True)
class Summary:
    """A run that has ended.

    env_steps: steps trained on. updates: batches trained on. wall_s: seconds since the process
        started, or since `rollout.train` was called. env_steps_per_s: after the first update (0
        before there are two).
    episode_return_mean: over the last 100 episodes; None before the first.
    goal_reached: the mean of at least 100 finished episodes reached `stop.episode_return`.
    goal_reached_s: when, in the seconds of wall_s; None without.
    params_digest: see the function of this name, of the final policy.
    """

    env_steps: int
    updates: int
    wall_s: float
    env_steps_per_s: float
    episode_return_mean: float | None
    goal_reached: bool
    goal_reached_s: float | None
    params_digest: str
    num_actors: int
    actor_restarts: int
    policy_lag: PolicyLag
    ledger: Ledger
    seed: int
    config_digest: str
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The keys and values of summary.json."""
        mean = self.episode_return_mean
        if mean is not None and not math.isfinite(mean):  # JSON has no such numbers
            mean = None
        return asdict(self) | {"ledger": self.ledger.as_dict(), "episode_return_mean": mean}


def params_digest(named_arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over the arrays' little-endian float32 bytes, in the order of their names, in hex."""
    digest = hashlib.sha256()
    for name in sorted(named_arrays):
        digest.update(np.ascontiguousarray(named_arrays[name], "<f4").tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What this process runs with; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "rollout": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
