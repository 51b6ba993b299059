"""How much of a gymnasium.Env's own speed is left in an actor?

Environments stepped by an actor (its policy, its unrolls, a seed for every episode) against a bare
loop over the same environments with the same policy in Python, or with random actions. One core.
CartPole twice: with random actions every twentieth step is a reset, which costs four times as much
with a seed as without; with a policy that balances hardly any is. HalfCheetah, whose states are
saved with every unroll, against Gymnasium's SyncVectorEnv; Atari's Pong by its own vector
environment, against that alone, and with one layer of as many units in NumPy.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import harness
import numpy as np
from gymnasium.vector import VectorEnv

from rollout.acting import read_only
from rollout.checkpoint import named_parameters
from rollout.experiment import as_experiment
from rollout.learners.initialization import initial_parameters
from rollout.make_actor import make_actor
from rollout.shapes import make_network, make_schema

SEED = 1
NUM_ENVS, UNROLL_LENGTH = 32, 64
NUM_VECTOR_ENVS = 8
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


def bench_vector(
    env_settings: dict[str, Any], make_vector: Callable[[], VectorEnv]
) -> dict[str, harness.Measurement]:
    """An actor against a vector environment alone, with random actions that are drawn before."""
    tables = {"env": env_settings, "network": {"hidden_sizes": [64, 64]}}
    experiment = as_experiment(tables | {"stop": {"env_steps": 1}})
    env = experiment.env.find()
    network = make_network(experiment.network, env)
    schema = make_schema(env, UNROLL_LENGTH, has_value=True)
    actor = make_actor(env, NUM_VECTOR_ENVS, SEED, network, schema)
    weights = read_only(initial_parameters(network, SEED))
    envs = make_vector()
    first, _ = envs.reset(seed=list(range(NUM_VECTOR_ENVS)))  # pyright: ignore[reportArgumentType]
    actions = [envs.action_space.sample() for _ in range(UNROLL_LENGTH)]

    def act() -> None:
        actor.act(weights)

    matrix = np.zeros((first[0].size, 64), np.float32)
    head = np.zeros((64, env.action_space.shape[0] if env.action_space.shape else 1), np.float32)

    def step() -> None:
        for chosen in actions:
            envs.step(chosen)

    def step_with_policy() -> None:
        shown = first
        for chosen in actions:  # what the policy, which has as many units, would choose is dropped
            _ = np.tanh(shown.reshape(NUM_VECTOR_ENVS, -1).astype(np.float32) @ matrix) @ head
            shown, *_ = envs.step(chosen)

    assert first.shape == actor.envs.observation().shape, "they show the same"
    for _ in range(2):
        act()
        step()
    assert np.isfinite(actor.buffer.unroll().reward).all()
    work = NUM_VECTOR_ENVS * UNROLL_LENGTH
    calls = {"actor": act, "bare loop": step, "bare loop with a NumPy policy": step_with_policy}
    return harness.measure({name: (call, work) for name, call in calls.items()})


def half_cheetah() -> dict[str, harness.Measurement]:
    env_id = "HalfCheetah-v5"
    return bench_vector(
        {"id": f"gymnasium:{env_id}"},
        lambda: gymnasium.make_vec(env_id, NUM_VECTOR_ENVS, vectorization_mode="sync"),
    )


class AtariVector(gymnasium.vector.VectorWrapper):
    """It takes its seeds as an array."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.env.reset(seed=np.array(seed), options=options)  # pyright: ignore


def atari() -> dict[str, harness.Measurement]:
    import ale_py

    gymnasium.register_envs(ale_py)
    params = {"num_threads": 1, "autoreset_mode": "SameStep"}
    mode = "vector_entry_point"
    return bench_vector(
        {"id": "gymnasium:ALE/Pong-v5", "vectorization_mode": mode, "params": params},
        lambda: AtariVector(
            gymnasium.make_vec("ALE/Pong-v5", NUM_VECTOR_ENVS, vectorization_mode=mode, **params)
        ),
    )


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
            "half_cheetah_random": half_cheetah(),
            "atari_pong": atari(),
        },
        config={
            "num_envs": NUM_ENVS,
            "num_vector_envs": NUM_VECTOR_ENVS,
            "unroll_length": UNROLL_LENGTH,
            "hidden_sizes": [64, 64],
        },
    )


if __name__ == "__main__":
    main()
