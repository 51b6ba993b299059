"""The versions of the weights that the learner has published and may still be asked for."""

import hashlib
from collections.abc import Iterable

import numpy as np

from rollout import control

MOST_VERSIONS = 64  # kept for what may have to be explained, beyond what can be asked for


class PublishedWeights:
    """policy_lag: of lockstep; 0 in async."""

    def __init__(self, policy_lag: int) -> None:
        self._policy_lag = policy_lag
        self._versions: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"PublishedWeights({len(self._versions)} versions, newest {self.newest})"

    def __contains__(self, version: int) -> bool:
        return version in self._versions

    @property
    def newest(self) -> int:
        """-1 before the first."""
        return max(self._versions, default=-1)

    def put(self, version: int, weights: bytes, in_use: Iterable[int]) -> None:
        """Keep a new version, and forget those that nobody can ask for any more.

        Lockstep on one machine: agents have pulled every version but the newest when an unroll of
        version - policy_lag is in a batch; two more are kept than can be asked for. in_use: what
        actors may be acting with, or have died of.
        """
        self._versions[version] = weights
        oldest, kept = version - self._policy_lag - 2, set(in_use)
        versions = [v for v in sorted(self._versions) if v >= oldest or v in kept]
        self._versions = {v: self._versions[v] for v in versions[-MOST_VERSIONS:]}

    def get(self, version: int) -> bytes:
        return self._versions[version]

    def vector(self, version: int) -> np.ndarray:
        """float32 [P], read-only."""
        return np.frombuffer(self._versions[version], np.float32)

    def announcement(self, version: int) -> control.Announce:
        """What a host agent is told of a version before it pulls it."""
        weights = self._versions[version]
        return control.Announce(version, len(weights), hashlib.sha256(weights).digest())

    def announcements(self) -> list[control.Announce]:
        """Of all versions, the oldest first: for a host agent that has come."""
        return [self.announcement(version) for version in sorted(self._versions)]
