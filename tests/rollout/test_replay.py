"""Replayed runs equal runs that were made by hand, one environment and one step at a time."""

import dataclasses
import io
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rollout import replay, replay_report
from rollout.acting import UnrollActor, read_only
from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.cli import main
from rollout.envs import Envs, find_env
from rollout.errors import OperatorError, RunFailed
from rollout.experiment import Experiment
from rollout.learners.initialization import initial_parameters
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch
from rollout.order_log import OrderLog, Part
from rollout.replay import RunReplay
from rollout.replay_report import run_progress
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network, make_schema
from rollout.summary import versions

# Small, and with everything in it that a batch can hold: episodes that end, and that are cut off.
SMALL = (
    "env.num_envs=12",
    "fleet.unroll_length=16",
    "network.hidden_sizes=[8]",
    "algorithm.num_minibatches=2",
    "algorithm.anneal_lr=true",
)


class HandMadeRun:
    """A run as a learner and one actor per environment would make it, step by step.

    versions: the flat vectors of all versions of the weights.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        env = find_env(experiment.env.id)
        self.spec = make_network(experiment.network, env)
        self.schema = make_schema(
            env, experiment.fleet.unroll_length, experiment.algorithm.needs_value
        )
        self.actors = [
            UnrollActor(
                Envs(env, 1, experiment.seed, first_env=i, params=experiment.env.params),
                self.spec,
                self.schema,
            )
            for i in range(experiment.env.num_envs)
        ]
        torch.set_num_threads(1)
        self.network = TorchNetwork(self.spec, initial_parameters(self.spec, experiment.seed))
        algorithm = experiment.find_algorithm()
        self.algorithm = algorithm(self.network, experiment.algorithm, experiment.seed)
        self.versions = [read_only(self.network.export())]

    def train(self, columns: list[tuple[int, int]]) -> None:
        """columns: (environment, weights version) of each."""
        batch = Batch(self.schema, len(columns))
        for column, (env, version) in enumerate(columns):
            actor = self.actors[env]
            actor.act(self.versions[version])
            batch.put(actor.buffer.unroll(), column, np.array([env]), version)
        batch.seal()
        update = len(self.versions) - 1
        limit = self.experiment.stop.env_steps
        assert limit is not None
        done = min(update * self.experiment.batch_size / limit, 1.0)
        self.algorithm.train_on(batch, update, done)
        self.versions.append(read_only(self.network.export()))

    def save(self, run: RunDirectory, **state) -> None:
        save_checkpoint(
            run.checkpoints,
            len(self.versions) - 1,
            named_parameters(self.spec, self.versions[-1]),
            {"experiment": self.experiment.model_dump(mode="json"), **state},
            keep=10,
        )


@pytest.fixture
def make_lockstep_run(make_experiment, tmp_path):
    """make_lockstep_run(6, "seed=3", …): a run with checkpoints at 0, 4, and its end."""

    def make(updates: int, *overrides: str) -> RunDirectory:
        experiment = make_experiment("CartPole-v1", *SMALL, *overrides)
        made, lag = HandMadeRun(experiment), experiment.fleet.policy_lag
        with RunDirectory.create(experiment, tmp_path / "run") as run:
            for update in range(updates + 1):
                if update in (0, 4, updates):
                    made.save(run)
                if update < updates:
                    made.train([(env, max(0, update - lag)) for env in range(12)])
        return run

    return make


@pytest.mark.parametrize("policy_lag", [0, 1])
def test_lockstep_run_equals_its_replay(policy_lag, make_lockstep_run):
    run = make_lockstep_run(6, f"fleet.policy_lag={policy_lag}", "seed=5")
    told = []
    found = RunReplay(run).compare(told.append)
    assert [(one.update, one.is_equal) for one in found] == [(0, True), (4, True), (6, True)]
    assert told == [1, 2, 3, 4, 5, 6]
    assert len({one.digest for one in found}) == 3


def test_replay_stops_where_it_is_told_to(make_lockstep_run):
    run = make_lockstep_run(6)
    assert [one.update for one in RunReplay(run, 4).compare()] == [0, 4]
    at_two = RunReplay(run, 2).compare()[-1]
    assert at_two.update == 2
    assert at_two.is_equal is None


def test_lockstep_run_is_replayed_beyond_its_checkpoints(make_lockstep_run):
    run = make_lockstep_run(5)
    found = RunReplay(run, 7).compare()
    assert [(one.update, one.is_equal) for one in found] == [
        (0, True),
        (4, True),
        (5, True),
        (7, None),
    ]


def test_run_that_came_about_otherwise_differs_at_the_first_checkpoint(make_lockstep_run):
    run = make_lockstep_run(6)
    experiment = run.experiment
    other = HandMadeRun(experiment)
    for _ in range(4):
        other.train([(env, 0) for env in range(12)])
    other.save(run)  # replaces update 4, and removes those behind it
    found = RunReplay(run).compare()
    assert [(one.update, one.is_equal) for one in found] == [(0, True), (4, False)]


def test_replay_ends_where_it_differs(make_lockstep_run):
    run = make_lockstep_run(6)
    first = RunReplay(run)
    first._checkpoints[4] = dataclasses.replace(
        first._checkpoints[4], arrays=first._checkpoints[0].arrays
    )
    assert [one.update for one in first.compare()] == [0, 4]


def async_orders(num_envs: int, updates: int, seed: int) -> Iterator[list[Part]]:
    """Parts as an async fleet might give them: split, in any order, up to 3 versions behind."""
    random = np.random.default_rng(seed)
    newest = np.zeros(num_envs, np.int64)  # version that acted each environment last
    for update in range(updates):
        parts, left = [], num_envs
        while left:
            first = int(random.integers(num_envs))
            count = int(random.integers(1, min(left, num_envs - first, 5) + 1))
            oldest = max(0, update - 3, int(newest[first : first + count].max()))
            version = int(random.integers(oldest, update + 1))
            newest[first : first + count] = version
            parts.append(Part(first, count, version))
            left -= count
        yield parts


@pytest.fixture
def make_async_run(make_experiment, tmp_path):
    """make_async_run(6, seed=1, "x.y=2"): so many updates with an order log and a checkpoint."""

    def make(updates: int, seed: int = 1, *overrides: str) -> RunDirectory:
        experiment = make_experiment("CartPole-v1", *SMALL, "fleet.mode=async", *overrides)
        made = HandMadeRun(experiment)
        with RunDirectory.create(experiment, tmp_path / f"run{seed}") as run:
            order = OrderLog(run.order)
            for update, parts in enumerate(async_orders(12, updates, seed)):
                columns = [
                    (env, part.weights_version)
                    for part in parts
                    for env in range(part.first_env, part.first_env + part.num_envs)
                ]
                env, version = np.array(columns).T
                order.write(update, env, version)
                made.train(columns)
            order.close()
            made.save(run)
        return run

    return make


@pytest.mark.parametrize("override", ["algorithm.kind=impala", "algorithm.vtrace=true"])
def test_run_without_recorded_values_equals_its_replay(override, make_lockstep_run):
    found = RunReplay(make_lockstep_run(6, override)).compare()
    assert [(one.update, one.is_equal) for one in found] == [(0, True), (4, True), (6, True)]


@pytest.mark.parametrize("kind", ["ppo", "impala"])
@pytest.mark.parametrize("seed", range(3))
def test_async_run_equals_its_replay(seed, kind, make_async_run):
    found = RunReplay(make_async_run(12, seed, f"algorithm.kind={kind}")).compare()
    assert [(one.update, one.is_equal) for one in found] == [(12, True)]


def test_replay_does_not_depend_on_how_many_actors_it_keeps(make_async_run, monkeypatch):
    run = make_async_run(6)
    monkeypatch.setattr(replay, "MOST_LENGTHS", 1)
    assert RunReplay(run).compare()[-1].is_equal


def test_old_weights_are_kept_only_as_long_as_the_log_needs_them(make_async_run):
    replayed = RunReplay(make_async_run(12))
    trainer = replay.Retrainer(replayed.experiment, replayed._last_use)
    for order in replayed._orders():
        trainer.train(order)
        assert len(trainer._weights) <= 4
        assert all(replayed._last_use[v] >= trainer.update for v in trainer._weights)
    assert not trainer._weights


def test_another_order_gives_other_parameters(make_async_run):
    run = make_async_run(6)
    orders = [msgspec.json.decode(line) for line in run.order.read_bytes().splitlines()]
    orders[3]["parts"].reverse()
    run.order.write_bytes(b"".join(msgspec.json.encode(order) + b"\n" for order in orders))
    assert RunReplay(run).compare()[-1].is_equal is False


def test_lines_behind_the_last_checkpoint_do_not_matter(make_async_run):
    run = make_async_run(4)
    with open(run.order, "a") as order:
        order.write('{"update":4,"pa')
    assert RunReplay(run).compare()[-1].is_equal


def test_log_that_is_too_short_says_how_far_it_goes(make_async_run):
    run = make_async_run(4)
    lines = run.order.read_text().splitlines(keepends=True)
    run.order.write_text("".join(lines[:3]))
    with pytest.raises(OperatorError, match=r"orders of 3 updates, wanted 4; .*--updates 3"):
        RunReplay(run)
    assert RunReplay(run, 3).compare()[-1].update == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"update":1,"parts":[[0,11,0]]}\n', "11 columns of environments below 11, wanted 12"),
        ('{"update":1,"parts":[[1,12,0]]}\n', "12 columns of environments below 13, wanted 12"),
        ('{"update":1,"parts":[]}\n', "0 columns"),
        ('{"update":1,"parts":[[0,12,2]]}\n', "weights version 2 in update 1"),
    ],
)
def test_log_of_another_run_is_refused_before_anything_is_acted(line, said, make_async_run):
    run = make_async_run(3)
    lines = run.order.read_text().splitlines(keepends=True)
    run.order.write_text("".join([lines[0], line, lines[2]]))
    with pytest.raises(OperatorError) as error:
        RunReplay(run)
    assert f"{run.order}:2: " in str(error.value)
    assert error.match(said)


def test_damaged_checkpoint_is_not_compared_with(make_lockstep_run, caplog):
    run = make_lockstep_run(6)
    (run.checkpoints / "update-00000006" / "arrays.safetensors").write_bytes(b"")
    assert [one.update for one in RunReplay(run).compare()] == [0, 4]
    assert "update-00000006" in caplog.text


def test_run_without_a_checkpoint_is_refused(make_experiment, tmp_path):
    with RunDirectory.create(make_experiment(), tmp_path / "run") as run:
        pass
    with pytest.raises(OperatorError, match="no checkpoint in it"):
        RunReplay(run)


def test_run_resumed_with_other_settings_is_refused(make_lockstep_run, make_experiment):
    run = make_lockstep_run(4)
    other = HandMadeRun(make_experiment("CartPole-v1", *SMALL, "algorithm.gamma=0.9"))
    for _ in range(5):
        other.train([(env, 0) for env in range(12)])
    other.save(run)
    with pytest.raises(OperatorError, match="resumed with other settings after update-00000004"):
        RunReplay(run)


def test_run_that_says_it_was_changed_is_refused(make_experiment, tmp_path):
    experiment = make_experiment("CartPole-v1", *SMALL)
    with RunDirectory.create(experiment, tmp_path / "run") as run:
        HandMadeRun(experiment).save(run, changed_at=[17])
    with pytest.raises(OperatorError, match="resumed with other settings at update 17"):
        RunReplay(run)


def test_environment_that_fails_only_in_the_replay_is_named(make_lockstep_run, monkeypatch):
    replayed = RunReplay(make_lockstep_run(4))
    acted = itertools.count()

    def act(self, weights, greedy=False):
        if next(acted) == 2:
            raise ZeroDivisionError("of the author's")
        return original(self, weights, greedy)

    original = UnrollActor.act
    monkeypatch.setattr(UnrollActor, "act", act)
    with pytest.raises(RunFailed, match="update 2, environments 0 to 11: ZeroDivisionError"):
        replayed.compare()


def test_versions_that_changed_are_known(make_lockstep_run):
    run = make_lockstep_run(1)
    replayed = RunReplay(run)
    assert replayed.changed_versions() == {}  # without a summary nobody knows
    run.summary.write_text(json.dumps({"versions": versions() | {"torch": "0.4"}}))
    assert replayed.changed_versions() == {"torch": ("0.4", versions()["torch"])}


def test_run_of_environments_with_hidden_state_is_refused(make_run):
    run = make_run("tests.envs.failing:Hidden")
    with pytest.raises(OperatorError, match="Hidden has hidden state"):
        RunReplay(run)


# The command


def run_command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["replay", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_command_says_that_a_run_equals_its_replay(make_lockstep_run, capsys):
    run = make_lockstep_run(5)
    assert run_command(run.path) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{run.path}: 5 updates replayed in ")
    digest = RunReplay(run).compare()[-1].digest
    assert lines[-4:] == [
        "update 5",
        f"  replayed    {digest}",
        f"  checkpoint  {digest}",
        "equal",
    ]


def test_command_tells_programs_where_a_run_differs(make_lockstep_run, capsys):
    run = make_lockstep_run(4)
    other = HandMadeRun(run.experiment)
    for _ in range(4):
        other.train([(env, 0) for env in range(12)])
    other.save(run)
    assert run_command(run.path, "--json") == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["updates"], found["equal"]) == (4, False)
    assert found["digest"] != found["checkpoint_digest"]
    assert [one["equal"] for one in found["compared"]] == [True, False]


def test_command_gives_reasons_for_a_difference(make_lockstep_run, capsys):
    run = make_lockstep_run(4)
    other = HandMadeRun(run.experiment)
    for _ in range(4):
        other.train([(env, 0) for env in range(12)])
    other.save(run)
    run.summary.write_text(json.dumps({"versions": versions() | {"torch": "0.4"}}))
    assert run_command(run.path) == 1
    said = capsys.readouterr().out
    assert "different\n" in said
    assert f"torch 0.4 then, {versions()['torch']} now" in said


def test_command_without_a_checkpoint_to_compare_with_says_so(make_lockstep_run, capsys):
    assert run_command(make_lockstep_run(2).path, "--updates", "1") == 0
    assert capsys.readouterr().out.endswith(
        "  checkpoint  no checkpoint of this update\nnothing to compare with\n"
    )


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_one_line(make_lockstep_run):
    command = [sys.executable, "-P", "-m", "rollout", "replay", make_lockstep_run(1).path]
    replaying = subprocess.Popen(
        [*command, "--updates", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert replaying.stdout is not None
        assert replaying.stdout.readline().startswith("update ")
        replaying.send_signal(signal.SIGINT)
        _, error = replaying.communicate(timeout=60)
    finally:
        replaying.kill()
        replaying.communicate()
    assert (replaying.returncode, error) == (130, "interrupted; nothing was changed\n")


def test_progress_is_told_on_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(replay_report, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    with run_progress(12_000, out) as tell:
        tell(1)
        tell(2_000)
    assert out.getvalue() == "update 1 of 12,000\nupdate 2,000 of 12,000\n"


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with run_progress(12_000, out) as tell:
        tell(6_000)
    assert "6000/12000" in out.getvalue()
