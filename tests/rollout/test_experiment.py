"""Experiment files that are right: what they become, and where each value came from."""

import hashlib
import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rollout.experiment
from rollout.experiment import Experiment, as_experiment, load_experiment, resolve, resolved_toml
from rollout.experiment_tables import FleetSettings, GaussianSettings
from rollout.learners.ppo_settings import PpoSettings
from rollout.schema import schema_text

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))

SMALLEST = {"env": {"id": "CartPole-v1"}, "stop": {"env_steps": 1000}}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file in the current folder, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return name

    return write_file


SMALLEST_FILE = '[env]\nid = "CartPole-v1"\n[stop]\nenv_steps = 1000\n'


def test_smallest_experiment_has_the_documented_defaults(write):
    experiment = load_experiment(write("small.toml", SMALLEST_FILE), ["fleet.num_actors=1"])
    assert experiment.model_dump() == {
        "name": "small",
        "seed": 0,
        "env": {
            "id": "CartPole-v1",
            "num_envs": 64,
            "max_episode_steps": None,
            "vectorization_mode": "sync",
            "wrappers": (),
            "params": {"force": 10.0},
        },
        "fleet": {
            "num_actors": 1,
            "unroll_length": 64,
            "mode": "lockstep",
            "policy_lag": 1,
            "window": 2,
            "hang_s": None,
            "max_actor_memory": None,
            "on_env_failure": "stop",
            "engine": "local",
        },
        "learner": {"device": "auto", "num_threads": 1, "max_skipped_steps": 10},
        "network": {
            "kind": "mlp",
            "hidden_sizes": (64, 64),
            "activation": "tanh",
            "value_network": "shared",
            "core": None,
            "gaussian": None,
            "normalize_observations": False,
            "frame_stack": 1,
        },
        "algorithm": {
            "kind": "ppo",
            "normalize_rewards": False,
            "learning_rate": 2.5e-4,
            "anneal_lr": False,
            "adam_eps": 1e-5,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "clip_coef": 0.2,
            "clip_vloss": False,
            "norm_adv": True,
            "ent_coef": 0.01,
            "vf_coef": 0.5,
            "max_grad_norm": 0.5,
            "update_epochs": 4,
            "num_minibatches": 4,
            "target_kl": None,
            "vtrace": False,
        },
        "stop": {"env_steps": 1000, "episode_return": None, "wall_s": None},
        "checkpoint": {"every_updates": None, "every_minutes": 10.0, "keep": 3},
    }


def test_batch_is_one_unroll_of_every_environment():
    experiment = Experiment.from_dict(SMALLEST, ["env.num_envs=6", "fleet.unroll_length=10"])
    assert (experiment.batch_size, experiment.minibatch_size) == (60, 15)


@pytest.mark.parametrize(("num_envs", "num_actors"), [(2, 2), (64, 5)])
def test_without_a_number_there_is_an_actor_per_core_but_none_without_an_environment(
    monkeypatch, num_envs, num_actors
):
    monkeypatch.setattr(rollout.experiment, "usable_cores", lambda: 5)
    resolved = resolve(SMALLEST, [f"env.num_envs={num_envs}"])
    assert resolved.experiment.fleet.num_actors == num_actors
    assert resolved.sources["fleet.num_actors"] == "this machine's cores"


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 8, 11})
    assert rollout.experiment.usable_cores() == 3


def test_every_value_says_where_it_came_from(write):
    write("base.toml", '[env]\nid = "CartPole-v1"\nnum_envs = 8\n[algorithm]\ngamma = 0.9\n')
    child = write(
        "top.toml", 'extends = "base.toml"\nseed = 4\n[stop]\nwall_s = 1\n[env]\nnum_envs=9'
    )
    resolved = resolve(child, ["algorithm.num_minibatches=2", "env.params.force=3"])
    assert resolved.experiment.model_dump()["algorithm"]["gamma"] == 0.9
    assert resolved.experiment.env.num_envs == 9
    chosen = {key: source for key, source in resolved.sources.items() if source != "default"}
    assert chosen == {
        "name": "the file's name",
        "seed": "file top.toml",
        "env.id": "file base.toml",
        "env.num_envs": "file top.toml",
        "env.params.force": "override",
        "fleet.num_actors": "this machine's cores",
        "algorithm.gamma": "file base.toml",
        "algorithm.num_minibatches": "override",
        "stop.wall_s": "file top.toml",
    }


def test_extends_is_relative_to_the_file_that_says_it(write):
    write("base.toml", SMALLEST_FILE + "[fleet]\nwindow = 4\n")
    write("deep/middle.toml", 'extends = "../base.toml"\n[fleet]\npolicy_lag = 0\n')
    top = write("top.toml", 'extends = "deep/middle.toml"\nseed = 1\n')
    experiment = load_experiment(top)
    assert (experiment.fleet.window, experiment.fleet.policy_lag, experiment.seed) == (4, 0, 1)
    assert experiment.name == "top"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=plain", "plain"),
        ('name="quoted"', "quoted"),
        ("name=with space", "with space"),
        ("name = spaced ", "spaced"),
        ("name=a=b", "a=b"),
        ("name='single'", "single"),
    ],
)
def test_override_is_toml_if_it_parses_and_else_text(override, value):
    assert Experiment.from_dict(SMALLEST, [override]).name == value


def test_last_of_two_overrides_counts():
    assert Experiment.from_dict(SMALLEST, ["seed=1", "seed=2"]).seed == 2


def test_override_of_a_table_keeps_its_other_keys():
    env = Experiment.from_dict(SMALLEST, ["env={num_envs=8}"]).env
    assert (env.id, env.num_envs) == ("CartPole-v1", 8)


def test_integer_is_welcome_where_a_number_is_wanted():
    experiment = Experiment.from_dict(SMALLEST, ["stop.episode_return=475", "env.params.force=3"])
    assert type(experiment.stop.episode_return) is float
    assert type(experiment.env.params["force"]) is float


def test_experiment_comes_from_a_file_or_tables_or_as_it_is(write):
    path = write("small.toml", SMALLEST_FILE)
    from_file = as_experiment(path)
    assert as_experiment(Path(path)) == from_file
    assert as_experiment({"name": "small", **SMALLEST}) == from_file
    assert as_experiment(from_file) == from_file
    assert as_experiment(from_file, ["seed=7"]).seed == 7


def test_tables_may_be_models():
    algorithm = PpoSettings(gamma=0.5)
    fleet = FleetSettings(num_actors=1, policy_lag=0)
    experiment = as_experiment({**SMALLEST, "algorithm": algorithm, "fleet": fleet})
    assert experiment.algorithm == algorithm
    assert experiment.fleet.policy_lag == 0


def test_experiment_put_together_in_python_gets_no_more_actors_than_environments(monkeypatch):
    monkeypatch.setattr(rollout.experiment, "usable_cores", lambda: 500)
    by_hand = Experiment.model_validate(SMALLEST)
    assert as_experiment(by_hand).fleet.num_actors == 64


def test_experiment_cannot_be_changed():
    experiment = Experiment.from_dict(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        experiment.stop.wall_s = 0.5


# -- the digest


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "fleet.num_actors=3",
        "fleet.hang_s=3",
        "checkpoint.keep=9",
        "checkpoint.every_updates=2",
        "stop.wall_s=3",
        "stop.env_steps=77",
        "env.params.force=10",  # the default, an integer where a float is meant
        "algorithm.kind=ppo",
    ],
)
def test_digest_ignores_what_the_learning_curve_does_not_depend_on(override):
    digest = Experiment.from_dict(SMALLEST).config_digest
    assert Experiment.from_dict(SMALLEST, [override]).config_digest == digest


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "env.num_envs=32",
        "env.params.force=9",
        "fleet.unroll_length=32",
        "fleet.policy_lag=0",
        "fleet.mode=async",
        "learner.num_threads=2",
        "learner.device=cpu",
        "network.hidden_sizes=[64, 65]",
        "algorithm.target_kl=0.02",
    ],
)
def test_digest_differs_with_what_the_learning_curve_depends_on(override):
    digest = Experiment.from_dict(SMALLEST).config_digest
    assert Experiment.from_dict(SMALLEST, [override]).config_digest != digest


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("500 MB", 500_000_000), ("2GiB", 2 << 30), ("1.5 KiB", 1536), ("17 B", 17), ("4096", 4096)],
)
def test_memory_of_an_actor_is_given_in_any_unit(text, size_bytes):
    experiment = Experiment.from_dict(SMALLEST, [f"fleet.max_actor_memory={text}"])
    assert experiment.fleet.max_actor_memory == size_bytes
    assert f"max_actor_memory = {size_bytes}" in resolved_toml(experiment)
    assert experiment.config_digest == Experiment.from_dict(SMALLEST).config_digest


@pytest.mark.parametrize("text", ["0", "-1 GB", "0 MB", "2 gib", "MB", "1e9", "true", '"4096"', ""])
def test_memory_of_an_actor_that_is_no_size_is_refused(text):
    wanted = 'wanted bytes, as an integer ≥ 1 or as text such as "500 MB"'
    with pytest.raises(rollout.experiment.ConfigError, match=wanted):
        Experiment.from_dict(SMALLEST, [f"fleet.max_actor_memory={text}"])


def test_digest_ignores_what_becomes_of_environments_that_fail():
    overrides = ["fleet.mode=async"]
    digest = Experiment.from_dict(SMALLEST, overrides).config_digest
    overrides += ["fleet.on_env_failure=set_aside"]
    assert Experiment.from_dict(SMALLEST, overrides).config_digest == digest


def test_digest_depends_on_the_steps_over_which_a_learning_rate_is_annealed():
    annealed = ["algorithm.anneal_lr=true"]
    digest = Experiment.from_dict(SMALLEST, annealed).config_digest
    longer = Experiment.from_dict(SMALLEST, [*annealed, "stop.env_steps=2000"])
    timed = Experiment.from_dict(SMALLEST, [*annealed, "stop.wall_s=3"])
    assert longer.config_digest != digest == timed.config_digest


def test_digest_is_sha256_of_the_documented_keys_as_canonical_json():
    experiment = Experiment.from_dict(SMALLEST)
    tables = json.loads(experiment.model_dump_json())
    for key in ("name", "stop", "checkpoint"):
        del tables[key]
    for key in ("num_actors", "hang_s", "max_actor_memory", "on_env_failure", "engine"):
        del tables["fleet"][key]
    del tables["learner"]["max_skipped_steps"]
    canonical = json.dumps(tables, sort_keys=True, separators=(",", ":"))
    assert experiment.config_digest == hashlib.sha256(canonical.encode()).hexdigest()


# -- the resolved copy

names = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"n{text}m")
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
experiments = st.fixed_dictionaries(
    {
        "env": st.fixed_dictionaries(
            {"id": st.just("CartPole-v1")},
            optional={
                "num_envs": st.integers(1, 2**24 - 1),
                "params": st.fixed_dictionaries(
                    {}, optional={"force": st.floats(allow_nan=False, allow_infinity=False)}
                ),
            },
        ),
        "stop": st.fixed_dictionaries(
            {"wall_s": positive}, optional={"env_steps": st.integers(1, 2**63 - 1)}
        ),
        "algorithm": st.fixed_dictionaries(
            {"num_minibatches": st.just(1)},
            optional={
                "learning_rate": positive,
                "gamma": st.floats(0, 1),
                "target_kl": positive,
                "norm_adv": st.booleans(),
            },
        ),
    },
    optional={
        "name": names.filter(str.isprintable).filter(lambda name: "/" not in name),
        "seed": st.integers(0, 2**32 - 1),
        "network": st.fixed_dictionaries(
            {},
            optional={
                "hidden_sizes": st.lists(st.integers(1, 8192), min_size=1, max_size=16),
                "activation": st.sampled_from(["tanh", "relu"]),
            },
        ),
        "checkpoint": st.fixed_dictionaries({}, optional={"every_updates": st.integers(1, 10**9)}),
    },
)


@given(experiments)
def test_resolved_copy_loads_back_to_an_equal_experiment(tmp_path_factory, tables):
    resolved = resolve(tables)
    path = tmp_path_factory.mktemp("run") / "config.toml"
    for text in (
        resolved_toml(resolved.experiment),
        resolved_toml(resolved.experiment, resolved.sources),
    ):
        path.write_text(text)
        again = load_experiment(path)
        assert again == resolved.experiment
        assert again.config_digest == resolved.experiment.config_digest


def test_resolved_copy_names_everything_that_has_a_value():
    experiment = Experiment.from_dict(SMALLEST, ["fleet.num_actors=1"])
    tables = tomllib.loads(resolved_toml(experiment))
    assert tables["env"] == {
        "id": "CartPole-v1",
        "num_envs": 64,
        "vectorization_mode": "sync",
        "wrappers": [],
        "params": {"force": 10.0},
    }
    assert tables["fleet"]["num_actors"] == 1
    assert tables["stop"] == {"env_steps": 1000}
    assert "target_kl" not in tables["algorithm"]


def test_gaussian_table_is_part_of_the_resolved_copy_and_of_the_digest(tmp_path):
    tables = SMALLEST | {"env": {"id": "Pendulum-v1"}}
    plain = Experiment.from_dict(tables)
    squashed = Experiment.from_dict(tables, ["network.gaussian.squash=tanh"])
    assert squashed.network.gaussian == GaussianSettings(std="independent", squash="tanh")
    assert plain.config_digest != squashed.config_digest
    file = tmp_path / "config.toml"
    file.write_text(resolved_toml(squashed))
    assert "[network.gaussian]" in file.read_text()
    assert load_experiment(file) == squashed


# -- what is bundled


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_bundled_file_is_valid_and_says_what_it_shows(path):
    load_experiment(path)
    comment = path.read_text().splitlines()[1]
    assert comment.startswith("# ")


@pytest.mark.parametrize("num_actors", [1, 3, 200, 16000])
def test_throughput_file_stays_valid_with_many_environments_and_any_number_of_actors(num_actors):
    overrides = ["env.num_envs=16000", f"fleet.num_actors={num_actors}"]
    load_experiment(ROOT / "configs/cartpole_throughput.toml", overrides)


def test_schema_of_experiment_files_is_up_to_date():
    is_current = (ROOT / "configs/schema.json").read_text() == schema_text()
    assert is_current, "type `make schema`"
