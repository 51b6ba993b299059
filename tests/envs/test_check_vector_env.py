"""check_vector_env: Gymnasium's own vector environments and ours pass, broken ones do not."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from rollout.envs import VectorEnv, check_vector_env
from rollout.envs.checks.check_report import Status
from rollout.envs.checks.nested_arrays import misfit
from tests.envs.broken_envs import Broken
from tests.envs.line import Line

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode


def sync(mode: AutoresetMode, **options: Any) -> SyncVectorEnv:
    makers = [lambda: gymnasium.make("CartPole-v1")] * 5
    return SyncVectorEnv(makers, autoreset_mode=mode, **options)


def with_masks() -> VectorEnv:
    return VectorEnv(Broken, 4, max_episode_steps=6)


MAKERS = {
    **{f"SyncVectorEnv {mode.name}": lambda mode=mode: sync(mode) for mode in AutoresetMode},
    **{
        f"ours {mode.name}": lambda mode=mode: VectorEnv("CartPole-v1", 5, autoreset_mode=mode)
        for mode in AutoresetMode
    },
    "ours with masks": with_masks,
    "CartPoleVectorEnv": lambda: gymnasium.make_vec(
        "CartPole-v1", 5, vectorization_mode="vector_entry_point"
    ),
    "RecordEpisodeStatistics": lambda: RecordEpisodeStatistics(sync(NEXT_STEP)),
    "Tuple": lambda: gymnasium.make_vec("Blackjack-v1", 5, vectorization_mode="sync"),
    "Gymnasium's masks": lambda: gymnasium.make_vec("Taxi-v4", 5, vectorization_mode="sync"),
    **{f"Line {mode.name}": lambda mode=mode: Line(mode) for mode in AutoresetMode},
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_vector_environment_that_keeps_its_promises_passes(make):
    report = check_vector_env(make(), num_steps=100)
    assert report.has_passed, report.failures


@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_promise_of_the_line_is_tried(mode):
    report = check_vector_env(Line(mode), num_steps=30)
    assert {check.status for check in report.checks} == {Status.PASSED}
    assert report["autoreset"].details["endings"] > 10
    assert set(report["infos"].finding.split(", ")) - {"final_obs"} == {"count", "nested", "text"}


def test_mask_says_what_is_drawn():
    """The third of the second choice is forbidden in every other step."""
    played = []

    class Watched(VectorEnv):
        def step(self, actions):
            played.append((self.now["action_mask"].copy(), np.array(actions)))
            answer = super().step(actions)
            self.now = answer[-1]
            return answer

        def reset(self, **options):
            observations, self.now = super().reset(**options)
            return observations, self.now

    check_vector_env(Watched(Broken, 4), num_steps=30)
    chosen = {tuple(action) for _, actions in played for action in actions}
    assert chosen == {(a, b) for a in range(2) for b in range(3)}
    for masks, actions in played:
        for mask, (first, second) in zip(masks, actions, strict=True):
            assert not mask.any() or (mask[first] and mask[2 + second])


BROKEN = [
    ("one observation space", NEXT_STEP, "spaces", "observation_space is Box(-10.0, 40.0, (2,)"),
    ("one action space", NEXT_STEP, "spaces", "action_space is Discrete(3), wanted MultiDiscrete"),
    ("no environments", NEXT_STEP, "spaces", "num_envs is 0, wanted a positive integer"),
    ("no mode", NEXT_STEP, "spaces", "metadata['autoreset_mode'] is None, wanted one of "),
    ("no infos", NEXT_STEP, "reset", "reset returned float32 [5, 2], wanted observations and info"),
    ("doubles", NEXT_STEP, "reset", "observations are float64 [5, 2], wanted float32 [5, 2]"),
    ("outside", NEXT_STEP, "reset", "observations[2, 1] is 40.5, wanted -10.0 to 40.0"),
    ("four", NEXT_STEP, "step", "step returned a tuple of 4, wanted observations, rewards"),
    ("rewards in a column", NEXT_STEP, "step", "rewards are float64 [5, 1], wanted floats [5]"),
    ("rewards are nan", NEXT_STEP, "step", "step 1: rewards[0] is nan"),
    ("integers", NEXT_STEP, "step", "terminations are int64 [5], wanted bool [5]"),
    ("list", NEXT_STEP, "step", "truncations are list [False, False, False, False, False], want"),
    ("narrow", NEXT_STEP, "step", "observations are float32 [5, 1], wanted float32 [5, 2]"),
    ("infos are a list", NEXT_STEP, "step", "infos are list"),
    ("no seed", NEXT_STEP, "seeding", "reset with seed 0, twice: observations[0, 0] is "),
    ("same seed", NEXT_STEP, "seeding", "all environments begin alike under one seed"),
    ("draws elsewhere", NEXT_STEP, "determinism", "two runs differ: step 0: observations[0, 0] is"),
    ("rewards a reset", NEXT_STEP, "autoreset", "step 3 resets environment 0, but its reward is 1"),
    ("acts while it resets", NEXT_STEP, "autoreset", "the step after an end depends on its action"),
    ("shows the last", NEXT_STEP, "autoreset", "shows the last observation again"),
    ("no final", SAME_STEP, "autoreset", "step 2: ended are [True, False, False, False, False], b"),
    ("final outside", SAME_STEP, "autoreset", "final_obs'][0] is not in single_observation_space"),
    ("shows the last", SAME_STEP, "autoreset", "observations after an end are the last ones"),
    ("resets all", DISABLED, "autoreset", "has changed environment 1, not in its reset_mask"),
    ("resets none", DISABLED, "autoreset", "reset with a reset_mask changes nothing"),
    ("overwrites", NEXT_STEP, "buffers", "step 1 overwrites what the one before gave: observation"),
    ("overwrites rewards", NEXT_STEP, "buffers", "overwrites what the one before gave: rewards["),
    ("no mask", NEXT_STEP, "infos", "reset: infos['count'] has no mask infos['_count']"),
    ("mask of nothing", NEXT_STEP, "infos", "infos['_count'] is a mask of nothing: 'count' is mi"),
    ("numbers for a mask", NEXT_STEP, "infos", "infos['_count'] is int64 [5], wanted bool [5]"),
    ("too few", NEXT_STEP, "infos", "infos['count'] is int64 [4], wanted an array of 5"),
    ("too few within", NEXT_STEP, "infos", "infos['nested']['count'] is int64 [4], wanted an arr"),
    ("text for none", NEXT_STEP, "infos", "infos['text'] is there for [True, True, True, True, Tr"),
    ("closes once", NEXT_STEP, "close", "RuntimeError: it is closed"),
]


@pytest.mark.parametrize(("how", "mode", "fails", "said"), BROKEN)
def test_broken_promise_fails_its_check_and_no_other(how, mode, fails, said):
    report = check_vector_env(Line(mode, how), num_steps=30)
    assert [check.name for check in report.failures] == [fails]
    assert said in report[fails].finding


def test_overwriting_that_is_declared_passes():
    report = check_vector_env(Line(how="says that it overwrites"), num_steps=30)
    assert report.has_passed
    assert "as copy = False says" in report["buffers"].finding
    assert check_vector_env(sync(NEXT_STEP, copy=False), num_steps=30).has_passed
    assert check_vector_env(VectorEnv("CartPole-v1", 5, copy=False), num_steps=30).has_passed


def test_seed_that_may_not_be_used_is_a_warning():
    report = check_vector_env(Line(how="constant seed"), num_steps=30)
    assert report["seeding"].status == Status.WARNING
    assert "episodes begin alike under the seeds 0 and 5" in report["seeding"].finding


def test_what_is_no_vector_environment_fails_at_once():
    single: Any = gymnasium.make("CartPole-v1")
    report = check_vector_env(single)
    assert report["spaces"].finding.startswith("it is TimeLimit")
    assert {check.status for check in report.checks[1:]} == {Status.NOT_TRIED}
    single.close()


SPACE = Dict({"a": Tuple((Box(0, 1, (2,), np.float32), Discrete(3))), "b": MultiDiscrete([2])})
NONE, ONE = np.zeros(1, np.int64), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        ({"a": (ONE, 1), "b": NONE}, None),
        ({"a": (ONE, 1)}, "it are dict"),
        ({"a": (ONE,), "b": NONE}, "it['a'] are a tuple of 1, wanted 2 parts"),
        ({"a": (ONE + 2, 1), "b": NONE}, "it['a'][0][0] is 2.0, wanted 0.0 to 1.0"),
        ({"a": (ONE, 3), "b": NONE}, "it['a'][1] are 3, not in Discrete(3)"),
        ({"a": (ONE, 1), "b": NONE + 2}, "it['b'] are array([2]), not in MultiDiscrete([2])"),
    ],
)
def test_nested_observation_is_told_from_one_that_does_not_fit(observation, said):
    found = misfit(SPACE, observation, "it")
    assert found == said or (said and found and found.startswith(said))
