"""A training loop in the shape of CleanRL's scripts on our environments."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import rollout.envs  # noqa: F401  (registers its environments)


@pytest.mark.slow
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
