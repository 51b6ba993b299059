"""How much of a gymnasium.Env's own speed is left in an actor?

Environments stepped by an actor (its policy, its unrolls, a seed for every episode) against a bare
loop over the same environments with the same policy in Python, or with random actions. One core.
CartPole twice: with random actions every twentieth step is a reset, which costs four times as much
with a seed as without; with a policy that balances hardly any is.
"""

import gymnasium
import harness
import numpy as np

from rollout.acting import read_only
from rollout.checkpoint import named_parameters
from rollout.experiment import as_experiment
from rollout.make_actor import make_actor
from rollout.shapes import make_network, make_schema

SEED = 1
NUM_ENVS, UNROLL_LENGTH = 32, 64
BALANCING = np.array([0.0, 0.3, 6.0, 2.0])  # it pushes to the side to which this, times x, points


class Bare:
    """A loop that does nothing but step, and reset what has ended."""

    def __init__(self, env_id: str, balances: bool) -> None:
        make = gymnasium.make
        self.envs = [make(env_id, disable_env_checker=True) for _ in range(NUM_ENVS)]
        self.shown = [env.reset(seed=SEED + i)[0] for i, env in enumerate(self.envs)]
        self.balances = balances
        samples = [self.envs[0].action_space.sample() for _ in range(NUM_ENVS * UNROLL_LENGTH)]
        self.actions = [samples[t::UNROLL_LENGTH] for t in range(UNROLL_LENGTH)]
        self.num_ended = 0

    def __call__(self) -> None:
        for t in range(UNROLL_LENGTH):
            for i, env in enumerate(self.envs):
                action = int(BALANCING @ self.shown[i] > 0) if self.balances else self.actions[t][i]
                self.shown[i], _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    self.num_ended += 1
                    self.shown[i], _ = env.reset()


def bench(env_id: str, balances: bool = False) -> dict[str, harness.Measurement]:
    tables = {"env": {"id": f"gymnasium:{env_id}"}, "network": {"hidden_sizes": [64, 64]}}
    experiment = as_experiment(tables | {"stop": {"env_steps": 1}})
    env = experiment.env.find()
    network = make_network(experiment.network, env)
    flat = np.zeros(network.num_parameters, np.float32)
    if balances:
        arrays = named_parameters(network, flat)
        arrays["parameters/torso_0.weight"][:, 0] = BALANCING
        arrays["parameters/torso_1.weight"][0, 0] = 1.0
        arrays["parameters/heads.weight"][0, :2] = (-1.0, 1.0)
    schema = make_schema(env, UNROLL_LENGTH, has_value=True)
    actor = make_actor(env, NUM_ENVS, SEED, network, schema)
    weights, bare, num_ended = read_only(flat), Bare(env_id, balances), 0

    def act() -> None:
        nonlocal num_ended
        actor.act(weights, greedy=balances)
        num_ended += actor.buffer.num_episodes

    for _ in range(20):
        act()
        bare()
    assert actor.buffer.unroll().reward.all(), "it has stepped"
    assert abs(num_ended - bare.num_ended) <= 0.2 * bare.num_ended + 5, "they play alike"
    work = NUM_ENVS * UNROLL_LENGTH
    return harness.measure({"actor": (act, work), "bare loop": (bare, work)})


def main() -> None:
    harness.pin_to_one_core()
    harness.report(
        "gymnasium_env_throughput",
        unit="env steps/s on one core",
        ours="actor",
        metrics={
            "cartpole_balancing": bench("CartPole-v1", balances=True),
            "cartpole_random": bench("CartPole-v1"),
            "pendulum_random": bench("Pendulum-v1"),
        },
        config={"num_envs": NUM_ENVS, "unroll_length": UNROLL_LENGTH, "hidden_sizes": [64, 64]},
    )


if __name__ == "__main__":
    main()
