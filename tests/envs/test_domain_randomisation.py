"""What is drawn in `reset` holds for one episode, and is the same for whoever plays it."""

import numpy as np

from rollout.envs import Envs, Outcome
from tests.envs.reservoir import Reservoir

NUM_ENVS, NUM_EPISODES = 6, 5
BOUNDS = {"min_inflow": 0.4, "max_inflow": 0.6}


def inflows(first_env: int = 0, num_envs: int = NUM_ENVS, seed: int = 0, jit: bool = True):
    """Inflow at the beginning and at the end of each episode: two arrays [episodes, N]."""
    envs = Envs(Reservoir, num_envs, seed, first_env=first_env, params=BOUNDS, jit=jit)
    outcome = Outcome(Reservoir, num_envs)
    action = np.full((num_envs, 1), 0.5, np.float32)
    state = envs.records["state"]
    began = np.full((NUM_EPISODES, num_envs), np.nan)
    ended = began.copy()
    while np.isnan(ended).any():
        episode = envs.records["clock"]["episode"].copy()
        inflow = state["inflow"].copy()
        is_first = envs.records["clock"]["t"] == 0
        envs.step(action, outcome)
        for i in range(num_envs):
            if episode[i] < NUM_EPISODES and is_first[i]:
                began[episode[i], i] = inflow[i]
            if episode[i] < NUM_EPISODES and (outcome.terminated[i] or outcome.truncated[i]):
                ended[episode[i], i] = inflow[i]
    return began, ended


def test_each_episode_has_an_inflow_of_its_own_within_the_bounds_of_the_experiment():
    began, ended = inflows()
    assert len(np.unique(began)) == NUM_ENVS * NUM_EPISODES
    assert ((began >= 0.4) & (began < 0.6)).all()
    np.testing.assert_array_equal(ended, began, err_msg="it holds for the whole episode")


def test_inflow_does_not_depend_on_who_plays_the_episode():
    began, _ = inflows()
    np.testing.assert_array_equal(inflows()[0], began)
    np.testing.assert_array_equal(inflows(jit=False)[0], began)
    parts = [inflows(first_env=0, num_envs=2)[0], inflows(first_env=2, num_envs=4)[0]]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), began)
    assert not (inflows(seed=1)[0] == began).any()


def test_inflow_is_saved_with_the_episode():
    envs, outcome = Envs(Reservoir, NUM_ENVS, seed=0), Outcome(Reservoir, NUM_ENVS)
    action = np.full((NUM_ENVS, 1), 0.5, np.float32)
    for _ in range(3):
        envs.step(action, outcome)
    other, seen = Envs(Reservoir, NUM_ENVS, seed=9), Outcome(Reservoir, NUM_ENVS)
    assert (other.records["state"]["inflow"] != envs.records["state"]["inflow"]).all()
    other.restore(envs.snapshot())
    np.testing.assert_array_equal(other.records["state"]["inflow"], envs.records["state"]["inflow"])
    for one, its_outcome in ((envs, outcome), (other, seen)):
        one.step(action, its_outcome)
    np.testing.assert_array_equal(seen.observation, outcome.observation)
