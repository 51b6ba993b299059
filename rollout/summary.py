"""What a run leaves when it ends: `summary.json`. Its keys are a contract."""

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rollout import __version__
from rollout.ledger import Ledger

# Whose versions may change a run's numbers.
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "gymnasium", "pyzmq", "safetensors")


@dataclass(frozen=True)
class PolicyLag:
    """Weights versions between an unroll's and the newest when it was trained on, over a run.

    counts: environments' unrolls by lag.
    """

    mean: float
    max: int
    counts: Mapping[int, int] = field(default_factory=dict)


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
    actor_restarts, host_restarts: since the process started. memory_restarts: of those of actors,
        for fleet.max_actor_memory. envs_set_aside: environments that failed and are acted no more.
        episodes_lost: of environments with hidden state, by reason.
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
    memory_restarts: int
    host_restarts: int
    envs_set_aside: int
    episodes_lost: Mapping[str, int]
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
        lag = asdict(self.policy_lag)
        lag["counts"] = {str(version): n for version, n in self.policy_lag.counts.items()}
        others = {"ledger": self.ledger.as_dict(), "policy_lag": lag, "episode_return_mean": mean}
        return asdict(self) | others

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Summary":
        """What `as_dict` returned, and JSON may have been in between. Raises ValueError."""
        try:
            lag = content["policy_lag"]
            counts = {int(version): count for version, count in lag["counts"].items()}
            others = {
                "policy_lag": PolicyLag(lag["mean"], lag["max"], counts),
                "ledger": Ledger.from_dict(content["ledger"]),
            }
            return cls(**{**content, **others})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a summary of this version of rollout: {error!r}") from error


def show_number(value: float) -> str:
    """A return, or the like, for people: 1,234.5, 22.4, 0.956."""
    return f"{value:,.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


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
