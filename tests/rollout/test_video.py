"""Pictures of a policy that plays."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from rollout import video
from rollout.cli import main
from rollout.envs import EnvError, Envs
from rollout.evaluation import make_player, play_episodes
from rollout.policy import evaluation_seed, load_policy
from rollout.video import FRAME_MS, write_video


@pytest.fixture
def policy(make_run):
    return load_policy(make_run())


@pytest.mark.parametrize(
    ("render", "words"),
    [
        (
            lambda state, params: 1 / 0,
            r"render fails at .*test_video.py:\d+: ZeroDiv",
        ),
        (
            lambda state, params: np.zeros((4, 4)),
            r"returns float64 \[4, 4\], wanted uint8",
        ),
        (lambda state, params: "x", "returns str, wanted uint8"),
        (
            lambda state, params: np.zeros((int(1000 * abs(state.x)) + 1, 2, 3), np.uint8),
            r"render gave \(\d+, 2, 3\), then \(\d+, 2, 3\)",
        ),
    ],
)
def test_what_is_no_picture_is_refused(policy, monkeypatch, tmp_path, render, words):
    monkeypatch.setattr(policy.env, "render", render)
    with pytest.raises(EnvError, match=words):
        write_video(policy, tmp_path / "out.gif")


def test_video_has_a_frame_for_what_is_seen_at_each_step(policy, tmp_path):
    file = tmp_path / "out.gif"
    num_steps = write_video(policy, file)
    assert num_steps == play_episodes(policy, 1, deterministic=True).lengths[0]
    with Image.open(file) as shown:
        assert shown.format == "GIF"
        assert shown.size == (300, 200)
        frames, shown_ms = [], 0
        for frame in ImageSequence.Iterator(shown):
            shown_ms += frame.info["duration"]
            frames.append(np.asarray(frame.convert("RGB")))
    assert shown_ms == (num_steps + 1) * FRAME_MS, "what it began and ended with"
    assert len(frames) > 1 and (frames[0] != frames[-1]).any()
    start = Envs(policy.env, 1, evaluation_seed(policy.experiment.seed, 0)).render()
    assert np.abs(frames[0].astype(int) - start).mean() < 1


def test_last_picture_shows_what_has_ended_the_episode(policy):
    """The environment itself has begun the next one by then."""
    actor = make_player(policy, 0, 1, 1, 3)
    is_down = False
    while not is_down:
        before = actor.envs.snapshot()
        actor.act(policy.parameters, greedy=True)
        after = video._without_reset(actor, policy.network.head, before).records[0]
        is_down = abs(after["state"]["theta"]) > 12 * 2 * np.pi / 360
        assert is_down == bool(actor.buffer.num_episodes)
        if not is_down:
            assert after["state"] == actor.envs.records[0]["state"]
            assert after["clock"]["t"] == actor.envs.records[0]["clock"]["t"]


def test_video_of_an_environment_without_render_is_refused(make_run, capsys, tmp_path):
    run = make_run("tests.rollout.rich_envs:OneChoice")
    with pytest.raises(SystemExit) as caught:
        main(["eval", str(run.path), "--video", str(tmp_path / "out.gif")])
    assert caught.value.code == 2
    assert "OneChoice has no render" in capsys.readouterr().err
    assert not (tmp_path / "out.gif").exists()
