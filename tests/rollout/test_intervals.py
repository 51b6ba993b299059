"""What a few runs and episodes show, and how sure that is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rollout import intervals
from rollout.intervals import bootstrap_interval, interquartile_mean, mean

SCORES = st.floats(-1e6, 1e6)


def slow_interquartile_mean(scores: list[float]) -> float:
    ordered = sorted(scores)
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    return sum(middle) / len(middle)


def slow_interval(runs: np.ndarray, statistic) -> tuple[float, float]:
    """Resample by resample, run by run."""
    generator = np.random.default_rng(0)
    N, E = runs.shape
    found = []
    for _ in range(intervals.RESAMPLES):
        drawn = generator.integers(N, size=N)
        episodes = generator.integers(E, size=(N, E))
        found.append(
            statistic([runs[n, e] for n, row in zip(drawn, episodes, strict=True) for e in row])
        )
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@given(arrays(np.float64, st.integers(1, 40), elements=SCORES))
def test_interquartile_mean_is_that_of_the_middle_half(scores):
    found = interquartile_mean(scores)
    assert found == pytest.approx(slow_interquartile_mean(list(scores)), rel=1e-9, abs=1e-6)
    np.testing.assert_array_equal(interquartile_mean(np.stack([scores, scores])), [found, found])


def test_interquartile_mean_leaves_a_quarter_out_at_either_end():
    assert interquartile_mean(np.array([-1e9, 1.0, 3.0, 1e9])) == 2.0
    assert interquartile_mean(np.array([5.0, 1.0, 0.0])) == 2.0, "of three, nothing is left out"


@pytest.mark.parametrize(
    ("statistic", "slow"),
    [
        (mean, lambda scores: sum(scores) / len(scores)),
        (interquartile_mean, slow_interquartile_mean),
    ],
)
def test_interval_of_several_runs_is_that_of_drawing_one_by_one(monkeypatch, statistic, slow):
    monkeypatch.setattr(intervals, "RESAMPLES", 300)
    monkeypatch.setattr(intervals, "AT_ONCE", 1)  # draws in the order of the slow one
    runs = np.random.default_rng(1).normal(0.0, 1.0, (3, 7))
    np.testing.assert_allclose(
        bootstrap_interval(runs, statistic), slow_interval(runs, slow), atol=1e-12
    )


def test_interval_of_runs_that_differ_is_as_wide_as_they_do_however_many_episodes():
    """Episodes alone would be sure of 50."""
    runs = np.stack([np.full(1000, 0.0), np.full(1000, 100.0)])
    assert bootstrap_interval(runs) == (0.0, 100.0)
    assert bootstrap_interval(runs, interquartile_mean) == (0.0, 100.0)


def test_no_episode_takes_the_place_of_another_runs(monkeypatch):
    """Drawn out of one pot, the mean of a resample would hardly ever be a third."""
    runs = np.repeat([[0.0], [1.0], [2.0]], 50, axis=1)
    means = []
    monkeypatch.setattr(np, "quantile", lambda found, _: means.extend(found) or (0.0, 0.0))
    bootstrap_interval(runs)
    np.testing.assert_allclose(3 * np.array(means), np.round(3 * np.array(means)), atol=1e-9)
    assert len(set(np.round(3 * np.array(means)))) == 7


def test_interval_of_runs_holds_what_all_seeds_would_have_led_to_most_of_the_time():
    """With eight runs the bootstrap is somewhat too sure of itself, as is known of it."""
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        seeds = generator.normal(10.0, 3.0, (8, 1))
        low, high = bootstrap_interval(seeds + generator.normal(0.0, 1.0, (8, 20)))
        held += low <= 10.0 <= high
    assert 0.82 <= held / 100 <= 0.98


def test_one_run_among_runs_is_as_by_itself():
    returns = np.random.default_rng(3).normal(0.0, 1.0, 50)
    assert bootstrap_interval(returns[np.newaxis]) == bootstrap_interval(returns)


def test_interval_is_that_of_the_normal_approximation_where_it_holds():
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.03)


def test_interval_holds_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.exponential(3.0, 60))
        held += low <= 3.0 <= high
    assert 0.89 <= held / 200 <= 0.98


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)))
def test_interval_lies_among_the_values_and_is_always_the_same(values):
    low, high = bootstrap_interval(values)
    slack = 1e-9 * np.abs(values).max()
    assert values.min() - slack <= low <= high <= values.max() + slack
    assert (low, high) == bootstrap_interval(values)


def test_interval_of_many_values_is_made_in_parts(monkeypatch):
    values = np.random.default_rng(3).normal(0.0, 1.0, 1_100_000)
    monkeypatch.setattr(intervals, "RESAMPLES", 3)
    low, high = bootstrap_interval(values)
    assert abs(low) < 0.01 and abs(high) < 0.01
