"""How fast does a whole run train, against its own update with the data at hand?

configs/cartpole_throughput.toml with its fleet, env steps per second after the first update; and
the bare torch update: the same algorithm, network, batch and minibatches, one thread, on a batch
that is already there, with no fleet beside it. Then the same with IMPALA in place of PPO with one
epoch. All measured in turn. `key=value` arguments change the experiment.
"""

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import harness
import torch

from rollout import api
from rollout.experiment import Experiment, load_experiment
from rollout.learners.impala_settings import ImpalaSettings
from rollout.learners.initialization import initial_parameters
from rollout.learners.synthetic_batch import make_synthetic_batch
from rollout.learners.torch_network import TorchNetwork
from rollout.progress import Progress
from rollout.shapes import make_network

CONFIG = Path(__file__).parent.parent / "configs" / "cartpole_throughput.toml"
REPEATS = 4
ENV_STEPS = 6_000_000  # of each repeat
BARE_S = 2.0
WANTED_RATIO, WANTED_RATE = 0.85, 700_000


class TimeSplit(api.Callback):
    """Sums up where the time of a run went."""

    def __init__(self) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self.updates = 0

    def write(self, progress: Progress) -> None:
        if progress.update > 1:  # the first update waits for the template
            self.updates += 1
            for name, share in progress.time_split.items():
                self.total[name] += share

    def note(self) -> str:
        shares = {name: total / max(self.updates, 1) for name, total in self.total.items()}
        return "time: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def make_bare_update(experiment: Experiment):
    """A function that updates once, as the learner does, from a batch at hand."""
    spec = make_network(experiment.network, experiment.env.find())
    network = TorchNetwork(spec, initial_parameters(spec, experiment.seed), "cpu")
    algorithm = experiment.find_algorithm()(network, experiment.algorithm, experiment.seed)
    batch = make_synthetic_batch(network, experiment.fleet.unroll_length, experiment.env.num_envs)
    number = 0

    def update() -> dict[str, float]:
        nonlocal number
        number += 1
        return algorithm.update(batch, number, 0.0)

    before = network.export().copy()
    losses = update()
    assert losses and (network.export() != before).any(), "the bare update changes nothing"
    return update


def bare_rate(update, batch_size: int) -> float:
    update()
    count, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < BARE_S:
        update()
        count += 1
    return count * batch_size / took


def run_rate(experiment: Experiment, view: api.View) -> float:
    with tempfile.TemporaryDirectory() as folder:
        summary = api.train(experiment, run_dir=Path(folder) / "run", view=view).summary
    assert summary.ledger.balance == 0 and summary.env_steps >= ENV_STEPS
    return summary.env_steps_per_s


def with_impala(experiment: Experiment) -> Experiment:
    """The same experiment, by IMPALA with the settings that both have."""
    tables = experiment.model_dump()
    known = tables["algorithm"]
    shared = {name: known[name] for name in ImpalaSettings.model_fields if name in known}
    return Experiment.from_dict(tables | {"algorithm": shared | {"kind": "impala"}})


def main(overrides: list[str]) -> None:
    with_ppo = load_experiment(
        CONFIG, ["learner.device=cpu", *overrides, f"stop.env_steps={ENV_STEPS}"]
    )
    torch.set_num_threads(with_ppo.learner.num_threads)
    experiments = {"ppo": with_ppo, "impala": with_impala(with_ppo)}
    updates = {kind: make_bare_update(one) for kind, one in experiments.items()}
    views = {kind: TimeSplit() for kind in experiments}
    whole, bare = defaultdict(list), defaultdict(list)
    for _ in range(REPEATS):
        for kind, experiment in experiments.items():
            bare[kind].append(bare_rate(updates[kind], experiment.batch_size))
            whole[kind].append(run_rate(experiment, views[kind]))
    measured = {
        kind: {
            "rollout": harness.Measurement(tuple(whole[kind])),
            "bare torch update": harness.Measurement(tuple(bare[kind])),
        }
        for kind in experiments
    }
    rates = {kind: m["rollout"].median for kind, m in measured.items()}
    ratio = rates["ppo"] / measured["ppo"]["bare torch update"].median
    harness.report(
        "training_throughput",
        unit="env steps/s",
        ours="rollout",
        metrics={f"cartpole_throughput, {kind}": m for kind, m in measured.items()},
        config={
            "num_envs": with_ppo.env.num_envs,
            "num_actors": with_ppo.fleet.num_actors,
            "unroll_length": with_ppo.fleet.unroll_length,
            "num_minibatches": with_ppo.num_minibatches,
            "policy_lag": with_ppo.fleet.policy_lag,
        },
        notes=(
            f"PPO: {ratio:.0%} of the bare update (wanted: at least {WANTED_RATIO:.0%}, and "
            f"{WANTED_RATE:,} env steps/s on a quiet machine of two cores)",
            f"IMPALA: {rates['impala'] / rates['ppo']:.0%} of PPO with "
            f"update_epochs={with_ppo.algorithm.model_dump()['update_epochs']} (wanted: 100%)",
            *(f"{kind}, {view.note()}" for kind, view in views.items()),
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
