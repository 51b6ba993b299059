"""Training end to end, with real processes: same numbers from any fleet, and environments of users.

What becomes of the numbers when processes are killed is in test_recovery.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollout import api
from rollout.processes import seconds_since_start
from rollout.run_directory import RunDirectory
from tests.some_fast import slow_unless

COMMAND = [sys.executable, "-P", "-m", "rollout", "train"]


@pytest.fixture
def train(places, tmp_path):
    """train("seed=3", …): a short run in this process; nothing may be left of it."""
    runs = iter(range(100))

    def train(*overrides: str, view=None) -> api.Result:
        tables = {
            "name": "short",
            "env": {"id": "CartPole-v1", "num_envs": 37},
            "fleet": {"num_actors": 2, "unroll_length": 16},
            "network": {"hidden_sizes": [16, 16]},
            "algorithm": {"kind": "ppo", "learning_rate": 3e-3},
            "stop": {"env_steps": 6 * 16 * 37},
        }
        result = api.train(tables, overrides, run_dir=tmp_path / f"run{next(runs)}", view=view)
        places.assert_gone()
        return result

    return train


@pytest.fixture
def run_command(places, tmp_path, monkeypatch):
    """run_command("x:Env", …): trains in an environment of the folder's, as a user would."""
    monkeypatch.chdir(tmp_path)

    def run(env_id: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        Path("x.toml").write_text(
            f'[env]\nid = "{env_id}"\nnum_envs = 8\n[fleet]\nnum_actors = 2\nunroll_length = 8\n'
            "[network]\nhidden_sizes = [8]\n[stop]\nenv_steps = 512\nwall_s = 60\n"
        )
        done = subprocess.run(
            [*COMMAND, "x.toml", *overrides, "--run-dir", "run"],
            capture_output=True,
            text=True,
            timeout=100,
        )
        places.assert_gone()
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


ENV = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from rollout.envs import CompiledEnv
{at_import}

class Walk(CompiledEnv):
    state = np.dtype([("x", "f8")])
    params = {{"length": 3}}
    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 20

    def reset(state, params, draw):
        state.x = 0.0

    def step(state, params, action, draw):
        {in_step}
        state.x += 1.0 if action == 1 else -1.0
        return state.x, abs(state.x) > params.length

    def observe(state, params, observation):
        observation[0] = state.x
"""


def write_env(at_import: str = "", in_step: str = "pass") -> None:
    Path("walks.py").write_text(ENV.format(at_import=at_import, in_step=in_step))


# Lockstep


@pytest.mark.parametrize("policy_lag", slow_unless([1], [0, 1]))
def test_result_does_not_depend_on_the_number_of_actors(train, policy_lag):
    digests = {
        train(f"fleet.num_actors={actors}", f"fleet.policy_lag={policy_lag}").summary.params_digest
        for actors in (1, 3, 8)
    }
    assert len(digests) == 1


def test_seconds_count_from_the_call_not_from_the_start_of_the_process(train):
    """Else a second run of a notebook with stop.wall_s would end before its first update."""
    result = train("stop.env_steps=1_000_000_000", "stop.wall_s=4")
    assert result.summary.updates > 0
    assert 3.9 < result.summary.wall_s < seconds_since_start()


@pytest.mark.slow
def test_result_is_a_function_of_experiment_and_seed_alone(train):
    """Uneven shares included: 37 environments on 2, 3 and 8 actors."""
    digests = {}
    for policy_lag in (0, 1):
        for actors, window in ((1, 2), (2, 1), (3, 4), (8, 2), (37, 2), (3, 2), (3, 2)):
            summary = train(
                f"fleet.num_actors={actors}",
                f"fleet.policy_lag={policy_lag}",
                f"fleet.window={2 if window is None else window}",
            ).summary
            digests.setdefault((policy_lag, window), set()).add(summary.params_digest)
    by_lag = {lag: set().union(*(d for (m, _), d in digests.items() if m == lag)) for lag in (0, 1)}
    assert len(by_lag[0]) == len(by_lag[1]) == 1
    assert by_lag[0] != by_lag[1]
    another = train("seed=1", "fleet.num_actors=3").summary.params_digest
    assert {another}.isdisjoint(by_lag[1])


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 5])
def test_learning_curve_of_an_uneven_environment_is_the_same_from_any_fleet(
    train, tmp_path, actors
):
    """Counting-v0 has truncated and terminated episodes: the tails' order must not depend on it."""
    overrides = ("env.id=Counting-v0", "env.num_envs=11", "algorithm.num_minibatches=2")
    curves = []
    for run in (
        train(*overrides, f"fleet.num_actors={actors}"),
        train(*overrides, "fleet.num_actors=2"),
    ):
        lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        names = [name for name in entries[0] if name.startswith(("losses/", "charts/epis"))]
        curves.append([[entry[name] for name in names] for entry in entries])
    assert curves[0] == curves[1]
    assert len(curves[0]) == 21 and len(curves[0][0]) > 5


# What a run leaves


def test_run_leaves_an_account_that_balances_and_a_policy(train):
    result = train()
    summary, ledger = result.summary, result.summary.ledger
    assert summary.updates == 6 and summary.env_steps == 6 * 16 * 37
    assert ledger.unrolls.trained == 12
    assert ledger.steps.trained == summary.env_steps
    assert ledger.is_balanced
    assert ledger.unrolls.produced <= 16, "no more than the window allows"
    assert set(ledger.unrolls.dropped) <= {"run_ended"}
    assert summary.actor_restarts == summary.host_restarts == 0 and not summary.episodes_lost
    assert summary.policy_lag.max == 1
    assert result.interrupted_by is None
    run = RunDirectory.open(result.run_dir)
    written = json.loads(run.summary.read_text())
    assert written["ledger"]["balance"] == written["ledger"]["steps"]["balance"] == 0
    assert written["params_digest"] == summary.params_digest
    assert result.policy.act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    assert run.log.read_text() == ""


def test_training_improves_the_policy(train):
    summary = train(
        "env.num_envs=32",
        "fleet.unroll_length=64",
        "network.hidden_sizes=[64, 64]",
        "algorithm.gamma=0.98",
        "algorithm.gae_lambda=0.9",
        "stop.env_steps=60_000",
    ).summary
    assert summary.episode_return_mean is not None
    assert summary.episode_return_mean > 45, "a random policy keeps the pole up for 22 steps"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "impala"])
def test_bundled_experiment_reaches_its_goal(algorithm, places, tmp_path):
    file = f"configs/cartpole_{algorithm}.toml"
    result = api.train(file, ["seed=1"], run_dir=tmp_path / "run")
    assert result.summary.goal_reached
    assert result.summary.ledger.is_balanced
    places.assert_gone()


def test_time_limit_ends_a_run(train):
    summary = train("stop.wall_s=1", "stop.env_steps=1_000_000_000").summary
    assert summary.wall_s > 0.9 and summary.env_steps < 1_000_000_000
    assert summary.ledger.is_balanced


# Environments of users


@pytest.mark.slow
def test_environment_in_the_working_directory_trains(run_command):
    """Although files there have the names of modules that we import."""
    write_env()
    for name in ("numpy", "numba", "zmq", "queue", "msgspec", "torch", "random", "logging"):
        Path(f"{name}.py").write_text(
            "raise ImportError('a file of the user, imported by mistake')"
        )
    done = run_command("walks:Walk", "env.params.length=5")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/summary.json").read_text())["ledger"]["balance"] == 0
    assert RunDirectory.open("run").experiment.env.params == {"length": 5}


def test_environment_that_raises_at_import_is_named(run_command):
    write_env(at_import="raise ValueError('no licence for this simulator')")
    done = run_command("walks:Walk")
    assert done.returncode == 2
    assert "walks:Walk" in done.stderr and "no licence for this simulator" in done.stderr
    assert not Path("run").exists()


@pytest.mark.slow
def test_environment_that_does_not_compile_is_named(run_command):
    write_env(in_step="state.x += open('data').read()")
    done = run_command("walks:Walk")
    assert done.returncode == 2, done.stderr
    assert "Walk" in done.stderr and "step" in done.stderr
    assert not Path("run").exists(), "so that the next try may have the place"


def test_cuda_device_that_is_not_there_is_refused_before_anything_starts(run_command):
    done = run_command("CartPole-v1", "learner.device=cuda:99")
    assert done.returncode == 2
    assert "learner.device=cuda:99" in done.stderr and "learner.device=auto" in done.stderr
    assert not Path("run").exists()


@pytest.mark.slow
def test_environment_that_raises_while_it_runs_is_told_with_its_words(run_command):
    write_env(in_step="if state.x > 1.0: raise ValueError('the pole fell through the floor')")
    done = run_command("walks:Walk")
    assert done.returncode == 1
    assert "the pole fell through the floor" in done.stderr
    assert re.search(r"environment \d failed 3 times at its step \d", done.stderr)
    (file,) = Path("run/failures").iterdir()
    assert str(file) in done.stderr


@pytest.mark.slow
def test_environment_that_starts_a_thread_at_import_is_told(run_command):
    write_env(
        at_import="from threading import Event, Thread\n"
        "Thread(target=Event().wait, daemon=True).start()"
    )
    done = run_command("walks:Walk")
    assert done.returncode == 2, done.stderr
    assert "walks:Walk" in done.stderr and "threads" in done.stderr


SPY = """
import os, sys
names = sorted({name.partition(".")[0] for name in sys.modules})
with open("modules.txt", "a") as file:
    file.write(f"{os.getpid()} {' '.join(names)}\\n")
"""


@pytest.mark.slow
def test_template_imports_an_environment_without_the_learners_libraries(run_command):
    write_env(at_import=SPY)
    assert run_command("walks:Walk").returncode == 0
    imports = [set(line.split()[1:]) for line in Path("modules.txt").read_text().splitlines()]
    assert len(imports) == 2, "once by the learner, once by the template, never by an actor"
    by_template = min(imports, key=len)
    assert {"numpy", "numba", "zmq"} <= by_template
    assert by_template.isdisjoint({"torch", "pydantic", "typer", "rich", "tensorboard"})


def test_error_of_a_view_ends_the_run_and_leaves_nothing(train, view, places):
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(view=view.at(2, fail))
    places.assert_gone()


@pytest.mark.slow
def test_actor_that_runs_out_of_luck_is_named_and_replaced(train, view, places):
    undisturbed = train("stop.env_steps=60_000").summary
    summary = train(
        "stop.env_steps=60_000",
        view=view.at(2, lambda: os.kill(places.pids("rollout-actor")[0], signal.SIGSEGV)),
    ).summary
    assert summary.params_digest == undisturbed.params_digest
    assert summary.actor_restarts == 1
    assert re.search(r"actor \d \(process \d+\) was killed by SIGSEGV", " ".join(view.notices))


@pytest.mark.slow
def test_time_limit_of_the_experiment_truncates(train):
    result = train("env.max_episode_steps=7", "stop.env_steps=2000")
    assert result.policy.env.max_episode_steps == 7
    assert result.summary.episode_return_mean == 7.0
