"""What the receiver tells the learner, in one queue; full batches come the same way."""

from dataclasses import dataclass

from rollout.assembler import FullBatch
from rollout.envs.errors import EnvError
from rollout.errors import RunFailed


@dataclass(frozen=True)
class PhaseChanged:
    """The fleet is a step further on its way to the first unroll."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something happened that people will want to know; the run goes on."""

    text: str


@dataclass(frozen=True)
class FleetFailed:
    """The run cannot go on."""

    error: RunFailed | EnvError


@dataclass(frozen=True)
class FleetStopped:
    """All actors have ended, and the account is final."""


@dataclass(frozen=True)
class Interrupted:
    """Ctrl-C or SIGTERM."""

    signal_number: int


Event = FullBatch | PhaseChanged | Notice | FleetFailed | FleetStopped | Interrupted
