"""Foreign environments as an experiment names them: wrappers, and interfaces of old."""

import signal
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from rollout.env_source import EnvSource
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.looped_envs import LoopedEnvs
from rollout.envs.foreign.trying_out import Trial, try_out
from rollout.envs.registry import find_any_env
from tests.envs import foreign_samples
from tests.envs.foreign_samples import OldDrift

HERE = foreign_samples.__name__


def named(env_id: str, **others: Any) -> ForeignEnv:
    env = find_any_env(EnvSource(id=env_id, folder="", **others))
    assert isinstance(env, ForeignEnv)
    return env


def test_wrappers_go_around_from_the_inside_out():
    env = named(
        f"{HERE}:Drift",
        params={"limit": 50},
        wrappers=(
            {"name": "FrameStackObservation", "stack_size": 3},
            {"name": "ClipReward", "min_reward": -0.5, "max_reward": 0.5},
            "FlattenObservation",
        ),
    )
    assert env.observation_space == Box(-np.inf, np.inf, (6,), np.float32)
    made = env.make()
    made.reset(seed=0)
    rewards = [made.step(2)[1] for _ in range(9)]
    assert min(map(float, rewards)) == -0.5


def test_wrapper_of_ones_own_gets_its_arguments():
    env = named(f"{HERE}:Drift", wrappers=({"name": f"{HERE}:Kept", "keeps": [1, 2]},))
    assert env.make().keeps == [1, 2]  # pyright: ignore[reportAttributeAccessIssue]


def test_time_limit_counts_steps_within_the_wrappers():
    repeat = {"name": "MaxAndSkipObservation", "skip": 4}
    env = named(f"{HERE}:Drift", max_episode_steps=8, wrappers=(repeat,))
    made = env.make()
    made.reset(seed=0)
    assert [made.step(1)[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        ("FrameStack", "unknown wrapper 'FrameStack'; did you mean FrameStackObservation"),
        ({"stack_size": 4}, "has no name, such as FrameStackObservation"),
        ("no_such_module:Wrapper", "wrapper 'no_such_module:Wrapper': ModuleNotFoundError"),
        (f"{HERE}:Keeper", f"{HERE} has no 'Keeper'"),
        (
            {"name": "FrameStackObservation", "size": 4},
            "wrapper FrameStackObservation(size=4): TypeError: ",
        ),
        ("ResizeObservation", "wrapper ResizeObservation(): TypeError: "),
    ],
)
def test_wrapper_that_cannot_be_is_named(wrapper, said):
    with pytest.raises(EnvError) as caught:
        named(f"{HERE}:Drift", wrappers=(wrapper,))
    assert said in str(caught.value)


def test_wrapper_of_vectors_wraps_vectors():
    env = named(f"{HERE}:make_vector", wrappers=("FlattenObservation",))
    assert env.is_vector
    with pytest.raises(EnvError, match="it is for single environments; this is a vector"):
        named(f"{HERE}:make_vector", wrappers=("TimeLimit",))


def test_compiled_environments_take_no_wrappers():
    with pytest.raises(EnvError, match="are for environments of Gymnasium's; CartPole-v1 is none"):
        find_any_env(EnvSource(id="CartPole-v1", folder="", wrappers=("ClipReward",)))


# The interface of the old package gym


def test_old_environments_are_stepped_by_todays_calls():
    env = named(f"{HERE}:OldDrift", params={"limit": 4})
    envs = LoopedEnvs(env, 2, 3)
    acting = Trial(envs)
    old = OldDrift(4)
    old.seed(envs._seed(0))
    np.testing.assert_array_equal(envs.observation()[0], old.reset())
    for t in range(4):
        action = acting.draw(acting.envs.num_envs)
        _, reward, terminated, truncated, _ = acting.step(action)
        _, gained, done, info = old.step(action[0])
        assert reward[0] == gained
        assert truncated[0] == (done and info["TimeLimit.truncated"]) == (t == 3 or done)
        assert not terminated[0]


def test_old_environment_may_have_a_time_limit_and_wrappers():
    env = named(f"{HERE}:OldDrift", max_episode_steps=2, wrappers=("FlattenObservation",))
    made = env.make()
    made.reset(seed=0)
    assert [made.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_old_spaces_are_refused_with_the_reason(monkeypatch):
    class OldBox:
        shape = (1,)

    OldBox.__module__ = "gym.spaces.box"
    monkeypatch.setattr(OldDrift, "observation_space", OldBox())
    with pytest.raises(EnvError, match="a space of the old package gym, not of gymnasium"):
        named(f"{HERE}:OldDrift", params={"limit": 77})


# Families of real ones


@pytest.mark.parametrize(
    ("env_id", "package"),
    [("LunarLander-v3", "Box2D"), ("BipedalWalker-v3", "Box2D"), ("Swimmer-v5", "mujoco")],
)
def test_environments_of_the_extras_work(env_id, package):
    pytest.importorskip(package)
    try_out(named(f"gymnasium:{env_id}"), 0)


def test_package_that_is_not_there_names_what_installs_it():
    """In a process of its own: Box2D does not bear to be imported twice."""
    code = (
        "import sys; sys.modules['Box2D'] = None\n"
        "from rollout.cli import main; main(['envs', 'gymnasium:LunarLander-v3'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "pip install 'rollout-cluster[box2d]'" in ended.stderr


def test_crash_while_it_is_made_names_the_line(tmp_path):
    (tmp_path / "crash.py").write_text(
        "import ctypes\nimport gymnasium\n\nclass Crash(gymnasium.Env):\n"
        "    def __init__(self):\n        ctypes.string_at(0)\n"
    )
    command = [sys.executable, "-P", "-m", "rollout", "envs", "crash:Crash"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == -signal.SIGSEGV
    assert f'File "{tmp_path}/crash.py", line 6 in __init__' in ended.stderr


class Deep(gymnasium.Env):
    """Something within its observations lies where its space does not reach."""

    observation_space = Dict({"a": Discrete(2), "b": Tuple([Box(0, 1, (3,), np.float32)])})
    action_space = Discrete(2)

    def __init__(self, at: int = 0) -> None:
        self.at, self.t = at, 0

    def reset(self, *, seed: int | None = None, options: Any = None):
        return self._observe(), {}

    def step(self, action) -> Any:
        self.t += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self):
        shown = np.full(3, 0.5, np.float32)
        shown[1] += self.t == self.at
        return {"a": 1, "b": (shown,)}


@pytest.mark.parametrize("at", [0, 1])
def test_observation_outside_of_its_space_is_named_at_start(at):
    with pytest.raises(EnvError) as caught:
        try_out(ForeignEnv("mine", Deep, {"at": at}), 0)
    said = "['b']['item_0'] is 1.5 at [1], outside of observation_space, where it is from 0.0 to 1"
    assert said in str(caught.value)


def test_observation_that_lies_in_its_space_is_let_in():
    try_out(ForeignEnv("mine", Deep, {"at": 9}), 0)


def test_seed_reaches_whoever_takes_it_in_reset():
    first, again, other = (
        LoopedEnvs(named(f"{HERE}:NewSeeded"), 1, seed).observation().copy() for seed in (3, 3, 4)
    )
    assert first == again and first != other


def test_old_environment_without_any_seed_is_refused():
    with pytest.raises(EnvError, match="takes no seed, neither by seed"):
        named(f"{HERE}:Unseedable")


@pytest.mark.parametrize("env_id", ["CartPole-v1", f"{HERE}:Drift"])
def test_mode_of_vectors_is_only_for_ids_of_gymnasiums(env_id):
    source = EnvSource(id=env_id, folder="", vectorization_mode="vector_entry_point")
    with pytest.raises(EnvError, match="is for ids of Gymnasium's, gymnasium:ID"):
        find_any_env(source)
