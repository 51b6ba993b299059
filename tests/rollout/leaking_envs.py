"""A compiled environment whose actors lose memory with every unroll."""

from pathlib import Path

import numpy as np

from rollout.acting import UnrollActor
from rollout.envs.diagnostic.counting import Counting

UNROLL_BYTES = 2 << 20


class Leaking(Counting):
    """Counting-v0; what leaks is around it, as a record holds nothing of the kind."""


if Path("/proc/self/comm").read_text().strip() == "rollout-templ":  # whoever else imports it
    act, kept = UnrollActor.act, []

    def leak(self: UnrollActor, weights: np.ndarray, greedy: bool = False) -> memoryview:
        kept.append(b"x" * UNROLL_BYTES)
        return act(self, weights, greedy)

    UnrollActor.act = leak
