"""Every bundled environment in the fleet: lockstep, kills and resuming change no bit."""

import pytest

from rollout import api
from rollout.envs import BUNDLED
from tests.rollout.conftest import Acting
from tests.rollout.saboteur import ACTOR, TEMPLATE, Saboteur, kills

NUM_ENVS, LENGTH, UPDATES, EVERY = 10, 16, 80, 10
STEPS = NUM_ENVS * LENGTH  # of one update
RICH = [f"tests.rollout.rich_envs:{name}" for name in ("Choices", "OneChoice", "Quantities", "Arm")]
ENVS = [*BUNDLED, *RICH]


def tables(env_id: str) -> dict:
    params = {"step_us": 5.0} if env_id == "Slow-v0" else {}
    return {
        "name": "bundled",
        "env": {"id": env_id, "num_envs": NUM_ENVS, "params": params},
        "fleet": {"unroll_length": LENGTH},
        "network": {"hidden_sizes": [8]},
        "algorithm": {"kind": "ppo", "update_epochs": 1, "num_minibatches": 2},
        "stop": {"env_steps": UPDATES * STEPS},
    }


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENVS)
def test_neither_fleet_nor_kills_nor_resuming_change_the_result(env_id, places, tmp_path, view):
    alone = api.train(tables(env_id), ["fleet.num_actors=1"], run_dir=tmp_path / "alone").summary

    half = [f"stop.env_steps={UPDATES // 2 * STEPS}", "fleet.num_actors=3"]
    run = tmp_path / "killed"
    saboteur = Saboteur(view, places, kills(ACTOR, TEMPLATE, ACTOR), EVERY, seed=0)
    with saboteur.at_work():
        first = api.train(tables(env_id), half, run_dir=run, view=view).summary
    assert saboteur.killed[ACTOR] == 2
    assert first.updates == UPDATES // 2
    whole = [f"stop.env_steps={UPDATES * STEPS}", "fleet.num_actors=2"]
    last = api.train(None, whole, resume=run, view=Acting()).summary

    places.assert_gone()
    assert last.params_digest == alone.params_digest
    assert last.params_digest != first.params_digest
    for summary in (alone, last):
        assert summary.updates == UPDATES
        assert summary.ledger.steps.trained == UPDATES * STEPS
        assert summary.ledger.steps.balance == summary.ledger.steps.in_flight == 0
