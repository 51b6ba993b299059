"""Train policies in CPU-heavy simulators: one experiment file, from a laptop to a cluster.

`rollout.train(experiment)` trains, `rollout.load_policy(run)` loads what was trained, and
`rollout.evaluate(runs)` says how good it is. Importing this package is cheap; what it offers is
imported when it is first used.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Packages that this one needs. A file of such a name, beside a script or where a command is
# started, must not take the place of one.
NEEDED = (
    *("cloudpickle", "gymnasium", "llvmlite", "msgspec", "numba", "numpy", "PIL", "pydantic"),
    *("pydantic_core", "rich", "safetensors", "tensorboard", "tomli_w", "torch", "typer", "zmq"),
)

# Where each name a user may import from here is defined.
_HOMES = {
    "train": "rollout.api",
    "load_policy": "rollout.policy",
    "evaluate": "rollout.evaluate_runs",
    "Callback": "rollout.progress",
    "Progress": "rollout.progress",
}


def _check_links() -> None:
    """In a checkout, envs/ and learners/ are reached through two links that some tools drop."""
    here = Path(__file__).parent
    lost = [name for name in ("envs", "learners") if not (here / name).is_dir()]
    if lost:
        mend = "; ".join(f"ln -sfn ../{name} rollout/{name}" for name in lost)
        raise ImportError(
            f"this checkout of rollout has lost its links {', '.join(f'rollout/{n}' for n in lost)}"
            f" (some tools that unpack archives do not keep links). In {here.parent}, type: {mend}"
        )


def _check_shadows() -> None:
    """Python looks beside the script that it runs first, or in the current folder."""
    for name in NEEDED:
        file = os.path.join(os.path.abspath(sys.path[0] if sys.path else ""), f"{name}.py")
        known = getattr(sys.modules.get(name), "__file__", file)
        if known == file and os.path.isfile(file):
            raise ImportError(
                f"{file} takes the place of the package {name}, which rollout needs; rename it"
            )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rollout' has no attribute {name!r}")
    from rollout.errors import require_linux

    require_linux()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


_check_links()
_check_shadows()
