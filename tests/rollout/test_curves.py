"""Learning curves, as runs have written them."""

import json
from pathlib import Path

import numpy as np
import pytest

from rollout.curves import POINTS, band, load_curve, outside, thinned
from rollout.errors import OperatorError
from rollout.metrics import MetricsLog


@pytest.fixture
def run(make_run, make_progress) -> Path:
    """A run with ten updates, the first of which knows no return."""
    run = make_run()
    with MetricsLog(run) as log:
        log.write(make_progress(1, episode_return_mean=None))
        for update in range(2, 11):
            log.write(make_progress(update))
    return run.path


def test_curve_is_what_the_run_has_measured(run):
    curve = load_curve(run)
    updates = np.arange(2, 11)
    np.testing.assert_array_equal(curve.env_steps, 512 * updates)
    np.testing.assert_array_equal(curve.wall_s, 0.5 * updates)
    np.testing.assert_array_equal(curve.mean_return, 20.0 + updates)
    assert curve.tables["env"]["id"] == "CartPole-v1"
    assert curve.goal == 475.0
    assert curve.damaged is None
    assert not curve.is_over


def test_run_with_a_summary_is_over(run):
    (run / "summary.json").write_text("{}")
    assert load_curve(run).is_over


def test_line_that_is_being_written_is_passed_over_in_silence(run):
    file = run / "metrics.jsonl"
    for size in range(1, len(file.read_bytes().splitlines(keepends=True)[-1])):
        whole = file.read_bytes()
        file.write_bytes(whole[:-size])
        curve = load_curve(run)
        assert len(curve.mean_return) == 8
        assert curve.damaged is None
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"",
        b"\0\0\0",
        b"[1]",
        b'{"global_step": 2048}',
        b'{"global_step": "2048", "wall_s": 2.0}',
        b'{"global_step": 1536, "wall_s": 2.0}',  # of the line before
        b'{"global_step": 2048, "wall_s": 0.5}',  # before the line before
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_damaged_line_is_left_out_and_named(run, line):
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    lines[3] = line
    file.write_bytes(b"\n".join(lines) + b"\n")
    curve = load_curve(run)
    assert 4 * 512 not in curve.env_steps
    assert len(curve.mean_return) == 8
    assert curve.damaged == f"{file}: line 4 is damaged; left out"


def test_several_damaged_lines_are_counted(run):
    file = run / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'{"update":3', b"?").replace(b'{"update":5', b"?"))
    damaged = load_curve(run).damaged
    assert damaged == f"{file}: 2 lines are damaged, the first is line 3; left out"


def test_return_that_is_no_number_is_no_point_of_the_curve(run, make_run, make_progress):
    other = make_run(where="other")
    with MetricsLog(other) as log:
        log.write(make_progress(1, episode_return_mean=float("nan")))
        log.write(make_progress(2))
    curve = load_curve(other.path)
    np.testing.assert_array_equal(curve.mean_return, [22.0])
    assert curve.damaged is None


def test_run_that_has_just_begun_has_an_empty_curve(make_run):
    run = make_run()
    assert len(load_curve(run.path).mean_return) == 0
    run.metrics.touch()
    assert len(load_curve(run.path).mean_return) == 0


def test_environment_need_not_be_installed(run):
    config = run / "config.toml"
    text = config.read_text()
    assert '"CartPole-v1"' in text
    config.write_text(text.replace('"CartPole-v1"', '"not_here:Missing"'))
    assert load_curve(run).tables["env"]["id"] == "not_here:Missing"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name = ", "config.toml: not TOML"),
        ("", "config.toml: has no name, as every run's has"),
        ('name = "x"\nenv = 3\n', "has no env"),
        ('name = "x"\n[env]\nid = 3\n[algorithm]\n[stop]\n', "has no env.id"),
    ],
)
def test_config_that_was_altered_is_refused(run, content, words):
    (run / "config.toml").write_text(content)
    with pytest.raises(OperatorError, match=words):
        load_curve(run)


def test_metrics_that_cannot_be_read_are_an_error_with_their_name(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(OperatorError, match=r"metrics\.jsonl: cannot be read: Is a directory"):
        load_curve(run)


def test_metrics_of_another_day_may_have_more_columns(run):
    file = run / "metrics.jsonl"
    lines = [
        json.loads(line) | {"new/column": [1, {"a": None}]}
        for line in file.read_text().splitlines()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(load_curve(run).mean_return) == 9


def test_band_is_mean_and_extremes_where_all_curves_are():
    first = np.array([0.0, 10.0]), np.array([0.0, 10.0])
    second = np.array([2.0, 4.0, 12.0]), np.array([6.0, 6.0, 6.0])
    found = band([first, second])
    assert found is not None
    assert (found.x[0], found.x[-1], len(found.x)) == (2.0, 10.0, POINTS)
    np.testing.assert_allclose(found.mean, (found.x + 6.0) / 2)
    np.testing.assert_allclose(found.low, np.minimum(found.x, 6.0))
    np.testing.assert_allclose(found.high, np.maximum(found.x, 6.0))


@pytest.mark.parametrize("x", [[5.0, 6.0], [4.0, 5.0], [1.0], [2.5]])
def test_curves_that_are_nowhere_together_have_no_band(x):
    first = np.array([1.0, 2.0, 4.0]), np.zeros(3)
    assert band([first, (np.array(x), np.zeros(len(x)))]) is None


def test_what_a_curve_has_outside_of_a_band_begins_and_ends_at_its_edges():
    x, y = np.array([0.0, 2.0, 4.0, 6.0]), np.array([0.0, 20.0, 40.0, 60.0])
    before, after = outside(x, y, 1.0, 4.0)
    np.testing.assert_array_equal(before, [[0.0, 1.0], [0.0, 10.0]])
    np.testing.assert_array_equal(after, [[4.0, 6.0], [40.0, 60.0]])
    assert outside(x, y, 0.0, 6.0) == []


def test_long_curve_is_thinned_to_its_ends_and_points_in_between():
    x = np.arange(100_000)
    thin, y = thinned(x, 2 * x)
    assert len(thin) == POINTS
    assert (thin[0], thin[-1]) == (0, 99_999)
    assert np.diff(thin).max() <= 101
    np.testing.assert_array_equal(y, 2 * thin)
    short = np.arange(7)
    np.testing.assert_array_equal(thinned(short, short), [short, short])
    assert len(thinned(short[:1], short[:1])[0]) == 1
