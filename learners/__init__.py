"""Networks, unrolls, batches and the algorithms that learn from them.

What an algorithm of your own needs is imported when it is first used: actors read modules of this
package, and need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm, Inputs, Metrics, mean_metrics
    from rollout.learners.gae import batch_gae
    from rollout.learners.settings import AlgorithmSettings
    from rollout.learners.unroll import Batch

__all__ = [
    "Algorithm",
    "AlgorithmSettings",
    "Batch",
    "Inputs",
    "Metrics",
    "batch_gae",
    "mean_metrics",
]

_HOMES = {
    "Algorithm": "algorithm",
    "AlgorithmSettings": "settings",
    "Batch": "unroll",
    "Inputs": "algorithm",
    "Metrics": "algorithm",
    "batch_gae": "gae",
    "mean_metrics": "algorithm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
