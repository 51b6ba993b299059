"""Which changes of a run's experiment are taken when it is resumed, and which are refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.api import train
from rollout.checkpoint import ARRAYS, save_checkpoint
from rollout.errors import ConfigError, OperatorError, RunFailed
from rollout.experiment import Experiment, load_experiment, resolve, resolved_toml
from rollout.resume import begin_resume, plan_resume
from rollout.run_directory import RunDirectory

TABLES = {
    "name": "small",
    "env": {"id": "CartPole-v1", "num_envs": 8},
    "fleet": {"num_actors": 2},
    "stop": {"env_steps": 1000},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_resumable():
    """make_resumable("seed=3", …): a run that died with a checkpoint of update 5, opened again."""
    opened = []

    def make(*overrides: str, place: str = "a run", **more_state: Any) -> RunDirectory:
        experiment = Experiment.from_dict(TABLES, overrides)
        with RunDirectory.create(experiment, place) as run:
            state = {"experiment": experiment.model_dump(mode="json")} | more_state
            save_checkpoint(run.checkpoints, 5, {}, state, keep=3)
        opened.append(RunDirectory.open_to_resume(place))
        return opened[-1]

    yield make
    for run in opened:
        run.close()


def edit(run: RunDirectory, *overrides: str) -> None:
    """Change config.toml, as a person would."""
    run.config.write_text(resolved_toml(load_experiment(run.config, overrides)))
    run.experiment = load_experiment(run.config)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(run: RunDirectory, *overrides: str) -> str:
    before = run.config.read_bytes()
    with pytest.raises(OperatorError) as caught:
        plan_resume(run, overrides)
    assert run.config.read_bytes() == before
    return str(caught.value)


def test_run_that_nobody_changed_goes_on_as_it_was(make_resumable):
    run = make_resumable("seed=3", "env.params.force=9", "algorithm.target_kl=0.02")
    resumption = plan_resume(run)
    assert resumption.experiment == run.experiment
    assert resumption.checkpoint.update == 5
    assert resumption.changes == {}
    assert resumption.keeps_states
    assert resumption.warning is None


FREE = [
    "name=other",
    "fleet.num_actors=7",
    "fleet.hang_s=30",
    "checkpoint.every_updates=2",
    "checkpoint.keep=9",
    "stop.env_steps=2000",
    "stop.wall_s=3",
]


@pytest.mark.parametrize("override", FREE)
def test_where_and_how_long_it_goes_on_may_change_in_the_file_or_by_an_override(
    make_resumable, override
):
    expected = Experiment.from_dict(TABLES, [override])
    asked = plan_resume(make_resumable(place="asked"), [override])
    edited_run = make_resumable(place="edited")
    edit(edited_run, override)
    edited = plan_resume(edited_run)
    for resumption in (asked, edited):
        assert resumption.experiment == expected
        assert list(resumption.changes) == [override.partition("=")[0]]
        assert resumption.keeps_states


def test_environments_that_fail_may_be_treated_in_another_way(make_resumable):
    run = make_resumable("fleet.mode=async")
    resumption = plan_resume(run, ["fleet.on_env_failure=set_aside"])
    assert resumption.experiment.fleet.on_env_failure == "set_aside"


def test_silent_changes_are_refused_with_all_of_them_and_what_to_say(make_resumable):
    run = make_resumable("algorithm.target_kl=0.02")
    text = run.config.read_text().replace("target_kl = 0.02\n", "")
    run.config.write_text(text)
    edit(run, "algorithm.gamma=0.9", "seed=3", "fleet.mode=async", "fleet.num_actors=1")
    assert refusal(run) == (
        "a run/config.toml: not what update-00000005 was trained with:\n"
        "  seed: 0 there, 3 now\n"
        '  fleet.mode: "lockstep" there, "async" now\n'
        "  algorithm.gamma: 0.99 there, 0.9 now\n"
        "  algorithm.target_kl: 0.02 there, left out now\n"
        "undo it in a run/config.toml, or say so: rollout train --resume 'a run' seed=3 "
        "fleet.mode=async algorithm.gamma=0.9"
    )


def test_what_a_refusal_tells_to_type_is_taken(make_resumable):
    run = make_resumable()
    edit(run, "algorithm.gamma=0.9", "seed=3")
    overrides = refusal(run).rpartition("'a run' ")[2].split()
    assert list(plan_resume(run, overrides).changes) == ["seed", "algorithm.gamma"]
    assert "  seed: 0 there, 3 now\n" not in refusal(run, "seed=4")
    assert "algorithm.gamma" in refusal(run, "seed=4"), "one that is named does not excuse another"


def test_change_that_is_named_is_taken_and_told(make_resumable):
    run = make_resumable()
    named = ["algorithm={gamma = 0.9, learning_rate = 0.1}", "stop.env_steps=77"]
    resumption = plan_resume(run, named)
    assert {key: str(change) for key, change in resumption.changes.items()} == {
        "stop.env_steps": "1000 there, 77 now",
        "algorithm.learning_rate": "0.00025 there, 0.1 now",
        "algorithm.gamma": "0.99 there, 0.9 now",
    }
    assert resumption.keeps_states


def test_end_of_an_annealed_learning_rate_is_of_the_curve(make_resumable):
    run = make_resumable("algorithm.anneal_lr=true")
    assert plan_resume(run, ["stop.env_steps=2000"]).experiment.stop.env_steps == 2000
    edit(run, "stop.env_steps=2000")
    assert "  stop.env_steps: 1000 there, 2000 now\n" in refusal(run)


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("network.hidden_sizes=[64]", "the parameters do not fit another network"),
        ("network.activation=relu", "the parameters do not fit another network"),
        ("network.frame_stack=2", "the parameters do not fit another network"),
    ],
)
def test_change_that_nothing_fits_is_refused_even_if_it_is_named(
    make_resumable, override, reason, is_named
):
    run = make_resumable()
    if not is_named:
        edit(run, override)
    text = refusal(run, *([override] if is_named else []))
    head, found, move = text.splitlines()
    assert head == "a run: cannot go on from update-00000005 with a change of"
    assert found.startswith(f"  {override.partition('=')[0]}: ")
    assert found.endswith(f" now: {reason}")
    assert move == "undo it, or start a new run: rollout train 'a run/config.toml' …"


def test_another_environment_is_refused(make_resumable):
    run = make_resumable()
    text = run.config.read_text().replace("[env.params]\nforce = 10.0\n", "")
    run.config.write_text(text.replace("CartPole-v1", "Counting-v0"))
    for overrides in ([], ["env.id=Counting-v0"]):
        assert (
            '  env.id: "CartPole-v1" there, "Counting-v0" now: a policy does not fit another '
            "environment\n"
        ) in refusal(run, *overrides)


@pytest.fixture
def run_with_set_aside(make_resumable) -> RunDirectory:
    """An async run without its environments 2 and 5, as it is between its lives."""
    settings = ("fleet.mode=async", "fleet.on_env_failure=set_aside")
    run = make_resumable(*settings, set_aside=[2, 5])
    run.summary.write_text("{}")
    run.close()
    return run


IN_LOCKSTEP = ("fleet.mode=lockstep", "fleet.on_env_failure=stop")


def test_lockstep_without_some_environments_is_refused_and_changes_nothing(run_with_set_aside):
    path = run_with_set_aside.path
    before = content(path)
    with pytest.raises(OperatorError) as caught:
        train(resume=path, overrides=IN_LOCKSTEP)
    assert str(caught.value) == (
        "a run: environments set aside: 2, 5; lockstep cannot do without them, so resume it with "
        "fleet.mode=async"
    )
    assert content(path) == before


@pytest.mark.parametrize(
    "overrides", [["fleet.hang_s=30"], [*IN_LOCKSTEP, "env.num_envs=16"], ["env.num_envs=16"]]
)
def test_environments_that_are_set_aside_are_no_hindrance_otherwise(run_with_set_aside, overrides):
    assert plan_resume(run_with_set_aside, overrides).checkpoint.update == 5


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["env.num_envs=16"], "env.num_envs"),
        (["env.params.force=9"], "env.params.force"),
        (["env.num_envs=4", "env.params.force=9"], "env.num_envs, env.params.force"),
    ],
)
def test_other_environments_begin_anew_and_people_are_told(make_resumable, overrides, named):
    run = make_resumable()
    resumption = plan_resume(run, overrides)
    assert not resumption.keeps_states
    assert resumption.warning == f"{named} changed, so every environment starts a new episode"
    edit(run, *overrides)
    assert "not what update-00000005 was trained with" in refusal(run)


def test_experiment_is_compared_with_the_checkpoint_that_is_used(make_resumable, caplog):
    run = make_resumable()
    changed = Experiment.from_dict(TABLES, ["seed=3"])
    state = {"experiment": changed.model_dump(mode="json")}
    newest = save_checkpoint(run.checkpoints, 9, {}, state, keep=3)
    edit(run, "seed=3")
    assert plan_resume(run).checkpoint.update == 9
    (newest / ARRAYS).unlink()
    assert "not what update-00000005 was trained with" in refusal(run)
    assert "using update-00000005 instead" in caplog.text


def test_mistake_in_an_override_is_told_as_ever(make_resumable):
    with pytest.raises(ConfigError, match=r"fleet\.num_actors=9 \(override\) is more than"):
        plan_resume(make_resumable(), ["fleet.num_actors=9"])


def test_config_changes_when_the_run_really_goes_on_and_not_before(make_resumable):
    run = make_resumable()
    before = run.config.read_bytes()
    resumption = plan_resume(run, ["fleet.num_actors=7", "seed=3"])
    assert run.config.read_bytes() == before
    begin_resume(run, resumption)
    assert load_experiment(run.config) == run.experiment == resumption.experiment


def test_config_that_says_it_already_keeps_its_text(make_resumable):
    run = make_resumable()
    run.config.write_text(run.config.read_text() + "# a remark\n")
    begin_resume(run, plan_resume(run, ["seed=0"]))
    assert run.config.read_text().endswith("# a remark\n")


def test_config_that_cannot_be_written_is_left_as_it_was(make_resumable, monkeypatch):
    run = make_resumable()
    before = run.config.read_bytes()

    def fail(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rollout.resume.write_atomically", fail)
    with pytest.raises(RunFailed, match=r"a run/config\.toml: cannot be written: No space"):
        begin_resume(run, plan_resume(run, ["seed=3"]))
    assert run.config.read_bytes() == before
    assert run.experiment.seed == 0


CHANGES = {
    "seed=5": False,
    "fleet.policy_lag=0": False,
    "algorithm.gamma=0.5": False,
    "env.num_envs=12": False,
    "fleet.num_actors=3": True,
    "stop.env_steps=5000": True,
    "checkpoint.keep=1": True,
    "fleet.hang_s=5": True,
}


@given(
    edited=st.sets(st.sampled_from(sorted(CHANGES))),
    named=st.sets(st.sampled_from(sorted(CHANGES))),
)
def test_a_change_is_taken_exactly_if_it_is_free_or_named(tmp_path_factory, edited, named):
    experiment = Experiment.from_dict(TABLES)
    with RunDirectory.create(experiment, tmp_path_factory.mktemp("run")) as run:
        state = {"experiment": experiment.model_dump(mode="json")}
        save_checkpoint(run.checkpoints, 5, {}, state, keep=3)
        edit(run, *edited)
        silent = {change for change in edited - named if not CHANGES[change]}
        if silent:
            text = refusal(run, *named)
            assert len(text.splitlines()) == len(silent) + 2
        else:
            resumption = plan_resume(run, named)
            assert resumption.experiment == resolve(TABLES, edited | named).experiment
            assert resumption.changes.keys() == {c.partition("=")[0] for c in edited | named}
