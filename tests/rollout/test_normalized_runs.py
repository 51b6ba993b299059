"""Runs that normalize observations and rewards: exact as all others, and frozen when played."""

import json
from typing import Any

import numpy as np
import pytest

from rollout import api
from rollout.checkpoint import load_newest
from rollout.replay import RunReplay
from rollout.run_directory import RunDirectory
from tests.rollout.conftest import Acting
from tests.rollout.saboteur import ACTOR, AGENT, TEMPLATE, Saboteur, kills
from tests.some_fast import slow_unless

NUM_ENVS, LENGTH, EVERY = 12, 16, 10
STEPS = NUM_ENVS * LENGTH  # of one update


@pytest.fixture
def train(places, tmp_path):
    """train("run", 40, "seed=3", …): so many updates, of which nothing may be left."""

    def train(where: str, updates: int, *overrides: str, view=None) -> api.Result:
        tables: dict[str, Any] = {
            "name": "normalized",
            "env": {"id": "CartPole-v1", "num_envs": NUM_ENVS},
            "fleet": {"num_actors": 3, "unroll_length": LENGTH},
            "network": {"hidden_sizes": [8], "normalize_observations": True},
            "algorithm": {
                "kind": "ppo",
                "normalize_rewards": True,
                "num_minibatches": 2,
                "update_epochs": 1,
            },
            "stop": {"env_steps": updates * STEPS},
        }
        result = api.train(tables, overrides, run_dir=tmp_path / where, view=view)
        places.assert_gone()
        assert result.summary.ledger.is_balanced
        return result

    return train


@pytest.mark.parametrize("policy_lag", slow_unless((1,), [0, 1]))
def test_neither_the_fleet_nor_kills_nor_resuming_change_the_result(
    train, places, tmp_path, view, policy_lag
):
    updates, lag = 80, f"fleet.policy_lag={policy_lag}"
    alone = train("alone", updates, lag, "fleet.num_actors=1").summary
    with Saboteur(view, places, kills(ACTOR, TEMPLATE, ACTOR), EVERY, 0).at_work() as saboteur:
        train("killed", updates // 2, lag, view=view)
    assert saboteur.killed[ACTOR] == 2
    more = [f"stop.env_steps={updates * STEPS}", "fleet.num_actors=2"]
    last = api.train(None, more, resume=tmp_path / "killed", view=Acting()).summary
    places.assert_gone()
    assert last.params_digest == alone.params_digest
    found = [load_newest(RunDirectory.open(tmp_path / run)).arrays for run in ("alone", "killed")]
    names = [name for name in found[0] if name.startswith("algorithm/normalization/")]
    assert len(names) == 7
    for name in names:
        assert found[0][name].tobytes() == found[1][name].tobytes(), name


@pytest.mark.slow
def test_async_run_can_be_replayed_whoever_is_killed(train, places, view):
    deeds = kills(ACTOR, TEMPLATE, ACTOR, AGENT, ACTOR)
    with Saboteur(view, places, deeds, EVERY, 0).at_work():
        result = train("run", 80, "fleet.mode=async", view=view)
    compared = RunReplay(RunDirectory.open(result.run_dir)).compare()
    assert compared[-1].is_equal, compared


def test_policy_keeps_the_statistics_of_its_version_and_returns_are_the_environments_own(train):
    result = train("run", 20)
    checkpoint = load_newest(RunDirectory.open(result.run_dir))
    count, mean, m2 = (
        checkpoint.arrays[f"algorithm/normalization/observation_{n}"]
        for n in ("count", "mean", "m2")
    )
    assert count == 20 * STEPS, "every step trained on, once"
    scale = 1.0 / np.sqrt(m2 / count + 1e-8)
    assert (scale > 1.1).all(), "CartPole's numbers are small"
    np.testing.assert_array_equal(
        checkpoint.arrays["parameters/normalized.mean"], mean.astype(np.float32)
    )
    np.testing.assert_allclose(checkpoint.arrays["parameters/normalized.scale"], scale, rtol=1e-6)
    policy, observation = result.policy, np.array([[0.1, -0.2, 0.02, 0.3]] * 3, np.float32)
    first = policy.outputs(observation)[0]
    for _ in range(3):
        assert policy.outputs(observation)[0].tobytes() == first.tobytes()
    parameters = checkpoint.arrays
    x = ((observation - mean) * scale).clip(-10, 10)
    hidden = np.tanh(
        x @ parameters["parameters/torso_0.weight"] + parameters["parameters/torso_0.bias"]
    )
    outputs = hidden @ parameters["parameters/heads.weight"] + parameters["parameters/heads.bias"]
    np.testing.assert_allclose(first, outputs[:, :2], atol=1e-5)
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    ended = [line for line in map(json.loads, lines) if "charts/episodic_return" in line]
    assert ended and all(
        line["charts/episodic_return"] == line["charts/episodic_length"] for line in ended
    )
