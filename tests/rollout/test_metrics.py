"""What a run measures, on disk."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rollout import metrics
from rollout.errors import RunFailed
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


def test_account_of_the_fleet_is_told_by_its_own_names(make_progress):
    found = scalars(make_progress(3, fleet={"produced": 9, "policy_lag_p50": 1.0, "policy_lag": 7}))
    assert found["fleet/produced"] == 9.0
    assert found["fleet/policy_lag_p50"] == 1.0
    assert found["fleet/policy_lag"] == 1, "what is told always keeps its name"


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


# -- runs that are resumed


def test_resumed_run_has_every_update_once(run, clock, make_progress):
    with MetricsLog(run) as log:
        for update in range(1, 9):
            log.write(make_progress(update))
            clock.now += metrics.POINT_EVERY_S
    with run.metrics.open("a") as file:
        file.write('{"update": 9, "global_st')  # died while it wrote
    for life, last in enumerate([12, 7, 20], start=1):
        with MetricsLog(run, from_update=5) as log:
            for update in range(6, last + 1):
                log.write(make_progress(update, env_steps_per_s=float(life)))
                clock.now += metrics.POINT_EVERY_S
        lines = lines_of(run)
        assert [line["update"] for line in lines] == list(range(1, last + 1))
        assert [line["charts/SPS"] for line in lines[5:]] == [float(life)] * (last - 5)
        points = [(p.step // 512, p.value) for p in events_of(run).Scalars("charts/SPS")]
        assert points == [(line["update"], line["charts/SPS"]) for line in lines]


def test_points_of_a_batch_of_another_size_are_taken_back_too(run, clock, make_progress):
    with MetricsLog(run) as log:
        for update in range(1, 6):
            log.write(make_progress(update))
            clock.now += metrics.POINT_EVERY_S
    with MetricsLog(run, from_update=2) as log:
        log.write(make_progress(3, env_steps=2 * 512 + 2048))
    assert [p.step // 512 for p in events_of(run).Scalars("charts/SPS")] == [1, 2, 6]


def test_run_resumed_from_its_beginning_has_nothing_of_before(run, make_progress):
    with MetricsLog(run) as log:
        log.write(make_progress(1))
    with MetricsLog(run, from_update=0) as log:
        log.write(make_progress(1, env_steps_per_s=7.0))
    assert [line["charts/SPS"] for line in lines_of(run)] == [7.0]
    assert [point.value for point in events_of(run).Scalars("charts/SPS")] == [7.0]


def test_flushed_lines_survive_a_sigkill(run, make_progress):
    log = MetricsLog(run)
    for update in range(1, 4):
        log.write(make_progress(update))
    log.flush()
    assert [line["update"] for line in lines_of(run)] == [1, 2, 3]
    log.close()


# -- full disks


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while a test says so."""

    class Disk:
        is_full = False

    write = os.write

    def refuse(file: int, content: bytes) -> int:
        if Disk.is_full:
            raise OSError(28, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(os, "write", refuse)
    return Disk


def test_full_disk_stops_no_run_and_what_it_refused_comes_later(
    run, clock, disk, make_progress, caplog
):
    with MetricsLog(run) as log:
        for update in range(1, 101):
            disk.is_full = 20 <= update < 80
            clock.now += 1.0
            log.write(make_progress(update))
            if 26 <= update < 80:
                assert log.trouble is not None
                assert "No space left on device" in log.trouble
        assert log.trouble is None
    assert [line["update"] for line in lines_of(run)] == list(range(1, 101))
    steps = [point.step // 512 for point in events_of(run).Scalars("charts/SPS")]
    assert steps == list(range(1, 101))
    assert len(caplog.records) == 4, "one for each of the two files and each end of the outage"


def test_run_that_ends_on_a_full_disk_says_what_is_missing(run, disk, make_progress):
    disk.is_full = True
    log = MetricsLog(run)
    log.write(make_progress(1))
    with pytest.raises(RunFailed, match=r"metrics\.jsonl: its last [0-9,]+ bytes are lost: .* No"):
        log.close()


def test_full_disk_does_not_hide_what_ended_the_run(run, disk, make_progress, caplog):
    def end_badly() -> None:
        with MetricsLog(run) as log:
            disk.is_full = True
            log.write(make_progress(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        end_badly()
    assert "bytes are lost" in caplog.text
