"""Of environments with hidden state only clocks can be saved, and a restart loses an episode."""

import numba
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rollout.acting import UnrollActor, read_only
from rollout.env_states import EnvStates
from rollout.envs import CompiledEnv, EnvError, Envs, Outcome, philox, uniform
from rollout.envs.batch import state_bytes
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.shapes import make_schema
from tests.envs.broken_envs import noise


class Opaque(CompiledEnv):
    """Walks at random by NumPy's own generator (in compiled code: Numba's), not by `draw`."""

    state = np.dtype([("start", "f8"), ("x", "f8")])
    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Discrete(2)
    max_episode_steps = 5
    has_hidden_state = True

    def reset(state, params, draw):
        state.start = uniform(draw, 0.0, 1.0)

    def step(state, params, action, draw):
        state.x += np.random.random()
        return state.x, False

    def observe(state, params, observation):
        observation[0], observation[1] = state.start, state.x


class Open(Opaque):
    """The same without saying so, and not in a way that is seen when it is compiled."""

    has_hidden_state = False

    def step(state, params, action, draw):
        state.x += noise()
        return state.x, False


@numba.njit
def seed_compiled(seed):
    np.random.seed(seed)


def seed_generators(seed: int) -> None:
    """Set what is hidden."""
    seed_compiled(seed)
    np.random.seed(seed)


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def jit(request) -> bool:
    return request.param


def stepped(num_steps: int, num_envs: int = 3, first_env: int = 4, *, jit: bool) -> Envs:
    envs = Envs(Opaque, num_envs, seed=9, first_env=first_env, jit=jit)
    step(envs, num_steps)
    return envs


def step(envs: Envs, num_steps: int) -> np.ndarray:
    """What they showed: [T, N, 2]."""
    outcome = Outcome(envs.env, envs.num_envs)
    shown = []
    for _ in range(num_steps):
        envs.step(np.zeros(envs.num_envs, np.int32), outcome)
        shown.append(outcome.observation.copy())
    return np.array(shown)


def clocks(snapshot: bytes) -> list[tuple[int, ...]]:
    """(seed, environment, episode, step) of each."""
    found = np.frombuffer(snapshot, philox.CLOCK)
    return [tuple(int(c[name]) for name in ("seed", "env", "episode", "t")) for c in found]


def test_snapshot_has_only_the_clocks(jit):
    envs = stepped(8, jit=jit)  # five of episode 0, three of episode 1
    assert state_bytes(Opaque) == philox.CLOCK.itemsize
    assert len(envs.snapshot()) == 3 * philox.CLOCK.itemsize
    assert clocks(envs.snapshot()) == [(9, 4, 1, 3), (9, 5, 1, 3), (9, 6, 1, 3)]


def test_episode_under_way_gives_way_to_the_next(jit):
    taken_over = Envs(Opaque, 3, seed=0, jit=jit)
    taken_over.restore(stepped(8, jit=jit).snapshot())
    assert clocks(taken_over.snapshot()) == [(9, 4, 2, 0), (9, 5, 2, 0), (9, 6, 2, 0)]
    np.testing.assert_array_equal(taken_over.records["clock"]["episode_return"], 0.0)
    # It begins as that episode always does: what `reset` draws is not hidden.
    np.testing.assert_array_equal(taken_over.observation(), stepped(10, jit=jit).observation())


def test_episode_that_had_only_begun_is_kept(jit):
    begun = stepped(5, jit=jit)
    taken_over = Envs(Opaque, 3, seed=0, jit=jit)
    taken_over.restore(begun.snapshot())
    assert taken_over.snapshot() == begun.snapshot()
    np.testing.assert_array_equal(taken_over.observation(), begun.observation())


def test_each_environment_is_restored_by_its_own_clock(jit):
    envs = stepped(5, num_envs=1, first_env=4, jit=jit)
    others = stepped(8, num_envs=2, first_env=7, jit=jit)
    both = Envs(Opaque, 3, seed=0, jit=jit)
    both.restore(envs.snapshot() + others.snapshot())
    assert clocks(both.snapshot()) == [(9, 4, 1, 0), (9, 7, 2, 0), (9, 8, 2, 0)]


def test_restoring_into_the_same_environments_loses_the_episode_too(jit):
    envs = stepped(8, jit=jit)
    envs.restore(envs.snapshot())
    assert clocks(envs.snapshot()) == [(9, 4, 2, 0), (9, 5, 2, 0), (9, 6, 2, 0)]
    np.testing.assert_array_equal(envs.observation()[:, 1], 0.0)


def test_what_is_hidden_decides_how_it_goes_on(jit):
    snapshot = stepped(5, jit=jit).snapshot()
    went_on = []
    for seed in (1, 2, 1):
        envs = Envs(Opaque, 3, seed=0, jit=jit)
        envs.restore(snapshot)
        seed_generators(seed)
        went_on.append(step(envs, 5))
    assert not np.array_equal(went_on[0], went_on[1])
    np.testing.assert_array_equal(went_on[0], went_on[2])


def test_what_is_hidden_is_not_in_the_snapshot(jit):
    """An environment that keeps silent about it goes on otherwise than where it was saved."""
    envs = Envs(Open, 3, seed=9, jit=jit)
    step(envs, 3)
    snapshot = envs.snapshot()
    taken_over = Envs(Open, 3, seed=0, jit=jit)
    taken_over.restore(snapshot)
    np.testing.assert_array_equal(taken_over.observation(), envs.observation())
    assert not np.array_equal(step(taken_over, 1), step(envs, 1))


def test_snapshot_of_the_whole_record_is_refused(jit):
    whole = Envs(Open, 3, seed=9, jit=jit).snapshot()
    with pytest.raises(EnvError, match=r"snapshot of 144 bytes; 3 environments Opaque have 96"):
        Envs(Opaque, 3, seed=9, jit=jit).restore(whole)


def test_unroll_carries_the_clocks_that_follow_it(jit):
    network = make_mlp((2,), CategoricalHead((2,)), (4,), "tanh", "shared")
    schema = make_schema(Opaque, 3, has_value=True)
    assert schema.state_bytes == philox.CLOCK.itemsize
    actor = UnrollActor(Envs(Opaque, 3, seed=9, first_env=4, jit=jit), network, schema)
    actor.act(read_only(initial_parameters(network, 0)))
    state = actor.buffer.unroll().env_state
    assert state.tobytes() == actor.envs.snapshot()
    assert clocks(state.tobytes()) == [(9, 4, 0, 3), (9, 5, 0, 3), (9, 6, 0, 3)]


def test_learner_expects_what_a_replacement_actor_goes_on_with(jit):
    network = make_mlp((2,), CategoricalHead((2,)), (4,), "tanh", "shared")
    schema = make_schema(Opaque, 3, has_value=True)
    weights = read_only(initial_parameters(network, 0))
    states = EnvStates(6, schema.state_bytes, seed=9, has_hidden_state=True)
    share = np.array([1, 2, 5])
    for unrolls_lost in (0, 1, 2):
        actor = UnrollActor(Envs(Opaque, 3, seed=0, jit=jit), network, schema)
        actor.envs.restore(states.give(share, cut=1))
        assert clocks(actor.envs.snapshot()) == clocks(states.newest[share].tobytes())
        actor.act(weights)
        assert states.continues(share, actor.buffer.unroll())
        states.accept(share, actor.buffer.unroll())
        for _ in range(unrolls_lost):
            actor.act(weights)
    # The second and the third actor each found all three in the middle of an episode.
    assert states.episodes_lost == {"other": 6}
    np.testing.assert_array_equal(states.newest[[0, 3, 4]], states.trained[[0, 3, 4]])
