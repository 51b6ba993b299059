"""Random actions lie in their space and their mask; what differs is found and named."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from rollout.envs import Envs
from rollout.envs.checks.elements import Leaf, differences
from rollout.envs.checks.random_play import Player, RandomActions, compare
from rollout.envs.diagnostic.counting import Counting
from tests.envs.broken_envs import Broken


def drawn(space, num_steps: int = 200, num_envs: int = 5, mask=None) -> np.ndarray:
    actions = RandomActions(space, num_envs, seed=3)
    return np.array([actions.at(t, mask) for t in range(num_steps)])


def test_actions_are_a_function_of_seed_and_step():
    space = MultiDiscrete([2, 5])
    one, other = (RandomActions(space, 4, seed) for seed in (1, 2))
    assert (one.at(7) == RandomActions(space, 4, 1).at(7)).all()
    assert not (np.array([one.at(t) for t in range(9)]) == [other.at(t) for t in range(9)]).all()
    assert not (np.array([one.at(t) for t in range(9)]) == one.at(9)).all()


@pytest.mark.parametrize(
    ("space", "shape"), [(Discrete(3), ()), (MultiDiscrete([2, 5]), (2,)), (Discrete(1), ())]
)
def test_every_choice_is_made_about_as_often_as_any_other(space, shape):
    actions = drawn(space)
    assert actions.dtype == np.int32
    assert actions.shape == (200, 5, *shape)
    choices = actions.reshape(1000, -1)
    for n, size in enumerate(np.atleast_1d(getattr(space, "nvec", getattr(space, "n", 0)))):
        counts = np.bincount(choices[:, n], minlength=size)
        assert len(counts) == size
        assert counts.min() > 700 / size


def test_only_what_a_mask_allows_is_chosen():
    mask = np.zeros((5, 7), np.bool_)
    mask[:, 1] = True
    mask[:, [2, 6]] = True
    mask[4] = True
    actions = drawn(MultiDiscrete([2, 5]), mask=mask)
    assert set(actions[:, :4, 0].ravel()) == {1}
    assert set(actions[:, :4, 1].ravel()) == {0, 4}
    assert set(actions[:, 4, 1]) == set(range(5))


def test_quantities_fill_their_bounds_and_go_on_without():
    low, high = np.array([-2, 1, -np.inf, -np.inf]), np.array([3, np.inf, -1, np.inf])
    space = Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    actions = drawn(space)
    assert actions.dtype == np.float32
    assert all(space.contains(action) for action in actions.reshape(-1, 4))
    np.testing.assert_allclose(actions[..., 0].min(), -2, atol=0.05)
    np.testing.assert_allclose(actions[..., 0].max(), 3, atol=0.05)
    assert actions[..., 1].max() > 4 and actions[..., 2].min() < -4
    assert abs(actions[..., 3].mean()) < 0.1 and 0.9 < actions[..., 3].std() < 1.1


def test_first_difference_is_named_with_its_place():
    one, other = (Player([Envs(Counting, 4, 0)], 0) for _ in range(2))
    assert compare(one, other, 7, 10.0).difference is None
    other.parts[0].records["state"]["t"][2] += 1
    found = compare(one, other, 7, 10.0)
    assert found.steps == 0
    assert found.difference == "state.t is 2 and 3; environment 2, episode 1, step 2"


def test_nan_is_nan_whatever_its_sign():
    one = np.array([[np.nan, 1.0, np.nan, 0.0]])
    other = np.array([[-np.nan, 1.0, 2.0, -0.0]])
    both = (Leaf((("state.x", 1),), array) for array in (one, other))
    assert [found.name for found in differences(*both)] == ["state.x[2]", "state.x[3]"]


def test_what_a_step_gave_is_compared_as_well_as_what_is_left():
    one = Player([Envs(Broken, 4, 0)], 0)
    other = Player([Envs(Broken, 4, 0, params={"wind": 0.25})], 0)
    found = compare(one, other, 50, 10.0)
    assert found.steps == 1
    assert str(found.difference).startswith("state.place is ")
    assert str(found.difference).endswith("; environment 0, episode 0, step 0")


def test_environments_that_are_split_play_the_same():
    whole = Player([Envs(Broken, 5, 0)], 0)
    parts = [Envs(Broken, 2, 0), Envs(Broken, 3, 0, first_env=2)]
    assert compare(whole, Player(parts, 0), 100, 10.0).difference is None
    moved = [Envs(Broken, 2, 0), Envs(Broken, 3, 0, first_env=3)]
    found = compare(Player([Envs(Broken, 5, 0)], 0), Player(moved, 0), 100, 10.0)
    assert "environment 2, episode 0, step 0" in str(found.difference)
