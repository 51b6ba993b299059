"""Training in environments of Gymnasium's, with real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rollout import api, cli, evaluation, load_policy
from rollout.envs.errors import EnvError
from rollout.envs.philox import episode_seed
from rollout.errors import ConfigError, RunFailed
from rollout.evaluation import play_episodes
from rollout.experiment import as_experiment
from rollout.policy import evaluation_seed
from rollout.run_directory import RunDirectory
from rollout.video import write_video
from tests.envs import foreign_samples
from tests.envs import gymnasium_samples as samples

WALK = f"{samples.__name__}:Walk"
CARTPOLE = "gymnasium:CartPole-v1"
RAISES = '            raise RuntimeError("the walker fell")'


def tables(env_id: str, **params: object) -> dict:
    return {
        "name": "short",
        "env": {"id": env_id, "num_envs": 6, "params": params},
        "fleet": {"num_actors": 2, "unroll_length": 16},
        "network": {"hidden_sizes": [8]},
        "algorithm": {"kind": "ppo"},
        "stop": {"env_steps": 4 * 16 * 6},
    }


@pytest.fixture
def train(places, tmp_path):
    """train(env_id, "key=value", …): a short run in this process; nothing may be left of it."""
    runs = iter(range(100))

    def train(env_id: str, *overrides: str, **params: object) -> api.Result:
        run_dir = tmp_path / f"run{next(runs)}"
        result = api.train(tables(env_id, **params), overrides, run_dir=run_dir, view=None)
        places.assert_gone()
        return result

    return train


@pytest.mark.slow
def test_result_does_not_depend_on_the_number_of_actors(train):
    results = [train(CARTPOLE, f"fleet.num_actors={n}") for n in (1, 4)]
    assert len({result.summary.params_digest for result in results}) == 1
    for result in results:
        assert result.summary.ledger.balance == 0
        assert not any(result.summary.episodes_lost.values())


@pytest.mark.parametrize(
    ("env_id", "params"),
    [
        (WALK, {"goal": 1.5, "label": "b", "marks": [1, "two"]}),
        (f"{samples.__name__}:make_walk", {"goal": 1.5}),
        pytest.param(f"{samples.__name__}:Reach", {}, marks=pytest.mark.slow),
    ],
)
def test_class_and_function_train_and_their_policies_play(train, tmp_path, env_id, params):
    result = train(env_id, "fleet.mode=async", **params)
    run = RunDirectory.open(result.run_dir)
    assert run.experiment.env.params == params
    policy = load_policy(run.path)
    assert len(play_episodes(policy, 3, True).returns) == 3
    if env_id == WALK:
        env = samples.Walk(**params)
        observation, _ = env.reset(seed=0)
        for deterministic in (True, False):
            assert env.action_space.contains(policy.act(observation, deterministic))
        with pytest.raises(ValueError, match="observation has no 'place'"):
            policy.act({"plaice": 1, "seen": (0, np.zeros((2, 2), int)), "my-key": [[0, 0]]})
        assert write_video(policy, tmp_path / "walk.gif") > 1


def test_time_limit_of_the_experiment_truncates(train):
    for env_id in (CARTPOLE, WALK):
        result = train(env_id, "env.max_episode_steps=5")
        history = (result.run_dir / "metrics.jsonl").read_text().splitlines()
        lengths = [json.loads(line).get("charts/episodic_length") for line in history]
        assert any(lengths) and all(length <= 5 for length in lengths if length is not None)


@pytest.mark.slow
def test_killed_actor_costs_episodes_that_are_counted_and_the_run_can_be_resumed(start, places):
    small = ("env.num_envs=6", "fleet.num_actors=2", "fleet.unroll_length=16")
    command = start(f"env.id={CARTPOLE}", *small, "stop.env_steps=60000")
    command.wait_update(5)
    for _ in range(3):
        os.kill(places.pids("rollout-actor")[0], signal.SIGKILL)
        command.wait_update(command.last_update() + 5)
    assert command.wait() == 0, command.said()
    places.assert_gone()
    summary = RunDirectory.open(command.run).read_summary()
    assert summary is not None and summary["ledger"]["balance"] == 0
    assert summary["actor_restarts"] == 3 and 0 < summary["episodes_lost"]["signal"] <= 9
    resumed = api.train(None, ["stop.env_steps=62000"], resume=command.run)
    assert resumed.summary.env_steps >= 62000 and resumed.summary.ledger.balance == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "RuntimeError: the walker fell"),
        pytest.param("nan", "observation place is nan, wanted a fin", marks=pytest.mark.slow),
        pytest.param("crash", "was killed by SIGSEGV", marks=pytest.mark.slow),
    ],
)
def test_environment_that_fails_again_and_again_ends_the_run_with_its_name(
    places, tmp_path, monkeypatch, how, said
):
    monkeypatch.chdir(tmp_path)
    Path("worlds.py").write_text(Path(samples.__file__).read_text())
    ended = run_command(
        "worlds:Walk", f"env.params.how='{how}'", "env.params.goal=100.0", "fleet.num_actors=1"
    )
    places.assert_gone()
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "environment 0 failed 3 times without completing an episode in b" in ended.stderr
    assert said in ended.stderr
    seed = episode_seed(0, 0, 0)
    assert f"in environment 0 of worlds:Walk, 3 steps after reset(seed={seed})" in ended.stderr
    if how == "raise":
        line = Path("worlds.py").read_text().splitlines().index(RAISES) + 1
        assert f"the walker fell ({tmp_path}/worlds.py:{line})" in ended.stderr
    (file,) = Path("run/failures").iterdir()
    replayed = run_replay(file)
    assert replayed.returncode == 1 and "It failed again, in the same way." in replayed.stdout
    if how == "raise":
        assert "worlds.py" in replayed.stdout and "raise RuntimeError" in replayed.stdout
        assert "looped_envs.py" not in replayed.stdout, "only the author's lines"


@pytest.mark.slow
def test_environment_that_fails_late_in_each_episode_ends_the_run(places, tmp_path, monkeypatch):
    """At another step of its life each time: every life begins with another episode."""
    monkeypatch.chdir(tmp_path)
    Path("worlds.py").write_text(Path(samples.__file__).read_text())
    late = ("env.params.how='raise'", "env.params.at=200", "env.params.length=300")
    others = ("env.params.goal=1e9", "fleet.unroll_length=16", "stop.env_steps=50000")
    ended = run_command("worlds:Walk", *late, *others)
    places.assert_gone()
    assert ended.returncode == 1, ended.stderr
    assert "failed 3 times without completing an episode in between" in ended.stderr
    assert "199 steps after reset(seed=" in ended.stderr
    file = sorted(Path("run/failures").iterdir())[0]
    assert file.name.endswith("-step-199.safetensors"), "the whole episode"
    replayed = run_replay(file)
    assert "It failed again, in the same way." in replayed.stdout, replayed


@pytest.mark.slow
def test_vector_environment_that_fails_late_in_each_episode_ends_the_run(train):
    params = {"goal": 1e9, "how": "raise", "at": 50, "length": 90}
    with pytest.raises(RunFailed) as caught:
        train(f"{samples.__name__}:make_walks", "stop.env_steps=50_000", **params)
    said = r"environment [03] failed 9 times without completing an episode in between: the actor .*"
    said += r"the walker fell \(.*gymnasium_samples.py:\d+\), in environment [03] of .* or one that"
    assert re.match(said, str(caught.value)), caught.value


@pytest.mark.slow
def test_environment_that_fails_late_in_each_episode_is_set_aside(train):
    bad = [episode_seed(0, 4, episode) for episode in range(100)]
    params = {"goal": 1e9, "how": "raise", "at": 20, "length": 30, "seeds": bad}
    overrides = ("fleet.mode=async", "fleet.on_env_failure=set_aside", "stop.env_steps=6000")
    summary = train(WALK, *overrides, **params).summary
    assert summary.envs_set_aside == 1 and 3 <= summary.actor_restarts <= 5
    assert summary.ledger.balance == 0 and summary.env_steps >= 6000


@pytest.mark.slow
def test_failures_with_episodes_completed_in_between_do_not_end_a_run(train):
    bad = [episode_seed(0, env, episode) for env in range(6) for episode in range(1, 12, 2)]
    params = {"goal": 1e9, "how": "raise", "at": 20, "length": 30, "seeds": bad}
    summary = train(WALK, "stop.env_steps=4000", **params).summary
    assert summary.actor_restarts > 9, "as many as would have ended it"
    assert 9 < summary.episodes_lost["exception"] == sum(summary.episodes_lost.values())
    assert summary.ledger.balance == 0 and summary.env_steps >= 4000


@pytest.mark.slow
def test_environment_may_import_what_lies_beside_it_when_it_is_made(places, tmp_path, monkeypatch):
    """In actors too, whose path does not have the folder."""
    monkeypatch.chdir(tmp_path)
    Path("worlds.py").write_text(Path(samples.__file__).read_text())
    Path("terrain.py").write_text("GOAL = 2.0\n")
    Path("lazy.py").write_text(
        "from worlds import Walk\n\ndef make_lazy():\n    import terrain\n"
        "    return Walk(terrain.GOAL)\n"
    )
    ended = run_command("lazy:make_lazy")
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr


def test_environment_that_starts_threads_is_imported_by_each_actor(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("worlds.py").write_text(Path(samples.__file__).read_text())
    Path("threaded.py").write_text(
        "import threading\n\nfrom worlds import Walk\n\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n\n"
        "class Threaded(Walk):\n    pass\n"
    )
    ended = run_command("threaded:Threaded", "env.params.goal=2.0")
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr
    notice = "threaded:Threaded starts threads, which no fork survives: each actor imports it anew"
    assert notice in ended.stdout + ended.stderr
    summary = RunDirectory.open(Path("run")).read_summary()
    assert summary is not None and summary["ledger"]["balance"] == 0


def test_global_generators_give_each_actor_other_numbers(places, tmp_path, monkeypatch):
    """Those of actors that were forked from one process."""
    monkeypatch.chdir(tmp_path)
    Path("worlds.py").write_text(Path(samples.__file__).read_text())
    Path("careless.py").write_text(
        "import random\n\nimport numpy as np\nfrom worlds import Walk\n\n"
        "np.random.seed(0)\n\nclass Careless(Walk):\n    def step(self, action):\n"
        "        with open('drawn', 'a') as file:\n"
        "            print(np.random.random(), random.random(), file=file)\n"
        "        return super().step(action)\n"
    )
    ended = run_command("careless:Careless")
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr
    drawn = np.loadtxt("drawn")
    assert len(drawn) >= 512
    for column in drawn.T:
        assert len(set(column)) == len(column), "two processes have drawn the same"


def run_replay(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "rollout", "replay", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def run_command(env_id: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    Path("x.toml").write_text(
        f'[env]\nid = "{env_id}"\nnum_envs = 4\n[fleet]\nnum_actors = 2\nunroll_length = 8\n'
        "[network]\nhidden_sizes = [8]\n[stop]\nenv_steps = 512\nwall_s = 60\n"
    )
    return subprocess.run(
        [sys.executable, "-P", "-m", "rollout", "train", "x.toml", *overrides, "--run-dir", "run"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"how": "reset"}, "reset returned dict, wanted (observation, info)"),
        ({"how": "four", "at": 1}, "step returned (dict, float, bool, dict), wanted (observ"),
        ({"how": "shape", "at": 1}, "observation['place'] has shape [2], wanted []"),
        ({"how": "nan", "at": 1}, "['place'] is nan at [0], wanted a finite number"),
        ({"how": "no end", "at": 1}, "terminated is None, wanted a bool"),
        ({"how": "raise", "at": 1}, "fails in its first reset or step, at "),
    ],
)
def test_what_goes_wrong_at_once_is_said_before_anything_starts(train, tmp_path, params, said):
    with pytest.raises(EnvError) as caught:
        train(WALK, **params)
    assert said in str(caught.value) and WALK in str(caught.value)
    assert not list(tmp_path.iterdir()), "no run directory"


HERE = samples.__name__


@pytest.mark.parametrize(
    ("env_id", "params", "said"),
    [
        ("gymnasium:CartPol-v1", {}, "did you mean gymnasium:CartPole-v"),
        (
            "gymnasium:CartPole",
            {},
            "say which version: gymnasium:CartPole-v0 or gymnasium:CartPole-v1",
        ),
        ("gymnasium:CartPole-v77", {}, "did you mean gymnasium:CartPole-v"),
        ("gymnasium:Xyzzy/plugh", {}, "named gymnasium:PACKAGE:ID, and the package has to be inst"),
        ("gymnasium:no_such_package:Game-v0", {}, "and the package has to be inst"),
        ("gymnasium:CartPole-v1", {"gravity": 3.0}, "gravity"),
        (f"{HERE}:Walk", {"gaol": 3.0}, "cannot be made: TypeError: Walk.__init__() got an unex"),
        (f"{HERE}:Broken", {}, "cannot be made: FileNotFoundError: no map.txt here"),
        (f"{HERE}:Seedless", {}, "reset() takes no seed ("),
        (f"{HERE}:Speaking", {}, "observation_space is Text"),
        (f"{HERE}:Mixing", {}, "not both in one"),
        (f"{HERE}:Talk", {}, "has no 'Talk'; it has Walk, Reach, Leaks, Seedless"),
        (f"{HERE}:np", {}, "wanted a subclass of rollout.envs.CompiledEnv or of gymnasium.Env"),
        ("os:getcwd", {}, "wanted a subclass"),
        ("os.path:join", {}, "a part of Python, and makes no environment"),
        ("subprocess:call", {"args": "touch made-by-a-file", "shell": True}, "a part of Python"),
        (f"{HERE}:give_size", {}, "wanted a gymnasium.Env"),
    ],
)
def test_what_cannot_be_trained_in_is_said_at_start(env_id, params, said):
    with pytest.raises(ConfigError) as caught:
        as_experiment(tables(env_id, **params))
    assert said in str(caught.value) and repr(env_id) in str(caught.value)


def test_params_of_any_kind_travel_through_an_experiment_file(tmp_path):
    text = (
        f'[env]\nid = "{WALK}"\n[env.params]\nlabel = "x"\nmarks = [1, [2.5, "b"]]\ngoal = 2\n'
        "[stop]\nenv_steps = 100\n"
    )
    (tmp_path / "x.toml").write_text(text)
    experiment = as_experiment(tmp_path / "x.toml")
    assert experiment.env.params == {"label": "x", "marks": [1, [2.5, "b"]], "goal": 2}
    found = experiment.env.find()
    assert found.make().marks == [1, [2.5, "b"]]  # pyright: ignore
    assert experiment.env.find() is found, "it is made once to see its spaces"
    assert as_experiment(tables(WALK, goal=5.0)).env.find() is not found


# Environments that save their states, vector environments and games, in the fleet

DRIFT = f"{foreign_samples.__name__}:Drift"


def test_saved_states_make_recovery_and_resume_exact(start, train, places):
    """Killed, resumed, cut otherwise: the same bits, and no episode lost."""
    small = (f"env.id={DRIFT}", "env.num_envs=6", "fleet.unroll_length=16", "seed=3")
    whole = train(DRIFT, "seed=3", "fleet.num_actors=1", "stop.env_steps=12000").summary
    command = start(*small, "fleet.num_actors=2", "stop.env_steps=6000", "network.hidden_sizes=[8]")
    command.wait_update(3)
    for _ in range(3):
        os.kill(places.pids("rollout-actor")[0], signal.SIGKILL)
        command.wait_update(command.last_update() + 5)
    assert command.wait() == 0, command.said()
    resumed = api.train(None, ["stop.env_steps=12000", "fleet.num_actors=3"], resume=command.run)
    assert resumed.summary.params_digest == whole.params_digest
    assert resumed.summary.ledger.balance == 0
    assert not any(resumed.summary.episodes_lost.values())


def test_run_with_saved_states_can_be_replayed(train):
    result = train(DRIFT, "fleet.mode=async")
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", str(result.run_dir)])
    assert ended.value.code == 0


@pytest.mark.parametrize("mode", ["SameStep", pytest.param("NextStep", marks=pytest.mark.slow)])
def test_vector_environments_give_the_same_with_any_number_of_actors(train, mode):
    vector = f"{foreign_samples.__name__}:make_vector"
    results = [train(vector, f"fleet.num_actors={n}", mode=mode).summary for n in (1, 4)]
    assert len({result.params_digest for result in results}) == 1
    assert all(result.ledger.balance == 0 and result.episode_return_mean for result in results)


@pytest.mark.slow
def test_games_are_shared_out_whole(train):
    race = f"{foreign_samples.__name__}:Race"
    results = [train(race, f"fleet.num_actors={n}", "env.num_envs=12").summary for n in (1, 4)]
    assert len({result.params_digest for result in results}) == 1
    assert all(result.ledger.balance == 0 and result.episode_return_mean for result in results)
    policy = load_policy(train(race, "fleet.num_actors=5", "env.num_envs=12").run_dir)
    played, seed = play_episodes(policy, 4, True), evaluation_seed(policy.experiment.seed, 0)
    returns, lengths = evaluation._play_chunk(policy, 0, 12, True, seed)
    assert played.returns.tolist() == returns.reshape(4, 3).mean(1).tolist()
    assert played.lengths.tolist() == lengths.reshape(4, 3).max(1).tolist()


def test_games_that_do_not_fit_are_refused(train):
    with pytest.raises(EnvError, match=r"env.num_envs=7 is no multiple of 3, the agents of"):
        train(f"{foreign_samples.__name__}:Race", "env.num_envs=7")
