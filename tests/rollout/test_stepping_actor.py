"""Acting step by step in Python does what the compiled loop does."""

import itertools
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
import pytest

from rollout.acting import UnrollActor, read_only
from rollout.envs import EnvError, Envs, Outcome, find_env
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.foreign_envs import EpisodeEnd
from rollout.envs.foreign.looped_envs import LoopedEnvs
from rollout.envs.foreign.observations import kit_observation_space, observation_writer
from rollout.envs.layouts import observation_layout
from rollout.envs.philox import CLOCK, RESET, philox
from rollout.experiment_tables import GaussianSettings
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import make_mlp
from rollout.shapes import head_of, make_schema, parts_of
from rollout.stepping_actor import SteppingActor
from tests.envs.gymnasium_samples import Reach, Walk
from tests.some_fast import slow_unless


class Stepped:
    """Compiled environments behind the calls of ForeignEnvs."""

    def __init__(self, envs: Envs) -> None:
        self.env, self.num_envs, self._envs = envs.env, envs.num_envs, envs
        self._outcome = Outcome(envs.env, envs.num_envs)
        self.clocks = np.zeros(envs.num_envs, CLOCK)
        self._see_clocks()

    def _see_clocks(self) -> None:
        self.clocks[:] = self._envs.clocks

    def observation(self) -> np.ndarray:
        return self._envs.observation()

    def snapshot(self) -> bytes:
        return self._envs.snapshot()

    def step(
        self, action, observation, reward, terminated, truncated, no_op=None, t=0
    ) -> list[EpisodeEnd]:
        out, space = self._outcome, self.env.action_space
        if isinstance(space, gymnasium.spaces.Box):
            action = np.clip(action, space.low, space.high)
        self._envs.step(action, out)
        self._see_clocks()
        observation[:], reward[:] = out.observation, out.reward
        terminated[:], truncated[:] = out.terminated, out.truncated
        finals = dict(zip(out.final_env[: out.num_finals], out.final_observation, strict=False))
        return [
            EpisodeEnd(
                int(i),
                out.episode_return[k],
                out.episode_length[k],
                finals[i].copy() if i in finals else None,
            )
            for k, i in enumerate(out.episode_env[: out.num_episodes])
        ]


def make_policy(env, unroll_length: int, has_value: bool = True, gaussian=None):
    shape, head = observation_layout(env.observation_space).shape, head_of(env, gaussian)
    network = make_mlp(shape, head, (8,), "tanh", "separate", parts_of(env))
    return network, make_schema(env, unroll_length, has_value)


CARTPOLE = ("CartPole-v1", True)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("env_id", "has_value"),
    slow_unless([CARTPOLE], [CARTPOLE, ("CartPole-v1", False), ("Pendulum-v1", True)]),
)
def test_every_bit_is_that_of_the_compiled_loop(env_id, has_value, greedy):
    env = find_env(env_id, max_episode_steps=20)
    network, schema = make_policy(env, 32, has_value)
    weights = read_only(initial_parameters(network, 1))
    compiled = UnrollActor(Envs(env, 5, 3, first_env=7), network, schema)
    stepped = SteppingActor(Stepped(Envs(env, 5, 3, first_env=7)), network, schema)  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        compiled.act(weights, greedy)
        stepped.act(weights, greedy)
        unrolls = compiled.buffer.unroll(), stepped.buffer.unroll()
        for field in fields(unrolls[0]):
            np.testing.assert_array_equal(*(getattr(unroll, field.name) for unroll in unrolls))
        assert len(unrolls[0].episode_t) > 0
        assert greedy or len(unrolls[0].final_t) > 0


def twin(make, head, unroll, schema, first_env: int, seed: int) -> None:
    """An unroll again, an environment at a time, with nothing but Gymnasium's own calls."""
    T, N = unroll.reward.shape

    def places(tail: str) -> dict[tuple[int, int], int]:
        pairs = zip(getattr(unroll, f"{tail}_t"), getattr(unroll, f"{tail}_env"), strict=True)
        return {pair: k for k, pair in enumerate(pairs)}

    ends, finals = places("episode"), places("final")
    for i in range(N):
        env, episode, total, length = make(), 0, 0.0, 0
        write = observation_writer(env.observation_space)

        def row(observation, write=write) -> np.ndarray:
            rows = np.zeros(schema.observation_shape, schema.observation_dtype)
            write(rows, observation)
            return rows

        def reset(episode: int, env=env, i=i):
            return env.reset(seed=philox(seed, RESET, first_env + i, episode, 0, 0)[0])[0]

        np.testing.assert_array_equal(unroll.observation[0, i], row(reset(0)))
        for t in range(T):
            action = unroll.action[t, i]
            if isinstance(env.action_space, gymnasium.spaces.Box):
                space = env.action_space
                if head.bounds:
                    low, high = np.array(head.bounds).T
                    squashed = (np.tanh(action.astype(np.float64)) + 1) / 2
                    action = (low + (high - low) * squashed).astype(np.float32)
                chosen = np.clip(
                    action.reshape(space.shape).astype(space.dtype), space.low, space.high
                )
            else:
                chosen = int(action) + int(env.action_space.start)
            observation, reward, terminated, truncated, _ = env.step(chosen)
            total, length = total + reward, length + 1
            assert unroll.reward[t, i] == np.float32(reward)
            assert (unroll.terminated[t, i], unroll.truncated[t, i]) == (terminated, truncated)
            assert ((t, i) in ends) == (terminated or truncated)
            assert ((t, i) in finals) == truncated
            if truncated:
                k = finals[t, i]
                np.testing.assert_array_equal(unroll.final_observation[k], row(observation))
            if terminated or truncated:
                k = ends[t, i]
                assert unroll.episode_return[k] == pytest.approx(total)
                assert unroll.episode_length[k] == length
                episode, total, length = episode + 1, 0.0, 0
                observation = reset(episode)
            np.testing.assert_array_equal(unroll.observation[t + 1, i], row(observation))


@pytest.mark.parametrize(
    ("make", "gaussian"),
    [
        pytest.param(Walk, None, marks=pytest.mark.slow),
        (Reach, None),
        pytest.param(
            Reach, GaussianSettings(std="dependent", squash="tanh"), marks=pytest.mark.slow
        ),
    ],
)
def test_unroll_is_what_gymnasium_gives_step_by_step(make, gaussian):
    env = ForeignEnv("mine", make)
    network, schema = make_policy(env, 40, gaussian=gaussian)
    actor = SteppingActor(LoopedEnvs(env, 3, 5, first_env=2), network, schema)
    actor.act(read_only(initial_parameters(network, 0)))
    unroll = actor.buffer.unroll()
    assert len(unroll.episode_t) > 0
    twin(make, network.head, unroll, schema, 2, 5)


def test_next_unroll_goes_on_where_the_last_ended():
    env = ForeignEnv("mine", Walk)
    network, schema = make_policy(env, 7)
    weights = read_only(initial_parameters(network, 0))
    _, long = make_policy(env, 21)
    pieces, whole = (SteppingActor(LoopedEnvs(env, 3, 5), network, one) for one in (schema, long))
    whole.act(weights)
    wanted = whole.buffer.unroll().observation
    for k in range(3):
        pieces.act(weights)
        found = pieces.buffer.unroll().observation
        np.testing.assert_array_equal(found, wanted[7 * k : 7 * k + 8])
    assert pieces.envs.snapshot() == whole.envs.snapshot()


def test_environments_that_are_taken_over_begin_their_next_episode():
    env = ForeignEnv("mine", Walk)
    network, schema = make_policy(env, 5)
    actor = SteppingActor(LoopedEnvs(env, 4, 5, first_env=3), network, schema)
    actor.act(read_only(initial_parameters(network, 0)))
    before = actor.envs.clocks.copy()
    other, position = LoopedEnvs(env, 4, 0, begin=False), np.zeros(1, np.int64)
    other.restore(actor.envs.snapshot(), position, 5)
    assert (other.clocks["episode"] == before["episode"] + (before["t"] > 0)).all()
    assert (other.clocks["t"] == 0).all() and (other.clocks["env"] == range(3, 7)).all()
    assert position[0] == 15
    again = LoopedEnvs(env, 4, 0, begin=False)
    again.restore(other.snapshot())
    np.testing.assert_array_equal(again.observation(), other.observation())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "four",
            "step returned (dict, float, bool, dict), wanted (observation, reward",
        ),
        ("nan", "observation place is nan, wanted a finite number"),
        ("nan reward", "the reward is nan, wanted a finite number"),
        ("no reward", "the reward is nan, wanted a finite number"),
        ("text", "the reward is 'one', wanted a number"),
        ("no end", "terminated is None, wanted a bool"),
        ("info first", "terminated is {}, wanted a bool"),
        ("shape", "observation['place'] has shape [2], wanted []"),
        ("missing", "wanted exactly ['my-key', 'place', 'seen'] in it"),
        ("category", "observation['seen'][0] is 7, wanted an integer from -1 to 1"),
    ],
)
def test_what_cannot_be_is_named_with_its_place(how, said):
    env = ForeignEnv("mine", Walk, {"how": how, "goal": 100.0})
    network, schema = make_policy(env, 6)
    position = np.zeros(1, np.int64)
    actor = SteppingActor(LoopedEnvs(env, 2, 5), network, schema, position)
    with pytest.raises(EnvError) as caught:
        actor.act(read_only(initial_parameters(network, 0)))
    assert str(caught.value).startswith("mine: ") and said in str(caught.value)
    assert divmod(position[0], 6) == (0, 3), "environment and step"


class Lost(Reach):
    """Shows at step 3 that it does not know where it is; refuses actions that are no numbers."""

    def step(self, action) -> Any:
        assert np.isfinite(action).all(), "the policy's fault"
        observation, *rest = super().step(action)
        self.t = getattr(self, "t", 0) + 1
        return (observation * (np.nan if self.t == 3 else 1), *rest)


def test_environment_never_gets_actions_that_a_nan_has_led_to():
    env = ForeignEnv("mine", Lost)
    network, schema = make_policy(env, 6)
    position = np.zeros(1, np.int64)
    actor = SteppingActor(LoopedEnvs(env, 1, 5), network, schema, position)
    with pytest.raises(EnvError, match="mine: observation is nan, wanted a finite number"):
        actor.act(read_only(initial_parameters(network, 0)))
    assert position[0] == 2


def test_error_of_an_environment_is_its_own():
    env = ForeignEnv("mine", Walk, {"how": "raise", "goal": 100.0})
    network, schema = make_policy(env, 6)
    actor = SteppingActor(LoopedEnvs(env, 2, 5), network, schema)
    with pytest.raises(RuntimeError, match=r"^the walker fell$"):
        actor.act(read_only(initial_parameters(network, 0)))


def test_reset_that_returns_no_pair_is_named():
    env = ForeignEnv("mine", Walk, {"how": "reset"})
    with pytest.raises(EnvError, match=r"mine: reset returned dict, wanted \(observation, info\)"):
        LoopedEnvs(env, 1, 0)


def test_weights_of_another_network_are_refused():
    env = ForeignEnv("mine", Reach)
    network, schema = make_policy(env, 2)
    actor = SteppingActor(LoopedEnvs(env, 1, 0), network, schema)
    for wrong in (np.zeros(3, np.float32), np.zeros(network.num_parameters)):
        with pytest.raises(ValueError, match="weights are float"):
            actor.act(wrong)


def test_observation_space_of_the_samples_is_what_they_show():
    names = observation_layout(kit_observation_space(Walk.observation_space)).names()
    assert list(itertools.islice(names, 6)) == [
        "my_key[0]=0",
        "my_key[0]=1",
        "my_key[1]=0",
        "my_key[1]=1",
        "my_key[1]=2",
        "place[0]",
    ]
