import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollout.learners import draws

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, size=st.integers(1, 3000), update=st.integers(0, 2**32 - 1))
def test_permutation_holds_every_number_once(seed: int, size: int, update: int) -> None:
    order = draws.permutation(seed, size, update, epoch=0)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(size))


@given(seed=seeds, size=st.integers(1, 3000), epoch=st.integers(0, 100))
def test_permutation_is_the_order_of_the_words_drawn_for_it(
    seed: int, size: int, epoch: int
) -> None:
    words = draws.words(seed, size, draws.MINIBATCH_ORDER, (7, epoch))
    expected = sorted(range(size), key=lambda i: (int(words[i]), i))
    assert draws.permutation(seed, size, 7, epoch).tolist() == expected


def test_permutation_depends_on_seed_update_and_epoch() -> None:
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    orders = {tuple(draws.permutation(seed, 100, u, e)) for seed, u, e in places}
    assert len(orders) == len(places)


def test_permutation_sends_every_number_everywhere() -> None:
    orders = np.stack([draws.permutation(3, 20, update, 0) for update in range(4000)])
    counts = np.stack([np.bincount(column, minlength=20) for column in orders.T])
    expected = 4000 / 20
    # variance of a count is below `expected`; 400 counts, so five deviations are never reached
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_normal_draws_have_mean_0_and_deviation_1() -> None:
    drawn = draws.normal(1, (100, 1000), place=(0, 0))
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1.0) < 0.01
    assert abs((np.abs(drawn) < 1.959964).mean() - 0.95) < 0.005
