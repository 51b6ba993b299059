import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

from rollout.envs import (
    BUNDLED,
    CompiledEnv,
    EnvError,
    Envs,
    Outcome,
    SingleEnv,
    find_env,
    register,
)
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from tests.envs.gymnasium_envs import Maze, Sliders, Tiles, assert_same, random_actions
from tests.envs.nasty import Nasty, Pixels
from tests.some_fast import slow_unless

OWN = {"tests/Maze-v0": Maze, "tests/Tiles-v3": Tiles, "tests/Sliders": Sliders}
ENVS = [CartPole, Counting, Nasty, Pixels, Maze, Tiles, Sliders]
for _env_id, _env in OWN.items():
    register(_env_id, _env)

each_env = pytest.mark.parametrize("env", ENVS, ids=lambda env: env.__name__)


def run(env: gymnasium.Env, actions: list, seed: int | None = 3) -> list[Any]:
    """All that a reset and steps give, going on to the next episode where one ends."""
    answers: list[Any] = [] if seed is None else [env.reset(seed=seed)]
    for action in actions:
        answers.append(env.step(action))
        if answers[-1][2] or answers[-1][3]:
            answers.append(env.reset())
    return copy.deepcopy(answers)


def single_actions(env: type[CompiledEnv], T: int, seed: int = 0) -> list:
    return [actions[0] for actions in random_actions(env, T, 1, seed)]


# Of spaces like CartPole's; Gymnasium's own environments get them too.
OF_SPACES = (
    "A Box observation space m[a-z]+ value is -?infinity",
    "For Box action spaces, we recommend using a symmetric and normalized space",
)


FAST = ("rollout/CartPole-v1", "rollout/Pendulum-v1", "rollout/Breakout-MinAtar", *OWN)


@pytest.mark.parametrize(
    "env_id", slow_unless(FAST, [*(f"rollout/{name}" for name in BUNDLED), *OWN])
)
def test_passes_gymnasiums_checker(env_id):
    for message in OF_SPACES:
        warnings.filterwarnings("ignore", rf".*{message}")
    has_picture = hasattr(OWN.get(env_id) or find_env(env_id.removeprefix("rollout/")), "render")
    render_mode = "rgb_array" if has_picture else None
    check_env(gymnasium.make(env_id, render_mode=render_mode).unwrapped)


@pytest.mark.parametrize("env_id", BUNDLED)
def test_bundled_environments_are_known_to_gymnasium(env_id):
    spec = gymnasium.spec(f"rollout/{env_id}")
    assert spec.max_episode_steps == find_env(env_id).max_episode_steps, "see TIME_LIMITS"
    assert type(spec).from_json(spec.to_json()) == spec


def test_ids_may_go_without_a_version():
    assert str(gymnasium.make("tests/Sliders").unwrapped) == "<UnlimitedEnv<tests/Sliders>>"
    with pytest.warns(UserWarning, match="latest versioned environment `tests/Tiles-v3`"):
        gymnasium.make("tests/Tiles")
    by_module = gymnasium.make("rollout.envs:rollout/CartPole-v1").unwrapped
    assert str(by_module) == "<UnlimitedEnv<rollout/CartPole-v1>>"


@pytest.mark.parametrize("env", [CartPole, Counting, Nasty, Pixels, Tiles])
def test_equals_the_loops_that_actors_run(env):
    """Of those whose observations and actions have one form here and there."""
    ours, envs, outcome = SingleEnv(env), Envs(env, 1, seed=9), Outcome(env, 1)
    observation, _ = ours.reset(seed=9)
    assert_same(np.array([observation]), envs.observation().reshape(1, *np.shape(observation)))
    ends = 0
    for action in single_actions(env, 80):
        envs.step(np.array([action], np.int32), outcome)
        observation, reward, terminated, truncated, _ = ours.step(action)
        assert (terminated, truncated) == (outcome.terminated[0], outcome.truncated[0])
        assert np.float32(reward) == outcome.reward[0]
        if terminated or truncated:
            ends += 1
            observation, _ = ours.reset()
        assert_same(np.array(observation).ravel(), outcome.observation.ravel())
    assert ends > 1


@each_env
def test_gives_the_types_that_gymnasium_wants(env):
    ours = SingleEnv(env)
    observation, info = ours.reset(seed=0)
    for action in single_actions(env, 5):
        assert observation in ours.observation_space
        assert info.keys() == ({"action_mask"} if hasattr(env, "action_mask") else set())
        observation, reward, terminated, truncated, info = ours.step(action)
        assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
        if terminated or truncated:
            break
    assert observation in ours.observation_space
    assert type(SingleEnv(Tiles).reset(seed=0)[0]) is np.int64


def test_seed_determines_all_that_follows():
    one, other = SingleEnv(Nasty), SingleEnv(Nasty)
    actions = single_actions(Nasty, 70)
    run(other, actions[:9], seed=1)
    assert_same(run(one, actions, seed=5), run(other, actions, seed=5))
    assert (one.reset(seed=5)[0] != one.reset()[0]).any()
    assert (SingleEnv(Nasty).reset()[0] != SingleEnv(Nasty).reset()[0]).any()


def test_mask_is_what_sampling_takes():
    env = SingleEnv(Tiles)
    tile, info = env.reset(seed=0)
    for _ in range(5):
        action = env.action_space.sample(info["action_mask"])
        assert action != tile % 4
        tile, _, terminated, _, info = env.step(action)
        if terminated:
            break


def test_what_cannot_be_done_is_refused():
    env = SingleEnv(Counting)
    with pytest.raises(EnvError, match="Counting: call reset before step"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(EnvError, match="got action 3 for environment 0"):
        env.step(3)
    with pytest.raises(EnvError, match="got actions float64"):
        env.step(0.5)
    with pytest.raises(EnvError, match="seed -1 of environment 0"):
        env.reset(seed=-1)
    with pytest.raises(EnvError, match=r"seed=\[1\], wanted an integer"):
        env.reset(seed=[1])  # pyright: ignore[reportArgumentType]
    for _ in range(5):
        env.step(0)
    with pytest.raises(EnvError, match="has ended; reset it before the next step"):
        env.step(0)
    with pytest.raises(EnvError, match="no param 'size'; it has length"):
        gymnasium.make("rollout/Counting-v0", params={"size": 3})


# Counting: even episodes go on until a time limit, 5 of its own; odd ones end after `length`.
LIMITS = [({}, 5), ({"max_episode_steps": 3}, 3), ({"max_episode_steps": 9}, 9)]


@pytest.mark.parametrize(("arguments", "limit"), LIMITS)
def test_time_limit_of_make_is_the_only_one(arguments, limit):
    env = gymnasium.make("rollout/Counting-v0", **arguments)
    assert isinstance(env, TimeLimit)
    env.reset(seed=0)
    for t in range(limit):
        _, _, terminated, truncated, _ = env.step(0)
        assert (terminated, truncated) == (False, t + 1 == limit)
    inner = gymnasium.make("rollout/Counting-v0", max_episode_steps=-1)
    inner.reset(seed=0)
    assert not any(any(inner.step(0)[2:4]) for _ in range(20))


@pytest.mark.parametrize(("arguments", "limit"), [*LIMITS, ({"max_episode_steps": -1}, None)])
@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_time_limit_of_make_vec_is_the_only_one(arguments, limit, mode):
    envs = gymnasium.make_vec("rollout/Counting-v0", 2, vectorization_mode=mode, **arguments)
    envs.reset(seed=0)
    for t in range(limit or 20):
        _, _, terminated, truncated, _ = envs.step(np.array([0, 0]))
        assert not terminated.any()
        assert truncated.tolist() == [t + 1 == limit] * 2


def test_end_at_the_time_limit_is_both():
    for env in (
        gymnasium.make("rollout/Counting-v0", params={"length": 5}),
        SingleEnv(Counting, params={"length": 5}),
    ):
        flags = [answer[2:4] for answer in run(env, [0] * 10) if len(answer) == 5]
        assert flags[4] == (False, True)
        assert flags[9] == (True, True)


def test_vectors_of_make_are_equal():
    actions = random_actions(CartPole, 300, 4)
    answers = []
    for mode in ("sync", "vector_entry_point"):
        chosen: dict[str, Any] = {"params": {"force": 3.0}, "max_episode_steps": 30}
        if mode == "vector_entry_point":
            chosen["episode_statistics"] = False
        envs = gymnasium.make_vec("rollout/CartPole-v1", 4, mode, **chosen)
        answers.append([envs.reset(seed=8), *(envs.step(action) for action in actions)])
    assert_same(*answers)


COPIES = [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy]  # noqa: S301


@pytest.mark.parametrize("copied", COPIES, ids=["pickle", "deepcopy"])
def test_copies_continue_in_mid_episode(copied):
    env = gymnasium.make("rollout/CartPole-v1", params={"force": 3.0})
    actions = single_actions(CartPole, 80)
    run(env, actions[:25])
    other = copied(env)
    assert_same(run(other, actions[25:], seed=None), run(env, actions[25:], seed=None))
    assert copied(SingleEnv(Maze)).reset(seed=0)[0].keys() == Maze.observation_space.sample().keys()


def test_continues_from_a_snapshot():
    env, other = SingleEnv(Maze), SingleEnv(Maze)
    actions = single_actions(Maze, 50)
    shown = run(env, actions[:20])[-1][0]
    kept = env.snapshot()
    observation, info = other.restore(kept)
    assert_same(observation, shown)
    assert info.keys() == {"action_mask"}
    assert_same(run(other, actions[20:], seed=None), run(env, actions[20:], seed=None))


def test_render_gives_a_picture():
    env = gymnasium.make("tests/Maze-v0", render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert_same(env.render(), np.full((4, 6, 3), observation["place"], np.uint8))
    film = gymnasium.make("tests/Maze-v0", render_mode="rgb_array_list")
    film.reset(seed=0)
    film.step([0, 0])
    frames: Any = film.render()
    assert len(frames) == 2
    assert Counting.render_fps == env.metadata["render_fps"]
    with pytest.warns(UserWarning, match="made without render_mode='rgb_array'"):
        assert SingleEnv(Maze).render() is None


def test_plain_python_gives_the_same():
    actions = single_actions(Maze, 30)
    assert_same(run(SingleEnv(Maze, jit=False), actions), run(SingleEnv(Maze), actions))


def test_import_loads_no_compiler():
    """Whoever only names environments (a host, a script's `--help`) does not wait for Numba."""
    source = """
import sys
import gymnasium, rollout.envs
assert "rollout/CartPole-v1" in gymnasium.registry
loaded = {"numba", "torch", "stable_baselines3", "rollout.envs.classic.cartpole"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", source], check=True)
