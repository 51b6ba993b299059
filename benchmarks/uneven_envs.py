"""How much of the actors' time goes into environments and policy where steps are uneven?

Slow-v0, of whose steps 10 % take 20 times as long as the others, in async and in lockstep, in turn:
the share of the actors' time in acting, after the first updates; the rest is waiting for weights or
for credit. Each actor has two environments, so that its unrolls are as uneven as they can be; with
unrolls of 64 steps, the default. Every run must account for each unroll. `key=value` arguments
change the experiment.
"""

import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

from rollout import api
from rollout.experiment import Experiment, load_experiment
from rollout.progress import Progress

CONFIG = Path(__file__).parent.parent / "configs" / "cartpole_throughput.toml"
SETTINGS = (
    "learner.device=cpu",
    'env.id="Slow-v0"',
    "env.num_envs=16",
    "fleet.num_actors=8",
    "fleet.unroll_length=64",
    "algorithm.vtrace=true",
    "algorithm.num_minibatches=1",
    "network.hidden_sizes=[16]",
)
MODES = ("async", "lockstep")
UPDATES, UNMEASURED = 40, 5
REPEATS = 2
WANTED_SHARE = 0.9


class ActingShares(api.Callback):
    """Collects the share of the actors' time in acting, of each update that is measured."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def write(self, progress: Progress) -> None:
        if progress.update > UNMEASURED:
            self.shares.append(progress.time_split["actor/act"])


def prepare(mode: str, overrides: list[str]) -> Experiment:
    settings = [*SETTINGS, f"fleet.mode={mode}", *overrides]
    steps = UPDATES * load_experiment(CONFIG, settings).batch_size
    return load_experiment(CONFIG, [*settings, f"stop.env_steps={steps}"])


def train(experiment: Experiment) -> tuple[float, float]:
    """The share in acting, and env steps per second."""
    shares = ActingShares()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        summary = api.train(experiment, run_dir=run_dir, callbacks=[shares]).summary
    assert summary.ledger.is_balanced and summary.actor_restarts == 0, summary.ledger.unrolls
    assert len(shares.shares) >= UPDATES - UNMEASURED, len(shares.shares)
    return float(np.mean(shares.shares)), summary.env_steps_per_s


def main(overrides: list[str]) -> None:
    experiments = {mode: prepare(mode, overrides) for mode in MODES}
    measured = [{mode: train(experiments[mode]) for mode in MODES} for _ in range(REPEATS)]
    shares = {mode: np.mean([each[mode][0] for each in measured]) for mode in MODES}
    harness.report(
        "uneven_envs",
        unit="env steps/s",
        ours="async",
        metrics={
            "slow": {
                mode: harness.Measurement(tuple(each[mode][1] for each in measured))
                for mode in MODES
            }
        },
        config={"settings": SETTINGS, "updates": UPDATES, "overrides": overrides},
        notes=(
            f"async: {shares['async']:.0%} of the actors' time in environments and policy (wanted: "
            f"at least {WANTED_SHARE:.0%}); lockstep: {shares['lockstep']:.0%}",
            f"all {len(MODES) * REPEATS} runs accounted for every unroll",
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
