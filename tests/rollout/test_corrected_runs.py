"""Whole runs that learn from another policy's steps: by IMPALA, and by PPO with V-trace."""

import json
from typing import Any

import pytest

from rollout import api
from rollout.replay import RunReplay
from rollout.run_directory import RunDirectory
from tests.rollout.conftest import Acting
from tests.rollout.saboteur import ACTOR, AGENT, TEMPLATE, Saboteur, kills
from tests.some_fast import slow_unless

NUM_ENVS, LENGTH, EVERY = 12, 16, 10
STEPS = NUM_ENVS * LENGTH  # of one update
IMPALA: dict[str, Any] = {"kind": "impala", "num_minibatches": 2, "learning_rate": 3e-3}
PPO: dict[str, Any] = {"kind": "ppo", "vtrace": True, "num_minibatches": 2, "update_epochs": 2}
ALGORITHMS = {"impala": IMPALA, "ppo": PPO}


@pytest.fixture
def train(places, tmp_path):
    """train("impala", "run", 40, "seed=3", …): so many updates, of which nothing may be left."""

    def train(algorithm: str, where: str, updates: int, *overrides: str, view=None) -> api.Result:
        tables = {
            "name": "corrected",
            "env": {"id": "CartPole-v1", "num_envs": NUM_ENVS},
            "fleet": {"num_actors": 3, "unroll_length": LENGTH},
            "network": {"hidden_sizes": [16]},
            "algorithm": ALGORITHMS[algorithm],
            "stop": {"env_steps": updates * STEPS},
        }
        result = api.train(tables, overrides, run_dir=tmp_path / where, view=view)
        places.assert_gone()
        assert result.summary.ledger.is_balanced
        return result

    return train


@pytest.mark.parametrize("algorithm", slow_unless(("impala",), list(ALGORITHMS)))
@pytest.mark.parametrize("env_id", slow_unless(("CartPole-v1",), ["CartPole-v1", "Counting-v0"]))
def test_result_does_not_depend_on_the_number_of_actors(train, algorithm, env_id):
    digests = {
        train(
            algorithm, f"run{actors}", 8, f"fleet.num_actors={actors}", f"env.id={env_id}"
        ).summary.params_digest
        for actors in (1, 5)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("algorithm", slow_unless(("impala",), list(ALGORITHMS)))
def test_neither_kills_nor_resuming_change_the_result(train, algorithm, places, tmp_path, view):
    updates = 80
    alone = train(algorithm, "alone", updates, "fleet.num_actors=1").summary
    with Saboteur(view, places, kills(ACTOR, TEMPLATE, ACTOR), EVERY, 0).at_work() as saboteur:
        first = train(algorithm, "killed", updates // 2, view=view).summary
    assert saboteur.killed[ACTOR] == 2
    assert first.params_digest != alone.params_digest
    more = [f"stop.env_steps={updates * STEPS}", "fleet.num_actors=2"]
    last = api.train(None, more, resume=tmp_path / "killed", view=Acting()).summary
    places.assert_gone()
    assert last.updates == alone.updates == updates
    assert last.params_digest == alone.params_digest


@pytest.mark.parametrize("algorithm", slow_unless(("impala",), list(ALGORITHMS)))
def test_async_run_can_be_replayed_whoever_is_killed(train, algorithm, places, view):
    deeds = kills(ACTOR, TEMPLATE, ACTOR, AGENT, ACTOR)
    with Saboteur(view, places, deeds, EVERY, 0).at_work():
        result = train(algorithm, "run", 80, "fleet.mode=async", view=view)
    assert result.summary.ledger.steps.trained == 80 * STEPS
    compared = RunReplay(RunDirectory.open(result.run_dir)).compare()
    assert compared[-1].is_equal, compared


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_training_improves_the_policy(train, algorithm, mode):
    result = train(
        algorithm,
        "run",
        1,
        f"fleet.mode={mode}",
        "env.num_envs=32",
        "fleet.unroll_length=32",
        "algorithm.gamma=0.98",
        "algorithm.gae_lambda=0.95",
        "algorithm.learning_rate=1.5e-3",
        "algorithm.num_minibatches=4",
        "algorithm.ent_coef=0.01",
        "network.hidden_sizes=[64]",
        "network.value_network=separate",
        "stop.env_steps=150_000",
    )
    assert result.summary.episode_return_mean is not None
    assert result.summary.episode_return_mean > 60, "a random policy keeps the pole up for 22 steps"
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert {"losses/policy_loss", "losses/entropy", "losses/approx_kl"} <= set(
        json.loads(lines[-1])
    )
    assert result.policy.act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
