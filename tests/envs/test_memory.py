"""Memory-v0: what can be solved with memory, and what cannot be without."""

import numpy as np
import pytest

from rollout.envs import Envs, Outcome
from rollout.envs.diagnostic.memory import Memory

LENGTH = int(Memory.params["length"])
NUM_SEQUENCES = 2 ** (LENGTH + 1)  # of actions in an episode


def every_episode() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(first observations, later ones [t], states [t], rewards [t]) of both cues, all actions.

    Of each array the axes at its end are: cue, number of the sequence of actions, …
    """
    num_envs = 2 * NUM_SEQUENCES
    envs, outcome = Envs(Memory, num_envs, seed=0), Outcome(Memory, num_envs)
    envs.records["state"]["cue"] = np.repeat([-1, 1], NUM_SEQUENCES)
    by_cue = (2, NUM_SEQUENCES)
    first = envs.observation().reshape(*by_cue, 2)
    observations, places, rewards = [], [], []
    for t in range(LENGTH + 1):
        action = np.arange(num_envs) % NUM_SEQUENCES >> t & 1
        envs.step(action.astype(np.int32), outcome)
        assert (outcome.terminated == (t == LENGTH)).all()
        rewards.append(outcome.reward.reshape(by_cue).copy())
        if t < LENGTH:
            observations.append(outcome.observation.reshape(*by_cue, 2).copy())
            places.append(envs.records["state"]["place"].reshape(by_cue).copy())
            assert (envs.records["state"]["cue"].reshape(by_cue) == [[-1], [1]]).all()
    return first, np.array(observations), np.array(places), np.array(rewards)


def test_reactive_policies_get_nothing_on_average():
    """After the first observation the two cues look the same, whatever is done.

    So what a function of the present observation, the step and chance does at the junction is as
    likely under one cue as under the other, of which one pays 1 and the other -1.
    """
    first, later, place, reward = every_episode()
    assert (first[0] == [-1, 0]).all()
    assert (first[1] == [1, 0]).all()
    assert (later == later[:, :1, :1]).all(), "an observation tells of the cue or of an action"
    assert (place == place[:, :1, :1]).all(), "an action left its mark"
    assert (reward[:-1] == 0).all()
    assert (reward[-1, 0] == -reward[-1, 1]).all()
    last_action = np.arange(NUM_SEQUENCES) >> LENGTH
    assert (reward[-1, 1] == np.where(last_action == 1, 1, -1)).all()


def test_junction_shows_itself():
    _, later, _, _ = every_episode()
    assert (later[..., 0] == 0).all()
    assert (later[:-1, ..., 1] == 0).all()
    assert (later[-1, ..., 1] == 1).all()


@pytest.mark.parametrize("length", [1, 8, 50])
def test_policy_that_remembers_gets_one(length):
    envs = Envs(Memory, 64, seed=3, params={"length": length})
    outcome = Outcome(Memory, 64)
    remembered = envs.observation()[:, 0]
    for _ in range(3 * (length + 1)):
        envs.step((remembered > 0).astype(np.int32), outcome)
        assert (outcome.reward == outcome.terminated).all()
        shown = outcome.observation[:, 0]
        remembered = np.where(shown != 0, shown, remembered)
        lengths = outcome.episode_length[: outcome.num_episodes]
        assert (lengths == length + 1).all()
    assert (envs.records["clock"]["episode"] == 3).all()


def test_corridor_without_length_needs_no_memory():
    envs, outcome = Envs(Memory, 8, seed=0, params={"length": 0}), Outcome(Memory, 8)
    observation = envs.observation()
    assert (abs(observation) == 1).all()
    envs.step((observation[:, 0] > 0).astype(np.int32), outcome)
    assert (outcome.reward == 1).all() and outcome.terminated.all()


def test_cues_are_drawn_evenly_and_anew():
    num_envs = 20000
    envs, outcome = Envs(Memory, num_envs, seed=5, params={"length": 0}), Outcome(Memory, num_envs)
    cues = []
    for _ in range(3):
        cues.append(envs.records["state"]["cue"].copy())
        envs.step(np.zeros(num_envs, np.int32), outcome)
    assert {*np.unique(cues)} == {-1, 1}
    assert abs(np.mean(cues, axis=1)).max() < 0.03
    assert abs(np.corrcoef(cues) - np.eye(3)).max() < 0.03, "a cue follows from the last"


def test_picture_shows_the_cue_as_long_as_it_is_seen():
    envs = Envs(Memory, 2, seed=0)
    envs.records["state"]["cue"] = [-1, 1]
    pictures = [[envs.render(i) for i in range(2)]]
    for place in range(1, LENGTH + 1):
        envs.records["state"]["place"] = place
        pictures.append([envs.render(i) for i in range(2)])
    left, right = np.swapaxes(pictures, 0, 1)
    assert (left[0] != right[0]).any()
    np.testing.assert_array_equal(left[1:], right[1:])
    assert all((left[place] != left[place + 1]).any() for place in range(LENGTH))
