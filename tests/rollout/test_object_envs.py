"""Environments that are given as objects: from scripts, notebooks, functions; with processes."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import rollout
from rollout import api
from rollout.envs.errors import EnvError
from rollout.envs.pickling import pickled
from rollout.errors import ConfigError, OperatorError, RunFailed
from rollout.evaluation import play_episodes
from rollout.joining import find_running
from rollout.plan import HostPlan, HostStart
from rollout.run_directory import RunDirectory
from tests.envs import foreign_samples
from tests.rollout import guessing
from tests.rollout.guessing import Guess, SlowGuess

SMALL: dict[str, Any] = {
    "env": {"num_envs": 6},
    "fleet": {"num_actors": 2, "unroll_length": 16},
    "network": {"hidden_sizes": [8]},
    "stop": {"env_steps": 4 * 16 * 6},
}
SOURCE = Path(guessing.__file__).read_text()
SCRIPT = f"""
import json, sys
import rollout
result = rollout.train({SMALL}, ["seed=3"], env=Guess, run_dir=sys.argv[1])
print(result.summary.params_digest)
print(result.policy.act(np.eye(SIZE, dtype=np.float32)).shape)
"""
NOTEBOOK = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
for cell in sys.stdin.read().split("# %%"):
    shell.run_cell(cell, store_history=True)
"""


@pytest.fixture
def train(places, tmp_path):
    """train(env, "key=value", …): a short run in this process; nothing may be left of it."""
    runs = iter(range(100))

    def train(env: Any, *overrides: str, **options: Any) -> api.Result:
        options = {"run_dir": tmp_path / f"run{next(runs)}", "env": env} | options
        result = api.train(SMALL, overrides, **options)
        places.assert_gone()
        return result

    return train


def make_gaining(gain: float):
    """Makers that keep what they need in a closure."""
    level = {"gain": gain}

    def make_guess(twice: bool = False) -> SlowGuess:
        return SlowGuess((1 + twice) * level["gain"])

    return make_guess


def make_any(**kwargs: Any) -> SlowGuess:
    return SlowGuess(**kwargs)


def run_python(*arguments: str, text: str = "", folder: Path | None = None) -> Any:
    return subprocess.run(
        [sys.executable, *arguments],
        input=text,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(rollout.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def named(env: str) -> dict:
    return SMALL | {"env": SMALL["env"] | {"id": f"{guessing.__name__}:{env}"}}


@pytest.mark.slow
def test_script_trains_in_a_class_of_its_own_to_the_digest_of_the_same_class_in_a_module(
    places, tmp_path
):
    (tmp_path / "script.py").write_text(SOURCE + SCRIPT)
    runs = [tmp_path / f"run{n}" for n in range(2)]
    said = [run_python(str(tmp_path / "script.py"), str(run)) for run in runs]
    places.assert_gone()
    assert [one.stderr for one in said] == ["", ""]
    digests = {one.stdout.split("\n")[0] for one in said}
    module = api.train(named("Guess"), ["seed=3"], run_dir=tmp_path / "module")
    assert digests == {module.summary.params_digest}
    assert said[0].stdout.split("\n")[1] == "(4,)"


@pytest.mark.slow  # nothing is kept of what cells compile
def test_cell_of_a_notebook_trains_to_the_digest_of_the_same_class_in_a_module(places, tmp_path):
    wrong = SOURCE.replace("observation[state.number]", "observation[state.nmber]")
    random = SOURCE.replace("integers(draw, 0, SIZE)", "np.random.randint(SIZE)")
    start = SCRIPT.replace("sys.argv[1]", f"{str(tmp_path / 'run')!r}")
    again = start.replace("/run'", "/other'")
    cells = [SOURCE, start, wrong, again, random, again]
    ended = run_python("-c", NOTEBOOK, text="\n# %%".join(cells))
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr
    module = api.train(named("Guess"), ["seed=3"], run_dir=tmp_path / "module")
    assert module.summary.params_digest in ended.stdout
    lines = [line for line in ended.stdout.split("\n") if line.startswith("EnvError: ")]
    assert len(lines) == 2
    assert "observe does not compile at " in lines[0]
    assert "`observation[state.nmber] = 1.0`: `state` has no field 'nmber'" in lines[0]
    assert "reset is refused at " in lines[1] and "randint(SIZE)`: np.random.randint" in lines[1]
    assert "cure: did you mean state.number?" in ended.stdout
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_code_on_a_command_line_trains(places, tmp_path):
    ended = run_python("-c", SOURCE + SCRIPT.replace("=Guess", "=SlowGuess"), str(tmp_path / "run"))
    places.assert_gone()
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "env",
    [SlowGuess, make_gaining(2.0), functools.partial(SlowGuess, gain=3.0), lambda: SlowGuess(4.0)],
)
def test_class_and_functions_with_closures_train_and_their_policies_play(train, env):
    result = train(env)
    assert result.summary.env_steps == SMALL["stop"]["env_steps"]
    policy = result.policy
    assert policy.act(np.eye(4, dtype=np.float32)).shape == (4,)
    gain = env().gain
    returns = play_episodes(policy, 3, True).returns
    assert all(r % gain == 0 and r > 0 for r in returns), returns
    name = getattr(env, "__name__", "SlowGuess")
    assert f'id = "object:{name}"\n' in (result.run_dir / "config.toml").read_text()


@pytest.mark.parametrize("env", [foreign_samples.make_vector, foreign_samples.Race])
def test_vector_environments_and_games_may_be_objects_too(train, env):
    assert len(play_episodes(train(env).policy, 2, True).returns) == 2


def test_object_trains_as_the_same_by_name(train, tmp_path):
    given, by_name = train(SlowGuess), api.train(named("SlowGuess"), run_dir=tmp_path / "name")
    assert given.summary.params_digest == by_name.summary.params_digest


def test_settings_of_env_hold_for_objects_too(train):
    result = train(make_gaining(2.0), "env.params.twice=true", "env.max_episode_steps=3")
    env = result.policy.env
    assert (env.params, env.max_episode_steps) == ({"twice": True}, 3)
    last = (result.run_dir / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["charts/episodic_length"] == 3


@pytest.mark.slow
def test_condition_to_stop_is_all_that_an_experiment_needs(places, tmp_path):
    steps = 64 * 64
    result = api.train({"stop": {"env_steps": steps}}, env=SlowGuess, run_dir=tmp_path / "run")
    assert result.summary.env_steps == steps


def test_run_goes_on_with_its_object_and_with_no_other(train):
    run = train(SlowGuess).run_dir
    further = ["stop.env_steps=800"]
    for env, said in [
        (None, "environment 'object:SlowGuess' was an object"),
        (Guess, 'env.id="object:SlowGuess" is not env=Guess; give the one it was, env=SlowGuess'),
    ]:
        with pytest.raises(ConfigError) as caught:
            api.train(None, further, resume=run, env=env)
        assert len(caught.value.problems) == 1 and said in caught.value.problems[0]
        with pytest.raises(ConfigError) as caught:
            rollout.load_policy(run, env=env)
        assert said in str(caught.value)
    resumed = api.train(None, further, resume=run, env=SlowGuess)
    assert resumed.summary.env_steps >= 800
    assert resumed.policy.act(np.eye(4, dtype=np.float32)[0]) in range(4)
    finished = api.train(None, [], resume=run, env=SlowGuess)
    assert finished.was_finished and finished.policy.env.__name__ == "object:SlowGuess"
    same = rollout.load_policy(run, env=SlowGuess)
    assert np.array_equal(same.parameters, resumed.policy.parameters)


@pytest.mark.parametrize("command", ["eval RUN", "train --resume RUN", "replay RUN"])
def test_commands_say_in_a_sentence_that_it_was_an_object(train, command):
    run = str(train(SlowGuess).run_dir)
    ended = run_python("-P", "-m", "rollout", *command.replace("RUN", run).split())
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"rollout: {run}/config.toml: environment 'object:SlowGuess' was an obj")
    assert "rollout.train(resume=RUN, env=SlowGuess)" in line


def test_no_file_of_a_run_holds_the_object_and_nobody_joins(train, view, tmp_path):
    found = {}

    def look() -> None:
        found.update({p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()})
        with pytest.raises(OperatorError, match="object:Guess, was given to"):
            find_running(tmp_path / "run0").__enter__()

    train(make_local(), view=view.at(2, look))
    found |= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / "run0" / "fleet.msgpack" in found and len(found) > 8
    holding = [path for path, content in found.items() if b"cloudpickle" in content]
    assert holding == []


def make_local() -> type:
    """A class that goes whole."""

    class Local(Guess):
        pass

    Local.__name__ = "Guess"
    return Local


def test_plan_in_a_file_has_no_place_for_an_object(make_plan):
    start = HostStart(make_plan(), pickled(make_local()))
    tables = msgspec.structs.asdict(start.plan) | {"env": start.env}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(tables), type=HostPlan) == start.plan
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(start), type=HostPlan)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rollout-templ", "rollout-host"])
def test_process_in_place_of_one_that_was_killed_has_the_object_too(train, places, view, victim):
    kill = functools.partial(_kill, places, victim)
    result = train(make_local(), "stop.env_steps=19200", view=view.at(5, kill))
    alone = train(make_local(), "stop.env_steps=19200")
    assert any("ended" in notice for notice in view.notices)
    assert result.summary.params_digest == alone.summary.params_digest


def _kill(places: Any, victim: str) -> None:
    os.kill(places.pids(victim)[0], signal.SIGKILL)


def test_object_that_starts_threads_goes_to_each_actor(train, view, tmp_path, monkeypatch):
    (tmp_path / "threading_module.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def make_threaded() -> SlowGuess:
        import threading_module  # noqa: F401  # pyright: ignore[reportMissingImports]

        return SlowGuess()

    result = train(make_threaded, view=view)
    assert any("object:make_threaded starts threads" in notice for notice in view.notices)
    assert result.summary.ledger.balance == 0


def test_module_that_only_this_process_has_is_named(train, monkeypatch):
    made = type(sys)("made_here")
    exec(SOURCE, made.__dict__)
    monkeypatch.setitem(sys.modules, "made_here", made)
    with pytest.raises(EnvError) as caught:
        train(made.SlowGuess)
    said = "'object:SlowGuess' cannot be had in another process: ModuleNotFoundError: No module"
    assert said in str(caught.value)


class Falling(SlowGuess):
    """Fails where nobody tries it out."""

    def step(self, action):
        if self.t == 5:
            raise RuntimeError("it fell")
        return super().step(action)


def test_object_that_fails_again_and_again_ends_the_run_and_names_the_log(train, tmp_path):
    with pytest.raises(RunFailed) as caught:
        train(Falling, "fleet.num_actors=1")
    log = tmp_path / "run0" / "run.log"
    said = str(caught.value)
    assert "RuntimeError: it fell" in said and said.endswith(f"; {log} shows where")
    assert 'raise RuntimeError("it fell")' in log.read_text()


LOCK = threading.Lock()


class Locked(SlowGuess):
    def reset(self, *, seed=None, options=None):
        with LOCK:
            return super().reset(seed=seed)


def test_what_cannot_be_sent_is_said_before_there_is_anything(places, tmp_path):
    local = type("Locked", (SlowGuess,), {"reset": _copied(Locked.reset)})
    with pytest.raises(EnvError, match=r"LOCK, which Locked\.reset uses, is a _thr"):
        api.train(SMALL, env=local, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert places.leftovers() == []


def _copied(function: Any) -> Any:
    """As in `__main__`, from where functions go whole."""
    made = type(function)(function.__code__, function.__globals__, None, None, function.__closure__)
    made.__module__, made.__qualname__ = "__main__", function.__qualname__
    return made


@pytest.mark.parametrize(
    ("tables", "env", "said"),
    [
        (named("Guess"), SlowGuess, "and env=SlowGuess are two environments; leave one out"),
        (SMALL, SlowGuess(), "is an instance of SlowGuess, a fleet needs many; give the class"),
        (SMALL, foreign_samples.Race(), "is an instance of Race, a fleet needs many"),
        (SMALL, "CartPole-v1", 'is a name, which the experiment says: {"env": {"id": "CartPole-v'),
        (SMALL, 3, "'object:int' is 3; wanted a subclass of rollout.envs.CompiledEnv"),
        (SMALL, lambda: 3, "environment 'object:<lambda>' is 3, wanted a gymnasium.Env"),
        (SMALL | {"env": 3}, SlowGuess, "env=3 wanted a table"),
        (SMALL | {"stop": {}}, SlowGuess, "no condition under [stop]"),
        (
            SMALL,
            functools.partial(make_any, gian=1),
            "got an unexpected keyword argument 'gian'",
        ),
    ],
)
def test_what_is_no_environment_is_said(tables, env, said):
    with pytest.raises(ConfigError) as caught:
        api.train(tables, env=env)
    assert len(caught.value.problems) == 1 and said in str(caught.value)


def test_report_of_a_run_says_how_python_has_its_policy(train, capsys):
    from rollout.live_view import make_view

    run = train(SlowGuess, view=make_view(quiet=True)).run_dir
    said = capsys.readouterr().out
    assert f"policy = rollout.load_policy('{run}', env=SlowGuess)" in said
    assert "rollout eval" not in said
    assert RunDirectory.open(run, SlowGuess).experiment.env.given is SlowGuess
