"""The learner's loop, with a fleet that is a list of events."""

import json
import queue
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rollout.assembler import FullBatch
from rollout.errors import RunFailed
from rollout.events import FleetFailed, FleetStopped, Interrupted, Notice, PhaseChanged
from rollout.learner import EPISODES, Clock, Learner
from rollout.ledger import Ledger, Totals
from rollout.progress import Callback
from rollout.receiver import ReceiverStatistics
from rollout.wire import ActorTimes

TIMES = ActorTimes(act_us=600, wait_weights_us=300, wait_credit_us=100)


class Tape(list):
    """What happened, in order; all fakes write on it."""


class FakeReceiver:
    """Hands out the events it was given; tells the tape what it is asked for."""

    def __init__(self, tape: Tape, events) -> None:
        self.tape = tape
        self.events = queue.SimpleQueue()
        for event in events:
            self.events.put(event)

    def publish(self, version: int, weights: bytes) -> None:
        self.tape.append(("publish", version, weights))

    def trained(self, batch) -> None:
        self.tape.append(("trained", batch.number))

    def stop_fleet(self) -> None:
        self.tape.append(("stop",))

    def statistics(self):
        return ReceiverStatistics(
            verdicts={"accepted": 6, "duplicate": 2, "malformed": 3},
            control_refused=4,
            num_actors_alive=2,
            num_actors=3,
            actor_restarts=5,
            memory_restarts=2,
            host_restarts=1,
            envs_set_aside=0,
            episodes_lost={"exception": 3, "shares_cut": 4},
        )


LEDGER = Ledger(Totals(9, 6, 2, {"actor_died": 1}), Totals(576, 384, 128, {"actor_died": 64}))


def batch(number: int, returns=(), weights_version: int | list[int] = 0) -> FullBatch:
    made = SimpleNamespace(
        number=number,
        env=np.arange(8),
        weights_version=np.full(8, weights_version),
        episode_return=np.array(returns, np.float64),
        episode_length=np.array([abs(int(r)) for r in returns], np.int32),
    )
    return FullBatch(cast("Any", made), TIMES, ledger=LEDGER)


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def make_learner(tape, make_experiment):
    """make_learner(events, "stop.env_steps=…", …): 8 environments, 64 steps to an unroll."""

    def make(events, *overrides: str, age_s: float = 0.0) -> Learner:
        class Algorithm:
            skipped_steps = 0

            def checkpoint_state(self):
                return {}

            def train_on(self, batch, update_index, fraction_done):
                tape.append(("update", update_index, batch.number, round(fraction_done, 3)))
                return {"losses/policy_loss": 0.25}

        class Network:
            def export(self):
                return np.array([len(tape)], np.float32)

        class View(Callback):
            def phase(self, text):
                tape.append(("phase", text))

            def notice(self, text):
                tape.append(("notice", text))

        class Order:
            def write(self, update, env, weights_version):
                tape.append(("order", update, env.tolist(), weights_version.tolist()))

        return Learner(
            make_experiment("CartPole-v1", *overrides),
            cast("Any", Algorithm()),
            cast("Any", Network()),
            cast("Any", FakeReceiver(tape, events)),
            View(),
            Clock(time.monotonic() - age_s),
            cast("Any", Order()) if "fleet.mode=async" in overrides else None,
        )

    return make


def names(tape: Tape) -> list[str]:
    return [entry[0] for entry in tape]


def test_batch_is_given_back_before_the_next_version_is_published(make_learner, tape):
    """So an actor never waits for a batch that the learner has done with."""
    learner = make_learner([batch(0), batch(1)], "stop.env_steps=1024")
    assert [progress.update for progress in learner.run()] == [1, 2]
    assert names(tape) == ["publish", "update", "trained", "publish", "update", "trained"]
    assert [entry[1] for entry in tape if entry[0] == "publish"] == [0, 1]
    assert tape[3][2] == np.float32(3).tobytes(), "the weights are those after the update"


def test_run_ends_with_the_update_that_reaches_the_steps(make_learner):
    learner = make_learner([batch(n) for n in range(5)], "stop.env_steps=1025")
    last = list(learner.run())[-1]
    assert (last.update, last.env_steps) == (3, 1536)
    assert last.stop_reason == "1536 steps reached stop.env_steps=1025"
    assert last.stop["env_steps"] == 1.0


def test_goal_is_the_mean_of_exactly_the_last_hundred_episodes(make_learner):
    """99 good ones are not enough; the hundredth must not count one that came before them."""
    events = [
        batch(0, [0.0] * 50 + [10.0] * 49),
        batch(1, [10.0] * 50),
        batch(2, [10.0]),
        batch(3, [10.0]),
    ]
    learner = make_learner(events, "stop.episode_return=10", "stop.env_steps=1000000")
    seen = list(learner.run())
    assert [progress.episode_return_mean for progress in seen] == [490 / 99, 990 / 100, 10.0]
    assert [progress.stop_reason is None for progress in seen] == [True, True, False]
    assert "mean return 10.0 reached stop.episode_return=10" in str(seen[-1].stop_reason)
    assert learner.goal_reached_s is not None and learner.update == 3
    assert EPISODES == 100


def test_few_episodes_reach_no_goal_however_good(make_learner):
    events = [batch(0, [500.0] * 99), batch(1), Interrupted(2)]
    learner = make_learner(events, "stop.episode_return=10", "stop.env_steps=1000000")
    assert all(progress.stop_reason is None for progress in learner.run())
    assert learner.goal_reached_s is None


def test_episodes_count_in_the_order_of_the_batch(make_learner):
    """(unroll, t, environment): of 150 in one batch, the last hundred are meant."""
    events = [batch(0, [0.0] * 50 + [7.0] * 99 + [8.0]), Interrupted(2)]
    learner = make_learner(events)
    (progress,) = learner.run()
    assert progress.episode_return_mean == pytest.approx(7.01)
    assert progress.num_episodes == 150


def test_negative_goal_is_reached_from_below(make_learner):
    events = [batch(0, [-300.0] * 100), batch(1, [-150.0] * 100)]
    learner = make_learner(events, "stop.episode_return=-200")
    seen = list(learner.run())
    assert len(seen) == 2 and seen[-1].stop_reason is not None
    assert "episode_return" not in seen[0].stop, "there is no fraction of the way"


def test_time_limit_ends_a_run_that_waits(make_learner):
    learner = make_learner([], "stop.wall_s=0.5", age_s=1.0)
    assert list(learner.run()) == []


def test_time_limit_ends_a_run_after_an_update(make_learner):
    learner = make_learner([batch(0), batch(1)], "stop.wall_s=0.5", age_s=1.0)
    seen = list(learner.run())
    assert len(seen) == 1
    assert "stop.wall_s=0.5" in str(seen[0].stop_reason)


def test_progress_tells_all_of_an_update(make_learner):
    events = [batch(0, [1.0, 3.0]), batch(1, [], weights_version=0), Interrupted(15)]
    learner = make_learner(
        events, "fleet.policy_lag=1", "stop.env_steps=2048", "stop.episode_return=8"
    )
    first, second = learner.run()
    assert (first.update, first.env_steps, first.num_episodes) == (1, 512, 2)
    assert first.episode_return_mean == 2.0 and first.episode_length_mean == 2.0
    assert first.episode_returns.tolist() == [1.0, 3.0]
    assert first.episode_lengths.tolist() == [1, 3]
    assert first.losses == {"losses/policy_loss": 0.25}
    assert (first.policy_lag, second.policy_lag) == (0, 1)
    assert (first.num_actors_alive, first.num_actors) == (2, 3)
    assert first.stop == {"episode_return": 0.25, "env_steps": 0.25}
    assert first.env_steps_per_s == 0.0 and second.env_steps_per_s > 0.0
    assert 0.0 < first.wall_s <= second.wall_s
    split = first.time_split
    assert split["actor/act"] == pytest.approx(0.6)
    assert split["actor/wait_weights"] == pytest.approx(0.3)
    assert split["actor/wait_credit"] == pytest.approx(0.1)
    learners = [share for name, share in split.items() if name.startswith("learner/")]
    assert len(learners) == 3 and sum(learners) == pytest.approx(1.0)


def test_schedules_are_told_how_much_of_the_run_is_done(make_learner, tape):
    events = [batch(n) for n in range(4)]
    learner = make_learner(events, "stop.env_steps=2048", "algorithm.anneal_lr=true")
    list(learner.run())
    assert [entry[3] for entry in tape if entry[0] == "update"] == [0.0, 0.25, 0.5, 0.75]


def test_without_a_schedule_nobody_is_told_so_that_stop_env_steps_changes_no_curve(
    make_learner, tape
):
    list(make_learner([batch(n) for n in range(4)], "stop.env_steps=2048").run())
    assert [entry[3] for entry in tape if entry[0] == "update"] == [0.0] * 4


def test_signal_ends_the_run_without_another_update(make_learner, tape):
    learner = make_learner([batch(0), Interrupted(2), batch(1)])
    assert len(list(learner.run())) == 1
    assert learner.interrupted_by == 2
    assert names(tape).count("update") == 1


def test_failure_of_the_fleet_is_raised(make_learner):
    learner = make_learner([batch(0), FleetFailed(RunFailed("actor 3 fell asleep"))])
    with pytest.raises(RunFailed, match="actor 3 fell asleep"):
        list(learner.run())
    assert learner.update == 1


def test_observer_hears_of_phases_and_of_what_the_run_survives(make_learner, tape):
    events = [PhaseChanged("compiling"), Notice("actor 1 was killed"), Interrupted(2)]
    list(make_learner(events).run())
    assert [entry for entry in tape if entry[0] in ("phase", "notice")] == [
        ("phase", "compiling"),
        ("notice", "actor 1 was killed"),
    ]


def test_end_of_the_fleet_is_waited_for_past_whatever_else_is_on_its_way(make_learner, tape):
    learner = make_learner([batch(0), FleetFailed(RunFailed("late")), FleetStopped(), batch(1)])
    learner.stop_fleet()
    assert names(tape) == ["stop"]
    assert learner._receiver.events.get_nowait().batch.number == 1, "and no further"


def test_fleet_that_says_nothing_is_not_waited_for_without_end(make_learner, monkeypatch, tape):
    monkeypatch.setattr("rollout.learner.FLEET_END_S", 0.01)
    make_learner([]).stop_fleet()
    assert names(tape) == ["stop"]


def test_learner_says_where_it_is_on_one_line(make_learner):
    learner = make_learner([batch(0)], "stop.env_steps=512")
    list(learner.run())
    assert repr(learner) == "Learner(update=1, env_steps=512)"


def test_silence_is_said_aloud_and_the_run_waits_on(make_learner, tape, monkeypatch):
    monkeypatch.setattr("rollout.learner.QUIET_S", 0.01)
    learner = make_learner([], "stop.wall_s=0.5")
    assert list(learner.run()) == []
    said = (
        "no batch for 0 s (2 of 3 actors alive); still waiting; if its environment never returns, "
    )
    said += "`rollout check-env CartPole-v1` says where; a step 60 s at most (fleet.hang_s)"
    assert ("notice", said) in tape


# What async adds, and what the fleet went through


def test_lags_of_a_batch_are_told_as_a_distribution_and_counted_over_the_run(make_learner):
    events = [batch(0), batch(1, weights_version=[0] * 6 + [1] * 2), Interrupted(2)]
    learner = make_learner(events, "fleet.mode=async")
    _, second = learner.run()
    assert second.policy_lag == 0.75
    found = [second.fleet[f"policy_lag_{name}"] for name in ("p50", "p95", "max")]
    assert found == [1.0, 1.0, 1.0]
    assert learner.policy_lags == {0: 10, 1: 6}


def test_order_of_an_async_batch_is_written_before_the_batch_is_given_back(make_learner, tape):
    versions = [0, 0, 1, 1, 1, 0, 0, 0]
    learner = make_learner([batch(0), batch(1, [], versions), Interrupted(2)], "fleet.mode=async")
    list(learner.run())
    assert [entry for entry in tape if entry[0] == "order"] == [
        ("order", 0, list(range(8)), [0] * 8),
        ("order", 1, list(range(8)), versions),
    ]
    assert names(tape)[1:4] == ["update", "order", "trained"]


def test_progress_tells_the_account_of_its_batch_and_what_befell_the_fleet(make_learner):
    (progress,) = make_learner([batch(0), Interrupted(2)]).run()
    told = progress.fleet
    assert told["memory_restarts"] == 2
    assert told["actor_restarts"] == 5 and told["host_restarts"] == 1
    assert told["episodes_lost"] == 7
    assert told["episodes_lost_shares_cut"] == 4
    assert told["envs_set_aside"] == 0
    assert told["refused"] == 9, "duplicates are refused as well; what was accepted is not"
    found = {name: told[f"unrolls_{name}"] for name in ("produced", "trained", "in_flight")}
    assert found == {"produced": 9, "trained": 6, "in_flight": 2}
    assert told["unrolls_dropped_actor_died"] == 1 and told["steps_dropped_actor_died"] == 64
    assert told["unrolls_balance"] == 0 and told["steps_balance"] == 0


@pytest.mark.parametrize("policy_lag", [0, 1])
def test_learner_that_goes_on_publishes_the_versions_still_in_use_first(
    make_learner, tape, policy_lag
):
    overrides = f"fleet.policy_lag={policy_lag}", "stop.env_steps=100000"
    events = [batch(0, [2.0]), batch(1, [4.0]), batch(2), Interrupted(2)]
    first = make_learner(events, *overrides)
    list(first.run())
    published = {entry[1]: entry[2] for entry in tape if entry[0] == "publish"}
    arrays, state = first.state()
    tape.clear()
    second = make_learner([batch(3), Interrupted(2)], *overrides)
    second.put_state(3, arrays, json.loads(json.dumps(state)))
    (progress,) = second.run()
    wanted = [2, 3, 4] if policy_lag else [3, 4]
    assert [entry[1] for entry in tape if entry[0] == "publish"] == wanted
    if policy_lag:
        assert tape[0][2] == published[2]
    assert (progress.update, progress.env_steps) == (4, 2048)
    assert (progress.num_episodes, progress.episode_return_mean) == (2, 3.0)
    assert second.policy_lags.total() == 4 * 8
