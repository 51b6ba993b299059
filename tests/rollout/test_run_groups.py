"""Which runs people mean, and which of those are one experiment."""

import pytest

from rollout.errors import OperatorError
from rollout.experiment import Experiment
from rollout.run_groups import find_runs, group_runs


def tables(*overrides: str, env_id: str = "CartPole-v1", name: str = "small") -> dict:
    given = {"name": name, "env": {"id": env_id}, "fleet": {"num_actors": 2}}
    experiment = Experiment.from_dict(given | {"stop": {"env_steps": 1000}}, overrides)
    return experiment.model_dump(mode="json")


def labels(*experiments: dict) -> dict[str, tuple[int, ...]]:
    return {group.label: group.members for group in group_runs(experiments)}


def test_runs_that_differ_in_seed_stop_and_checkpoint_are_one_experiment():
    experiments = tables("seed=1"), tables("seed=2", "stop.env_steps=9", "checkpoint.keep=2")
    assert labels(*experiments) == {"small": (0, 1)}


def test_experiments_of_one_name_are_told_apart_by_the_settings_that_differ():
    found = labels(
        tables("algorithm.learning_rate=1e-3"),
        tables("algorithm.learning_rate=2e-3", "env.params.force=5.0"),
        tables("algorithm.learning_rate=1e-3", "seed=7"),
    )
    assert found == {
        "small (algorithm.learning_rate=0.001, env.params.force=10.0)": (0, 2),
        "small (algorithm.learning_rate=0.002, env.params.force=5.0)": (1,),
    }


def test_setting_that_is_off_in_one_of_them_is_said_to_be():
    found = labels(tables(), tables("algorithm.target_kl=0.5"))
    assert list(found) == ["small (no algorithm.target_kl)", "small (algorithm.target_kl=0.5)"]


def test_settings_that_are_off_may_be_left_out():
    off = tables()
    named = {key: value for key, value in off["algorithm"].items() if value is not None}
    assert len(named) < len(off["algorithm"]), "one of them is off"
    assert labels(off, off | {"algorithm": named}) == {"small": (0, 1)}


def test_steps_towards_which_a_learning_rate_is_annealed_make_another_experiment():
    longer = ["stop.env_steps=9000", "algorithm.anneal_lr=true"]
    found = labels(tables("algorithm.anneal_lr=true"), tables(*longer))
    assert list(found) == ["small (stop.env_steps=1000)", "small (stop.env_steps=9000)"]


def test_label_shows_three_settings_and_how_many_more_there_are():
    changed = ["ent_coef=0.5", "gae_lambda=0.5", "gamma=0.5", "learning_rate=0.5", "vf_coef=0.25"]
    _, label = labels(tables(), tables(*(f"algorithm.{change}" for change in changed)))
    assert label == (
        "small (algorithm.ent_coef=0.5, algorithm.gae_lambda=0.5, algorithm.gamma=0.5, and 2 more)"
    )


def test_groups_of_an_environment_are_together():
    groups = group_runs(
        [
            tables(name="b"),
            tables(name="a", env_id="Acrobot-v1"),
            tables(name="c"),
            tables(name="b", env_id="Acrobot-v1"),
        ]
    )
    assert [(group.env_id, group.label, group.members) for group in groups] == [
        ("CartPole-v1", "b", (0,)),
        ("CartPole-v1", "c", (2,)),
        ("Acrobot-v1", "a", (1,)),
        ("Acrobot-v1", "b", (3,)),
    ]


def test_folder_stands_for_the_runs_in_it_and_each_run_counts_once(tmp_path):
    for name in ("runs/b", "runs/a", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "notes.txt").touch()
    places = [tmp_path / "runs" / "b", tmp_path / "other", tmp_path / "runs"]
    found = find_runs([*places, tmp_path / "runs" / ".." / "other"])
    assert [place.name for place in found] == ["b", "other", "a"]


def test_each_place_without_a_run_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OperatorError) as caught:
        find_runs([tmp_path / "none", tmp_path / "empty"])
    first, second = str(caught.value).splitlines()
    assert "none: no such directory; `rollout train CONFIG` makes one" in first
    assert "empty: not a run (it holds no config.toml)" in second
