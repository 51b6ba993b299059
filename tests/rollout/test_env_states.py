"""What the learner holds of the environments: an unroll is let in if it goes on from there."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.acting import UnrollActor, read_only
from rollout.env_states import EnvStates
from rollout.envs import Envs
from rollout.envs.batch import state_bytes
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from rollout.envs.philox import CLOCK
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.learners.unroll import Batch, Unroll, UnrollSchema
from rollout.shapes import make_schema

SEED = 3
CASES = {
    "CartPole": (CartPole, make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared")),
    "Counting": (Counting, make_mlp((3,), CategoricalHead((3,)), (8,), "relu", "shared")),
}
each_case = pytest.mark.parametrize("case", CASES)


class Actor:
    """Real environments with a real policy, and where the learner starts from."""

    def __init__(self, case: str, N: int, T: int, seed: int = SEED, first_env: int = 0) -> None:
        env, network = CASES[case]
        self.envs = Envs(env, N, seed, first_env=first_env)
        self._acting = UnrollActor(self.envs, network, make_schema(env, T, True))
        flat = np.random.default_rng(0).standard_normal(network.num_parameters)
        self._weights = read_only(flat.astype(np.float32))

    def act(self) -> Unroll:
        """The next unroll, of its own memory."""
        self._acting.act(self._weights)
        unroll = self._acting.buffer.unroll()
        return Unroll(
            **{field.name: getattr(unroll, field.name).copy() for field in fields(Unroll)}
        )


def make_states(case: str, num_envs: int, seed: int = SEED) -> EnvStates:
    return EnvStates(num_envs, state_bytes(CASES[case][0]), seed)


def clocks(states: np.ndarray) -> np.ndarray:
    """A copy of the clocks in states, [N]."""
    head = np.ascontiguousarray(states[:, : CLOCK.itemsize])
    return head.view(CLOCK)[:, 0].copy()


def slow_clock(episode: int, t: int, terminated, truncated, no_op=None):
    """Where one environment stands after these steps, one at a time."""
    no_op = np.zeros_like(terminated) if no_op is None else no_op
    for *ends, is_none in zip(terminated.tolist(), truncated.tolist(), no_op, strict=True):
        t += not is_none
        if any(ends):
            episode, t = episode + 1, 0
    return episode, t


def hides_a_gap(left_out: Unroll, unroll: Unroll) -> bool:
    """Whether clocks cannot tell that an unroll is missing before this one.

    They say when the last episode began, not the one before: so if every environment began one in
    this unroll, and none in the missing one, nothing shows.
    """
    ended_before = (left_out.terminated | left_out.truncated).any(axis=0)
    ended = (unroll.terminated | unroll.truncated).any(axis=0)
    return bool((ended & ~ended_before).all())


@each_case
@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_envs=st.integers(1, 7), T=st.integers(1, 30))
def test_every_unroll_of_every_share_is_let_in_and_none_twice_or_left_out(case, data, num_envs, T):
    """Two actors with a part each, as far ahead of each other as may be."""
    border = data.draw(st.integers(0, num_envs))
    shares = [s for s in (range(border), range(border, num_envs)) if s]
    actors = [Actor(case, len(share), T, first_env=share.start) for share in shares]
    states = make_states(case, num_envs)
    for turn in data.draw(st.lists(st.integers(0, len(shares) - 1), max_size=8)):
        envs = np.array(shares[turn])
        unroll, skipped = actors[turn].act(), None
        assert states.continues(envs, unroll)
        if data.draw(st.booleans()):
            # The next one, as if this one had not been: seen, but not accepted.
            skipped = actors[turn].act()
            assert states.continues(envs, skipped) == hides_a_gap(unroll, skipped)
        states.accept(envs, unroll)
        assert not states.continues(envs, unroll), "it came twice"
        if skipped is not None:
            assert states.continues(envs, skipped)
            states.accept(envs, skipped)
        assert states.newest[envs].tobytes() == actors[turn].envs.snapshot()


@each_case
@settings(max_examples=25, deadline=None)
@given(num_unrolls=st.integers(1, 6), N=st.integers(1, 5), T=st.integers(1, 17))
def test_clocks_are_those_of_counting_step_by_step(case, num_unrolls, N, T):
    actor = Actor(case, N, T)
    expected = [(0, 0)] * N
    for _ in range(num_unrolls):
        unroll = actor.act()
        expected = [
            slow_clock(*place, unroll.terminated[:, i], unroll.truncated[:, i])
            for i, place in enumerate(expected)
        ]
        found = clocks(unroll.env_state)
        assert list(zip(found["episode"].tolist(), found["t"].tolist(), strict=True)) == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data(), N=st.integers(1, 4), T=st.integers(1, 6), has_no_ops=st.booleans())
def test_unroll_is_let_in_exactly_if_its_clocks_are_those_of_its_rows(data, N, T, has_no_ops):
    """Against the slow twin, for rows and clocks that no environment would make."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    share = UnrollSchema(T, (1,), "<f4", (), "<i4", False, CLOCK.itemsize, has_no_ops=has_no_ops)
    states = EnvStates(N, CLOCK.itemsize, SEED)
    before = np.zeros(N, CLOCK)
    before["seed"], before["env"] = SEED, np.arange(N)
    before["episode"], before["t"] = random.integers(0, 3, (2, N))
    states.put(before.view(np.uint8).reshape(N, -1))

    unroll = Unroll.view(share, bytearray(share.size_bytes(N, 0, 0)), N, 0, 0)
    unroll.terminated[:], unroll.truncated[:] = random.random((2, T, N)) < 0.25
    if has_no_ops:
        ended = unroll.terminated | unroll.truncated
        unroll.no_op[:] = ~ended & (random.random((T, N)) < 0.4)
    after, is_right = before.copy(), True
    for i in range(N):
        place = (int(before["episode"][i]), int(before["t"][i]))
        no_op = unroll.no_op[:, i] if has_no_ops else None
        right = slow_clock(*place, unroll.terminated[:, i], unroll.truncated[:, i], no_op)
        off = data.draw(st.sampled_from([(0, 0)] * 8 + [(0, 1), (1, 0), (0, T), (1, -1)]))
        found = (right[0] + off[0], max(0, right[1] + off[1]))
        after["episode"][i], after["t"][i] = found
        is_right &= found == right
    unroll.env_state[:] = after.view(np.uint8).reshape(N, -1)
    assert states.continues(np.arange(N), unroll) == is_right


@each_case
def test_unroll_of_other_environments_is_not_let_in(case):
    states = make_states(case, 6)
    unroll = Actor(case, 3, 10, first_env=3).act()
    assert states.continues(np.array([3, 4, 5]), unroll)
    for others in ([0, 1, 2], [2, 3, 4], [3, 5, 4]):
        assert not states.continues(np.array(others), unroll)


@each_case
def test_unroll_of_another_seed_is_not_let_in(case):
    unroll = Actor(case, 3, 10, seed=SEED + 1).act()
    assert not make_states(case, 3).continues(np.arange(3), unroll)
    assert make_states(case, 3, seed=SEED + 1).continues(np.arange(3), unroll)


def test_one_environment_out_of_place_keeps_the_whole_unroll_out():
    unroll = Actor("Counting", 5, 8).act()
    for name in ("env", "seed", "episode", "t"):
        for i in range(5):
            changed = unroll.env_state.copy()
            np.ndarray(5, CLOCK, changed, strides=changed.strides[:1])[name][i] += 1
            states = make_states("Counting", 5)
            assert not states.continues(np.arange(5), replace(unroll, env_state=changed)), (name, i)


def test_end_that_was_hidden_in_the_rows_keeps_an_unroll_out():
    unroll = Actor("Counting", 2, 12).act()
    for name in ("terminated", "truncated"):
        rows = getattr(unroll, name).copy()
        t, i = (int(index[0]) for index in rows.nonzero())
        rows[t, i] = False
        states = make_states("Counting", 2)
        assert not states.continues(np.arange(2), replace(unroll, **{name: rows})), name


def test_whoever_takes_over_gets_the_newest_states_in_the_order_of_its_share():
    states, actor = make_states("CartPole", 4), Actor("CartPole", 4, 20)
    unroll = actor.act()
    states.accept(np.arange(4), unroll)
    envs = np.array([1, 3])
    other = Actor("CartPole", 2, 20)
    other.envs.restore(states.give(envs, cut=1))
    wanted, found = actor.act(), other.act()
    np.testing.assert_array_equal(found.observation, wanted.observation[:, envs])
    np.testing.assert_array_equal(found.env_state, wanted.env_state[envs])
    assert states.continues(envs, found)


def test_unrolls_are_counted_by_environment_and_go_on_from_a_checkpoint():
    states, actor = make_states("Counting", 3), Actor("Counting", 3, 5)
    states.accept(np.arange(3), actor.act())
    states.num_unrolls[2] += 1
    assert states.num_unrolls.tolist() == [1, 1, 2]
    again = make_states("Counting", 3)
    again.put(states.newest)
    again.put_counts(np.array([7, 7, 8]))
    assert again.num_unrolls.tolist() == again.num_trained.tolist() == [7, 7, 8]
    assert again.continues(np.arange(3), actor.act())
    np.testing.assert_array_equal(again.trained, states.newest)


def test_trained_states_follow_the_batches_not_the_arrivals():
    """In columns of any order, and in parts: a checkpoint saves where the next batch begins."""
    states, actor = make_states("Counting", 4), Actor("Counting", 4, 5)
    first, second = actor.act(), actor.act()
    states.accept(np.arange(4), first)
    begun = states.trained.copy()
    batch = Batch(make_schema(Counting, 5, True), 3)
    batch.put(first, 0, np.array([2, 3]), 0, start=2)
    batch.put(first, 2, np.array([0]), 0, start=0)
    batch.seal()
    states.accept(np.arange(4), second)
    states.train(batch)
    np.testing.assert_array_equal(states.trained[[0, 2, 3]], first.env_state[[0, 2, 3]])
    np.testing.assert_array_equal(states.trained[1], begun[1])
    np.testing.assert_array_equal(states.newest, second.env_state)
    assert states.num_trained.tolist() == [1, 0, 1, 1]
    assert states.num_unrolls.tolist() == [2, 2, 2, 2]


def test_environment_that_is_in_a_batch_twice_is_counted_twice():
    """Async: its columns come in order, and the later one says where it is."""
    states, actor = make_states("Counting", 2), Actor("Counting", 2, 5)
    batch = Batch(make_schema(Counting, 5, True), 4)
    unrolls = [actor.act(), actor.act()]
    for column, unroll in zip((0, 2), unrolls, strict=True):
        states.accept(np.arange(2), unroll)
        batch.put(unroll, column, np.arange(2), 0)
    batch.seal()
    states.train(batch)
    assert states.num_trained.tolist() == [2, 2]
    np.testing.assert_array_equal(states.trained, unrolls[1].env_state)


# ---- states that an environment hides


def hidden(num_envs: int, t: list[int]) -> EnvStates:
    """Only clocks are known; each environment is at step t of episode 4."""
    states = EnvStates(num_envs, CLOCK.itemsize, SEED, has_hidden_state=True)
    held = clocks(states.newest)
    held["episode"], held["t"] = 4, t
    states.put(held.view(np.uint8).reshape(num_envs, -1))
    return states


def test_episodes_under_way_are_lost_and_counted_when_they_are_handed_on():
    states = hidden(5, [0, 3, 0, 1, 9])
    given = states.give(np.array([1, 2, 3]), cut=1)
    held = clocks(np.frombuffer(given, np.uint8).reshape(3, -1))
    assert held["t"].tolist() == [3, 0, 1], "who takes over begins the next episode by itself"
    after = clocks(states.newest)
    assert after["episode"].tolist() == [4, 5, 4, 5, 4]
    assert after["t"].tolist() == [0, 0, 0, 0, 9]
    assert states.episodes_lost.total() == 2
    states.give(np.array([1, 2, 3]), cut=1)
    assert states.episodes_lost.total() == 2, "an episode that has only begun is no loss"


def test_reason_for_which_an_episode_was_lost_tells_who_had_the_environment_before():
    states = hidden(2, [3, 0])
    envs = np.arange(2)
    lost = []
    for cut, ended in ((1, "other"), (1, "hang"), (2, "exit"), (2, "exception")):
        states.give(envs, cut, ended)
        lost.append({reason: count for reason, count in states.episodes_lost.items() if count})
        held = clocks(states.newest)
        held["t"] = [0, 2]  # an unroll later
        states.newest[:] = held.view(np.uint8).reshape(2, -1)
    assert lost == [
        {"learner_died": 1},
        {"learner_died": 1, "hang": 1},
        {"learner_died": 1, "hang": 1, "shares_cut": 1},
        {"learner_died": 1, "hang": 1, "shares_cut": 1, "exception": 1},
    ]


def test_unroll_of_an_environment_with_hidden_state_begins_where_it_was_restarted():
    states = hidden(1, [3])
    share = UnrollSchema(2, (1,), "<f4", (), "<i4", False, CLOCK.itemsize)
    unroll = Unroll.view(share, bytearray(share.size_bytes(1, 0, 0)), 1, 0, 0)
    envs = np.arange(1)
    went_on, began = clocks(states.newest), clocks(states.newest)
    went_on["t"] = 5
    began["episode"], began["t"] = 5, 2
    lives = [held.view(np.uint8).reshape(1, -1) for held in (went_on, began)]
    found = [states.continues(envs, replace(unroll, env_state=life)) for life in lives]
    assert found == [True, False]
    states.give(envs, cut=1)
    found = [states.continues(envs, replace(unroll, env_state=life)) for life in lives]
    assert found == [False, True]


def test_states_that_are_not_hidden_are_given_and_nothing_is_lost():
    states, actor = make_states("Counting", 2), Actor("Counting", 2, 4)
    states.accept(np.arange(2), actor.act())
    before = states.newest.copy()
    assert states.give(np.arange(2), cut=1) == before.tobytes()
    np.testing.assert_array_equal(states.newest, before)
    assert states.episodes_lost.total() == 0


def test_only_those_whose_state_was_not_saved_begin_anew():
    """length_at: where a state says how much of it was saved."""
    size = CLOCK.itemsize + 4
    states = EnvStates(3, size, SEED, length_at=CLOCK.itemsize)
    given = np.zeros((3, size), np.uint8)
    np.ndarray(3, CLOCK, given, strides=(size,))["t"] = [5, 5, 0]
    given[0, CLOCK.itemsize + 1] = 1  # 256 bytes
    states.put(given)
    states.give(np.arange(3), cut=1)
    after = clocks(states.newest)
    assert after["t"].tolist() == [5, 0, 0] and after["episode"].tolist() == [0, 1, 0]
    assert sum(states.episodes_lost.values()) == 1
