"""A new environment works as it is, and nothing of the author's is overwritten."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rollout.envs import Envs, Outcome
from rollout.errors import OperatorError
from rollout.new_env import write_new_env


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(file: Path, name: str):
    """The class `name` of a file that is no package's."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [
        ("walk.py", None, "walk:Walk"),
        ("two_walls.py", None, "two_walls:TwoWalls"),
        ("box.py", None, "box:BoxEnv"),  # Gymnasium's Box is needed in the file
        ("walk.py", "MODULE", "walk:MODULE"),  # a word of the template
    ],
)
def test_class_is_named_after_the_file_or_as_asked(file, name, expected):
    new = write_new_env(Path(file), name)
    assert new.id == expected
    env = load(new.file, expected.partition(":")[2])
    assert env.__module__ == Path(file).stem
    tested = new.test.read_text()
    assert f"from {env.__module__} import {env.__name__}\n" in tested
    assert f"check_env({env.__name__})" in tested


def test_environment_is_short_readable_and_the_first_class_of_its_file():
    new = write_new_env(Path("walk.py"))
    text = new.file.read_text()
    assert len(text.splitlines()) <= 60
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    assert [one.name for one in classes] == ["Walk"]
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check"], ["check", "--select", "B,E,F,I,UP,W"]):
        subprocess.run([*ruff, *command, "--isolated", "."], check=True, capture_output=True)


def test_each_episode_has_a_mass_of_its_own_between_two_params():
    env = load(write_new_env(Path("walk.py")).file, "Walk")
    params = {"min_mass": 1.0, "max_mass": 1.5}
    envs = Envs(env, 16, seed=0, params=params, jit=False)
    mass = envs.records["state"]["mass"]
    assert len(np.unique(mass)) == 16
    assert ((mass >= 1.0) & (mass < 1.5)).all()
    same = Envs(env, 16, seed=0, params=params, jit=False)
    np.testing.assert_array_equal(same.records["state"]["mass"], mass)


def test_environment_plays_and_draws():
    env = load(write_new_env(Path("walk.py")).file, "Walk")
    envs, outcome = Envs(env, 1, seed=0, jit=False), Outcome(env, 1)
    middle = envs.render()
    assert middle.shape == (40, 220, 3)
    assert middle.dtype == np.uint8
    lengths = []
    for _ in range(2 * env.max_episode_steps):
        envs.step(np.full(1, 2, np.int32), outcome)  # always to the right, over the edge
        lengths += list(outcome.episode_length[: outcome.num_episodes])
    assert lengths
    assert max(lengths) < env.max_episode_steps
    assert (envs.render() != middle).any()


@pytest.mark.parametrize("there", ["walk.py", "test_walk.py"])
def test_nothing_is_overwritten(there):
    Path(there).write_text("mine")
    with pytest.raises(OperatorError, match=f"{there} exists, nothing was written"):
        write_new_env(Path("walk.py"))
    assert Path(there).read_text() == "mine"
    assert [path.name for path in Path().iterdir()] == [there]


def test_link_to_nothing_is_left_alone():
    Path("walk.py").symlink_to("elsewhere")
    with pytest.raises(OperatorError, match=r"walk\.py exists, nothing was written"):
        write_new_env(Path("walk.py"))
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("my-env.py", "'my-env' cannot be imported; try my_env.py"),
        ("3d.py", "'3d' cannot be imported; try env_3d.py"),
        ("_.py", "no name to call an environment by; try env.py"),
        ("class.py", "'class' cannot be imported; try class_env.py"),
        ("...py", "'..' cannot be imported; try env.py"),
        ("walk", "wanted a Python file; try walk.py"),
        ("my walk.txt", "wanted a Python file; try my_walk.py"),
        ("random.py", "there is another module random, which it would hide; try random_env.py"),
        ("numpy.py", "there is another module numpy, which it would hide; try numpy_env.py"),
        ("rollout.py", "there is another module rollout, which it would hide; try rollout_env.py"),
        ("test_walk.py", "pytest would take it for its own; try walk.py"),
        ("walk_test.py", "pytest would take it for its own; try walk.py"),
        ("conftest.py", "pytest would take it for its own; try my_env.py"),
        ("nowhere/walk.py", "there is no folder nowhere; make it first"),
    ],
)
def test_file_that_could_not_be_used_is_refused_with_a_better_name(file, problem):
    with pytest.raises(OperatorError) as caught:
        write_new_env(Path(file))
    assert str(caught.value) == f"{file}: {problem}"
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("My-Env", "wanted a name for a class, such as Walk"),
        ("", "wanted a name for a class, such as Walk"),
        ("class", "wanted a name for a class, such as Walk"),
        ("Discrete", "the file needs Discrete itself; try DiscreteEnv"),
    ],
)
def test_name_that_could_not_be_used_is_refused(name, problem):
    with pytest.raises(OperatorError) as caught:
        write_new_env(Path("walk.py"), name)
    assert str(caught.value) == f"--name {name}: {problem}"
    assert not list(Path().iterdir())


def test_module_of_the_same_name_in_this_folder_is_no_reason_to_refuse(monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("walk").mkdir()  # a folder of videos, say
    assert write_new_env(Path("walk.py")).id == "walk:Walk"
