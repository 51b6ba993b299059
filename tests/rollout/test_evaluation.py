"""How good a policy is."""

import json

import numpy as np
import pytest

from rollout import evaluate_runs, evaluation
from rollout.cli import main
from rollout.envs import EnvError, Envs, Outcome, find_env
from rollout.evaluation import play_episodes
from rollout.policy import Policy, evaluation_seed, load_policy

ENDLESS = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from rollout.envs import CompiledEnv

class Endless(CompiledEnv):
    state = np.dtype([("t", "i4")])
    observation_space = Box(0, 1, (1,), np.float32)
    action_space = Discrete(2)

    def reset(state, params, draw):
        state.t = 0

    def step(state, params, action, draw):
        state.t += 1
        return 1.0, False

    def observe(state, params, observation):
        observation[0] = state.t
"""


@pytest.fixture
def policy(make_run):
    return load_policy(make_run())


def twin_episode(policy: Policy, env: int) -> tuple[float, int]:
    """(return, length) of an environment's first episode, played step by step."""
    seed = evaluation_seed(policy.experiment.seed, 0)
    definition = find_env(policy.experiment.env.id)
    envs, outcome = Envs(definition, 1, seed, first_env=env), Outcome(definition, 1)
    total, length = 0.0, 0
    while True:
        action = np.array([policy.act(envs.observation()[0])], np.int32)
        envs.step(action, outcome)
        total, length = total + float(outcome.reward[0]), length + 1
        if outcome.terminated[0] or outcome.truncated[0]:
            return total, length


def test_episodes_are_those_of_playing_step_by_step(policy):
    played = play_episodes(policy, 12, deterministic=True)
    expected = [twin_episode(policy, env) for env in range(12)]
    assert list(zip(played.returns, played.lengths, strict=True)) == expected


def test_only_the_first_episode_of_each_environment_counts(make_run):
    # The first episode of Counting-v0 has 5 steps, the second 3, and so on: counting whatever ends
    # would bring in lengths of 3, and a mean below 5.
    played = play_episodes(load_policy(make_run("Counting-v0")), 7, deterministic=True)
    np.testing.assert_array_equal(played.lengths, [5] * 7)
    assert (played.returns >= 0 + 1 + 2 + 3 + 4).all()


def test_who_listens_is_told_how_many_have_been_played(policy, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    told = []
    play_episodes(policy, 8, deterministic=True, tell=told.append)
    assert told == [0, 3, 6]


def test_episodes_that_outlast_an_unroll_are_whole(policy, monkeypatch):
    whole = play_episodes(policy, 12, deterministic=False)
    monkeypatch.setattr(evaluation, "UNROLL_LENGTH", 4)
    parts = play_episodes(policy, 12, deterministic=False)
    np.testing.assert_array_equal(parts.lengths, whole.lengths)
    assert whole.lengths.max() > 4


@pytest.mark.parametrize("deterministic", [True, False])
def test_episodes_do_not_depend_on_how_many_are_played_at_once(policy, monkeypatch, deterministic):
    together = play_episodes(policy, 20, deterministic)
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    np.testing.assert_array_equal(
        play_episodes(policy, 20, deterministic).returns, together.returns
    )
    np.testing.assert_array_equal(
        play_episodes(policy, 8, deterministic).returns, together.returns[:8]
    )


def test_another_number_plays_other_episodes_and_the_same_the_same(policy):
    first, again, other = (play_episodes(policy, 20, True, number).returns for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_environment_begins_as_in_training(policy):
    training = Envs(policy.env, 500, policy.experiment.seed).observation()
    seed = evaluation_seed(policy.experiment.seed, 0)
    evaluated = Envs(policy.env, 500, seed).observation()
    assert not set(map(bytes, training)) & set(map(bytes, evaluated))


def test_environments_have_the_params_of_the_experiment(make_run):
    weak = load_policy(make_run("CartPole-v1", "env.params.force=0.001"))
    strong = load_policy(make_run("CartPole-v1", where="strong"))
    np.testing.assert_array_equal(weak.parameters, strong.parameters)
    weak_lengths = play_episodes(weak, 20, False).lengths
    assert (weak_lengths != play_episodes(strong, 20, False).lengths).any()


def test_episode_that_does_not_end_is_an_error_that_says_what_to_do(
    make_run, monkeypatch, tmp_path
):
    (tmp_path / "endless_env.py").write_text(ENDLESS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(evaluation, "MAX_STEPS", 300)
    policy = load_policy(make_run("endless_env:Endless"))
    with pytest.raises(EnvError, match=r"3 of 3 episodes did not end .* the environment max_"):
        play_episodes(policy, 3, deterministic=True)


def run_main(*arguments: str) -> int:
    """Run a command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_eval_prints_a_row_for_each_kind_of_playing(make_run, capsys):
    run = make_run()
    assert run_main("eval", str(run.path), "--episodes", "30") == 0
    head, titles, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("update-00000005: CartPole-v1, 30 episodes each")
    assert "95 % interval" in titles
    assert [row.split()[0] for row in rows] == ["deterministic", "sampled"]
    mean = play_episodes(load_policy(run), 30, deterministic=True).returns.mean()
    assert rows[0].split()[1] == f"{mean:.1f}"


def test_eval_as_json_is_one_object(make_run, capsys, tmp_path):
    run, video = make_run(), tmp_path / "out.gif"
    arguments = ["--episodes", "30", "--seed", "4", "--json", "--video", str(video)]
    assert run_main("eval", str(run.path), *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["update"] == 5
    assert found["episodes"] == 30
    assert found["video"] == str(video) and video.exists()
    played = play_episodes(load_policy(run), 30, deterministic=False, number=4)
    assert found["sampled"] == played.as_dict()
    low, high = found["sampled"]["interval_95"]
    assert low <= found["sampled"]["mean"] <= high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "out.png"], "unknown format '.png'; wanted a name that ends in .gif"),
        (["--video", "out"], "unknown format ''; wanted a name that ends in .gif"),
        (["--video", "none/out.gif"], "none/out.gif: cannot be written: No such file"),
        (["--checkpoint", "77"], "no checkpoint '77'; there is update-00000005"),
        (["--episodes", "0"], "--episodes"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_played(
    make_run, capsys, monkeypatch, tmp_path, arguments, message
):
    def play(*_):
        raise AssertionError("played")

    monkeypatch.setattr(evaluate_runs, "play_episodes", play)
    monkeypatch.chdir(tmp_path)
    assert run_main("eval", str(make_run().path), *arguments) == 2
    assert message in capsys.readouterr().err


def test_damaged_checkpoint_ends_eval_with_a_message(make_run, capsys):
    run = make_run()
    file = run.checkpoints / "update-00000005" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run_main("eval", str(run.path)) == 2
    assert "arrays.safetensors" in capsys.readouterr().err
