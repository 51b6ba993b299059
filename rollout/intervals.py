"""What a few runs and episodes show, and how sure that is: by resampling them."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 2000
AT_ONCE = 1_000_000  # values


def mean(scores: np.ndarray) -> np.ndarray:
    """Of the last axis: [..., n] to [...]."""
    return scores.mean(-1)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half (IQM) of the last axis: [..., n] to [...].

    Of n scores ⌊n/4⌋ are left out at either end: outliers move it less than the mean, and it needs
    fewer scores than the median to be as sure. Agarwal et al. 2021, arXiv 2108.13264.
    """
    n = scores.shape[-1]
    cut = n // 4
    return np.partition(scores, (cut, n - cut - 1), axis=-1)[..., cut : n - cut].mean(-1)


def bootstrap_interval(
    returns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = mean,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval for a statistic of returns, by the stratified bootstrap.

    returns: [E], episodes of one policy; or [N, E], of the policies of N runs of one experiment,
    where the statistic is that of all N·E. statistic: [..., n] to [...].

    Each of RESAMPLES resamples draws N of the runs, and for each drawn run E of its own episodes,
    both with replacement; no episode is drawn in another run's place. So the interval of several
    runs tells what other seeds would have led to, as far as N runs can show it (Agarwal et al.
    2021, with one environment as the stratum), and that of one run what other episodes would.

    The same for the same returns.
    """
    runs = np.atleast_2d(returns)
    N, E = runs.shape
    generator = np.random.default_rng(seed)
    at_once = max(1, AT_ONCE // runs.size)
    found = []
    for left in range(RESAMPLES, 0, -at_once):
        count = min(at_once, left)
        drawn = generator.integers(N, size=(count, N, 1))
        episodes = generator.integers(E, size=(count, N, E))
        found.append(statistic(runs[drawn, episodes].reshape(count, N * E)))
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
