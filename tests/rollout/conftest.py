"""Experiments, runs and records that several tests need."""

import numpy as np
import pytest

from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.envs import find_env
from rollout.experiment import Experiment
from rollout.learners.network import initial_parameters
from rollout.progress import Progress
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network
from rollout.summary import Ledger, PolicyLag, Summary


@pytest.fixture
def make_experiment():
    """make_experiment("CartPole-v1", "seed=3", …): a small experiment, with overrides."""

    def make(env_id: str = "CartPole-v1", *overrides: str) -> Experiment:
        tables = {
            "name": "small",
            "env": {"id": env_id, "num_envs": 8},
            "fleet": {"num_actors": 2},
            "stop": {"episode_return": 475, "env_steps": 1000},
        }
        return Experiment.from_dict(tables, overrides)

    return make


@pytest.fixture
def make_run(make_experiment, tmp_path):
    """make_run("CartPole-v1", "seed=3", …): the directory of a run with one checkpoint.

    Its policy is the initial one.
    """

    def make(env_id: str = "CartPole-v1", *overrides: str, where: str = "run") -> RunDirectory:
        experiment = make_experiment(env_id, *overrides)
        spec = make_network(experiment.network, find_env(env_id))
        with RunDirectory.create(experiment, tmp_path / where) as run:
            save_checkpoint(
                run.checkpoints,
                update=5,
                arrays=named_parameters(spec, initial_parameters(spec, experiment.seed)),
                state={"config_digest": experiment.config_digest, "env_steps": 2560},
                keep=3,
            )
        return run

    return make


@pytest.fixture
def make_progress():
    """make_progress(update, returns=[…], stop_reason=…): what a learner tells after an update."""

    def make(update: int, returns: list[float] | None = None, **others) -> Progress:
        episode_returns = np.array(returns or [], np.float64)
        known = {
            "update": update,
            "env_steps": 512 * update,
            "wall_s": 0.5 * update,
            "env_steps_per_s": 1234.5,
            "episode_return_mean": 20.0 + update,
            "episode_length_mean": 21.0 + update,
            "num_episodes": 3 * update,
            "episode_returns": episode_returns,
            "episode_lengths": episode_returns.astype(np.int32),
            "losses": {"losses/policy_loss": -0.25, "charts/learning_rate": 0.001},
            "policy_lag": 1,
            "num_actors_alive": 2,
            "num_actors": 2,
            "time_split": {"learner/update": 0.8, "learner/wait": 0.2, "actor/act": 0.5},
            "stop": {"episode_return": 0.25, "env_steps": 0.5},
        }
        return Progress(**(known | others))

    return make


@pytest.fixture
def make_summary():
    """make_summary(goal_reached_s=…): a run that has ended."""

    def make(**others) -> Summary:
        known = {
            "env_steps": 51200,
            "updates": 100,
            "wall_s": 4.0,
            "env_steps_per_s": 812345.0,
            "episode_return_mean": 480.5,
            "goal_reached": True,
            "goal_reached_s": 3.25,
            "params_digest": "ab" * 32,
            "num_actors": 2,
            "actor_restarts": 0,
            "policy_lag": PolicyLag(mean=0.99, max=1),
            "ledger": Ledger(produced=204, trained=200, in_flight=1, dropped={"end_of_run": 3}),
            "seed": 0,
            "config_digest": "cd" * 32,
            "versions": {"python": "3.11.7"},
        }
        return Summary(**(known | others))

    return make
