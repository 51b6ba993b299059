"""Updates with steps that the optimizer's guard has skipped: what they were made from."""

import numpy as np

from rollout.assembler import FullBatch, Origin
from rollout.learners.unroll import Batch

MOST_SHOWN = 4  # origins; of an update with more, the rest are counted


def describe_skipped(update: int, skipped: int, ready: FullBatch) -> str:
    """What people are told of an update with skipped steps: how many, and of which unrolls.

    All that arrives is finite, so no row is to blame by itself: what is too large is the likeliest
    cause, and is named with the unroll that brought it.
    """
    steps = "step was skipped, its" if skipped == 1 else "steps were skipped, their"
    origins = ready.origins
    shown = ", ".join(map(str, origins[:MOST_SHOWN]))
    if len(origins) > MOST_SHOWN:
        shown += f" and {len(origins) - MOST_SHOWN} more"
    return (
        f"update {update}: {skipped} optimizer {steps} loss or gradient was not finite; "
        f"trained on {shown}; {', '.join(_largest(ready.batch, origins))}"
    )


def _largest(batch: Batch, origins: list[Origin]) -> list[str]:
    """The largest number of each field, by size, and where it is."""
    found = []
    for name in ("reward", "value", "behavior_log_prob", "observation"):
        column = getattr(batch, name)
        if column.dtype.kind != "f" or not column.size:
            continue
        rows = np.abs(column).reshape(*column.shape[:2], -1).max(axis=2)
        t, b = map(int, np.unravel_index(int(rows.argmax()), rows.shape))
        env = int(batch.env[b])
        unroll = next(origin for origin in origins if b in origin).unroll_index
        place = f"environment {env}, unroll {unroll}, step {t} of it"
        found.append(f"largest {name} {rows[t, b]:.3g} ({place})")
    return found
