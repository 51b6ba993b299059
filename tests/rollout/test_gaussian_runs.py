"""Pendulum learned with every way to draw quantities but the bundled one (test_configs.py)."""

from pathlib import Path

import pytest

from rollout import api

PENDULUM = Path(__file__).parents[2] / "configs" / "pendulum_ppo.toml"
BY_CHANCE = -1200.0  # mean return of random play, about


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("std", "squash"), [("independent", "tanh"), ("dependent", "none"), ("dependent", "tanh")]
)
def test_training_gets_far_beyond_random_play(std, squash, tmp_path, places):
    settings = [f"network.gaussian.std={std}", f"network.gaussian.squash={squash}"]
    overrides = [*settings, "stop.env_steps=400_000"]
    summary = api.train(PENDULUM, overrides, run_dir=tmp_path / "run").summary
    places.assert_gone()
    assert summary.episode_return_mean is not None
    assert summary.episode_return_mean > 0.4 * BY_CHANCE
