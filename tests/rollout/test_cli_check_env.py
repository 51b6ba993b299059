"""`rollout check-env`: what it prints, and how it ends."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.cli import main

WALK = """
import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, uniform

print("imported")


class Walk(CompiledEnv):
    state = np.dtype([("x", "f8"), ("board", "i8", (3,))])
    params = {"wind": 0.1, "width": 3}
    observation_space = Box(-5, 5, (1,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 10

    def reset(state, params, draw):
        state.x = uniform(draw, -1.0, 1.0)

    def step(state, params, action, draw):
        state.x += 0.1 * (2 * action - 1)
        state.board[params.width - 1] = 1  # the last
        return state.x, False

    def observe(state, params, observation):
        observation[0] = state.x
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_an_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "walk", raising=False)
    Path("walk.py").write_text(WALK)


def run(*arguments: str) -> int:
    """Run the command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(["check-env", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_environment_of_this_folder_passes_and_every_check_has_its_line(capsys):
    assert run("walk:Walk", "--steps", "20") == 0
    *lines, empty, total = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if line != "imported"]
    assert [line[:17].split() for line in lines[:2]] == [["✓", "compiles"], ["✓", "runs"]]
    assert all(re.match(r"[✓–] .{14} \S", line) for line in lines)
    assert "– action mask    it has none" in lines[2]
    assert empty == ""
    assert re.fullmatch(r"walk:Walk: 14 passed, 2 not applicable, in \d+\.\d s", total)


def test_failure_is_named_with_its_line_and_status_is_1(capsys):
    assert run("walk:Walk", "width=4", "--steps", "20") == 1
    out = capsys.readouterr().out
    line = WALK[: WALK.index("# the last")].count("\n") + 1
    assert f"✗ runs           state.board[3] lies outside (3,) ({Path.cwd()}/walk.py:{line}," in out
    assert "environment 0, episode 0, step 0" in out
    assert "– not tried      runs failed: action mask, observations, rewards, params, " in out
    assert out.count("runs failed") == 1, "one line for all"
    assert "walk:Walk: 1 passed, 1 failed, 14 not tried, in " in out


def test_json_is_one_object_and_alone_on_standard_output():
    """The environment prints when it is imported, here and in the process that checks it."""
    done = subprocess.run(
        [sys.executable, "-m", "rollout", "check-env", "walk:Walk", "--steps", "20", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "imported" in done.stderr
    assert found["env"] == "walk:Walk"
    assert found["has_passed"] is True
    assert {check["status"] for check in found["checks"]} == {"passed", "not applicable"}
    speed = next(check for check in found["checks"] if check["name"] == "speed")
    assert speed["details"]["env_steps_per_s_64"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("CartPole-v2",), "unknown environment 'CartPole-v2'; did you mean CartPole-v1?"),
        (("nowhere:Walk",), "no module 'nowhere'"),
        (("walk:Run",), "walk.py) has no 'Run'"),
        (("walk:Walk", "wnid=1.0"), "no param 'wnid'; did you mean wind?"),
        (("walk:Walk", "width=wide"), "param width='wide', wanted an int like the default 3"),
        (("walk:Walk", "width"), "'width', wanted PARAM=VALUE"),
        (("walk:Walk", "--seed", "-1"), "seed=-1, wanted an integer from 0"),
        (("walk:Walk", "--steps", "0"), "'--steps'"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments, said, capsys):
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("no_color", [False, True])
def test_terminal_gets_colors_unless_it_wants_none(no_color):
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environ |= {"TERM": "xterm", "COLUMNS": "60"} | ({"NO_COLOR": "1"} if no_color else {})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rollout", "check-env", "walk:Walk", "--steps", "20"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        printed = b""
        while read := _read(ours):
            printed += read
    os.close(ours)
    text = printed.decode()
    assert process.returncode == 0, text
    assert ("\x1b[32m✓" in text) is not no_color
    assert "✓" in text
    assert "plain python" in text
    shown = re.split(r"[\r\n]|\x1b\[2K", re.sub(r"\x1b\[[0-9;]*m", "", text))
    assert max(map(len, shown)) <= 60, "lines are folded within their column"


def test_terminal_shows_what_is_under_way():
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rollout", "check-env", "walk:Walk", "--steps", "20"]
    environ = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        printed = b""
        while "… snapshot".encode() not in printed and (read := _read(ours)):
            printed += read
        process.send_signal(signal.SIGINT)  # which ends it at once
    os.close(ours)
    assert process.returncode == -signal.SIGINT
    assert re.search("… snapshot$|… snapshot\r\x1b", printed.decode())
    assert "✓ snapshot" not in printed.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # nobody writes to it any more
        return b""


def test_help_has_an_example(capsys):
    assert run("--help") == 0
    assert "rollout check-env CartPole-v1" in capsys.readouterr().out
