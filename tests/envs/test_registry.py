import numpy as np
import pytest

from rollout.envs import BUNDLED, CompiledEnv, EnvError, Envs, Outcome, find_env
from rollout.envs.classic.cartpole import CartPole

DEFINITION = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from rollout.envs import CompiledEnv
from rollout.envs.diagnostic.counting import Counting


class Mine(Counting):
    pass


NOT_ONE = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder a command was started in; modules in it are found first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("env_id", BUNDLED)
def test_bundled_environments_are_found(env_id):
    assert issubclass(find_env(env_id), CompiledEnv)


@pytest.mark.parametrize("env_id", BUNDLED)
def test_bundled_environments_render(env_id):
    picture = Envs(find_env(env_id), 1, seed=0, jit=False).render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3 and picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1, "there is nothing to see"


def test_environment_is_found_in_the_current_folder_and_in_packages(folder):
    (folder / "registry_one.py").write_text(DEFINITION)
    package = folder / "registry_package" / "inner"
    package.mkdir(parents=True)
    (package / "two.py").write_text(DEFINITION)
    assert find_env("registry_one:Mine").__module__ == "registry_one"
    assert find_env("registry_package.inner.two:Mine").__name__ == "Mine"
    assert find_env("rollout.envs.classic.cartpole:CartPole") is CartPole


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("CartPol-v1", "unknown environment 'CartPol-v1'; did you mean CartPole-v1?"),
        ("cartpole", "did you mean CartPole-v1?"),
        ("Zaxxon", "bundled are CartPole-v1, Acrobot-v1"),
        ("", "unknown environment ''"),
        (":Name", "unknown environment ':Name'"),
        ("module:", "unknown environment 'module:'"),
        ("LunarLander-v3", "did you mean gymnasium:LunarLander-v3?"),
        ("no_such_module:Name", "no module 'no_such_module'"),
        ("no_such.module:Name", "no module 'no_such'"),
        ("rollout.envs.nothing:Name", "no module 'rollout.envs.nothing'"),
        (
            "rollout.envs.classic.cartpole:Cartpole",
            "cartpole.py) has no 'Cartpole'; it has CartPole",
        ),
        (
            "rollout.envs.classic.cartpole:TAU",
            "is 0.02; wanted a subclass of rollout.envs.CompiledEnv",
        ),
        ("rollout.envs.errors:Mine", "has no 'Mine', nor any other environment"),
        ("rollout.envs.classic.cartpole:CompiledEnv", "wanted a subclass"),
        ("rollout.envs.classic.cartpole:math", "wanted a subclass of rollout.envs.CompiledEnv"),
        ("..relative:Name", "'..relative:Name'"),
        ("walk", "which environment of walk.py? say walk:Name"),
        ("walk.py", "which environment of walk.py? say walk:Name"),
        ("games/walk.py", "which environment of games/walk.py? say games.walk:Name"),
        ("games.walk", "which environment of games/walk.py? say games.walk:Name"),
        ("./walk.py", "which environment of walk.py? say walk:Name"),
        ("walk:", "which environment of walk.py? say walk:Name"),
        ("walk.py:Walk", "which environment of walk.py? say walk:Walk"),
        ("../walk.py", "bundled are CartPole-v1"),
        ("games:Walk", "games) has no 'Walk', nor any other"),
    ],
)
def test_environment_that_is_not_there_is_named_with_the_next_move(
    env_id, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "games").mkdir()
    for place in ("walk.py", "games/walk.py"):
        (tmp_path / place).touch()
    with pytest.raises(EnvError) as caught:
        find_env(env_id)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", ":1: ZeroDivisionError: division by zero"),
        ("\nimport no_such_dependency", ":2: ModuleNotFoundError: No module named 'no_such_dep"),
        ("x = 1\ndef f(:", ":2: SyntaxError: invalid syntax"),
        ("\n\nraise AttributeError('Mine')", ":3: AttributeError: Mine"),
        ("import math\nmath.Mine", ":2: AttributeError"),
        ("raise SystemError('stop')", ":1: SystemError: stop"),
    ],
)
def test_module_that_fails_on_import_is_an_error_of_its_author(folder, source, words):
    name = f"registry_broken_{abs(hash(source))}"
    (folder / f"{name}.py").write_text(source)
    with pytest.raises(EnvError) as caught:
        find_env(f"{name}:Mine")
    assert f"{name}.py{words}" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_wrong_definition_says_itself_what_is_wrong(folder):
    source = "from rollout.envs import CompiledEnv\nclass Mine(CompiledEnv):\n    pass\n"
    (folder / "registry_wrong.py").write_text(source)
    with pytest.raises(EnvError, match="environment Mine: state is None"):
        find_env("registry_wrong:Mine")


def test_time_limit_may_be_chosen():
    own, limited = find_env("CartPole-v1"), find_env("CartPole-v1", max_episode_steps=7)
    assert (own.max_episode_steps, limited.max_episode_steps) == (500, 7)
    assert limited is find_env("CartPole-v1", max_episode_steps=7), "compiled once"
    assert (limited.__module__, limited.__qualname__) == (own.__module__, own.__qualname__)
    envs, outcome = Envs(limited, 3, seed=0), Outcome(limited, 3)
    for _ in range(7):
        assert not outcome.truncated.any()
        envs.step(np.zeros(3, np.int32), outcome)
    assert outcome.truncated.all()


def test_time_limit_may_be_taken_away():
    endless = find_env("CartPole-v1", max_episode_steps=-1)
    assert endless.max_episode_steps is None
    assert endless is find_env("CartPole-v1", max_episode_steps=-1)
    with pytest.raises(EnvError, match="max_episode_steps=0, wanted a positive integer or None"):
        find_env("CartPole-v1", max_episode_steps=0)
