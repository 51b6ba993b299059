"""Stable-Baselines3 on our environments, where it is installed."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from rollout.envs import EnvError, SingleEnv
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from tests.envs.gymnasium_envs import Sliders, Tiles, assert_same, random_actions
from tests.envs.nasty import Pixels

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rollout.envs.interfaces.stable_baselines3 import StableBaselines3VecEnv

ENVS = [CartPole, Counting, Pixels, Tiles, Sliders]
each_env = pytest.mark.parametrize("env", ENVS, ids=lambda env: env.__name__)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    """Networks this small are slower with several, and tests run beside each other."""
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(envs: Any, actions: list[np.ndarray]) -> list[Any]:
    envs.seed(5)
    answers: list[Any] = [envs.reset()]
    for action in actions:
        answers.append(envs.step(action))
        for info in answers[-1][-1]:
            if "episode" in info:
                assert info["episode"].pop("t") >= 0
        answers.append(copy.deepcopy(envs.reset_infos))
    return copy.deepcopy(answers)


@each_env
def test_gives_what_dummy_vec_env_gives(env):
    N, actions = 3, random_actions(env, 70, 3)
    judge = DummyVecEnv([lambda: Monitor(SingleEnv(env)) for _ in range(N)])
    wanted = run(judge, actions)
    assert_same(run(StableBaselines3VecEnv(env, N), actions), wanted)
    assert sum(any(answer[2]) for answer in wanted if isinstance(answer, tuple)) > 1


def test_trains_with_stable_baselines3():
    envs = StableBaselines3VecEnv(CartPole, 16, seed=1)
    model = PPO("MlpPolicy", envs, n_steps=64, batch_size=256, learning_rate=2e-3, seed=1)
    before, after = (mean_return(model.learn(steps)) for steps in (0, 8 * 1024))
    assert after > 2 * before, (before, after)
    assert len(model.ep_info_buffer or ()) == 100


def mean_return(model: PPO) -> float:
    returns, lengths = evaluate_policy(
        model, StableBaselines3VecEnv(CartPole, 8, seed=2), 16, return_episode_rewards=True
    )
    assert returns == lengths, "each step is worth 1"
    return float(np.mean(returns))


@pytest.mark.parametrize("env_id", ["Breakout-MinAtar", "CartPole-v1"])
def test_normalised_by_stable_baselines3(env_id):
    envs = VecNormalize(StableBaselines3VecEnv(env_id, 2, seed=0))
    PPO("MlpPolicy", envs, n_steps=32, batch_size=32, n_epochs=1).learn(128)
    assert envs.ret_rms.count > 120


def test_trains_off_policy_with_stable_baselines3():
    envs = StableBaselines3VecEnv(Sliders, 4, seed=0)
    model = SAC("MlpPolicy", envs, learning_starts=50, buffer_size=1000, batch_size=32)
    model.learn(120)
    assert model.replay_buffer is not None and model.replay_buffer.size() == 30


def test_vectors_for_stable_baselines3_have_its_manners():
    envs = StableBaselines3VecEnv(Tiles, 3, seed=4)
    tiles = envs.reset()
    assert_same(StableBaselines3VecEnv(Tiles, 3, seed=4).reset(), tiles)
    masks = envs.env_method("action_masks")
    assert envs.has_attr("action_masks")
    for mask, tile in zip(masks, tiles, strict=True):
        assert mask.tolist() == [action != tile % 4 for action in range(4)]
    assert len(envs.env_method("action_masks", indices=[2])) == 1
    assert not StableBaselines3VecEnv(CartPole, 1).has_attr("action_masks")
    assert envs.get_attr("num_envs", indices=0) == [3]
    with pytest.raises(AttributeError, match="have no method 'jump'"):
        envs.env_method("jump")
    with pytest.raises(EnvError, match="cannot set 'force'"):
        envs.set_attr("force", 3)
    envs.seed(2**32 - 1)  # one of its own choice may lie so high: environment 1 starts from 0
    assert_same(envs.reset()[1], StableBaselines3VecEnv(Tiles, 1, seed=0).reset()[0])
    other = pickle.loads(pickle.dumps(envs))  # noqa: S301
    assert_same(other.step(np.array([1, 2, 3]))[:3], envs.step(np.array([1, 2, 3]))[:3])
    pictured = StableBaselines3VecEnv(CartPole, 4, render_mode="rgb_array")
    pictured.reset()
    picture = pictured.render()
    assert picture is not None and picture.shape == (400, 600, 3)
    pictured.close()


@pytest.mark.parametrize("seed", ["a", -1, 2**32, 1.5, True])
def test_seed_that_cannot_be_one_is_refused(seed):
    with pytest.raises(EnvError, match="wanted an integer from 0 to 4294967295, or None"):
        StableBaselines3VecEnv(CartPole, 2, seed=seed)
