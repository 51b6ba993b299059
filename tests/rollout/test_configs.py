"""The bundled experiment files: what they train gets better than random play."""

import re
from pathlib import Path

import numpy as np
import pytest

from rollout import api
from rollout.envs import Envs, Outcome
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.making import make_envs
from rollout.envs.foreign.trying_out import Trial
from rollout.envs.layouts import action_layout
from rollout.experiment import Experiment, load_experiment

CONFIGS = Path(__file__).parents[2] / "configs"

# Steps to train for here, and the mean return that they must reach.
LEARNING = {
    "acrobot_impala": (500_000, -100.0),
    "acrobot_ppo": (300_000, -100.0),
    "asterix_minatar_impala": (400_000, 0.6),
    "asterix_minatar_ppo": (400_000, 0.8),
    "breakout_minatar_impala": (1_000_000, 4.0),
    "breakout_minatar_ppo": (500_000, 5.0),
    "cartpole_impala": (500_000, 300.0),
    "cartpole_ppo": (300_000, 300.0),
    "freeway_minatar_impala": (400_000, 5.0),
    "freeway_minatar_ppo": (400_000, 5.0),
    "memory_impala": (150_000, 0.8),
    "memory_ppo": (100_000, 0.8),
    "mountain_car_continuous_impala": (1_000_000, 80.0),
    "mountain_car_continuous_ppo": (600_000, 85.0),
    "mountain_car_impala": (2_000_000, -135.0),
    "mountain_car_ppo": (800_000, -135.0),
    "pendulum_ppo": (300_000, -300.0),
    "seaquest_minatar_impala": (400_000, 0.6),
    "seaquest_minatar_ppo": (400_000, 0.6),
    "space_invaders_minatar_impala": (400_000, 15.0),
    "space_invaders_minatar_ppo": (400_000, 10.0),
    # of other packages
    "half_cheetah_ppo": (250_000, -50.0),
    "hopper_ppo": (100_000, 120.0),
    "lunar_lander_ppo": (250_000, -20.0),
    "simple_spread_ppo": (400_000, -21.5),
}


def random_return(experiment: Experiment, num_steps: int = 3000) -> float:
    """Mean return of episodes in which all actions are as likely, as the experiment sets them."""
    found = experiment.env.find()
    if isinstance(found, ForeignEnv):
        return random_return_of_foreign(found)
    env, num_envs = found, 32
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


def random_return_of_foreign(env: ForeignEnv) -> float:
    acting = Trial(make_envs(env, 4 * env.group, 0))
    returns: list[float] = []
    while len(returns) < 20:
        before = acting.envs.clocks["episode_return"].copy()
        came = acting.step()
        is_over = came[2] | came[3]
        returns += (before + came[1])[is_over].tolist()
    acting.envs.close()
    return float(np.mean(returns))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_file_is_whole_and_its_name_says_what_it_trains(file):
    experiment = load_experiment(file)
    assert experiment.name == file.stem
    words = re.sub(r":parallel_env$|[-_]v\d+(?=$|:)", "", experiment.env.id)
    words = re.split(r"[:/.]", words.lower())[-1].replace("-", "").replace("_", "")
    assert file.stem.replace("_", "").startswith(words.removesuffix("minatar"))
    assert file.read_text().startswith("#:schema ./schema.json\n# ")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LEARNING)
def test_training_gets_far_beyond_random_play(name, tmp_path, places):
    env_steps, good = LEARNING[name]
    file = CONFIGS / f"{name}.toml"
    overrides = [f"stop.env_steps={env_steps}"]
    if name.startswith("cartpole"):
        overrides.append("stop.episode_return=490")
    by_chance = random_return(load_experiment(file))
    summary = api.train(file, overrides, run_dir=tmp_path / "run").summary
    places.assert_gone()
    assert by_chance < good - 0.1 * abs(good), "else it would show nothing"
    assert summary.episode_return_mean is not None
    assert summary.episode_return_mean >= good, f"random play: {by_chance}"
