"""The command `new-env`, from an empty folder to a policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.cli import main

NEXT = """\
wrote walk.py and test_walk.py

Next:
  rollout check-env walk:Walk
  python -m pytest test_walk.py
  printf '[env]\\nid = "walk:Walk"\\n\\n[algorithm]\\nlearning_rate = 3e-3\\n\\n[stop]\\nenv_steps = 300_000\\n' > walk.toml
  rollout train walk.toml --run-dir runs/first
  rollout eval runs/first --video walk.gif
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_main(*arguments: str) -> int:
    """Run a command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_new_env_writes_two_files_and_says_what_to_do_next(capsys):
    assert run_main("new-env", "walk.py") == 0
    assert capsys.readouterr().out == NEXT
    assert sorted(path.name for path in Path().iterdir()) == ["test_walk.py", "walk.py"]


def test_new_env_elsewhere_says_where_to_go(capsys):
    Path("my envs").mkdir()
    assert run_main("new-env", "my envs/walk.py", "--name", "Stroll") == 0
    said = capsys.readouterr().out
    assert "\n  cd 'my envs'\n  rollout check-env walk:Stroll\n" in said
    assert "class Stroll(CompiledEnv)" in Path("my envs/walk.py").read_text()


def test_new_env_that_cannot_be_is_a_line_on_stderr_and_the_status_is_2(capsys):
    Path("walk.py").write_text("mine")
    assert run_main("new-env", "walk.py") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "rollout: walk.py exists, nothing was written; choose another name\n"


def test_new_env_imports_nothing_that_is_slow():
    code = (
        "import sys\n"
        "from rollout.cli import main\n"
        "try: main(['new-env', 'walk.py'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "slow = {'numpy', 'numba', 'gymnasium', 'torch'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def run_next(text: str, *replaced: tuple[str, str]) -> str:
    """Run the commands that `new-env` has printed; what they print."""
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    commands = "\n".join(lines)
    for old, new in replaced:
        assert old in commands
        commands = commands.replace(old, new)
    done = subprocess.run(
        ["bash", "-e", "-c", commands], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_new_env_says_to_do_next_works(capsys):
    assert run_main("new-env", "walk.py") == 0
    said = run_next(capsys.readouterr().out, ("300_000", "8192"))
    assert "2 passed" in said
    assert "8192 steps" in said or "8,192 steps" in said
    assert Path("walk.gif").read_bytes().startswith(b"GIF")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_new_environment_is_learned(capsys):
    """Pushing at random gives 28, doing nothing 74."""
    assert run_main("new-env", "walk.py") == 0
    run_next(capsys.readouterr().out)
    from rollout import load_policy
    from rollout.evaluation import play_episodes

    returns = play_episodes(load_policy("runs/first"), 100, True, 0).as_dict()
    assert returns["mean"] > 90
