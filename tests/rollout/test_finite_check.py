"""NaN and infinity in unrolls: found wherever they are, and told with where they came from."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from rollout.envs import find_env
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.layouts import observation_layout
from rollout.finite_check import NotFinite, check_finite, first_non_finite
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import make_mlp
from rollout.make_actor import make_actor
from rollout.shapes import head_of, make_schema, parts_of
from tests.rollout.rich_envs import Arm, Choices

T, N = 24, 3

WALK = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from rollout.envs import CompiledEnv


class Walk(CompiledEnv):
    state = np.dtype([("x", "f8")])
    params = {"limit": 4.0}
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 40

    def reset(state, params, draw):
        state.x = 0.0

    def step(state, params, action, draw):
        state.x += 1.0 if action == 1 else -1.0
        return (np.nan if state.x > params.limit else state.x), False

    def observe(state, params, observation):
        observation[0] = state.x
"""
EXPERIMENT = """
[env]
id = "walks:Walk"
num_envs = 4
[fleet]
num_actors = 2
unroll_length = 32
[network]
hidden_sizes = [8]
[stop]
env_steps = 20_000
wall_s = 80
"""


class Acted:
    """An unroll of an environment, acted here, without JIT, to be spoilt."""

    def __init__(self, env: type[CompiledEnv]) -> None:
        self.env = env
        shape = observation_layout(env.observation_space).shape
        core = ("gru", 3)
        network = make_mlp(shape, head_of(env), (4,), "tanh", "shared", parts_of(env), core, 3)
        self.parts = network.parts
        self.weights = initial_parameters(network, 0)
        self.weights.flags.writeable = False
        self.position = np.full(1, -1, np.int64)
        schema = make_schema(env, T, True, network)
        self.actor = make_actor(env, N, 7, network, schema, first_env=10, jit=False)
        self.actor.act(self.weights)
        self.began = self.actor.envs.clocks.copy()  # the second unroll is looked at
        self.actor.act(self.weights)
        self.unroll = self.actor.buffer.unroll()

    def check(self) -> str:
        """What is said of it; nothing if all is well."""
        buffer = self.actor.buffer
        for name in ("final_observation", "final_value", "episode_return"):  # what was sealed
            rows = getattr(self.unroll, name)
            getattr(buffer.room, name)[: len(rows)] = rows
        try:
            check_finite(self.actor, self.parts, self.weights, self.position)
        except NotFinite as error:
            return str(error)
        return ""


@pytest.mark.parametrize("env", [Choices, Arm])
def test_unroll_as_it_was_acted_is_finite(env):
    acted = Acted(env)
    assert first_non_finite(acted.unroll, acted.parts) is None
    assert acted.check() == "" and acted.position[0] == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["observation", "action", "reward", "behavior_log_prob", "value", "final_value",
             "final_observation", "episode_return", "core_state", "frames"]
)  # fmt: skip
def test_number_that_is_not_finite_is_found_in_every_field(name, value):
    acted = Acted(find_env("Pendulum-v1", max_episode_steps=10))
    column = getattr(acted.unroll, name)
    assert column.dtype.kind == "f" and column.size
    column[-1] = value
    found = first_non_finite(acted.unroll, acted.parts)
    assert found is not None and found[0] == name
    assert f"{name}" in acted.check() and f"is {value}" in acted.check()


@pytest.mark.parametrize("t", range(T))
def test_step_and_environment_are_those_of_the_episode(t):
    """Counted forward here, from the clocks before; Choices ends after 10 steps at most."""
    acted = Acted(Choices)
    acted.unroll.reward[t, 2] = np.nan
    episode, step = int(acted.began["episode"][2]), int(acted.began["t"][2])
    for ended in (acted.unroll.terminated | acted.unroll.truncated)[:t, 2]:
        episode, step = (episode + 1, 0) if ended else (episode, step + 1)
    assert acted.check() == (
        "Choices: reward is nan, wanted a finite number "
        f"(environment 12, seed 7, episode {episode}, step {step})"
    )
    assert acted.position[0] == 2 * T + t


@pytest.mark.parametrize("t", [0, T - 1])
def test_step_is_that_of_an_episode_that_is_longer_than_the_unroll(t):
    acted = Acted(find_env("Pendulum-v1"))
    acted.unroll.reward[t, 1] = np.nan
    assert f"(environment 11, seed 7, episode 0, step {T + t})" in acted.check()


def test_part_of_a_dict_is_called_as_its_author_calls_it():
    acted = Acted(Choices)
    record_dtype = observation_layout(Choices.observation_space).record
    assert record_dtype is not None
    record = acted.unroll.observation.view(record_dtype)
    record["place"][5, 1, 0, 1] = np.inf
    assert "Choices: observation place[1] is inf, wanted a finite number" in acted.check()
    assert acted.position[0] == 1 * T + 4, "the step that led to it"


def test_policy_that_is_not_finite_is_not_the_environments_fault():
    acted = Acted(Choices)
    acted.weights = np.full_like(acted.weights, 1e30)
    acted.unroll.value[3, 1] = np.inf
    assert acted.check().startswith(
        "the policy's value is inf for a finite observation of Choices; the largest of the weights "
        "is 1e+30, wanted a finite number; try a smaller algorithm.learning_rate (environment 11"
    )


def test_environment_that_gives_nan_ends_the_run_as_one_that_raises(tmp_path, places):
    (tmp_path / "walks.py").write_text(WALK)
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    command = [sys.executable, "-P", "-m", "rollout"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([*command, "train", "x.toml", "--run-dir", "run"], **options)
    places.assert_gone()
    assert done.returncode == 1, done.stderr
    said = re.search(
        r"environment (\d) failed 3 times at its step (\d+): .*Walk: reward is nan, wanted a "
        r"finite number \(environment \1, seed 0, episode 0, step \2\)",
        done.stderr,
    )
    assert said, done.stderr
    file = tmp_path / f"run/failures/env-{said[1]}-step-{said[2]}.safetensors"
    replayed = subprocess.run([*command, "replay", str(file), "--json"], **options)
    assert replayed.returncode == 1, "it fails again"
    found = json.loads(replayed.stdout)
    assert "reward is nan" in json.dumps(found)
