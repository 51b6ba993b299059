"""Gymnasium's wrappers around our environments; every warning is an error."""

import copy
import itertools
import sys
import types
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import vector

from rollout.envs import SingleEnv, VectorEnv
from rollout.envs.classic.cartpole import CartPole
from tests.envs.gymnasium_envs import Maze, Sliders, Tiles, assert_same, random_actions
from tests.envs.nasty import Pixels

VECTOR_WRAPPERS = [
    (CartPole, vector.RecordEpisodeStatistics),
    (Maze, vector.RecordEpisodeStatistics),
    (CartPole, vector.NormalizeObservation),
    (CartPole, vector.NormalizeReward),
    (CartPole, lambda envs: vector.ClipReward(envs, 0.0, 0.5)),
    (CartPole, lambda envs: vector.DtypeObservation(envs, np.float64)),
    (CartPole, lambda envs: vector.ReshapeObservation(envs, (2, 2))),
    (CartPole, lambda envs: vector.DictInfoToList(vector.RecordEpisodeStatistics(envs))),
    (Maze, vector.DictInfoToList),
    (Maze, vector.FlattenObservation),
    (Maze, lambda envs: vector.FilterObservation(envs, ["wall", "counts"])),
    (Tiles, vector.FlattenObservation),
    (Pixels, lambda envs: vector.RescaleObservation(envs, 0.0, 1.0)),
    (Sliders, vector.ClipAction),
    (Sliders, lambda envs: vector.RescaleAction(envs, np.full(2, -2, "f4"), np.full(2, 2, "f4"))),
]
SINGLE_WRAPPERS = [
    (CartPole, wrappers.RecordEpisodeStatistics),
    (Maze, wrappers.RecordEpisodeStatistics),
    (CartPole, wrappers.NormalizeObservation),
    (CartPole, wrappers.NormalizeReward),
    (CartPole, lambda env: wrappers.TimeLimit(env, 3)),
    (CartPole, lambda env: wrappers.FrameStackObservation(env, 3)),
    (CartPole, lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 9))),
    (CartPole, wrappers.Autoreset),
    (CartPole, lambda env: wrappers.StickyAction(env, 0.5)),
    (CartPole, lambda env: wrappers.TransformReward(env, lambda reward: -float(reward))),
    (CartPole, wrappers.PassiveEnvChecker),
    (CartPole, wrappers.OrderEnforcing),
    (Maze, wrappers.FlattenObservation),
    (Maze, lambda env: wrappers.FilterObservation(env, ["wall"])),
    (Tiles, wrappers.FlattenObservation),
    (Sliders, wrappers.ClipAction),
    (Sliders, lambda env: wrappers.RescaleAction(env, np.float32(-2), np.float32(2))),
]


def without_times(answer: Any) -> Any:
    """Statistics without how long an episode took."""
    infos = answer[-1] if isinstance(answer[-1], list) else [answer[-1]]
    for info in infos:
        info.get("episode", {}).pop("t", None)
    return copy.deepcopy(answer)


@pytest.mark.parametrize(("env", "wrap"), VECTOR_WRAPPERS)
def test_wrapper_of_vectors_gives_what_it_gives_around_gymnasiums_own(env, wrap):
    """Each around its environment is a wrapper that knows nothing of the other."""
    answers = []
    judge = SyncVectorEnv([lambda: SingleEnv(env) for _ in range(3)])
    for inner in (VectorEnv(env, 3, episode_statistics=False), judge):
        envs: Any = wrap(inner)
        heard = [without_times(envs.reset(seed=7))]
        for action in random_actions(env, 40, 3):
            heard.append(without_times(envs.step(action)))
        answers.append(heard)
        envs.close()
    assert_same(*answers)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_wrapper_counts_episodes_of_any_vector(mode):
    """With the statistics that ours would give by itself, and through other wrappers."""
    envs = vector.RecordEpisodeStatistics(
        vector.ClipReward(gymnasium.make_vec("rollout/Counting-v0", 4, autoreset_mode=mode), 0, 1)
    )
    envs.reset(seed=0)
    infos: dict[str, Any] = {}
    for _ in range(5):
        *_, infos = envs.step(np.zeros(4, np.int64))
    assert infos["episode"]["r"].tolist() == [4.0] * 4, "clipped rewards: 0 1 1 1 1"
    assert infos["episode"]["l"].tolist() == [5] * 4
    assert envs.episode_count == 4


@pytest.mark.parametrize(("env", "wrap"), SINGLE_WRAPPERS)
def test_wrapper_of_one_environment_works(env, wrap):
    wrapped: Any = wrap(SingleEnv(env))
    observation, _ = wrapped.reset(seed=7)
    episodes = 0
    for action in random_actions(env, 90, 1):
        assert observation in wrapped.observation_space
        observation, _, terminated, truncated, info = wrapped.step(action[0])
        if terminated or truncated:
            episodes += 1
            if isinstance(wrapped, wrappers.RecordEpisodeStatistics):
                assert info["episode"]["l"] > 0
            if not isinstance(wrapped, wrappers.Autoreset):
                observation, _ = wrapped.reset()
    assert episodes > 1
    wrapped.close()


class Clip:
    """In place of moviepy's: what would have been a film."""

    films: list[list[np.ndarray]]

    def __init__(self, frames: list[np.ndarray], fps: int) -> None:
        assert fps == CartPole.render_fps
        self.films.append(frames)

    def write_videofile(self, path: str, **_: Any) -> None:
        assert path.endswith(".mp4")


@pytest.fixture
def films(monkeypatch):
    """The frames of each film that is made."""
    clip = type("Clip", (Clip,), {"films": []})
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    vars(module)["ImageSequenceClip"] = clip
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return clip.films


def test_films_of_one_environment_have_all_its_frames(films, tmp_path):
    env = gymnasium.make("rollout/CartPole-v1", render_mode="rgb_array")
    env = wrappers.RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda episode: True)
    env.reset(seed=1)
    wanted: list[Any] = [env.render()]
    ended = False
    while not ended:
        _, _, terminated, truncated, _ = env.step(1)
        ended = terminated or truncated
        wanted.append(env.render())
    env.close()
    assert_same(films, [wanted])
    assert any((one != other).any() for one, other in itertools.pairwise(wanted))


def test_films_of_a_vector_show_all_side_by_side(films, tmp_path):
    envs: Any = gymnasium.make_vec("rollout/CartPole-v1", 4, render_mode="rgb_array")
    film: Any = vector.RecordVideo(envs, str(tmp_path / "films"), video_length=20)
    film.reset(seed=1)
    first = np.concatenate(envs.render()[:2], axis=1)
    for _ in range(8):
        film.step(np.ones(4, np.int64))
    film.close()
    assert len(films) == 1 and len(films[0]) == 9
    assert films[0][0].shape == (400, 600, 3)
    assert_same(films[0][0][:200], first)


def test_film_is_made(tmp_path):
    pytest.importorskip("moviepy")
    envs = gymnasium.make_vec("rollout/CartPole-v1", 2, render_mode="rgb_array")
    film: Any = vector.RecordVideo(envs, str(tmp_path / "films"), video_length=6)
    film.reset(seed=1)
    for _ in range(8):
        film.step(np.ones(2, np.int64))
    film.close()
    assert [path.suffix for path in (tmp_path / "films").iterdir()] == [".mp4"]
