"""Failures that are replayed from their files happen again, compiled and in plain Python."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rollout.acting import UnrollActor, read_only
from rollout.cli import main
from rollout.env_source import EnvSource
from rollout.envs import EnvError, Envs
from rollout.errors import OperatorError
from rollout.failure_replay import Outcome, find_failed_env, replay_failure, start_of
from rollout.failures import Failure, save_failure
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.shapes import make_schema
from tests.envs import failing

NETWORK = make_mlp((3,), CategoricalHead((2,)), (8,), "tanh", "shared")
SCHEMA = make_schema(failing.Fails, 4, has_value=True)
WEIGHTS = read_only(initial_parameters(NETWORK, 3))
REPOSITORY = Path(__file__).parents[2]
ENDINGS = {
    failing.NOTHING: ("exception", "ValueError: of then"),
    failing.RAISE: ("exception", "ended: ValueError: step went wrong"),
    failing.RAISE_IN_RESET: ("exception", "ValueError: reset went wrong"),
    failing.HANG: ("hang", "12 s"),
    failing.CRASH: ("signal", "was killed by SIGSEGV: it wrote somewhere"),
}
each_way = pytest.mark.parametrize("jit", [True, False], ids=["compiled", "python"])


def make_failure(how: int, **others) -> Failure:
    """Environment 5 fails at step 3 of episode 2, of 7 steps each: its step 17, in unroll 4."""
    params = {"how": how, "env": 5, "episode": 2, "step": 3}
    ended, error = ENDINGS[how]
    num_unrolls, t = (3, 1) if how == failing.RAISE_IN_RESET else (4, 1)
    actor = UnrollActor(Envs(failing.Fails, 1, 3, first_env=5, params=params), NETWORK, SCHEMA)
    for _ in range(num_unrolls):
        actor.act(WEIGHTS)
    known = {
        "seed": 3,
        "env": 5,
        "unroll_index": num_unrolls,
        "t": t,
        "weights_version": 4,
        "network": NETWORK,
        "schema": SCHEMA,
        "ended": ended,
        "error": error,
        "weights": WEIGHTS,
        "env_state": np.frombuffer(actor.envs.snapshot(), np.uint8),
    }
    source = {"id": "tests.envs.failing:Fails", "params": params, "folder": str(REPOSITORY)}
    source |= {name: others.pop(name) for name in source.keys() & others.keys()}
    return Failure(env_source=EnvSource(**source), **(known | others))


@each_way
def test_exception_in_a_step_happens_again(jit):
    failure = make_failure(failing.RAISE)
    outcome = replay_failure(failure, jit).outcome
    assert outcome.ended == "exception"
    assert outcome.error == "ValueError: step went wrong"
    assert (outcome.t, outcome.episode, outcome.episode_step) == (1, 2, 3)
    assert outcome.is_same(failure)
    assert outcome.lines is not None
    assert outcome.lines.count("File ") == 1  # none of ours
    assert 'raise ValueError("step went wrong")' in outcome.lines


@each_way
def test_exception_in_a_reset_happens_again(jit):
    failure = make_failure(failing.RAISE_IN_RESET)
    assert start_of(failure) == (1, 5)
    outcome = replay_failure(failure, jit).outcome
    assert outcome.error == "ValueError: reset went wrong"
    assert (outcome.t, outcome.episode, outcome.episode_step) == (1, 2, 0)
    assert outcome.is_same(failure)


@each_way
def test_fresh_environment_that_cannot_begin_fails_before_its_first_step(jit):
    params = {"how": failing.RAISE_IN_RESET, "env": 5, "episode": 0, "step": 0}
    failure = make_failure(
        failing.RAISE_IN_RESET,
        params=params,
        env_state=np.zeros(0, np.uint8),
        unroll_index=0,
        t=-1,
    )
    assert start_of(failure) == (0, 0)
    outcome = replay_failure(failure, jit).outcome
    assert outcome.is_same(failure)
    assert outcome.t == -1


@each_way
def test_what_does_not_fail_comes_to_its_end(jit):
    outcome = replay_failure(make_failure(failing.NOTHING), jit).outcome
    assert outcome.ended is None
    assert not outcome.is_same(make_failure(failing.NOTHING))


@pytest.mark.parametrize("others", [{"t": 0}, {"error": "ValueError: another"}, {"ended": "exit"}])
def test_failure_elsewhere_is_not_the_same(others):
    failure = make_failure(failing.RAISE, **others)
    assert not replay_failure(failure).outcome.is_same(failure)


def test_environment_is_found_in_the_current_folder_if_its_own_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (REPOSITORY / "tests/envs/failing.py").read_text()
    (tmp_path / "moved_failing.py").write_text(source)
    failure = make_failure(failing.RAISE, id="moved_failing:Fails", folder=str(tmp_path / "gone"))
    assert find_failed_env(failure).__module__ == "moved_failing"


def test_environment_that_is_not_there_is_named():
    with pytest.raises(EnvError, match="no module 'nowhere_at_all'"):
        replay_failure(make_failure(failing.RAISE, id="nowhere_at_all:Env"))


def test_environment_that_has_changed_is_refused():
    failure = make_failure(failing.RAISE, id="CartPole-v1")
    with pytest.raises(OperatorError, match=r"observation_shape \(3,\) then, \(4,\) now"):
        replay_failure(failure)


@pytest.mark.parametrize(
    ("now", "is_same"),
    [
        ("ValueError: y is 0.5, too low", True),
        ("ValueError: y is <object type:float64>, too low", True),
        ("ValueError: y is 0.5, too high", False),
        ("KeyError: y is 0.5, too low", False),
    ],
)
def test_value_that_compiled_code_does_not_show_may_be_any(now, is_same):
    then = make_failure(
        failing.RAISE, error="ended: ValueError: y is <object type:float64>, too low"
    )
    assert Outcome(ended="exception", error=now, t=1).is_same(then) == is_same


# The command


def rollout(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-P", "-m", "rollout", "replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_lines_are_those_of_the_file_as_it_is_now(tmp_path):
    """And not of the one that the machine code was compiled from, which is kept meanwhile."""
    folder = tmp_path / "tests" / "envs"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    now = folder / "failing.py"
    now.write_text("# moved\n" * 3 + Path(failing.__file__).read_text())
    failure = make_failure(failing.RAISE, folder=str(tmp_path))
    ended = rollout(save_failure(tmp_path, failure))
    assert f'File "{now}", line 31, in step\n    raise ValueError("step' in ended.stdout
    assert "It failed again, in the same way." in ended.stdout


@pytest.mark.parametrize("option", [(), ("--python",)])
def test_command_says_that_it_failed_again(option, tmp_path):
    path = save_failure(tmp_path, make_failure(failing.RAISE))
    ended = rollout(path, *option)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.splitlines() == [
        str(path),
        "environment  tests.envs.failing:Fails, number 5, seed 3",
        "unroll       number 4, from step 2 of episode 2 on, weights version 4",
        "then         exception: ended: ValueError: step went wrong, at step 1 of the unroll",
        "now          exception: ValueError: step went wrong, at step 1 of the unroll "
        "(step 3 of episode 2)",
        f'  File "{failing.__file__}", line 28, in step',
        '    raise ValueError("step went wrong")',
        "It failed again, in the same way.",
    ]


def test_command_says_that_it_did_not_fail_again(tmp_path):
    ended = rollout(save_failure(tmp_path, make_failure(failing.NOTHING)))
    assert ended.returncode == 0, ended.stderr
    assert "It did not fail this time." in ended.stdout


def test_command_outlives_a_crash_that_happens_again(tmp_path):
    ended = rollout(save_failure(tmp_path, make_failure(failing.CRASH)), "--json")
    assert ended.returncode == 1, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["failed"], found["same"]) == (True, True)
    assert (found["now"]["ended"], found["now"]["error"]) == ("signal", "SIGSEGV")


def test_crash_is_an_exception_in_plain_python(tmp_path):
    ended = rollout(save_failure(tmp_path, make_failure(failing.CRASH)), "--python")
    assert ended.returncode == 1
    assert "IndexError: " in ended.stdout
    assert "state.board[FAR * params.env] = 1" in ended.stdout
    assert "It failed again, but otherwise than then." in ended.stdout


def test_debugger_opens_at_the_authors_line(tmp_path):
    path = save_failure(tmp_path, make_failure(failing.RAISE))
    ended = rollout(path, "--pdb", input="p state.t, params.step\nq\n")
    assert ended.returncode == 1, ended.stderr
    assert '-> raise ValueError("step went wrong")' in ended.stdout
    assert "(3, 3)" in ended.stdout


@contextlib.contextmanager
def hanging(path: Path, *option: str) -> Iterator[subprocess.Popen]:
    """The command in a session of its own, as under a terminal, as soon as its environment hangs.

    What it says from then on can be read from it.
    """
    command = [sys.executable, "-P", "-m", "rollout", "replay", str(path), *option]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin and process.stdout
    try:
        assert "hanging\n" in process.stdout  # reads as far as that
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # nobody reads any more
                pipe.close()


@pytest.mark.parametrize("option", [(), ("--python",), ("--pdb",)])
def test_ctrl_c_ends_a_hang_that_happens_again(option, tmp_path):
    path = save_failure(tmp_path, make_failure(failing.HANG))
    with hanging(path, *option) as process:
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate("p state.t\nq\n", timeout=60)
    assert process.returncode == 1, said
    assert "now          hang: Ctrl-C" in said
    if option:  # compiled code does not know where it is
        assert f'"{failing.__file__}", line' in said or f"{failing.__file__}(" in said


def test_child_of_a_killed_command_ends_too(tmp_path):
    path = save_failure(tmp_path, make_failure(failing.HANG))
    with hanging(path) as process:
        process.kill()
        said, _ = process.communicate(timeout=60)  # the pipe ends with the last process
    assert process.returncode == -signal.SIGKILL
    assert "now" not in said


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    ended = rollout(tmp_path / "file")
    assert ended.returncode == 2
    assert "not a failure that can be replayed" in ended.stderr


def test_environment_that_cannot_be_had_ends_the_command(tmp_path):
    failure = make_failure(failing.RAISE, id="nowhere_at_all:Env")
    ended = rollout(save_failure(tmp_path, failure))
    assert ended.returncode == 2
    assert ended.stderr.count("no module 'nowhere_at_all'") == 1
    assert "failed again" not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((".", "--python"), "a run, and --python and --pdb are for a failure"),
        (("file", "--updates", "3"), "--updates is for a run"),
        (("file", "--pdb", "--json"), "leave one out"),
        (("nowhere",), "nowhere: cannot be read: No such file"),
        ((".",), "not a run"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["replay", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
