"""What do a thousand actor processes cost, against two?

configs/cartpole_throughput.toml with 16,000 environments, trained by 2 actors of 8,000 and by 1,000
actors of 16, in turn: env steps per second after the first update. Lockstep makes both runs the
same run, which is checked first: their parameters must be equal to the bit, and nothing lost.
`key=value` arguments change the experiment.
"""

import sys
import tempfile
from pathlib import Path

import harness

from rollout import api
from rollout.experiment import load_experiment
from rollout.summary import Summary

CONFIG = Path(__file__).parent.parent / "configs" / "cartpole_throughput.toml"
NUM_ENVS = 16_000
FLEETS = (2, 1000)
UPDATES = 6
REPEATS = 2
WANTED_RATIO = 0.7


def train(num_actors: int, overrides: list[str]) -> Summary:
    settings = ["learner.device=cpu", f"env.num_envs={NUM_ENVS}", f"fleet.num_actors={num_actors}"]
    experiment = load_experiment(CONFIG, [*settings, *overrides])
    steps = UPDATES * experiment.batch_size
    experiment = load_experiment(CONFIG, [*settings, *overrides, f"stop.env_steps={steps}"])
    with tempfile.TemporaryDirectory() as folder:
        summary = api.train(experiment, run_dir=Path(folder) / "run").summary
    assert summary.ledger.is_balanced and summary.actor_restarts == 0, summary.ledger.unrolls
    return summary


def main(overrides: list[str]) -> None:
    summaries = [[train(num_actors, overrides) for num_actors in FLEETS] for _ in range(REPEATS)]
    assert len({each.params_digest for pair in summaries for each in pair}) == 1
    few, many = zip(*summaries, strict=True)
    measured = {
        f"{num_actors} actors": harness.Measurement(tuple(each.env_steps_per_s for each in runs))
        for num_actors, runs in zip(FLEETS, (few, many), strict=True)
    }
    ratio = measured["1000 actors"].median / measured["2 actors"].median
    harness.report(
        "fleet_size_throughput",
        unit="env steps/s",
        ours="1000 actors",
        metrics={"cartpole_throughput": measured},
        config={"num_envs": NUM_ENVS, "updates": UPDATES, "overrides": overrides},
        notes=(
            f"{ratio:.0%} of the throughput with 2 actors (wanted: at least {WANTED_RATIO:.0%})",
            f"all {len(FLEETS) * REPEATS} runs ended with the same parameters; nothing was lost",
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
