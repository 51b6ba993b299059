"""Files of the user's that have the names of packages, where a command is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rollout
from rollout.envs.errors import EnvError
from rollout.envs.registry import find_env
from tests.rollout import guessing
from tests.some_fast import slow_unless

CHECKOUT = str(Path(rollout.__file__).parents[1])
LOCAL = "raise RuntimeError('the local file')\n"
IMPORTS = "import gymnasium, numba, numpy, torch, zmq\nfrom PIL import Image\n"
ENV = IMPORTS + Path(guessing.__file__).read_text()
SMALL = (
    '[env]\nid = "mine:Guess"\nnum_envs = 4\n[fleet]\nnum_actors = 1\nunroll_length = 8\n'
    "[network]\nhidden_sizes = [8]\n[stop]\nenv_steps = 128\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(ENV)
    Path("x.toml").write_text(SMALL)
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": CHECKOUT},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
def test_commands_and_their_processes_have_the_packages_in_spite_of_such_files(folder, places):
    for name in (*rollout.NEEDED, "rollout", "envs", "learners", "json", "random"):
        Path(f"{name}.py").write_text(LOCAL)
    for arguments in (["train", "x.toml", "--run-dir", "run"], ["eval", "run", "--episodes", "3"]):
        ended = run("-P", "-m", "rollout", *arguments)
        assert ended.returncode == 0, ended.stderr
    places.assert_gone()
    assert "the local file" not in Path("run/run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SlowGuess", "threaded"])
def test_actors_that_import_for_themselves_have_them_too(folder, places, kind):
    """Where nothing was imported before."""
    start = "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    Path("mine.py").write_text((f"import threading\n{start}" if kind == "threaded" else "") + ENV)
    for name in ("torch", "numba"):
        Path(f"{name}.py").write_text(LOCAL)
    arguments = ["train", "x.toml", "env.id=mine:SlowGuess", "--run-dir", "run"]
    ended = run("-P", "-m", "rollout", *arguments)
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", slow_unless(["numpy", "torch"], rollout.NEEDED))
def test_script_beside_such_a_file_is_told_to_rename_it(folder, name):
    Path("script.py").write_text("import rollout\n")
    Path(f"{name}.py").write_text(LOCAL)
    for arguments in (["script.py"], ["-c", "import rollout"], ["-m", "rollout", "doctor"]):
        ended = run(*arguments)
        assert ended.returncode == 1
        said = f"ImportError: {folder}/{name}.py takes the place of the package {name}, which"
        assert ended.stderr.splitlines()[-1].startswith(said)
    Path(f"{name}.py").write_text("value = 3\n")
    Path("script.py").write_text(f"import {name}\nimport rollout\n")
    assert "rename it" in run("script.py").stderr.splitlines()[-1]


def test_package_that_was_imported_before_may_have_a_namesake(folder):
    Path("script.py").write_text(
        "import sys\nhere = sys.path.pop(0)\nimport numpy\nsys.path.insert(0, here)\n"
        "import rollout.envs\nprint(rollout.envs.CompiledEnv.__name__)\n"
    )
    Path("numpy.py").write_text(LOCAL)
    ended = run("script.py")
    assert ended.stdout == "CompiledEnv\n", ended.stderr


@pytest.mark.slow
def test_script_gives_an_object_of_a_module_that_imports_such_packages(folder, places):
    """Its own folder is the first on its path, and on that of who unpickles."""
    Path("script.py").write_text(
        "import rollout, mine\nfrom pathlib import Path\n"
        "Path('torch.py').write_text('raise RuntimeError')\n"
        "rollout.train('x.toml', env=mine.Guess, run_dir='run')\n"
    )
    Path("x.toml").write_text(SMALL.replace('id = "mine:Guess"\n', ""))
    ended = run("script.py")
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr


def test_module_named_like_another_is_told_to_be_renamed(folder):
    """One that Python does not even look at, and one that another module takes for its own."""
    (folder / "statistics.py").write_text(ENV)
    assert "mean" in dir(__import__("statistics"))
    with pytest.raises(EnvError) as caught:
        find_env("statistics:Guess", str(folder))
    named = f"{folder}/statistics.py has the name of another module, statistics: rename it"
    assert "has no 'Guess'" in str(caught.value) and named in str(caught.value)


def test_module_that_fails_for_a_file_in_the_place_of_a_package_names_the_file(folder, monkeypatch):
    installed = folder / "installed"
    installed.mkdir()
    (installed / "shadowed_package.py").write_text("def simulate(): pass\n")
    monkeypatch.syspath_prepend(installed)
    (folder / "shadowed_package.py").write_text("")
    (folder / "failing_module.py").write_text("from shadowed_package import simulate\n")
    with pytest.raises(EnvError) as caught:
        find_env("failing_module:Guess", str(folder))
    assert "cannot import name 'simulate'" in str(caught.value)
    named = f"{folder}/shadowed_package.py has the name of another module, shadowed_package: ren"
    assert named in str(caught.value)
    del sys.modules["shadowed_package"]
