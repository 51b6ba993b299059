"""How good the policies of several runs are."""

import json
from pathlib import Path

import numpy as np
import pytest

import rollout
from rollout import evaluate_runs
from rollout.cli import main
from rollout.errors import OperatorError
from rollout.evaluate_runs import evaluate
from rollout.evaluation import averages, play_episodes
from rollout.intervals import bootstrap_interval, interquartile_mean
from rollout.policy import load_policy


@pytest.fixture
def runs(make_run) -> list[Path]:
    """Two seeds of an experiment, another experiment, another environment."""
    return [
        make_run("CartPole-v1", "seed=1", where="runs/a").path,
        make_run("CartPole-v1", "seed=2", where="runs/b").path,
        make_run("CartPole-v1", "algorithm.gamma=0.5", where="runs/c").path,
        make_run("Counting-v0", where="runs/d").path,
    ]


def run_main(*arguments: str) -> int:
    """Run a command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_evaluation_has_the_episodes_of_each_run_and_sums_up_each_experiment(runs):
    found = rollout.evaluate(runs, 20, seed=3)
    for run, path in zip(found.runs, runs, strict=True):
        assert run.run.path == path
        played = play_episodes(load_policy(path), 20, False, 3)
        np.testing.assert_array_equal(run.sampled.returns, played.returns)
    assert [group.members for group in found.groups] == [(0, 1), (2,), (3,)]
    pooled = found.of_group(found.groups[0])
    both = np.stack([run.deterministic.returns for run in found.runs[:2]])
    assert pooled["deterministic"]["iqm"] == interquartile_mean(both.ravel())
    assert pooled["deterministic"]["iqm_interval_95"] == [
        *bootstrap_interval(both, interquartile_mean)
    ]
    assert pooled["deterministic"]["mean"] == pytest.approx(both.mean())


def test_experiment_of_one_run_is_summed_up_as_the_run(runs):
    found = evaluate(runs[:2] + runs[3:], 10)
    alone = found.runs[2].sampled
    summed_up = found.of_group(found.groups[1])["sampled"]
    assert summed_up == averages([alone])
    assert summed_up.items() <= alone.as_dict().items()


def test_evaluation_is_the_same_for_whoever_asks_again(runs):
    assert evaluate(runs, 10).as_dict() == evaluate(runs, 10).as_dict()


def test_who_listens_is_told_which_run_is_played(runs):
    told = []
    evaluate(runs[:2], 10, tell=told.append)
    assert len(told) == 4
    assert told[2] == "run 2 of 2: deterministic, 0 of 10 episodes"


def test_no_episodes_or_no_runs_is_a_mistake(runs):
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(runs, 0)
    with pytest.raises(ValueError, match="no runs"):
        evaluate([], 5)


def test_eval_of_a_folder_has_a_table_for_each_experiment(runs, capsys):
    assert run_main("eval", str(runs[0].parent), "--episodes", "20") == 0
    out = capsys.readouterr().out
    tables = out.split("\n\n")
    assert [table.splitlines()[0] for table in tables] == [
        "CartPole-v1, small (algorithm.gamma=0.99): 2 runs",
        "CartPole-v1, small (algorithm.gamma=0.5): 1 run",
        "Counting-v0, small: 1 run",
    ]
    rows = tables[0].splitlines()[1:]
    assert [row.split()[0] for row in rows[:4]] == [
        "deterministic,",
        f"{runs[0]}/checkpoints/update-00000005",
        f"{runs[1]}/checkpoints/update-00000005",
        "interquartile",
    ]
    found = evaluate(runs[:2], 20)
    iqm = found.of_group(found.groups[0])["deterministic"]["iqm"]
    assert rows[3].split()[2] == (f"{iqm:,.1f}" if iqm >= 10 else f"{iqm:.3g}")
    assert len({len(row) for row in rows if "update-" in row or "return" in row}) == 1, "aligned"


def test_eval_of_several_runs_as_json_is_one_object(runs, capsys):
    paths = [str(run) for run in runs[:3]]
    assert run_main("eval", *paths, "--episodes", "10", "--seed", "4", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    asked = {"seed": 4, "episodes": 10}
    assert shown == json.loads(json.dumps(asked | evaluate(runs[:3], 10, 4).as_dict()))
    assert [run["run"] for run in shown["runs"]] == paths
    assert [run["experiment_seed"] for run in shown["runs"]] == [1, 2, 0]
    assert [about["runs"] for about in shown["experiments"]] == [paths[:2], paths[2:]]


def test_a_run_named_twice_is_one_run(runs, capsys):
    assert run_main("eval", str(runs[0]), str(runs[0]), "--episodes", "5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(runs[0])


def test_runs_of_one_seed_are_warned_of(runs, make_run, capsys):
    again = make_run("CartPole-v1", "seed=2", where="runs/e").path
    assert run_main("eval", *map(str, [*runs, again]), "--episodes", "5", "--json") == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"rollout: {runs[1]}, {again}: of one experiment and one seed, 2, so")


def test_all_that_is_wrong_with_runs_is_told_before_anything_is_played(runs, capsys, monkeypatch):
    def play(*_):
        raise AssertionError("played")

    monkeypatch.setattr(evaluate_runs, "play_episodes", play)
    for run in runs[1:3]:
        (run / "checkpoints" / "update-00000005" / "manifest.json").unlink()
    assert run_main("eval", *map(str, runs)) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"{runs[1]}/checkpoints/update-00000005/manifest.json" in first
    assert f"{runs[2]}/checkpoints/update-00000005/manifest.json" in second


def test_video_of_several_runs_is_refused(runs, capsys):
    assert run_main("eval", *map(str, runs), "--video", "out.gif") == 2
    assert "--video out.gif: shows one run, and these are 4" in capsys.readouterr().err


def test_checkpoint_of_one_run_is_not_played_for_another(runs):
    assert len(evaluate(runs[:2], 5, checkpoint="5").runs) == 2
    path = runs[0] / "checkpoints" / "update-00000005"
    with pytest.raises(OperatorError, match="is not a checkpoint of this run") as caught:
        evaluate(runs[:2], 5, checkpoint=path)
    assert str(caught.value).startswith(f"{runs[1]}: ")
