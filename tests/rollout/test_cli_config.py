"""The command line, and its command `config`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rollout
from rollout.cli import DEBUG_VARIABLE, exit_status_of, main
from rollout.errors import ConfigError, OperatorError, RunFailed
from rollout.experiment import load_experiment

FILE = '[env]\nid = "CartPole-v1"\nnum_envs = 8\n[fleet]\nnum_actors = 2\n[stop]\nwall_s = 5\n'


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(DEBUG_VARIABLE, "0")
    Path("x.toml").write_text(FILE)


def run_main(*arguments: str) -> int:
    """Run a command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_config_prints_an_experiment_file_that_loads_back(capsys):
    assert run_main("config", "x.toml", "seed=3") == 0
    printed = capsys.readouterr().out
    Path("y.toml").write_text(printed)
    assert load_experiment("y.toml") == load_experiment("x.toml", ["seed=3"])


def test_config_says_where_each_value_came_from(capsys):
    run_main("config", "x.toml", "seed=3")
    lines = dict(re.findall(r"^(\S+) = .*?  # (.*)$", capsys.readouterr().out, re.MULTILINE))
    assert lines["seed"] == "override"
    assert lines["num_envs"] == "file x.toml"
    assert lines["gamma"] == "default"
    assert lines["name"] == "the file's name"


def test_config_names_keys_that_have_no_value_with_what_they_would_do(capsys):
    run_main("config", "x.toml")
    *_, fleet, _, _, _, stop, checkpoint, _ = capsys.readouterr().out.split("\n\n")
    assert fleet.startswith("[fleet]\n") and stop.startswith("[stop]\nwall_s = 5")
    assert fleet.splitlines()[-2:] == [
        "# hang_s is unset: seconds an unroll may take before its actor is replaced; left out, "
        "20 times the longest measured, at least 10; and 60 for each step of the first",
        "# max_actor_memory is unset: how far an actor's memory may grow before it begins anew, "
        "between two unrolls; left out, without limit",
    ]
    assert [line.partition(":")[0] for line in stop.splitlines()[2:]] == [
        "# env_steps is unset",
        "# episode_return is unset",
    ]
    assert "# every_updates is unset: updates between checkpoints" in checkpoint.splitlines()


def test_config_in_a_pipe_is_plain_and_on_a_terminal_styled(capsys, monkeypatch):
    run_main("config", "x.toml")
    assert "\x1b[" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    run_main("config", "x.toml")
    assert "\x1b[" in capsys.readouterr().out


def test_config_as_json_is_one_object(capsys):
    assert run_main("config", "x.toml", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    experiment = load_experiment("x.toml")
    assert shown["experiment"] == experiment.model_dump(mode="json")
    assert shown["sources"]["env.num_envs"] == "file x.toml"
    assert shown["batch_size"] == 512
    assert shown["minibatch_size"] == 128
    assert shown["config_digest"] == experiment.config_digest


def test_every_problem_of_a_file_is_a_line_on_stderr_and_the_status_is_2(capsys):
    assert run_main("config", "x.toml", "fleet.windo=1", "seed=-1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("rollout: override ") for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["config"], ["config", "x.toml", "--nonsense"], ["config", "none.toml"]],
)
def test_wrong_arguments_end_with_status_2(arguments, capsys):
    assert run_main(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback_and_leaves_the_status(monkeypatch, capsys):
    for arguments in (["--debug", "config", "none.toml"], ["config", "none.toml"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "Traceback" in capsys.readouterr().err
        assert os.environ[DEBUG_VARIABLE] == "1"


def test_status_says_who_can_act():
    from rollout.envs.errors import EnvError

    assert exit_status_of(ConfigError("x")) == 2
    assert exit_status_of(OperatorError("x")) == 2
    assert exit_status_of(EnvError("x")) == 2
    assert exit_status_of(RunFailed("x")) == 1
    assert exit_status_of(ValueError("x")) is None


def test_other_systems_are_told_that_rollout_runs_on_linux(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert run_main("config", "x.toml") == 2
    assert "WSL2" in capsys.readouterr().err


def test_version_is_printed(capsys):
    assert run_main("--version") == 0
    assert capsys.readouterr().out == f"rollout {rollout.__version__}\n"


def test_every_command_has_an_example_in_its_help(capsys):
    from rollout.cli import COMMANDS

    for name in ["", *(command.__name__.replace("_", "-") for command in COMMANDS)]:
        assert run_main(*name.split(), "--help") == 0
        shown = capsys.readouterr().out
        assert "Example:\n" in shown or "Examples:\n" in shown


def test_help_imports_nothing_heavy():
    code = (
        "import sys, rollout.cli\n"
        "try: rollout.cli.main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Usage: rollout" in done.stdout
    heavy = {"torch", "numpy", "numba", "pydantic", "rich", "gymnasium", "zmq"}
    assert heavy & set(done.stderr.split()) == set()


def test_command_runs_as_a_process():
    done = subprocess.run(
        [sys.executable, "-m", "rollout", "config", "none.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rollout: none.toml: no such file; there is x.toml\n"
