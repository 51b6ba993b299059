import copy
import itertools
import multiprocessing
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs import EnvError, Envs, Outcome, SingleEnv, VectorEnv
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting
from tests.envs.gymnasium_envs import MODES, Maze, Sliders, Tiles, assert_same, random_actions
from tests.envs.nasty import Nasty, Pixels
from tests.rollout.rich_envs import Choices

ENVS = [CartPole, Counting, Nasty, Pixels, Maze, Tiles, Sliders]
NEXT_STEP, SAME_STEP, DISABLED = MODES
ROOT = Path(__file__).parents[2]

each_env = pytest.mark.parametrize("env", ENVS, ids=lambda env: env.__name__)
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def sync(env: Any, num_envs: int, mode: AutoresetMode, **arguments: Any) -> SyncVectorEnv:
    """The judge: Gymnasium's vector of our single environments."""
    return SyncVectorEnv(
        [lambda: SingleEnv(env, **arguments) for _ in range(num_envs)], autoreset_mode=mode
    )


def run(envs: Any, actions: Any, seed: Any = 3) -> list[Any]:
    """All that a reset and steps give; without autoreset the ended ones are reset as they end."""
    answers: list[Any] = [] if seed is None else [copy.deepcopy(envs.reset(seed=seed))]
    for action in actions:
        answer = copy.deepcopy(envs.step(action))
        answers.append(answer)
        ended = answer[2] | answer[3]
        if envs.metadata["autoreset_mode"] == DISABLED and ended.any():
            answers.append(copy.deepcopy(envs.reset(options={"reset_mask": ended})))
    return answers


def without_times(answers: list[Any]) -> list[Any]:
    """Episodes took as long as they took."""
    for answer in answers:
        if "episode" in answer[-1]:
            took = answer[-1]["episode"].pop("t")
            assert took.dtype == np.float64
            assert (took >= 0).all() and not took[~answer[-1]["_episode"]].any()
    return answers


@each_mode
@each_env
def test_equals_gymnasiums_vector_of_single_environments(env, mode):
    N, actions = 5, random_actions(env, 60, 5)
    ours = run(VectorEnv(env, N, autoreset_mode=mode, episode_statistics=False), actions)
    assert_same(ours, run(sync(env, N, mode), actions))
    assert any(answer[3].any() for answer in ours if len(answer) == 5) or env is CartPole


@each_mode
@each_env
def test_statistics_equal_those_of_gymnasiums_wrapper(env, mode):
    """Which counts for itself, around an environment that tells it nothing or anything."""
    N, actions = 3, random_actions(env, 80, 3)
    silent = VectorEnv(env, N, autoreset_mode=mode, episode_statistics=False)
    judge = RecordEpisodeStatistics(silent)
    wanted = without_times(run(judge, actions))
    assert judge.episode_count > 3
    ours, wrapped = (VectorEnv(env, N, autoreset_mode=mode) for _ in range(2))
    assert_same(without_times(run(ours, actions)), wanted)
    assert_same(without_times(run(RecordEpisodeStatistics(wrapped), actions)), wanted)


def test_statistics_come_back_when_the_wrapper_is_gone():
    envs = VectorEnv(OneStep, 2)
    for around, wanted in ((True, {"mine", "_mine"}), (False, {"episode", "_episode"})):
        outer = RecordEpisodeStatistics(envs, stats_key="mine") if around else envs
        outer.reset(seed=0)
        *_, infos = outer.step([0, 0])
        assert infos.keys() == wanted


class Evaluating(VectorWrapper):
    """Resets environments of its own on the way."""

    def reset(self, **arguments: Any) -> Any:
        self.others = VectorEnv(OneStep, 2)
        self.others.reset(seed=0)
        return super().reset(**arguments)


def test_statistics_are_only_left_to_a_wrapper_around_them():
    inner = Evaluating(VectorEnv(OneStep, 2))
    RecordEpisodeStatistics(inner).reset(seed=0)
    assert not inner.step([0, 0])[-1]
    assert "episode" in inner.others.step([0, 0])[-1]


class OneStep(Counting):
    max_episode_steps = 1


@each_mode
def test_statistics_tell_the_seconds_of_each_episode(mode, monkeypatch):
    """Here each call takes one: Counting's first episodes last five steps, its second three."""
    ticks = itertools.count(100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    answers = run(VectorEnv(Counting, 2, autoreset_mode=mode), [np.zeros(2, np.int64)] * 10)
    seconds = [answer[-1]["episode"]["t"].tolist() for answer in answers if answer[-1]]
    assert seconds[:2] == [[5.0, 5.0], [3.0, 3.0]]


@each_env
def test_environment_i_is_the_single_one_with_its_seed(env):
    N, actions = 4, random_actions(env, 30, 4)
    seeds = [5, 2**32 - 1, 0, 77]
    together = run(VectorEnv(env, N), actions, seeds)
    for i, seed in enumerate(seeds):
        alone = run(VectorEnv(env, 1), [action[i : i + 1] for action in actions], seed)
        for row, wanted in zip(together, alone, strict=True):
            assert_same(one_of(row[:-1], i), one_of(wanted[:-1], 0))


def one_of(answer: Any, i: int) -> Any:
    """Environment i's part of an answer."""
    if isinstance(answer, tuple):
        return tuple(one_of(part, i) for part in answer)
    if isinstance(answer, dict):
        return {key: one_of(part, i) for key, part in answer.items()}
    return answer[i]


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_equals_the_loops_that_actors_run(mode):
    """Apart from the row in which NEXT_STEP resets."""
    envs, outcome = Envs(CartPole, 1, seed=9), Outcome(CartPole, 1)
    ours = VectorEnv(CartPole, 1, autoreset_mode=mode)
    ours.reset(seed=9)
    ends = 0
    for action in random_actions(CartPole, 200, 1):
        observation, reward, terminated, truncated, infos = ours.step(action)
        envs.step(action.astype(np.int32), outcome)
        ended = terminated[0] or truncated[0]
        ends += ended
        if ended and mode == NEXT_STEP:
            observation = ours.step(action)[0]
        assert_same(observation, outcome.observation)
        assert reward[0] == outcome.reward[0]
        assert terminated[0] == outcome.terminated[0]
        if ended:
            assert infos["episode"]["r"][0] == outcome.episode_return[0]
            assert infos["episode"]["l"][0] == outcome.episode_length[0]
    assert ends > 3


def test_resets_without_a_seed_go_on():
    envs, again = VectorEnv(CartPole, 3), VectorEnv(CartPole, 3)
    shown = [envs.reset(seed=4)[0], envs.reset()[0], envs.reset(seed=[None, 5, None])[0]]
    assert_same(again.reset(seed=4)[0], shown[0])
    assert_same(again.reset()[0], shown[1])
    assert (shown[0] != shown[1]).all()
    assert_same(shown[2][1], shown[0][1])
    assert (shown[2][[0, 2]] != shown[1][[0, 2]]).all()
    assert_same(again.reset()[0][[0, 2]], shown[2][[0, 2]])


def test_first_reset_without_a_seed_is_like_no_other():
    shown = np.concatenate([VectorEnv(CartPole, 50).reset()[0] for _ in range(2)])
    assert len({row.tobytes() for row in shown}) == 100


@each_mode
@pytest.mark.parametrize("env", [Maze, CartPole], ids=lambda env: env.__name__)
def test_reset_of_some_equals_gymnasiums(env, mode):
    answers = []
    for envs in (
        VectorEnv(env, 4, autoreset_mode=mode, episode_statistics=False),
        sync(env, 4, mode),
    ):
        heard = run(envs, random_actions(env, 8, 4))
        for seed in (None, 7, [1, None, 2, 3]):
            options = {"reset_mask": np.array([True, False, True, True])}
            heard.append(copy.deepcopy(envs.reset(seed=seed, options=options)))
            heard += run(envs, random_actions(env, 3, 4, seed=1), seed=None)
        answers.append(heard)
    assert_same(*answers)


@each_mode
@each_env
@settings(max_examples=8)
@given(data=st.data())
def test_what_was_given_never_changes(env, mode, data):
    """Neither observations, rewards and infos that users keep, nor arrays of their own."""
    N = data.draw(st.integers(1, 4))
    envs = VectorEnv(env, N, autoreset_mode=mode)
    kept, copies = [], []

    def keep(answer: Any) -> Any:
        kept.append(answer)
        copies.append(copy.deepcopy(answer))
        return answer

    keep(envs.reset(seed=1))
    for action in random_actions(env, 25, N, data.draw(st.integers(0, 100))):
        given = action.copy()
        _, _, terminated, truncated, _ = keep(envs.step(action))
        assert_same(action, given)
        action[:] = 0
        if mode == DISABLED and (ended := terminated | truncated).any():
            keep(envs.reset(options={"reset_mask": ended}))
            ended[:] = True
    assert_same(kept, copies)
    state = envs.snapshot()
    arrays = list(arrays_of(kept))
    for i, array in enumerate(arrays):
        array[...] = 1
        assert not any(np.shares_memory(array, other) for other in arrays[:i])
    assert envs.snapshot() == state, "what users do with their arrays is their own affair"


def arrays_of(answer: Any) -> Any:
    """Every array of numbers in it."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, np.ndarray) and answer.dtype != object:
        yield answer
    elif isinstance(answer, list | tuple | np.ndarray):
        for part in answer:
            yield from arrays_of(part)


@each_env
def test_without_copies_the_same_observations_are_written_again(env):
    actions = random_actions(env, 30, 3)
    reused, fresh = VectorEnv(env, 3, copy=False), VectorEnv(env, 3)
    first, _ = reused.reset(seed=2)
    assert_same(first, fresh.reset(seed=2)[0])
    for action in actions:
        ours, theirs = reused.step(action), fresh.step(action)
        assert ours[0] is first
        assert_same(without_times([ours]), without_times([theirs]))
    assert reused.reset(seed=2)[0] is first


def test_fields_of_a_dict_are_plain_arrays():
    observation, _ = VectorEnv(Maze, 3).reset(seed=0)
    assert list(observation) == list(Maze.observation_space.sample())
    for array in arrays_of(observation):
        assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
        torch.from_numpy(array)
    assert observation in VectorEnv(Maze, 3).observation_space


FORMS = {
    "int64": lambda actions: actions,
    "int32": lambda actions: actions.astype(np.int32),
    "uint8": lambda actions: actions.astype(np.uint8),
    "list": lambda actions: actions.tolist(),
    "tuple": tuple,
    "strided": lambda actions: np.repeat(actions, 2, axis=0)[::2],
    "tensor": torch.as_tensor,
    "fortran": np.asfortranarray,
}


def read_only(actions: np.ndarray) -> np.ndarray:
    actions = actions.copy()
    actions.flags.writeable = False
    return actions


@pytest.mark.parametrize("form", [*FORMS.values(), read_only], ids=[*FORMS, "read-only"])
@pytest.mark.parametrize("env", [CartPole, Maze], ids=lambda env: env.__name__)
def test_actions_of_any_form_are_the_same_actions(env, form):
    actions = random_actions(env, 12, 3)
    wanted = run(VectorEnv(env, 3, episode_statistics=False), actions)
    found = run(VectorEnv(env, 3, episode_statistics=False), map(form, actions))
    assert_same(found, wanted)


@pytest.mark.parametrize("form", [np.float64, np.float32, np.int64], ids=lambda form: form.__name__)
def test_quantities_may_be_of_any_kind_and_beyond_their_bounds(form):
    actions = [np.array([[1, -1], [0, 2]], form)] * 3
    ours = run(VectorEnv(Sliders, 2, episode_statistics=False), actions)
    wanted = [action.astype(np.float32) for action in actions]
    assert_same(ours, run(VectorEnv(Sliders, 2, episode_statistics=False), wanted))
    assert ours[1][0][1, 1] == 60, "a step of 2 * 5 from 50"


def test_masks_are_what_sampling_takes():
    envs = VectorEnv(Tiles, 4)
    observation, infos = envs.reset(seed=0)
    for _ in range(20):
        masks = infos["action_mask"]
        actions = [envs.single_action_space.sample(mask) for mask in masks]
        assert all(action != tile % 4 for action, tile in zip(actions, observation, strict=True))
        observation, _, _, _, infos = envs.step(actions)


def test_masks_of_several_choices_are_split_as_sampling_takes_them():
    envs = VectorEnv(Choices, 4)
    space: Any = envs.single_action_space
    _, infos = envs.reset(seed=0)
    forbidden = 0
    for _ in range(20):
        rows = infos["action_mask"]
        forbidden += (rows == 0).sum()
        ends = np.cumsum(space.nvec)
        actions = [space.sample(tuple(np.split(row, ends[:-1]))) for row in rows]
        for action, row in zip(actions, rows, strict=True):
            assert row[action + ends - space.nvec].all()
        *_, infos = envs.step(np.array(actions))
    assert forbidden > 0


@pytest.mark.parametrize(("chosen", "wanted"), [(None, 12), (3, 3), (20, 20), (-1, None)])
@each_mode
def test_time_limit_can_be_chosen(mode, chosen, wanted):
    envs = VectorEnv(Endless, 2, autoreset_mode=mode, max_episode_steps=chosen)
    envs.reset(seed=0)
    for t in range(1, 1 + (wanted or 60)):
        _, _, terminated, truncated, infos = envs.step([0, 0])
        assert not terminated.any()
        assert truncated.tolist() == [t == wanted] * 2
        assert t != wanted or infos["episode"]["l"].tolist() == [wanted] * 2


def test_subclass_of_a_class_made_with_another_limit_is_itself():
    class Late(Counting.with_time_limit(7)):
        def observe(state, params, observation):
            observation[0] = state.t + 100

    envs = VectorEnv(Late, 1)
    assert envs.reset(seed=0)[0][0, 0] == 100
    truncated = [bool(envs.step([0])[3][0]) for _ in range(7)]
    assert truncated == [False] * 6 + [True]


@pytest.mark.parametrize("mode", [NEXT_STEP, DISABLED])
def test_snapshot_goes_on_in_another_autoreset_mode(mode):
    """One of SAME_STEP holds no episode that has ended."""
    envs = VectorEnv(Counting, 2, autoreset_mode=SAME_STEP)
    envs.reset(seed=0)
    for _ in range(5):
        envs.step([0, 0])
    other = VectorEnv(Counting, 2, autoreset_mode=mode)
    shown, _ = other.restore(envs.snapshot())
    assert shown[:, 1:].tolist() == [[1, 0]] * 2
    assert other.step([0, 0])[0][:, 1:].tolist() == [[1, 1]] * 2


@pytest.mark.parametrize(("of_class", "wanted"), [(3, 3), (-1, None)])
def test_limit_of_a_class_made_with_another_holds(of_class, wanted):
    envs = VectorEnv(Endless.with_time_limit(of_class), 1)
    envs.reset(seed=0)
    truncated = [bool(envs.step([0])[3][0]) for _ in range(20)]
    assert truncated[:3] == ([False, False, True] if wanted else [False] * 3)
    assert any(truncated) == (wanted is not None)


class Endless(Counting):
    params = {"length": 10**9}
    max_episode_steps = 12


@each_mode
@each_env
def test_continues_from_a_snapshot(env, mode):
    """In the middle of episodes, and where some wait for their reset."""
    actions = random_actions(env, 40, 4)
    envs, other = (VectorEnv(env, 4, autoreset_mode=mode) for _ in range(2))
    run(envs, actions[:19])
    kept = envs.snapshot()
    wanted = without_times(run(envs, actions[19:], seed=None))
    shown, infos = other.restore(kept)
    assert_same(without_times(run(other, actions[19:], seed=None)), wanted)
    assert other.snapshot() == envs.snapshot()
    assert_same(other.restore(kept), (shown, infos))
    envs.restore(kept)
    assert_same(envs.restore(kept), (shown, infos))
    assert ("action_mask" in infos) == hasattr(env, "action_mask")


class Hiding(Counting):
    has_hidden_state = True


def test_hidden_state_goes_on_with_the_next_episode():
    envs = VectorEnv(Hiding, 2)
    envs.reset(seed=0)
    for _ in range(5):  # until the time limit: both wait for their reset
        envs.step([0, 0])
    observation, _ = envs.restore(envs.snapshot())
    assert observation.tolist() == [[0, 1, 0]] * 2
    assert envs.step([0, 0])[0].tolist() == [[0, 1, 1]] * 2, "nothing waits for a reset"


COPIES = {
    "pickle": lambda envs: pickle.loads(pickle.dumps(envs)),  # noqa: S301
    "cloudpickle": lambda envs: pickle.loads(cloudpickle.dumps(envs)),  # noqa: S301
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@each_mode
def test_copies_continue_in_mid_episode(mode, copied):
    envs = gymnasium.make_vec(
        "rollout/CartPole-v1", 3, autoreset_mode=mode, params={"force": 12.0}, max_episode_steps=15
    )
    fresh = copied(envs)
    assert fresh.spec == envs.spec
    actions = random_actions(CartPole, 60, 3)
    assert_same(without_times(run(fresh, actions[:20])), without_times(run(envs, actions[:20])))
    other = copied(envs)
    wanted = without_times(run(envs, actions[20:], seed=None))
    assert_same(without_times(run(other, actions[20:], seed=None)), wanted)
    assert other.metadata == envs.metadata
    assert repr(other) == "VectorEnv(rollout/CartPole-v1, num_envs=3)"


def test_definition_of_a_script_travels_by_value():
    """As cloudpickle sends what a notebook or `__main__` defines."""
    source = """
import cloudpickle, sys
import numpy as np
from tests.envs.gymnasium_envs import Tiles
from rollout.envs import VectorEnv
class Mine(Tiles):
    max_episode_steps = 3
envs = VectorEnv(Mine, 2)
envs.reset(seed=6)
sys.stdout.buffer.write(cloudpickle.dumps(envs))
"""
    sent = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, cwd=ROOT)
    envs = pickle.loads(sent.stdout)  # noqa: S301
    wanted = run(VectorEnv(Tiles, 2, max_episode_steps=3), random_actions(Tiles, 9, 2), seed=6)
    found = run(envs, random_actions(Tiles, 9, 2), seed=None)
    assert_same(without_times(found), without_times(wanted[1:]))


def step_elsewhere(envs: VectorEnv, actions: list[np.ndarray], connection: Any) -> None:
    connection.send(run(envs, actions, seed=None))
    connection.close()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_goes_on_in_another_process(method):
    """A fork has a copy of its own: neither disturbs the other."""
    envs = VectorEnv(Maze, 3)
    actions = random_actions(Maze, 40, 3)
    run(envs, actions[:13])
    state = envs.snapshot()
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=step_elsewhere, args=(envs, actions[13:], there))
    child.start()
    found = here.recv()
    child.join()
    assert child.exitcode == 0
    assert envs.snapshot() == state
    assert_same(without_times(found), without_times(run(envs, actions[13:], seed=None)))


def test_forks_that_seed_themselves_differ():
    context = multiprocessing.get_context("fork")
    envs, shown = VectorEnv(CartPole, 1), set()
    for _ in range(2):
        here, there = context.Pipe()
        child = context.Process(target=lambda there=there: there.send(envs.reset()[0].tobytes()))
        child.start()
        shown.add(here.recv())
        child.join()
    assert len(shown) == 2


@each_mode
@each_env
def test_plain_python_gives_the_same(env, mode):
    actions = random_actions(env, 25, 2)
    plain = run(VectorEnv(env, 2, autoreset_mode=mode, jit=False), actions)
    compiled = run(VectorEnv(env, 2, autoreset_mode=mode), actions)
    for one, other in zip(without_times(plain), without_times(compiled), strict=True):
        for ours, theirs in zip(arrays_of(one), arrays_of(other), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_render_gives_a_picture_of_each():
    envs = VectorEnv(Maze, 3, render_mode="rgb_array")
    observation, _ = envs.reset(seed=0)
    frames = envs.render()
    assert isinstance(frames, tuple) and len(frames) == 3
    for frame, place in zip(frames, observation["place"], strict=True):
        assert_same(frame, np.full((4, 6, 3), place, np.uint8))
    assert envs.metadata["render_modes"] == ["rgb_array"]
    assert envs.metadata["render_fps"] == 30
    assert VectorEnv(Tiles, 1).metadata["render_modes"] == []
    with pytest.warns(UserWarning, match="made without render_mode='rgb_array'"):
        assert VectorEnv(Maze, 1).render() is None


def test_each_vector_has_spaces_and_metadata_of_its_own():
    one, other = VectorEnv(CartPole, 2), VectorEnv(CartPole, 2, autoreset_mode="SameStep")
    assert other.metadata["autoreset_mode"] is SAME_STEP
    assert one.metadata["autoreset_mode"] is NEXT_STEP
    assert one.single_action_space is not other.single_action_space
    assert one.single_action_space == CartPole.action_space
    assert one.action_space.shape == (2,)
    assert one.observation_space.shape == (2, 4)
    assert repr(one) == "VectorEnv(num_envs=2)"
    one.close()
    one.close()
    assert one.closed


def test_params_reach_the_environments():
    weak, strong = (VectorEnv("CartPole-v1", 1, params={"force": force}) for force in (1.0, 30.0))
    shown = [run(envs, [[1]])[1][0][0, 1] for envs in (weak, strong)]
    assert shown[1] - shown[0] > 0.5
    with pytest.raises(EnvError, match=r"no param 'forse'; did you mean force\?"):
        VectorEnv(CartPole, 1, params={"forse": 1.0})
