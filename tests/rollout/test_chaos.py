"""`rollout chaos`: what it plans, how it sees that a run recovers, and what it says in the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chaos import Event, Outcome
from rollout.chaos_faults import Kind, plan_faults
from rollout.chaos_processes import ActingAgain, RunWatch
from rollout.chaos_report import make_report
from rollout.cli import main
from rollout.host_memory import HostPage, Slot
from tests.rollout.conftest import SMALL, wait_until

SOON_S = 90.0  # for what must happen at all, on a machine with other things to do

# The plan


@given(
    kinds=st.sets(st.sampled_from(Kind), min_size=1),
    count=st.integers(0, 300),
    seed=st.integers(0, 2**32 - 1),
    num_updates=st.integers(0, 10_000),
)
def test_faults_are_as_many_as_wanted_in_order_and_within_the_run(kinds, count, seed, num_updates):
    faults = plan_faults(kinds, count, seed, num_updates)
    assert len(faults) == count
    assert {fault.kind for fault in faults} <= kinds
    if count >= len(kinds):
        assert {fault.kind for fault in faults} == kinds
    updates = [fault.update for fault in faults]
    assert updates == sorted(updates)
    assert all(0 <= update <= 0.9 * num_updates for update in updates)


def test_plan_is_a_function_of_its_seed():
    assert plan_faults(Kind, 50, 1, 1000) == plan_faults(list(Kind)[::-1], 50, 1, 1000)
    assert plan_faults(Kind, 50, 1, 1000) != plan_faults(Kind, 50, 2, 1000)


def test_kills_hit_the_kind_they_are_named_after_and_stops_anybody():
    faults = plan_faults(Kind, 300, 0, 1000)
    for fault in faults:
        assert fault.role != Kind.stop and fault.role != Kind.slow
        assert bool(fault.stops) == (fault.kind in (Kind.stop, Kind.slow))
        assert fault.stops or fault.role == fault.kind
        assert all(0 < stop <= 2.0 for stop in fault.stops)
    assert sum(fault.kind == Kind.actor for fault in faults) > 150
    roles = {fault.role for fault in faults if fault.stops}
    assert roles == {Kind.actor, Kind.template, Kind.host, Kind.learner}


# Seeing that actors act again


@pytest.fixture
def watch(tmp_path):
    """A RunWatch of a host with two actors, whose slots are the test's to write."""
    watch = RunWatch(tmp_path)
    watch.page = HostPage(tmp_path / "page", 2, create=True)
    watch.page_number = 1
    return watch


def act(watch: RunWatch, actor: int) -> None:
    assert watch.page is not None
    slot = Slot(watch.page, actor)
    slot.begin(0)
    slot.count(10)


def renew_page(watch: RunWatch, tmp_path: Path) -> None:
    watch.page_number += 1
    watch.page = HostPage(tmp_path / f"page{watch.page_number}", 2, create=True)


def test_actor_acts_again_when_it_has_sealed_another_unroll(watch):
    act(watch, 0)
    acting = ActingAgain(watch, 2, on_new_page=False)
    acting.look(watch)
    assert acting.when_ns(0) is None
    act(watch, 1)
    acting.look(watch)
    assert acting.when_ns(0) is None
    act(watch, 0)
    acting.look(watch)
    assert acting.when_ns(0) is not None
    assert acting.when_ns(None) == max(acting.acted_ns)


def test_actor_acts_again_as_soon_as_it_has_begun(watch):
    slot = Slot(watch.page, 1)
    slot.begin(0)
    acting = ActingAgain(watch, 2, on_new_page=False)
    acting.look(watch)
    assert acting.when_ns(1) is None, "what was begun before counts"
    slot.begin(0)
    acting.look(watch)
    assert acting.when_ns(1) is not None


def test_actors_of_a_new_host_agent_act_again_on_its_page(watch, tmp_path):
    act(watch, 0)
    act(watch, 0)
    acting = ActingAgain(watch, 2, on_new_page=False)
    renew_page(watch, tmp_path)
    acting.look(watch)
    assert acting.when_ns(0) is None
    act(watch, 0)
    acting.look(watch)
    assert acting.when_ns(0) is not None, "compared with another page's numbers"


def test_last_unrolls_of_dying_actors_are_no_recovery(watch, tmp_path):
    acting = ActingAgain(watch, 2, on_new_page=True)
    act(watch, 0)
    act(watch, 1)
    acting.look(watch)
    assert acting.when_ns(None) is None
    renew_page(watch, tmp_path)
    act(watch, 0)
    acting.look(watch)
    assert acting.when_ns(None) is None
    act(watch, 1)
    acting.look(watch)
    assert acting.when_ns(None) is not None


def test_log_tells_which_actor_a_process_was(tmp_path):
    watch = RunWatch(tmp_path)
    log = tmp_path / "run.log"
    line = "2026-01-01 WARNING rollout.hosts: actor 2 (process 4711) was killed by SIGKILL\n"
    log.write_text(f"actor 1 (process 4710) is at one unroll for 9 s\n{line[:50]}")
    watch.look(at_once=True)
    assert watch.deaths == {}
    given_up = line.replace("(process 4711)", "is given up; it first")
    log.write_text(f"actor 1 (process 4710) is at one unroll for 9 s\n{line}{given_up}")
    watch.look(at_once=True)
    assert watch.deaths == {4711: 2}
    assert watch.num_deaths == {"actors": 1, "templates": 0, "hosts": 0}


# The report


def account(balance: int = 0) -> dict[str, Any]:
    return {
        "produced": 10,
        "trained": 9 - balance,
        "in_flight": 0,
        "dropped": {"run_ended": 1},
        "balance": balance,
    }


def make_outcome(
    digest: str = "ab",
    recoveries: tuple[float | None, ...] = (0.1, 0.3),
    waited_s: float = 1.0,
    balance: int = 0,
    actor_balance: int = 0,
    **others: Any,
) -> Outcome:
    ledger = account(balance) | {"steps": account(), "actors": [account(actor_balance)]}
    summary = {"updates": 5, "env_steps": 1000, "params_digest": digest, "ledger": ledger}
    known = {
        "path": Path("disturbed"),
        "summary": summary,
        "status": 0,
        "trained_s": 2.0,
        "planned": len(recoveries),
        "events": [
            Event(Kind.actor, Kind.actor, 1, 1, 0.5, recovery_s, waited_s)
            for recovery_s in recoveries
        ],
        "deaths": {"actors": 2},
        "left": [],
    }
    return Outcome(**(known | others))


def failures(disturbed: Outcome, undisturbed: Outcome | None, mode: str = "lockstep") -> list[str]:
    return make_report(mode, 0, undisturbed, disturbed)["failures"]


def test_good_run_has_no_failures_and_its_numbers():
    report = make_report("lockstep", 7, make_outcome(trained_s=1.0), make_outcome())
    assert report["failures"] == []
    assert report["equal"] is True
    assert report["throughput_lost"] == pytest.approx(0.5)
    assert report["faults"] == {
        "actor": {
            "count": 2,
            "recovered": 2,
            "recovery_median_s": pytest.approx(0.2),
            "recovery_worst_s": 0.3,
        }
    }
    json.dumps(report)


def test_parameters_of_environments_with_hidden_state_are_not_compared():
    report = make_report("lockstep", 7, make_outcome("cd"), make_outcome(), has_hidden_state=True)
    assert report["failures"] == [] and report["equal"] is None


def test_other_parameters_fail_in_lockstep_only():
    others = make_outcome("cd")
    assert failures(make_outcome(), others) == [
        "the parameters differ from those of the undisturbed run"
    ]
    assert failures(make_outcome(), others, "async") == []
    assert failures(make_outcome(), None) == []


@pytest.mark.parametrize("wrong", [{"balance": 1}, {"actor_balance": -1}])
def test_account_that_does_not_balance_fails(wrong):
    assert failures(make_outcome(**wrong), None) == ["the ledger does not balance"]


def test_what_is_left_behind_fails_and_is_named():
    assert failures(make_outcome(left=["/dev/shm/rollout-x"]), None) == [
        "left behind: /dev/shm/rollout-x"
    ]


def test_recovery_that_had_its_time_and_did_not_happen_fails():
    assert failures(make_outcome(recoveries=(0.1, None)), None) == [], "the run ended first"
    (failure,) = failures(make_outcome(recoveries=(None,), waited_s=60.0), None)
    assert "nobody came back from actor" in failure


def test_run_that_failed_is_told_with_what_it_said():
    outcome = make_outcome(summary=None, status=1, error="rollout: no space")
    assert failures(outcome, None) == ["the disturbed run failed: rollout: no space"]


# The command


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def file(places, tmp_path, monkeypatch):
    """file(updates): an experiment file in the folder of the test, which is the present one."""
    monkeypatch.chdir(tmp_path)

    def file(updates: int) -> str:
        Path("x.toml").write_text(f"{SMALL}[stop]\nenv_steps = {updates * 8 * 16}\n")
        return "x.toml"

    return file


@pytest.mark.slow
def test_actors_that_are_killed_are_seen_to_act_again(file, places, capsys):
    options = ("--kills", "4", "--only", "actor", "--no-reference", "--run-dir", "here", "--json")
    assert run_main("chaos", file(400), *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["done"] == report["planned"] == 4
    assert report["faults"]["actor"]["recovered"] >= 3  # the last may come too late to be seen
    assert report["deaths"]["actors"] == 4
    assert report["ledger"]["balance"] == 0
    assert report["equal"] is report["throughput_lost"] is None
    places.assert_gone()
    assert sorted(os.listdir("here")) == ["disturbed", "disturbed.log"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_run_under_fire_of_every_kind_ends_like_one_that_was_left_alone(file, places, capsys, mode):
    options = ("--kills", "10", "--seed", "3", f"fleet.mode={mode}", "--run-dir", "here", "--json")
    status = run_main("chaos", file(1000), *options)
    report = json.loads(capsys.readouterr().out)
    assert (status, report["failures"]) == (0, [])
    assert {*report["faults"]} == {kind.value for kind in Kind}
    assert report["equal"] is (True if mode == "lockstep" else None)
    assert report["left"] == []
    places.assert_gone()


@pytest.mark.slow
def test_report_is_a_table_for_people(file, capsys):
    options = ("--kills", "2", "--only", "stop", "--only", "slow", "--run-dir", "here")
    assert run_main("chaos", file(300), *options) == 0
    out = capsys.readouterr().out
    for text in ("fault", "stop", "slow", "balance 0", "% lost", "equal", "left behind nothing"):
        assert text in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_run_with_a_checkpoint_and_leaves_nothing(file, places, number):
    options = ("--run-dir", "here", "--no-reference", "--kills", "1")
    chaos = subprocess.Popen(
        [sys.executable, "-P", "-m", "rollout", "chaos", file(10**7), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        metrics = Path("here/disturbed/metrics.jsonl")
        wait_until(lambda: metrics.exists() and metrics.stat().st_size, SOON_S, "first update")
        chaos.send_signal(number)
        _, error = chaos.communicate(timeout=SOON_S)
    finally:
        chaos.kill()
        chaos.communicate()
    assert chaos.returncode == 130, error
    assert error.endswith(
        "interrupted; nothing runs any more, what there is of the runs is in here\n"
    )
    assert list(Path("here/disturbed/checkpoints").glob("update-*"))
    assert Path("here/disturbed/summary.json").exists()
    places.assert_gone()


def test_directory_that_holds_something_is_refused(file, capsys):
    Path("here").mkdir()
    Path("here/notes").write_text("mine")
    assert run_main("chaos", file(10), "--run-dir", "here") == 2
    assert "here: is not empty" in capsys.readouterr().err


def test_wrong_key_is_told_before_anything_runs(file, capsys):
    assert run_main("chaos", file(10), "fleet.unrol_length=3", "--run-dir", "here") == 2
    assert "fleet.unrol_length" in capsys.readouterr().err
    assert not Path("here").exists()


def test_length_of_a_run_must_be_known(file, capsys):
    text = Path(file(10)).read_text().replace("env_steps = 1280", "wall_s = 5")
    Path("x.toml").write_text(text)
    assert run_main("chaos", "x.toml", "--no-reference", "--run-dir", "here") == 2
    assert "stop.env_steps" in capsys.readouterr().err


def test_run_that_fails_by_itself_is_no_chaos(file, capsys):
    assert run_main("chaos", file(10), "learner.device=cuda:9", "--run-dir", "here") == 1
    assert "the undisturbed run failed" in capsys.readouterr().err
