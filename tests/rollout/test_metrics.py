"""What a run measures, on disk."""

import contextlib
import json
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rollout import metrics
from rollout.metrics import MetricsLog, scalars
from rollout.run_directory import RunDirectory


@pytest.fixture
def run(make_experiment, tmp_path):
    with RunDirectory.create(make_experiment(), tmp_path / "run") as run:
        yield run


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test sets `clock.now`."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(metrics.time, "monotonic", lambda: Clock.now)
    return Clock


def lines_of(run: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def events_of(run: RunDirectory) -> EventAccumulator:
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return events


def test_names_are_cleanrls_where_it_has_one(make_progress):
    found = scalars(make_progress(3, returns=[10.0, 20.0]))
    assert found == {
        "charts/SPS": 1234.5,
        "charts/episodic_return": 15.0,
        "charts/episodic_length": 15.0,
        "charts/episodic_return_mean_100": 23.0,
        "charts/episodic_length_mean_100": 24.0,
        "charts/learning_rate": 0.001,
        "losses/policy_loss": -0.25,
        "fleet/policy_lag": 1,
        "fleet/num_actors_alive": 2,
        "fleet/num_episodes": 9,
        "stats/learner/update": 0.8,
        "stats/learner/wait": 0.2,
        "stats/actor/act": 0.5,
    }


def test_update_without_a_finished_episode_has_no_return(make_progress):
    found = scalars(make_progress(1, episode_return_mean=None, episode_length_mean=None))
    assert not [name for name in found if "episodic" in name]


def test_metrics_have_a_line_for_every_update(run, clock, make_progress):
    with MetricsLog(run) as log:
        for update in range(1, 51):
            log.write(make_progress(update))
    lines = lines_of(run)
    assert [line["update"] for line in lines] == list(range(1, 51))
    assert [line["global_step"] for line in lines] == [512 * n for n in range(1, 51)]
    assert lines[9]["wall_s"] == 5.0
    assert lines[9]["charts/SPS"] == 1234.5


def test_number_that_is_none_is_null(run, make_progress):
    with MetricsLog(run) as log:
        log.write(make_progress(1, losses={"losses/policy_loss": float("nan")}))
    assert lines_of(run)[0]["losses/policy_loss"] is None


def test_tensorboard_has_the_first_and_the_last_update_with_env_steps_below(
    run, clock, make_progress
):
    with MetricsLog(run) as log:
        for update in range(1, 11):
            log.write(make_progress(update))
    points = events_of(run).Scalars("charts/episodic_return_mean_100")
    assert [(point.step, point.value) for point in points] == [(512, 21.0), (5120, 30.0)]


def test_point_counts_the_episodes_of_all_updates_since_the_one_before(run, clock, make_progress):
    with MetricsLog(run) as log:
        log.write(make_progress(1, returns=[1.0]))
        log.write(make_progress(2, returns=[10.0]))
        log.write(make_progress(3, returns=[20.0, 30.0]))
        log.write(make_progress(4))
        clock.now += metrics.POINT_EVERY_S
        log.write(make_progress(5, returns=[40.0]))
        log.write(make_progress(6, returns=[50.0]))
    points = events_of(run).Scalars("charts/episodic_return")
    assert [(p.step // 512, p.value) for p in points] == [(1, 1.0), (5, 25.0), (6, 50.0)]


def test_tensorboard_is_written_while_the_run_goes_on(run, clock, make_progress):
    with MetricsLog(run) as log:
        log.write(make_progress(1))
        assert not list(run.tensorboard.glob("events.*"))
        clock.now += metrics.TENSORBOARD_AFTER_S
        log.write(make_progress(2))
        assert list(run.tensorboard.glob("events.*"))
    assert [point.step for point in events_of(run).Scalars("charts/SPS")] == [512, 1024]


def test_tensorboard_is_not_loaded_by_the_first_updates(tmp_path):
    script = (
        "import sys, numpy as np; from rollout.progress import Progress\n"
        "from rollout.experiment import Experiment\n"
        "from rollout.metrics import MetricsLog; from rollout.run_directory import RunDirectory\n"
        "tables = {'env': {'id': 'CartPole-v1'}, 'stop': {'wall_s': 5}}\n"
        "log = MetricsLog(RunDirectory.create(Experiment.from_dict(tables), 'run'))\n"
        "empty = np.zeros(0)\n"
        "for n in range(1, 4):\n"
        "    log.write(Progress(n, n, 0.1, 0.0, None, None, 0, empty, empty, {}, 0, 1, 1))\n"
        "assert not {'torch', 'tensorboard'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)


def test_nothing_is_lost_when_the_loop_is_interrupted(run, make_progress):
    with contextlib.suppress(KeyboardInterrupt), MetricsLog(run) as log:
        log.write(make_progress(1))
        log.write(make_progress(2))
        raise KeyboardInterrupt
    assert len(lines_of(run)) == 2
    assert [point.step for point in events_of(run).Scalars("charts/SPS")] == [512, 1024]


def test_run_without_an_update_leaves_no_event_file(run):
    with MetricsLog(run) as log:
        pass
    log.close()
    assert run.metrics.read_text() == ""
    assert not list(run.tensorboard.glob("events.*"))
