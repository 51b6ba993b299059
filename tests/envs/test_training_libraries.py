"""Other people's training code on our environments, where it is installed."""

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics

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
def one_thread():
    """Networks this small are slower with several, and tests run beside each other."""
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


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_trains_in_a_loop_like_cleanrls(mode):
    """PPO in one function over gymnasium.make_vec; reads of infos what those scripts read."""
    torch.manual_seed(1)
    N, T = 16, 64
    envs = gymnasium.make_vec("rollout/CartPole-v1", num_envs=N, autoreset_mode=mode)
    envs = RecordEpisodeStatistics(envs)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1 + 2)
    )  # the value, and a logit for each action
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    observation, done, value = (
        torch.zeros(T + 1, N, 4),
        torch.zeros(T + 1, N),
        torch.zeros(T + 1, N),
    )
    action, log_prob, reward, advantage = (torch.zeros(T, N) for _ in range(4))
    returns: list[float] = []
    observation[T] = torch.as_tensor(envs.reset(seed=1)[0])
    for _ in range(16):
        observation[0], done[0] = observation[T].clone(), done[T].clone()
        for t in range(T):
            with torch.no_grad():
                out = network(observation[t])
            policy = torch.distributions.Categorical(logits=out[:, 1:])
            value[t], action[t] = out[:, 0], policy.sample()
            log_prob[t] = policy.log_prob(action[t])
            shown, rewards, terminated, truncated, infos = envs.step(action[t].long().numpy())
            observation[t + 1], reward[t] = torch.as_tensor(shown), torch.as_tensor(rewards)
            done[t + 1] = torch.as_tensor(terminated | truncated)
            if "episode" in infos:
                returns += infos["episode"]["r"][infos["_episode"]].tolist()
            if "final_obs" in infos:
                last = np.stack(infos["final_obs"][infos["_final_obs"]])
                assert last.shape == ((terminated | truncated).sum(), 4)
        with torch.no_grad():
            value[T] = network(observation[T])[:, 0]
        following = torch.zeros(N)
        for t in reversed(range(T)):
            going = 0.99 * (1 - done[t + 1])
            following = reward[t] + going * value[t + 1] - value[t] + 0.95 * going * following
            advantage[t] = following
        target = (advantage + value[:T]).flatten()
        batch = (observation[:T].flatten(0, 1), action.flatten(), log_prob.flatten(), target)
        for indices in torch.cat([torch.randperm(T * N) for _ in range(4)]).split(256):
            seen, taken, old_log_prob, goal = (part[indices] for part in batch)
            better = advantage.flatten()[indices]
            better = (better - better.mean()) / (better.std() + 1e-8)
            out = network(seen)
            policy = torch.distributions.Categorical(logits=out[:, 1:])
            ratio = (policy.log_prob(taken) - old_log_prob).exp()
            gain = torch.min(ratio * better, ratio.clamp(0.8, 1.2) * better)
            loss = -gain.mean() + 0.5 * (out[:, 0] - goal).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
    before, after = np.mean(returns[:50]), np.mean(returns[-50:])
    assert after > 2 * before, (before, after)
    assert envs.return_queue[-1] == returns[-1]
