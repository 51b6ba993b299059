"""The tutorial keeps what it says: a second environment was written from it alone."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from rollout import train
from rollout.envs import CompiledEnv, EnvError, Envs, Outcome, check_env
from rollout.evaluation import play_episodes
from tests.envs.reservoir import Reservoir
from tests.test_readme import blocks

ROOT = Path(__file__).parent.parent.parent
BLOCKS = blocks(ROOT / "envs" / "README.md")
CATCH = next(text for _, text in BLOCKS if text.startswith("# catch.py\n"))


def import_catch(text: str, folder: Path, monkeypatch) -> type[CompiledEnv]:
    (folder / "catch.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "catch", raising=False)
    importlib.invalidate_caches()
    return importlib.import_module("catch").Catch


def test_environment_of_the_tutorial_is_as_short_as_it_says():
    text = (ROOT / "envs" / "README.md").read_text()
    found = re.search(r"in (\d+) lines of environment", text)
    assert found is not None
    assert len(CATCH.splitlines()) == int(found[1]) < 60


def test_mistake_in_the_tutorial_is_answered_as_it_says(tmp_path, monkeypatch):
    answer = next(text for _, text in BLOCKS if text.startswith("environment Catch: "))
    line = "        state.row += 1\n"
    assert line in CATCH
    wrong = CATCH.replace(line, "        state.colum = 0\n")
    env = import_catch(wrong, tmp_path, monkeypatch)
    with pytest.raises(EnvError) as caught:
        Envs(env, 1, seed=0)
    said = re.sub(r"\S+catch\.py:\d+", "catch.py:27", str(caught.value))
    assert said == re.sub(r"catch\.py:\d+", "catch.py:27", answer.strip())


@pytest.mark.slow
def test_reservoir_keeps_to_the_contract():
    assert check_env(Reservoir).failures == ()


def return_at_random(num_envs: int = 256) -> float:
    """Mean return of the first episodes with actions at random."""
    envs, outcome = Envs(Reservoir, num_envs, seed=0), Outcome(Reservoir, num_envs)
    rng = np.random.default_rng(0)
    first = np.full(num_envs, np.nan)
    for _ in range(100):
        envs.step(rng.random((num_envs, 1), np.float32), outcome)
        for n in range(outcome.num_episodes):
            i = outcome.episode_env[n]
            first[i] = outcome.episode_return[n] if np.isnan(first[i]) else first[i]
    assert not np.isnan(first).any()
    return float(first.mean())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_reservoir_is_learned(tmp_path):
    experiment = {
        "env": {"id": "tests.envs.reservoir:Reservoir"},
        "algorithm": {"learning_rate": 3e-3},
        "stop": {"env_steps": 300_000},
    }
    trained = train(experiment, run_dir=tmp_path / "run")
    returns = play_episodes(trained.policy, 200, deterministic=True).as_dict()
    assert returns["mean"] > 60
    assert return_at_random() < 20
