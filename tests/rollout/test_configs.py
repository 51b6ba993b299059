"""The bundled experiment files: what they train gets better than random play."""

from pathlib import Path

import numpy as np
import pytest

from rollout import api
from rollout.envs import Envs, Outcome, find_env
from rollout.envs.layouts import action_layout
from rollout.experiment import Experiment, load_experiment

CONFIGS = Path(__file__).parents[2] / "configs"

# Steps to train for here, and the mean return that they must reach.
LEARNING = {
    "acrobot_ppo": (300_000, -100.0),
    "breakout_minatar_ppo": (500_000, 5.0),
    "cartpole_ppo": (300_000, 300.0),
    "mountain_car_continuous_ppo": (1_700_000, 40.0),
    "pendulum_ppo": (400_000, -500.0),
}


def random_return(experiment: Experiment, num_steps: int = 3000) -> float:
    """Mean return of episodes in which all actions are as likely, as the experiment sets them."""
    env, num_envs = find_env(experiment.env.id), 32
    envs, outcome = Envs(env, num_envs, 0, params=experiment.env.params), Outcome(env, num_envs)
    layout, rng = action_layout(env.action_space), np.random.default_rng(0)
    returns: list[float] = []
    for _ in range(num_steps):
        if layout.choices:
            action = rng.integers(0, layout.choices[0], num_envs, np.int32)
        else:
            action = rng.uniform(layout.low, layout.high, (num_envs, *layout.shape))
        envs.step(np.ascontiguousarray(action, layout.dtype), outcome)
        returns += outcome.episode_return[: outcome.num_episodes].tolist()
    assert len(returns) > 90
    return float(np.mean(returns))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_file_is_whole_and_its_name_says_what_it_trains(file):
    experiment = load_experiment(file)
    assert experiment.name == file.stem
    simple = experiment.env.id.rpartition("-v")[0] or experiment.env.id
    words = simple.lower().replace("-", "")
    assert file.stem.replace("_", "").startswith(words.removesuffix("minatar"))
    assert file.read_text().startswith("#:schema ./schema.json\n# ")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LEARNING)
def test_training_gets_far_beyond_random_play(name, tmp_path, places):
    env_steps, good = LEARNING[name]
    file = CONFIGS / f"{name}.toml"
    overrides = [f"stop.env_steps={env_steps}"]
    if name == "cartpole_ppo":
        overrides.append("stop.episode_return=490")
    by_chance = random_return(load_experiment(file))
    summary = api.train(file, overrides, run_dir=tmp_path / "run").summary
    places.assert_gone()
    assert by_chance < good - 0.5 * abs(good), "else it would show nothing"
    assert summary.episode_return_mean is not None
    assert summary.episode_return_mean >= good, f"random play: {by_chance}"
