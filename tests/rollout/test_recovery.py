"""Whole runs whose processes are killed, stopped or hang: nothing is lost, and numbers are as ever.

Counting-v0 tells environment, episode and step, so what was trained on can be read from the
observations: each step of each environment, once, in order.
"""

import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout import api
from rollout.learners.ppo import PPO
from rollout.ledger import Ledger
from rollout.replay import RunReplay
from rollout.run_directory import RunDirectory
from rollout.summary import Summary
from tests.envs import failing
from tests.rollout.saboteur import ACTOR, AGENT, TEMPLATE, Saboteur, kills, pauses, shuffled

NUM_ENVS, NUM_ACTORS, WINDOW = 12, 3, 2
LENGTH = 7  # not of whole episodes
EVERY = 12  # updates between two deeds
TABLES: dict[str, Any] = {
    "name": "small",
    "env": {"id": "Counting-v0", "num_envs": NUM_ENVS},
    "fleet": {"num_actors": NUM_ACTORS, "unroll_length": LENGTH, "window": WINDOW},
    "network": {"hidden_sizes": [8]},
    "algorithm": {"kind": "ppo", "update_epochs": 1, "num_minibatches": 2},
    "stop": {"env_steps": 200 * NUM_ENVS * LENGTH},
}


@pytest.fixture
def train(places, tmp_path, view):
    """train("seed=3", …): 200 updates in this process, of which nothing may be left."""

    def train(*overrides: str) -> api.Result:
        result = api.train(TABLES, overrides, run_dir=tmp_path / "run", view=view)
        places.assert_gone()
        assert_balanced(result.summary.ledger)
        return result

    return train


@pytest.fixture
def sabotage(view, places):
    """sabotage(deeds): a Saboteur of the run that follows."""

    def sabotage(deeds, every: int = EVERY, seed: int = 0) -> Saboteur:
        return Saboteur(view, places, deeds, every, seed)

    return sabotage


@pytest.fixture
def undisturbed(places, tmp_path):
    """undisturbed("seed=3", …): the summary of such a run; each is run once."""

    def undisturbed(*overrides: str) -> Summary:
        return _undisturbed(overrides, tmp_path / "undisturbed")

    return undisturbed


_known: dict[tuple[str, ...], Summary] = {}


def _undisturbed(overrides: tuple[str, ...], run_dir: Path) -> Summary:
    if overrides not in _known:
        _known[overrides] = api.train(TABLES, overrides, run_dir=run_dir).summary
    return _known[overrides]


@pytest.fixture
def trained(monkeypatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """(environment of each column, observations [T, B, 3]) of every batch that is trained on."""
    batches = []
    update = PPO.update

    @functools.wraps(update)
    def write_down(self, batch, *rest):
        batches.append((batch.env.copy(), batch.observation[:-1].astype(int)))
        return update(self, batch, *rest)

    monkeypatch.setattr(PPO, "update", write_down)
    return batches


def histories(batches: list[tuple[np.ndarray, np.ndarray]]) -> list[list[tuple[int, int]]]:
    """(episode, step) of all that was trained on, by environment."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(NUM_ENVS)]
    for envs, observation in batches:
        for column, env in enumerate(envs):
            assert (observation[:, column, 0] == env).all(), "a column of another environment"
            found[env] += map(tuple, observation[:, column, 1:].tolist())
    return found


def history(num_steps: int) -> list[tuple[int, int]]:
    """What an environment of Counting-v0 goes through: episodes of 5, 3, 5, 3, … steps."""
    found: list[tuple[int, int]] = []
    episode = 0
    while len(found) < num_steps:
        found += [(episode, t) for t in range(3 if episode % 2 else 5)]
        episode += 1
    return found[:num_steps]


def assert_trained_once_and_in_order(batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for env, found in enumerate(histories(batches)):
        wanted = history(len(found))
        pairs = enumerate(zip(found, wanted, strict=True))
        first = next((i for i, (one, other) in pairs if one != other), None)
        assert first is None, f"environment {env}: {found[first]}, not {wanted[first]}"


def assert_balanced(ledger: Ledger) -> None:
    assert ledger.is_balanced, ledger.as_dict()
    assert ledger.unrolls.in_flight == ledger.steps.in_flight == 0, "when all has ended"


def assert_equal_by_replay(run_dir: Path) -> None:
    compared = RunReplay(RunDirectory.open(run_dir)).compare()
    assert compared[-1].is_equal, compared


def told(notices: list[str], pattern: str) -> int:
    """How many of these match."""
    return sum(1 for notice in notices if re.search(pattern, notice))


# Lockstep


@pytest.mark.parametrize(
    ("deeds", "policy_lag"),
    [
        (kills(*[ACTOR] * 12), 1),
        pytest.param(kills(*[TEMPLATE] * 3), 1, marks=pytest.mark.slow),
        pytest.param(kills(*[AGENT] * 3), 1, marks=pytest.mark.slow),
        pytest.param(pauses(ACTOR, TEMPLATE, AGENT, ACTOR, ACTOR), 1, marks=pytest.mark.slow),
        pytest.param(
            kills(ACTOR, AGENT, ACTOR, TEMPLATE, ACTOR) + pauses(ACTOR), 0, marks=pytest.mark.slow
        ),
    ],
    ids=["actors", "templates", "agents", "pauses", "all with lag 0"],
)
def test_lockstep_has_the_same_result_whoever_is_killed_or_stopped(
    train, undisturbed, sabotage, trained, deeds, policy_lag
):
    lag = f"fleet.policy_lag={policy_lag}"
    wanted = undisturbed(lag)
    trained.clear()
    with sabotage(deeds).at_work() as saboteur:
        summary = train(lag).summary
    assert summary.params_digest == wanted.params_digest
    assert summary.episode_return_mean == wanted.episode_return_mean
    assert_trained_once_and_in_order(trained)
    assert [len(found) for found in histories(trained)] == [200 * LENGTH] * NUM_ENVS
    assert summary.host_restarts == saboteur.killed[AGENT]
    assert summary.actor_restarts >= saboteur.killed[ACTOR]
    assert_loss_is_bounded(summary, saboteur)


def assert_loss_is_bounded(summary: Summary, saboteur: Saboteur) -> None:
    """Each death costs at most the unrolls that were on their way."""
    deaths = saboteur.killed[ACTOR]
    deaths += NUM_ACTORS * (saboteur.killed[TEMPLATE] + saboteur.killed[AGENT])
    assert summary.ledger.unrolls.dropped.get("actor_died", 0) <= WINDOW * deaths
    assert summary.ledger.unrolls.dropped.get("learner_died", 0) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy_lag", [0, 1])
def test_two_hundred_kills_of_actors_and_ten_of_agents_change_nothing(
    train, undisturbed, sabotage, trained, policy_lag
):
    updates = 24 * (200 + 10 + 5 + 10 + 2)
    overrides = (
        f"fleet.policy_lag={policy_lag}",
        f"stop.env_steps={updates * NUM_ENVS * LENGTH}",
    )
    wanted = undisturbed(*overrides)
    trained.clear()
    deeds = kills(*[ACTOR] * 200, *[AGENT] * 10, *[TEMPLATE] * 5) + pauses(*[ACTOR] * 10)
    with sabotage(shuffled(deeds, policy_lag), every=24).at_work() as saboteur:
        summary = train(*overrides).summary
    assert summary.params_digest == wanted.params_digest
    assert_trained_once_and_in_order(trained)
    assert summary.host_restarts == 10
    assert_loss_is_bounded(summary, saboteur)


# Async


def test_async_run_loses_nothing_and_can_be_replayed_whoever_is_killed_or_stopped(
    train, sabotage, trained
):
    deeds = kills(ACTOR, TEMPLATE, ACTOR, AGENT, ACTOR, ACTOR) + pauses(ACTOR, AGENT)
    with sabotage(deeds).at_work() as saboteur:
        result = train("fleet.mode=async")
    assert_trained_once_and_in_order(trained)
    assert_loss_is_bounded(result.summary, saboteur)
    assert result.summary.ledger.steps.trained == 200 * NUM_ENVS * LENGTH
    trained.clear()
    assert_equal_by_replay(result.run_dir)
    assert_trained_once_and_in_order(trained)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_async_run_survives_two_hundred_kills(train, sabotage, trained):
    updates = 24 * (200 + 10 + 2)
    deeds = shuffled(kills(*[ACTOR] * 200, *[AGENT] * 10), seed=3)
    with sabotage(deeds, every=24).at_work() as saboteur:
        result = train("fleet.mode=async", f"stop.env_steps={updates * NUM_ENVS * LENGTH}")
    assert_trained_once_and_in_order(trained)
    assert_loss_is_bounded(result.summary, saboteur)
    assert_equal_by_replay(result.run_dir)


# Environments with hidden state


@pytest.mark.parametrize("mode", [pytest.param("lockstep", marks=pytest.mark.slow), "async"])
def test_killed_actor_takes_no_more_than_the_window_of_hidden_state_with_it(
    train, sabotage, trained, view, mode
):
    with sabotage(kills(*[ACTOR] * 5, TEMPLATE, ACTOR, AGENT)).at_work() as saboteur:
        summary = train("env.id=tests.rollout.hiding_envs:Hiding", f"fleet.mode={mode}").summary
    assert_loss_is_bounded(summary, saboteur)
    assert summary.ledger.steps.trained == 200 * NUM_ENVS * LENGTH
    lost = [episodes_lost(found) for found in histories(trained)]
    share = NUM_ENVS // NUM_ACTORS
    deaths = saboteur.killed[ACTOR]
    deaths += NUM_ACTORS * (saboteur.killed[TEMPLATE] + saboteur.killed[AGENT])
    all_lost = sum(summary.episodes_lost.values())
    assert 0 < all_lost <= share * deaths
    assert 0 <= all_lost - sum(lost) <= share * NUM_ACTORS, "not trained on any more"


def episodes_lost(found: list[tuple[int, int]]) -> int:
    """How many episodes break off; all else must be in order, and nothing be there twice."""
    lost = 0
    for (episode, t), after in itertools.pairwise(found):
        is_last = t == (2 if episode % 2 else 4)
        if after != ((episode + 1, 0) if is_last else (episode, t + 1)):
            assert after == (episode + 1, 0), f"{after} after {(episode, t)}"
            lost += 1
    return lost


# Environments that fail


EPISODE = 7  # steps; tests.envs.failing:Fails has no other


@pytest.fixture
def start_failing(start, tmp_path):
    """start_failing(how, at, "key=value", …): trains where environment 5 fails at step `at`."""
    shutil.copy(failing.__file__, tmp_path / "fails.py")

    def start_failing(how: int, at: int, *overrides: str):
        return start(
            "env.id=fails:Fails",
            *fails(how, at),
            f"fleet.unroll_length={LENGTH + 1}",
            *overrides,
        )

    return start_failing


def fails(how: int, at: int) -> list[str]:
    episode, step = divmod(at, EPISODE)
    params = {"how": how, "episode": episode, "step": step}
    return [f"env.params.{name}={value}" for name, value in params.items()]


def replay(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "rollout", "replay", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize(
    ("mode", "at"),
    [
        ("lockstep", 403),
        pytest.param("async", 5, marks=pytest.mark.slow),
        pytest.param("lockstep", 5, marks=pytest.mark.slow),
        pytest.param("async", 403, marks=pytest.mark.slow),
    ],
)
def test_environment_that_raises_ends_the_run_the_third_time_with_a_file_that_replays_it(
    start_failing, places, tmp_path, mode, at
):
    command = start_failing(failing.RAISE, at, f"fleet.mode={mode}")
    assert command.wait() == 1
    places.assert_gone()
    said = command.said()
    assert f"environment 5 failed 3 times at its step {at}" in said, said
    assert "step went wrong" in said and "Traceback" not in said
    file = Path("run/failures") / f"env-5-step-{at}.safetensors"
    assert f"`rollout replay {file} --python`" in said
    done = replay(tmp_path, str(file))
    assert done.returncode == 1, done.stderr
    assert "It failed again, in the same way." in done.stdout
    assert f"at step {at % (LENGTH + 1)} of the unroll" in done.stdout
    assert command.num_checkpoints() == 1, "what was learned is saved"


def test_environment_that_crashes_ends_the_run_the_third_time(start_failing, places, tmp_path):
    command = start_failing(failing.CRASH, 100)
    assert command.wait() == 1
    places.assert_gone()
    assert "was killed by SIGSEGV" in command.said()
    done = replay(tmp_path, "run/failures/env-5-step-100.safetensors")
    assert done.returncode == 1 and "It failed again, in the same way." in done.stdout


@pytest.mark.slow
def test_environment_that_hangs_is_replaced_and_ends_the_run_the_third_time(
    start_failing, places, tmp_path
):
    command = start_failing(failing.HANG, 100, "fleet.hang_s=1")
    assert command.wait() == 1
    places.assert_gone()
    said = command.said()
    assert "environment 5 failed 3 times at its step 100" in said
    hung = [float(found) for found in re.findall(r"hung for (\d+\.\d) s", said)]
    assert len(hung) >= 3, said
    assert all(1.0 <= hung_s <= 2.0 for hung_s in hung), f"its limit is 1 s: {hung}"
    log = (command.run / "run.log").read_text()
    assert "its stack:\nCurrent thread" in log and "acting.py" in log
    assert (command.run / "failures" / "env-5-step-100.safetensors").exists()


def test_actor_that_is_stopped_for_good_is_replaced(train, undisturbed, view, places):
    wanted = undisturbed("fleet.policy_lag=1")
    stopped = []

    def stop() -> None:
        stopped.append(places.wait_pids(ACTOR)[0])
        os.kill(stopped[0], signal.SIGSTOP)

    view.at(50, stop)
    summary = train("fleet.policy_lag=1", "fleet.hang_s=1").summary
    assert summary.params_digest == wanted.params_digest
    assert summary.actor_restarts == 1
    assert told(view.notices, rf"process {stopped[0]}\) hung for 1\.\d s and was killed") == 1


def test_async_run_goes_on_without_an_environment_that_fails(train, view, trained):
    result = train(
        "env.id=tests.envs.failing:Fails",
        *fails(failing.RAISE, 203),
        "fleet.mode=async",
        "fleet.on_env_failure=set_aside",
    )
    summary = result.summary
    assert summary.envs_set_aside == 1
    # an actor may have asked for its share again before its death was told
    assert 3 <= summary.actor_restarts <= 5
    assert told(view.notices, "environment 5 failed 3 times at its step 203: .*is set aside") == 1
    assert summary.ledger.steps.trained == 200 * NUM_ENVS * LENGTH
    found = histories(trained)
    for steps in found:
        assert steps == [divmod(step, EPISODE) for step in range(len(steps))]
    assert len(found[5]) == 203 // LENGTH * LENGTH
    assert min(len(steps) for steps in found[:5] + found[6:]) > 300
    assert_equal_by_replay(result.run_dir)
