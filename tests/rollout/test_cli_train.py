"""The commands `train` and `envs`."""

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rollout import api
from rollout.cli import main
from rollout.envs import BUNDLED
from rollout.processes import seconds_since_start

FILE = (
    '[env]\nid = "CartPole-v1"\nnum_envs = 8\n[fleet]\nnum_actors = 2\n[stop]\nenv_steps = 2048\n'
)


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(FILE)


@pytest.fixture
def trained(monkeypatch, make_run, make_progress, make_summary):
    """In place of training: what it was asked for; what it returns may be set."""
    asked = SimpleNamespace(interrupted_by=None, was_finished=False, goal_reached=True)

    def train(experiment, overrides, *, run_dir, resume, view, started):
        asked.experiment, asked.overrides, asked.run_dir = experiment, tuple(overrides), run_dir
        asked.resume = resume
        asked.age_s = time.monotonic() - started
        view.phase("starting")
        view.write(make_progress(1))
        run = make_run()
        summary = make_summary(goal_reached=asked.goal_reached)
        view.finish(make_summary(), run)
        return SimpleNamespace(
            summary=summary,
            run_dir=run.path,
            interrupted_by=asked.interrupted_by,
            was_finished=asked.was_finished,
        )

    monkeypatch.setattr(api, "train", train)
    return asked


def run_main(*arguments: str) -> int:
    """Run a command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_train_passes_on_what_was_asked_and_reports(trained, capsys):
    assert run_main("train", "x.toml", "seed=3", "env.num_envs=4", "--run-dir", "here") == 0
    assert trained.experiment == Path("x.toml")
    assert trained.overrides == ("seed=3", "env.num_envs=4")
    assert trained.run_dir == Path("here")
    assert trained.resume is None
    assert trained.age_s == pytest.approx(seconds_since_start(), abs=0.5), "of the process"
    out = capsys.readouterr().out
    assert out.startswith("starting\nupdate 1")
    assert "Goal reached after 3.2 s" in out


def test_quiet_train_says_only_how_it_ended(trained, capsys):
    assert run_main("train", "x.toml", "--quiet") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Goal reached after 3.2 s")
    assert err == ""


def test_train_as_json_prints_the_summary_and_progress_elsewhere(trained, capsys, make_summary):
    assert run_main("train", "x.toml", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert Path(found.pop("run")).name == "run"
    assert found == json.loads(json.dumps(make_summary().as_dict()))
    assert err.startswith("starting\nupdate 1")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_train_that_a_signal_ended_says_so_by_its_status(trained, capsys, number, status):
    trained.interrupted_by = number
    assert run_main("train", "x.toml", "--quiet") == status
    err = capsys.readouterr().err
    assert f"{number.name}: the run ended early; it was saved first, and `rollout train" in err
    assert "--resume " in err
    assert "/run` goes on" in err


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--resume", "my run"], ()),
        (["--resume", "my run", "seed=3"], ("seed=3",)),
        (["fleet.num_actors=7", "--resume", "my run", "a=.//b"], ("fleet.num_actors=7", "a=.//b")),
        (["a=.//b", "seed=3", "--resume", "my run"], ("a=.//b", "seed=3")),
    ],
)
def test_everything_behind_a_run_to_resume_is_an_override(trained, capsys, arguments, overrides):
    assert run_main("train", *arguments) == 0
    assert trained.experiment is None
    assert trained.resume == Path("my run")
    assert trained.overrides == overrides
    assert trained.run_dir is None


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "nothing to train: name an experiment FILE, or --resume RUN"),
        (["--resume", "r", "--run-dir", "d"], "--run-dir d: a run that is resumed stays in its"),
        (["x.toml", "--resume", "r"], "x.toml: a run that is resumed has an experiment, r/config"),
        (["--resume", "r", "x.toml", "seed=1"], "x.toml: a run that is resumed has an experiment"),
    ],
)
def test_train_of_nothing_or_of_two_things_is_refused(trained, capsys, arguments, found):
    assert run_main("train", *arguments) == 2
    assert found in capsys.readouterr().err
    assert not hasattr(trained, "experiment")


@pytest.mark.parametrize(
    ("goal_reached", "override"),
    [(True, "stop.episode_return=…"), (False, "stop.env_steps=102400")],
)
def test_resuming_a_run_that_has_finished_says_how_it_would_go_on(
    trained, capsys, goal_reached, override
):
    trained.was_finished, trained.goal_reached = True, goal_reached
    assert run_main("train", "--resume", "run", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["goal_reached"] is goal_reached
    assert "/run has finished, there was nothing to do; to go on, " in err
    assert err.endswith(f"/run {override}\n")


def test_train_of_a_file_with_mistakes_ends_with_status_2_and_leaves_nothing(capsys):
    assert run_main("train", "x.toml", "fleet.num_actors=9", "seed=-1") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert [path.name for path in Path().iterdir()] == ["x.toml"]


def test_train_into_a_directory_that_holds_something_ends_with_status_2(capsys):
    assert run_main("train", "x.toml", "--run-dir", ".") == 2
    assert "is not empty; --run-dir wants a new or an empty directory" in capsys.readouterr().err


def test_train_for_real_leaves_a_run_that_can_be_evaluated(capsys):
    assert run_main("train", "x.toml", "--run-dir", "run", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["env_steps"] == 2048
    assert summary["updates"] == 4
    assert summary["ledger"]["balance"] == 0
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["global_step"] for line in lines] == [512, 1024, 1536, 2048]
    assert list(Path("run").glob("events.*"))
    assert (
        json.loads(Path("run/summary.json").read_text())["params_digest"]
        == (summary["params_digest"])
    )
    assert run_main("eval", "run", "--episodes", "5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["update"] == 4


def test_envs_lists_the_bundled_environments_a_line_each(capsys):
    assert run_main("envs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BUNDLED)
    assert all(len(line.split()) > 3 for line in lines), "each is described"


def test_envs_tells_all_about_one(capsys):
    assert run_main("envs", "CartPole-v1") == 0
    out = capsys.readouterr().out
    assert "CartPole-v1  Keep the pole up" in out
    assert "observation  Box [4] float32, -inf to inf" in out
    assert "params       force = 10.0" in out
    assert "time limit   500 steps" in out


def test_envs_as_json_is_one_list(capsys):
    assert run_main("envs", "--json") == 0
    found = {env["id"]: env for env in json.loads(capsys.readouterr().out)}
    assert found["CartPole-v1"]["action_space"] == "Discrete(2)"
    assert found["CartPole-v1"]["max_episode_steps"] == 500
    assert found["CartPole-v1"]["has_video"]
    assert run_main("envs", "tests.rollout.rich_envs:Choices", "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["action_space"] == "MultiDiscrete([2 3])" and not about["has_video"]
    assert about["inputs"][3:6] == ["way=3", "place[0]", "place[1]"]
    assert run_main("envs", "CartPole") == 2
