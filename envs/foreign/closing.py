"""Letting go of environments whose own `close` may fail."""

import logging
from typing import Any

from rollout.envs.errors import raised_at

log = logging.getLogger(__name__)
_told: set[str] = set()


def close(env: Any, env_id: str) -> None:
    """Close an environment. What its `close` raises is logged, once of each id, and ends nothing:
    neither what has gone well until then, nor the error for which it is closed.
    """
    try:
        env.close()
    except (Exception, SystemExit) as error:
        if env_id not in _told:
            _told.add(env_id)
            what = f"{type(error).__name__}: {error}"
            log.warning("environment %r: close fails at %s: %s", env_id, raised_at(error), what)
