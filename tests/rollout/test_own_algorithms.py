"""Algorithms of users' own: named in a file, or given as classes; and what is wrong with some."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rollout import api
from rollout.algorithm_trial import make_trial_batch, try_out
from rollout.envs import find_env
from rollout.errors import AlgorithmError, ConfigError, OperatorError, RunFailed
from rollout.experiment import Experiment, as_experiment, load_experiment, resolved_toml
from rollout.learners import Algorithm, AlgorithmSettings, Inputs, mean_metrics
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network, make_schema
from tests.test_readme import ROOT, blocks

COMMAND = [sys.executable, "-P", "-m", "rollout"]
A2C = next(text for _, text in blocks(ROOT / "README.md") if text.startswith("# my_algorithm.py"))
SPY = """from pathlib import Path
with open("imports.txt", "a") as file:
    file.write(Path("/proc/self/comm").read_text())
"""
TABLES: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 8},
    "fleet": {"num_actors": 2, "unroll_length": 16},
    "network": {"hidden_sizes": [8]},
    "stop": {"env_steps": 6 * 8 * 16},
}
FILE = """
[env]
id = "CartPole-v1"
num_envs = 32
[fleet]
num_actors = 2
unroll_length = 16
[algorithm]
kind = "my_algorithm:A2C"
learning_rate = 3e-3
[stop]
env_steps = 4096
"""


class Rows(NamedTuple):
    inputs: Inputs
    action: torch.Tensor


class MineSettings(AlgorithmSettings):
    learning_rate: float = 0.01


class Mine(Algorithm[MineSettings]):
    """Towards whatever was done; each test breaks another part of it."""

    Settings = MineSettings

    def update(self, batch, update_index, fraction_done):
        rows = self.make_rows(Rows, batch)
        return mean_metrics([self.step(self.loss, rows, self.settings.learning_rate, 0.5)])

    def loss(self, rows):
        policy, _ = self.network(*rows.inputs)
        return -policy.log_prob(rows.action).mean(), {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with my_algorithm.py and x.toml in it."""
    monkeypatch.chdir(tmp_path)
    Path("my_algorithm.py").write_text(SPY + A2C)
    Path("x.toml").write_text(FILE)
    yield tmp_path
    sys.modules.pop("my_algorithm", None)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=110, cwd=cwd
    )


def digest(run: str) -> str:
    return json.loads(Path(run, "summary.json").read_text())["params_digest"]


# Named in a file


def test_algorithm_of_the_folder_trains_resumes_and_is_replayed_and_only_the_learner_imports_it(
    folder, places
):
    done = run("train", "x.toml", "--run-dir", "run")
    places.assert_gone()
    assert done.returncode == 0, done.stderr
    assert Path("imports.txt").read_text().split() == ["rollout-learner"]
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["ledger"]["balance"] == 0 and summary["updates"] == 8
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"losses/policy_loss", "losses/skipped_steps"} <= set(lines[-1])
    assert 'kind = "my_algorithm:A2C"' in Path("run/config.toml").read_text()

    whole = run("train", "run/config.toml", "stop.env_steps=8192", "--run-dir", "whole")
    resumed = run("train", "--resume", "run", "stop.env_steps=8192", "fleet.num_actors=3")
    assert whole.returncode == resumed.returncode == 0, whole.stderr + resumed.stderr
    assert digest("run") == digest("whole")
    replayed = run("replay", "run")
    assert replayed.returncode == 0 and replayed.stdout.endswith("equal\n"), replayed


@pytest.mark.slow
def test_policy_is_played_where_its_algorithm_is_gone_and_going_on_says_what_is_missing(
    folder, places
):
    assert run("train", "x.toml", "--run-dir", "run").returncode == 0
    Path("my_algorithm.py").unlink()
    played = run("eval", "run", "--episodes", "4", "--json")
    assert played.returncode == 0, played.stderr
    loading = "import rollout, sys; rollout.load_policy('run'); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", loading], text=True) == "False\n"
    for arguments in (["train", "--resume", "run", "stop.env_steps=9000"], ["replay", "run"]):
        refused = run(*arguments)
        assert refused.returncode == 2
        assert "algorithm 'my_algorithm:A2C': no module 'my_algorithm'; start the command in" in (
            refused.stderr
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_advantage_actor_critic_learns(folder, places, mode):
    overrides = ("stop.env_steps=150_000", f"fleet.mode={mode}", "seed=1")
    done = run("train", "x.toml", *overrides, "--run-dir", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["episode_return_mean"] > 60, "a random policy keeps the pole up for 22 steps"


def test_settings_are_checked_as_those_of_other_tables(folder):
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", ["algorithm.gama=0.9", "algorithm.ent_coef=-1", "seed=-1"])
    text = str(caught.value)
    assert "unknown key algorithm.gama; did you mean algorithm.gamma?" in text
    assert "algorithm.ent_coef=-1: wanted a number ≥ 0 (weight of the entropy bonus)" in text
    assert "seed=-1" in text


TABLES_OF_ITS_OWN = """from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator


def even(number: int) -> int:
    if number % 2:
        raise ValueError("odd")
    return number


class Stage(AlgorithmSettings):
    rate: Annotated[int, AfterValidator(even)]

"""

CHECKS = """    size: int
    shape: tuple[int, int] = (1, 2)
    counts: dict[str, Annotated[int, AfterValidator(even)]] = {}
    stages: list[Stage] = []

    @field_validator("size")
    @classmethod
    def check_size(cls, size: int) -> int:
        if size % 2:
            raise ValueError("an odd size, it is cut in two")
        return size

    @model_validator(mode="after")
    def check_all(self):
        if self.gamma < self.gae_lambda:
            raise ValueError("gamma is below gae_lambda")
        return self

"""


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        ([], ["x.toml: missing key algorithm.size; write size under [algorithm]"]),
        (["algorithm.gamma=x"], ["missing key algorithm.size", "algorithm.gamma=x: wanted a n"]),
        (["algorithm.size=3"], ["algorithm.size=3: fails its own check: an odd size, it is cut"]),
        (["algorithm.size=2", "algorithm.gamma=0.1"], ["[algorithm] fails its own check: gamma"]),
        (["algorithm.size=2", "algorithm.shape=3"], ["wanted a list of 2 values; leave it"]),
        (["algorithm.size=2", "algorithm.counts={a=3}"], ["algorithm.counts.a=3"]),
        (["algorithm.size=2", "algorithm.stages=[{rate=3}]"], ["algorithm.stages"]),
        (["algorithm.size=2", "algorithm.stages=[{}]"], ["algorithm.stages"]),
    ],
)
def test_settings_may_be_required_and_check_themselves(folder, overrides, problems):
    source = A2C.replace("from pydantic import Field\n", "")
    head, tail = source.split("class", 1)
    source = f"{head}{TABLES_OF_ITS_OWN}\n\nclass{tail}"
    source = source.replace("    learning_rate:", f"{CHECKS}    learning_rate:", 1)
    Path("my_algorithm.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", overrides)
    assert len(caught.value.problems) == len(problems)
    for said, problem in zip(problems, caught.value.problems, strict=True):
        assert said in problem


def test_config_digest_covers_the_settings_and_what_is_printed_loads_back(folder):
    experiment = load_experiment("x.toml")
    assert experiment.algorithm.needs_value
    assert experiment.minibatch_size is None
    Path("y.toml").write_text(resolved_toml(experiment))
    again = load_experiment("y.toml")
    assert again == experiment and again.config_digest == experiment.config_digest
    other = load_experiment("x.toml", ["algorithm.gamma=0.5"])
    assert other.config_digest != experiment.config_digest
    longer = load_experiment("x.toml", ["stop.env_steps=999_424"])
    assert longer.config_digest == experiment.config_digest
    unread = load_experiment("x.toml", reads_algorithm=False)
    assert unread.algorithm.model_dump() == {
        "kind": "my_algorithm:A2C",
        "normalize_rewards": False,
        "learning_rate": 3e-3,
    }


def test_settings_that_share_a_name_with_ours_share_its_rules(folder):
    fields = "    num_minibatches: int = 3\n    anneal_lr: bool = True\n"
    Path("my_algorithm.py").write_text(
        A2C.replace("    learning_rate:", f"{fields}    learning_rate:")
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", ["fleet.unroll_length=32"])
    assert "is not a multiple of algorithm.num_minibatches=3" in str(caught.value)
    unbounded = {**TABLES, "stop": {"wall_s": 1}}
    overrides = ["algorithm.kind=my_algorithm:A2C", "algorithm.num_minibatches=2"]
    with pytest.raises(ConfigError) as caught:
        as_experiment(unbounded, overrides)
    assert "algorithm.anneal_lr=true (default) needs stop.env_steps" in str(caught.value)


def test_normalized_rewards_are_refused_where_settings_have_no_discount(folder):
    wanted = ["algorithm.normalize_rewards=true"]
    Path("my_algorithm.py").write_text(A2C.replace("    gamma:", "    discount:"))
    load_experiment("x.toml")
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", wanted)
    (problem,) = caught.value.problems
    assert problem == (
        "x.toml: algorithm.normalize_rewards=true (override) goes by discounted returns, and "
        "A2CSettings has no gamma; give it a field gamma: float, or leave normalize_rewards out"
    )
    assert load_experiment("x.toml", wanted, reads_algorithm=False).algorithm.normalize_rewards


BROKEN = "from rollout.learners import Algorithm, AlgorithmSettings\n"
CLASS = "class B(Algorithm):\n    def update(self, batch, update_index, fraction_done): ...\n"


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("nowhere:B", "", "no module 'nowhere'; start the command in the folder that holds it"),
        ("broken:C", BROKEN + CLASS, "has no 'C'; it has B"),
        ("broken:B", "1 / 0", "importing broken failed at {folder}/broken.py:1: ZeroDivisionError"),
        ("broken:B", "B = (", "importing broken failed at {folder}/broken.py:1: SyntaxError"),
        ("broken:B", "B = 3", "is 3; wanted a subclass of rollout.learners.Algorithm"),
        ("broken:B", BROKEN + CLASS, "B has no Settings; wanted Settings = a subclass of"),
        ("broken:B", f"{BROKEN}{CLASS}    Settings = dict\n", "B has Settings = <class 'dict'>"),
        (
            "broken:B",
            f"{BROKEN}class B(Algorithm):\n    Settings = AlgorithmSettings\n",
            "B does not define update; def update(self, batch, update_index, fraction_done)",
        ),
        (
            "ppoo",
            "",
            'wanted "ppo" or "impala" or "package.module:Class" (which algorithm); did you '
            'mean "ppo"?',
        ),
        ("object:B", "", "was an object, of which no file holds more than the name"),
    ],
)
def test_what_is_no_algorithm_is_refused_before_anything_starts(folder, kind, source, said):
    Path("broken.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        as_experiment(TABLES, [f"algorithm.kind={kind}", "algorithm.any=3"])
    sys.modules.pop("broken", None)
    assert len(caught.value.problems) == 1, "what is in its table cannot be judged"
    assert said.format(folder=folder) in str(caught.value)


# Tried out


def trial(algorithm: Any, *overrides: str, env_id: str = "CartPole-v1") -> list[str]:
    tables = {**TABLES, "env": {"id": env_id, "num_envs": 8}}
    experiment = as_experiment(tables, overrides, algorithm=algorithm)
    env = find_env(env_id)
    schema = make_schema(env, 16, experiment.algorithm.needs_value)
    return try_out(experiment, make_network(experiment.network, env), schema)


def breaking(**parts: Any) -> type[Mine]:
    return type("Broken", (Mine,), parts)


def detached(self, rows):
    return Mine.loss(self, rows)[0].detach(), {}


def per_row(self, rows):
    return -self.network(*rows.inputs)[0].log_prob(rows.action), {}


def without_metrics(self, rows):
    return Mine.loss(self, rows)[0]


def elsewhere(self, rows):
    return torch.ones((), requires_grad=True) * 2.0, {}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"loss": detached}, "ValueError: the loss carries no gradient"),
        ({"loss": per_row}, "the loss is a tensor of shape [64]; wanted a mean"),
        ({"loss": without_metrics}, "the loss returned a tensor of shape []; wanted (loss, metr"),
        ({"update": lambda *_: None}, "update returned an object of type NoneType; wanted metrics"),
        ({"update": lambda *_: {"loss": "x"}}, "update returned 'loss' as an object of type str"),
        ({"update": lambda *_: 1 / 0}, f"failed at {__file__}:"),
        ({"update": lambda *_: sys.exit(3)}, "sys.exit(3) was called"),
    ],
)
def test_algorithm_that_cannot_update_is_refused_before_anything_starts(parts, said):
    with pytest.raises(AlgorithmError) as caught:
        trial(breaking(**parts))
    assert "algorithm 'object:Broken': " in str(caught.value)
    assert said in str(caught.value)


def test_trial_that_changes_no_parameter_is_warned_of():
    (warning,) = trial(breaking(loss=elsewhere))
    assert "changed no parameter; does its loss come from self.network" in warning
    assert len(trial(breaking(loss=elsewhere), "network.normalize_observations=true")) == 1
    assert trial(Mine) == []


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "Breakout-MinAtar", "tests.rollout.rich_envs:Choices"]
)
def test_trial_batch_is_of_the_form_of_the_environments(env_id):
    env = find_env(env_id, str(ROOT))
    schema = make_schema(env, 16, True)
    experiment = Experiment.from_dict(TABLES)
    batch = make_trial_batch(make_network(experiment.network, env), schema)
    assert batch.is_full
    assert batch.observation.shape == (17, 4, *schema.observation_shape)
    assert batch.action.dtype == schema.action_dtype
    assert len(batch.final_t) == np.count_nonzero(batch.truncated) == 1
    assert len(batch.episode_t) == 2 and batch.terminated.any()


def test_trial_leaves_the_generators_of_others_as_they_were():
    def drawing(self, batch, update_index, fraction_done):
        return {"drawn": torch.rand(3).sum().item() + np.random.rand()}

    torch.manual_seed(5)
    np.random.seed(5)
    trial(breaking(update=drawing))
    drawn = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    assert drawn == (torch.rand(1).item(), np.random.rand())


def test_refused_algorithm_leaves_no_run_directory(places, tmp_path):
    with pytest.raises(AlgorithmError):
        api.train(TABLES, algorithm=breaking(loss=detached), run_dir=tmp_path / "run")
    places.assert_gone()
    assert not (tmp_path / "run").exists()


# Given as a class


@pytest.mark.slow
def test_class_itself_trains_and_is_wanted_again_to_go_on(places, tmp_path):
    tables = {**TABLES, "algorithm": {"learning_rate": 0.02}}
    result = api.train(tables, algorithm=Mine, run_dir=tmp_path / "run")
    places.assert_gone()
    assert result.policy.act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    experiment = RunDirectory.open(result.run_dir).experiment
    table = {"kind": "object:Mine", "normalize_rewards": False, "learning_rate": 0.02}
    assert experiment.algorithm.model_dump() == table
    longer = ["stop.env_steps=1536"]
    with pytest.raises(ConfigError, match=r"rollout.train\(resume=RUN, algorithm=Mine\)"):
        api.train(resume=result.run_dir, overrides=longer)
    with pytest.raises(ConfigError, match="is not algorithm=Broken; give the one it was, alg"):
        api.train(resume=result.run_dir, overrides=longer, algorithm=breaking())
    resumed = api.train(resume=result.run_dir, overrides=longer, algorithm=Mine)
    whole = api.train(tables, longer, algorithm=Mine, run_dir=tmp_path / "whole")
    assert resumed.summary.params_digest == whole.summary.params_digest


def test_settings_may_be_a_model_and_two_algorithms_are_one_too_many():
    tables = {**TABLES, "algorithm": MineSettings(learning_rate=0.5)}
    experiment = as_experiment(tables, algorithm=Mine)
    assert experiment.algorithm == MineSettings(kind="object:Mine", learning_rate=0.5)
    assert as_experiment(experiment) == experiment
    with pytest.raises(ConfigError, match='kind="ppo" and algorithm=Mine are two algorithms; leav'):
        as_experiment(TABLES, ["algorithm.kind=ppo"], algorithm=Mine)
    with pytest.raises(ConfigError, match=r"wanted a subclass of rollout\.learners\.Algorithm"):
        as_experiment(TABLES, algorithm=Mine.update)


# Callbacks


class Tape(api.Callback):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, progress):
        self.told.append(progress.update)

    def saved(self, checkpoint):
        self.told.append(checkpoint.name)

    def finish(self, summary, run):
        self.told.append((summary.updates, run.path.name))


def test_callbacks_are_told_of_updates_checkpoints_and_the_end_and_may_ask_for_it(
    places, tmp_path, view
):
    tape, seen = Tape(), []
    callbacks = [
        tape,
        lambda progress: seen.append(progress.env_steps),
        lambda progress: "enough" if progress.update == 3 else None,
    ]
    overrides = ["checkpoint.every_updates=2"]
    result = api.train(TABLES, overrides, run_dir=tmp_path / "run", callbacks=callbacks, view=view)
    places.assert_gone()
    assert tape.told == [1, 2, "update-00000002", 3, "update-00000003", (3, "run")]
    assert seen == [128, 256, 384]
    assert result.summary.updates == 3 and result.summary.ledger.is_balanced
    assert result.interrupted_by is None
    assert any("enough: the run ends early" in notice for notice in view.notices)
    resumed = api.train(resume=result.run_dir)
    whole = api.train(TABLES, run_dir=tmp_path / "whole")
    assert resumed.summary.params_digest == whole.summary.params_digest


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), OperatorError("theirs")])
def test_callback_that_raises_ends_the_run_saved(places, tmp_path, error):
    def fail(progress) -> None:
        if progress.update == 2:
            raise error

    expected = ZeroDivisionError if isinstance(error, ZeroDivisionError) else RunFailed
    with pytest.raises(expected) as caught:
        api.train(TABLES, run_dir=tmp_path / "run", callbacks=[fail])
    places.assert_gone()
    assert "fail" in str(caught.traceback[-1]) or caught.value.__cause__ is error
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["update-00000002"]


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (Tape, "callback Tape is a class; give an object, Tape()"),
        (3, "callback 3; wanted a function of Progress, or a rollout.Callback"),
        (sys.stdout, "derive its class from rollout.Callback"),
    ],
)
def test_what_is_no_callback_is_refused(callback, said):
    with pytest.raises(TypeError, match=said.replace("(", r"\(").replace(")", r"\)")):
        api.train(TABLES, callbacks=[callback])


def test_callback_that_returns_neither_true_nor_a_reason_is_named(places, tmp_path):
    def count(progress) -> Any:
        return 3

    with pytest.raises(TypeError, match="count returned 3, wanted True, a reason or None"):
        api.train(TABLES, run_dir=tmp_path / "run", callbacks=[count])
    places.assert_gone()


# What is not finite


def exploding(self, rows):
    return Mine.loss(self, rows)[0] * (float("nan") if self.optimizer.step_count > 1 else 1.0), {}


def test_losses_that_are_not_finite_are_told_with_their_unrolls_and_end_the_run(
    places, tmp_path, view
):
    overrides = ["learner.max_skipped_steps=3"]
    with pytest.raises(RunFailed) as caught:
        api.train(
            TABLES,
            overrides,
            algorithm=breaking(loss=exploding),
            run_dir=tmp_path / "run",
            view=view,
        )
    places.assert_gone()
    assert "after 4 updates: 3 optimizer steps in a row had a loss or gradient" in str(caught.value)
    (notice,) = [text for text in view.notices if "skipped" in text]
    assert notice.startswith("update 2: 1 optimizer step was skipped")
    assert "unroll 2 of environments 0 to 3 (actor " in notice
    assert "unroll 2 of environments 4 to 7 (actor " in notice
    assert "weights version 1)" in notice and "largest reward 1 (environment " in notice
    log = (tmp_path / "run/run.log").read_text()
    assert all(f"update {update}: 1 optimizer step" in log for update in (2, 3, 4))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    skipped = [json.loads(line)["losses/skipped_steps"] for line in lines]
    assert skipped == [0.0, 0.0, 1.0, 1.0]


def failing_after_a_step(self, batch, update_index, fraction_done):
    metrics = Mine.update(self, batch, update_index, fraction_done)
    if update_index == 2 and not Path("mended").exists():
        raise {"raise": ZeroDivisionError("mine"), "exit": SystemExit(3)}[self.settings.how]
    return metrics


class HowSettings(MineSettings):
    how: str = "raise"


@pytest.mark.parametrize(
    ("how", "said"), [("raise", "ZeroDivisionError: mine"), ("exit", "sys.exit(3) was called")]
)
def test_update_that_raises_changes_nothing_of_what_is_saved(
    places, tmp_path, monkeypatch, how, said
):
    monkeypatch.chdir(tmp_path)
    broken = breaking(update=failing_after_a_step, Settings=HowSettings)
    with pytest.raises(RunFailed) as caught:
        api.train(TABLES, [f"algorithm.how={how}"], algorithm=broken, run_dir="run")
    places.assert_gone()
    line = failing_after_a_step.__code__.co_firstlineno + 3
    assert str(caught.value).startswith(f"update 2 failed at {__file__}:{line}: {said}; ")
    assert "`rollout.train(resume='run', algorithm=…)` goes on from there" in str(caught.value)
    assert "in failing_after_a_step" in Path("run/run.log").read_text()
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["update-00000002"]
    Path("mended").touch()
    resumed = api.train(resume="run", algorithm=broken)
    overrides = [f"algorithm.how={how}"]
    whole = api.train(TABLES, overrides, algorithm=broken, run_dir="whole")
    assert resumed.summary.params_digest == whole.summary.params_digest
