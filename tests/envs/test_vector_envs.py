"""Vector environments: whatever their autoreset mode, each row is what a single one gives."""

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from rollout.env_source import EnvSource
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.making import make_envs
from rollout.envs.foreign.observations import Misfit, batch_writer, observation_writer
from rollout.envs.foreign.trying_out import Trial, try_out
from rollout.envs.foreign.vector_envs import VectorEnvs
from rollout.envs.layouts import observation_layout
from rollout.envs.registry import find_any_env
from tests.envs.foreign_samples import Drift, Late, Race, make_unsaid, make_vector
from tests.envs.gymnasium_samples import Walk

MODES = [mode.value for mode in AutoresetMode]
Row = tuple[Any, ...]


def named(env_id: str, **others: Any) -> ForeignEnv:
    env = find_any_env(EnvSource(id=env_id, folder="", **others))
    assert isinstance(env, ForeignEnv)
    return env


def histories(envs: VectorEnvs, steps: int) -> tuple[list[list[Row]], list[list[Row]]]:
    """Of each environment the steps that are some, and the episodes that ended.

    The action is a function of what is shown, so that equal environments go equal ways.
    """
    N = envs.num_envs
    rows: list[list[Row]] = [[] for _ in range(N)]
    episodes: list[list[Row]] = [[] for _ in range(N)]
    for t in range(steps):
        before = envs.observation().copy()
        action = (np.abs(before).sum(axis=-1) * 7).astype(np.int64) % 3
        after, reward = np.zeros_like(before), np.zeros(N, np.float32)
        terminated, truncated, no_op = np.zeros((3, N), np.bool_)
        ends = envs.step(action, after, reward, terminated, truncated, no_op, t)
        assert not (no_op & (terminated | truncated)).any() and not reward[no_op].any()
        finals = {end.env: end.final_observation for end in ends}
        assert sorted(finals) == np.flatnonzero(terminated | truncated).tolist()
        for i in np.flatnonzero(~no_op):
            final = finals.get(int(i))
            assert (final is not None) == truncated[i]
            rows[i].append(
                (
                    before[i].tolist(),
                    int(action[i]),
                    float(reward[i]),
                    bool(terminated[i]),
                    None if final is None else final.tolist(),
                )
            )
        for end in ends:
            episodes[end.env].append((end.episode_return, end.episode_length))
    return rows, episodes


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_every_mode_are_those_of_single_environments(mode):
    env = ForeignEnv("mine", make_vector, {"mode": mode}, is_vector=True)
    assert env.has_no_ops == (mode == "NextStep") and env.has_hidden_state
    envs = VectorEnvs(env, 4, 3, first_env=2)
    rows, episodes = histories(envs, 60)
    assert min(map(len, rows)) >= 50 and min(map(len, episodes)) >= 3
    for i in range(4):
        single = Drift()
        shown, _ = single.reset(seed=envs_seed(env, i + 2, 3))
        total, length, told = 0.0, 0, []
        for before, action, reward, terminated, final in rows[i]:
            assert before == shown.tolist()
            shown, gained, is_over, is_late, _ = single.step(action)
            total, length = total + gained, length + 1
            assert (reward, terminated) == (np.float32(gained), is_over)
            assert final == (shown.tolist() if is_late else None)
            if is_over or is_late:
                told.append((pytest.approx(total), length))
                total, length = 0.0, 0
                shown, _ = single.reset()
        assert episodes[i] == told


def envs_seed(env: ForeignEnv, i: int, seed: int) -> int:
    from rollout.envs.philox import RESET, philox

    return philox(seed, RESET, i, 0, 0, 0)[0] & (2**31 - 1)


def test_clocks_do_not_count_steps_that_are_none():
    env = ForeignEnv("mine", make_vector, {"limit": 3}, is_vector=True)
    envs = VectorEnvs(env, 1, 0)
    acting, seen = Trial(envs), []
    for _ in range(9):
        came = acting.step()
        seen.append((int(envs.clocks["t"][0]), int(envs.clocks["episode"][0]), bool(came[4][0])))
    assert seen[:5] == [(1, 0, False), (2, 0, False), (0, 1, False), (0, 1, True), (1, 1, False)]


def test_taken_over_environments_begin_their_next_episodes_by_other_seeds():
    env = ForeignEnv("mine", make_vector, {}, is_vector=True)
    first = VectorEnvs(env, 3, 5)
    acting = Trial(first)
    for _ in range(5):
        acting.step()
    other = VectorEnvs(env, 3, 0, begin=False)
    other.restore(first.snapshot())
    assert (other.clocks["episode"] == first.clocks["episode"] + 1).all()
    assert (other.clocks["t"] == 0).all()
    fresh = VectorEnvs(env, 3, 5)
    assert not (other.observation()[:, 0] == fresh.observation()[:, 0]).any()


@pytest.mark.parametrize(
    "space",
    [
        Box(-1, 1, (2, 3), np.float64),
        Box(-1, 1, (), np.float32),
        Box(0, 255, (4,), np.uint8),
        Discrete(4, start=-1),
        MultiDiscrete([2, 3]),
        Dict({"a": Discrete(3), "b": Tuple([Box(0, 1, (2,)), Discrete(2)])}),
    ],
)
def test_batch_is_written_as_its_rows_are(space):
    from rollout.envs.foreign.observations import kit_observation_space

    batched = batch_space(space, 5)
    batched.seed(0)
    layout = observation_layout(kit_observation_space(space))
    together, apart = np.zeros((2, 5, *layout.shape), layout.dtype)
    observations = batched.sample()
    batch_writer(space, batched)(together, observations)
    from gymnasium.vector.utils import iterate

    write = observation_writer(space)
    for row, one in zip(apart, iterate(batched, observations), strict=True):
        write(row, one)
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("wrong", [np.zeros((4, 3)), np.zeros(3), "text", None, [[0.0] * 3] * 4])
def test_batch_of_another_shape_is_refused(wrong):
    space = Box(-1, 1, (3,), np.float32)
    with pytest.raises(Misfit):
        batch_writer(space, batch_space(space, 5))(np.zeros((5, 3), np.float32), wrong)


class Faulty(SyncVectorEnv):
    """Something is wrong with what it returns."""

    def __init__(self, num_envs: int, how: str) -> None:
        super().__init__([Walk if how == "fine" else Drift] * num_envs)
        self.how = how

    def step(self, actions) -> Any:
        shown, rewards, terminated, truncated, infos = super().step(actions)
        match self.how:
            case "four":
                return shown, rewards, terminated, infos
            case "flags":
                return shown, rewards, terminated[:1], truncated, infos
            case "rewards":
                return shown, rewards[:1], terminated, truncated, infos
            case "shape":
                return shown[:1], rewards, terminated, truncated, infos
        return shown, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("four", "step returned (ndarray, ndarray, ndarray, dict), wanted (observation, reward"),
        ("flags", "terminated is bool [1], wanted bool [3]"),
        ("rewards", "the reward is array(["),
        ("shape", "observation has shape [1, 2], wanted [3, 2]"),
    ],
)
def test_what_cannot_be_is_named(how, said):
    env = ForeignEnv("mine", Faulty, {"how": how}, is_vector=True)
    envs = VectorEnvs(env, 3, 0)
    with pytest.raises(EnvError) as caught:
        Trial(envs).step()
    assert str(caught.value).startswith("mine: ") and said in str(caught.value)
    assert envs.position[0] < 0, "nobody knows which"


def test_dicts_pass_through_a_vector_environment():
    env = ForeignEnv("mine", Faulty, {"how": "fine"}, is_vector=True)
    envs = VectorEnvs(env, 3, 0)
    acting = Trial(envs)
    for _ in range(30):
        acting.step()
    assert (envs.clocks["episode"] >= 1).all()


def test_mode_that_is_not_said_is_asked_for():
    with pytest.raises(EnvError, match="metadata\\['autoreset_mode'\\] is None, wanted one of"):
        ForeignEnv("mine", make_unsaid, is_vector=True)


# Games


def test_agents_that_have_left_wait_and_their_rows_are_no_steps():
    env = ForeignEnv("mine", Race)
    assert env.group == 3 and env.has_no_ops and env.is_vector
    envs = VectorEnvs(env, 6, 1)
    game, agents = Race(), Race.possible_agents
    shown, _ = game.reset(seed=envs_seed(env, 3, 1))
    rows = dict(shown)
    acting = Trial(envs)
    num_games = 0
    for _ in range(40):
        action = acting.draw(acting.envs.num_envs)
        observation, reward, terminated, truncated, no_op = acting.step(action)
        playing = list(game.agents)
        if not playing:
            num_games += 1
            shown, _ = game.reset()
            rows = dict(shown)
            assert no_op[3:].all()
        else:
            shown, gained, there, late, _ = game.step(
                {agent: action[3 + agents.index(agent)] for agent in playing}
            )
            rows |= shown
            for row, agent in enumerate(agents, 3):
                assert no_op[row] == (agent not in playing)
                if agent in playing:
                    assert reward[row] == np.float32(gained[agent])
                    assert (terminated[row], truncated[row]) == (there[agent], late[agent])
        np.testing.assert_array_equal(observation[3:], [rows[agent] for agent in agents])
    assert num_games > 2


def test_agent_that_comes_later_waits_till_then():
    env = ForeignEnv("mine", Late)
    envs = VectorEnvs(env, 3, 1)
    acting = Trial(envs)
    assert [acting.step()[4].tolist() for _ in range(2)] == [[False, False, True], [False] * 3]


class Stubborn(SyncVectorEnv):
    """Its second reset fails."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([Drift] * num_envs)
        self.resets = 0

    def reset(self, **kwargs: Any):
        self.resets += 1
        if self.resets == 1 and kwargs.get("seed") != [0]:
            raise OSError("the port is taken")
        return super().reset(**kwargs)


def test_reset_that_fails_is_not_tried_with_other_seeds():
    env = ForeignEnv("mine", Stubborn, is_vector=True)
    with pytest.raises(OSError, match="the port is taken"):
        VectorEnvs(env, 2, 1)


def test_agents_of_different_spaces_are_refused():
    with pytest.raises(EnvError, match=r"observation_space of agent 'bob' is Box.*pad them"):
        ForeignEnv("mine", Race, {"differ": True})


def test_real_games_are_played():
    pytest.importorskip("mpe2")
    env = named("mpe2.simple_spread_v3:parallel_env", params={"max_cycles": 4})
    assert env.group == 3
    envs = make_envs(env, 6, 0)
    acting = Trial(envs)
    for _ in range(10):
        acting.step()
    assert envs.clocks["episode"].tolist() == [2] * 6


# Packages with vector environments of their own


def test_gymnasiums_own_vector_environment():
    env = named("gymnasium:CartPole-v1", vectorization_mode="vector_entry_point")
    assert env.is_vector and env.has_no_ops
    try_out(env, 0)


def test_atari_by_its_vector_environment():
    pytest.importorskip("ale_py")
    env = named(
        "gymnasium:ALE/Pong-v5",
        vectorization_mode="vector_entry_point",
        params={"autoreset_mode": "SameStep", "num_threads": 1, "img_height": 42, "img_width": 42},
    )
    assert not env.has_no_ops and observation_layout(env.observation_space).shape == (4, 42, 42)
    try_out(env, 0)


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # EnvPool's own bounds
def test_envpool_takes_a_seed_for_each():
    pytest.importorskip("envpool")
    env = named("envpool:CartPole-v1", params={"num_threads": 1, "max_episode_steps": 20})
    assert env.has_no_ops
    whole, part = make_envs(env, 4, 3), make_envs(env, 2, 3, first_env=2)
    np.testing.assert_array_equal(whole.observation()[2:], part.observation())
    _, episodes = histories(whole, 50)  # pyright: ignore[reportArgumentType]
    assert all(lengths and max(length for _, length in lengths) <= 20 for lengths in episodes)
    for envs in (whole, part):
        envs.close()


@pytest.mark.parametrize(
    ("env_id", "others", "said"),
    [
        ("envpool:CartPol-v1", {}, "did you mean envpool:CartPole-v"),
        (
            "gymnasium:Pendulum-v1",
            {"vectorization_mode": "vector_entry_point"},
            "has no vector environment of its own; leave env.vectorization_mode out",
        ),
        (
            "gymnasium:CartPole-v1",
            {"vectorization_mode": "vector_entry_point", "max_episode_steps": 5},
            "counts its steps itself; set its own limit among env.params",
        ),
        ("pettingzoo:sisl.persuit_v5", {}, "named by their modules, such as pettingzoo:"),
    ],
)
def test_what_cannot_be_had_is_named(env_id, others, said):
    package = env_id.partition(":")[0]
    pytest.importorskip(package)
    with pytest.raises(EnvError) as caught:
        named(env_id, **others)
    assert said in str(caught.value)


def test_package_that_is_not_there_names_what_installs_it(monkeypatch):
    import sys

    for package in ("envpool", "pettingzoo", "ale_py"):
        monkeypatch.setitem(sys.modules, package, None)
    for env_id, extra in (
        ("envpool:Pong-v5", "envpool"),
        ("pettingzoo:sisl.pursuit_v5", "pettingzoo"),
        ("gymnasium:ALE/Zaxxon-v5", "atari"),
    ):
        with pytest.raises(EnvError) as caught:
            named(env_id)
        assert f"pip install 'rollout-cluster[{extra}]'" in str(caught.value)
