"""Networks that read an episode's last observations, against stacks made by hand from a deque."""

from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from msgspec.structs import replace

from rollout import api
from rollout.acting import EnvsWithPolicy, UnrollActor, read_only
from rollout.envs import CompiledEnv, Envs, integers
from rollout.envs.diagnostic.counting import Counting
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.making import make_envs
from rollout.errors import ConfigError
from rollout.experiment import Experiment, as_experiment
from rollout.experiment_tables import ConvSettings, CoreSettings, MlpSettings
from rollout.learners.columns import Columns, evaluate
from rollout.learners.frames import UnrollFrames
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import NetworkSpec
from rollout.learners.ppo import PPO
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch, Unroll
from rollout.policy import Policy
from rollout.policy_kernel import BLOCK
from rollout.shapes import make_network, make_schema
from rollout.stepping_actor import SteppingActor
from tests.envs.foreign_samples import Race, make_vector
from tests.rollout.rich_envs import Choices
from tests.rollout.test_conv_networks import Pictures
from tests.rollout.test_heads import inputs_of
from tests.some_fast import slow_unless

T = 11  # no multiple of an episode's length


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Scenes(Pictures):
    """The same pictures, the channels last."""

    observation_space = Box(0, 255, (6, 5, 3), np.uint8)

    def observe(state, params, observation):
        for c in range(3):
            for y in range(6):
                for x in range(5):
                    observation[y, x, c] = (
                        40 * c + 7 * y + 11 * x + 13 * state.t + state.env
                    ) % 256


CONV: dict[str, Any] = {"channels": (4,), "hidden_sizes": (5,), "activation": "tanh"}
SETTINGS: dict[str, tuple[type[CompiledEnv], Any]] = {
    "numbers": (Counting, MlpSettings(hidden_sizes=(7,), frame_stack=4)),
    "two": (Counting, MlpSettings(hidden_sizes=(7,), frame_stack=2)),
    "longer than episodes": (Counting, MlpSettings(hidden_sizes=(7,), frame_stack=9)),
    "before a core": (
        Counting,
        MlpSettings(
            hidden_sizes=(6,),
            frame_stack=3,
            core=CoreSettings(kind="gru", size=4),
        ),
    ),
    "parts": (Choices, MlpSettings(hidden_sizes=(7,), frame_stack=3)),
    "channels first": (Pictures, ConvSettings(frame_stack=4, **CONV)),
    "channels last": (
        Scenes,
        ConvSettings(frame_stack=3, core=CoreSettings(kind="lstm", size=3), **CONV),
    ),
}
COMPILED = ["numbers", "before a core", "parts", "channels first", "channels last"]
each_network = pytest.mark.parametrize("name", SETTINGS)


def spec_of(name: str) -> NetworkSpec:
    env, settings = SETTINGS[name]
    network = make_network(settings, env)
    assert isinstance(network, NetworkSpec)
    return network


def weights_for(network: NetworkSpec) -> np.ndarray:
    rng = np.random.default_rng(0)
    return read_only((0.2 * rng.standard_normal(network.num_parameters)).astype(np.float32))


def make_actor(name: str, num_envs: int, first_env: int = 0, jit: bool = False) -> UnrollActor:
    """Without JIT it compiles nothing: the loops are the same, in Python."""
    (env, _), network = SETTINGS[name], spec_of(name)
    schema = make_schema(env, T, True, network)
    return UnrollActor(Envs(env, num_envs, 3, first_env=first_env, jit=jit), network, schema)


def act(actor: EnvsWithPolicy[Any], weights: np.ndarray) -> Unroll:
    """An unroll of its own memory."""
    actor.act(weights)  # pyright: ignore[reportAttributeAccessIssue]
    unroll = actor.buffer.unroll()
    return Unroll(**{field.name: getattr(unroll, field.name).copy() for field in fields(Unroll)})


class ByHand:
    """Stacks of N environments from one unroll to the next, a deque for each."""

    def __init__(self, num_frames: int, num_envs: int, frame: np.ndarray) -> None:
        self.zero = np.zeros_like(frame)
        self.past = [deque([self.zero] * num_frames, maxlen=num_frames) for _ in range(num_envs)]

    def rows(self, unroll: Unroll) -> Iterator[tuple[int, int, list[np.ndarray], list[np.ndarray]]]:
        """(t, environment, stack there, frames of its episode behind it) of rows 0 to T."""
        steps = len(unroll.reward)
        for t in range(steps + 1):
            for i, past in enumerate(self.past):
                stack = [*past, unroll.observation[t, i]][-len(past) - 1 :]
                yield t, i, stack, stack[1:]
                if t == steps:
                    continue
                past.append(unroll.observation[t, i])
                is_none = len(unroll.no_op) and unroll.no_op[t, i]
                if unroll.terminated[t, i] or unroll.truncated[t, i] or is_none:
                    past.extend([self.zero] * len(past))


def by_hand(unrolls: list[Unroll], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the last unroll: stacks [T+1, N, k, …], and those of final observations [F, k, …]."""
    shape = unrolls[-1].observation.shape
    hand = ByHand(k - 1, shape[1], unrolls[-1].observation[0, 0])
    stacks, finals = np.array(0), []
    for unroll in unrolls:
        before = np.array([list(past) for past in hand.past])
        np.testing.assert_array_equal(unroll.frames, before)
        stacks, after = np.zeros((*shape[:2], k, *shape[2:]), unroll.observation.dtype), {}
        for t, i, stack, behind in hand.rows(unroll):
            stacks[t, i] = stack
            after[t, i] = behind
        places = zip(unroll.final_t, unroll.final_env, unroll.final_observation, strict=True)
        finals = [np.array([*after[t, i], last]) for t, i, last in places]
    return stacks, np.array(finals)


def network_inputs(name: str, stacks: np.ndarray) -> torch.Tensor:
    """What the first layer is to read of stacks [R, k, …]: float32 [R, num_inputs]."""
    frames = list(np.moveaxis(stacks, 1, 0))
    if name == "parts":
        rows = np.concatenate([inputs_of(Choices, frame) for frame in frames], axis=1)
    else:
        rows = np.concatenate(frames, axis=1 if name == "channels first" else -1)
    return torch.from_numpy(rows.reshape(len(stacks), -1).astype(np.float32))


def without_stack(name: str, weights: np.ndarray) -> TorchNetwork:
    """The same layers, reading the numbers as they are given."""
    spec = spec_of(name)
    plain = replace(spec, observation_shape=(spec.num_inputs,), parts=(), frame_stack=1)
    return TorchNetwork(plain, weights)


def assert_recorded(name: str, unroll: Unroll, stacks: np.ndarray, finals: np.ndarray) -> None:
    """Log-probabilities and values of an unroll are those of the network on stacks by hand."""
    spec, twin = spec_of(name), without_stack(name, weights_for(spec_of(name)))
    steps, num_envs = unroll.reward.shape
    core = torch.from_numpy(unroll.core_state)
    never = torch.zeros(num_envs, dtype=torch.bool)
    cores = {}
    with torch.no_grad():
        for t in range(steps + 1):
            inputs = network_inputs(name, stacks[t])
            outputs, value, core = twin.run(inputs, core, never)
            np.testing.assert_allclose(unroll.value[t], value, atol=1e-5)
            if t == steps:
                break
            mask = torch.from_numpy(unroll.action_mask[t])
            log_prob = twin.policy(outputs, mask).log_prob(torch.from_numpy(unroll.action[t]))
            np.testing.assert_allclose(unroll.behavior_log_prob[t], log_prob, atol=1e-5)
            cores[t] = core
            core = core.clone()
            core[torch.from_numpy(unroll.terminated[t] | unroll.truncated[t])] = 0.0
        ended = [cores[t][i] for t, i in zip(unroll.final_t, unroll.final_env, strict=True)]
        never = torch.zeros(len(ended), dtype=torch.bool)
        _, value, _ = twin.run(network_inputs(name, finals), torch.stack(ended), never)
    np.testing.assert_allclose(unroll.final_value, value, atol=1e-5)
    assert spec.frame_stack == stacks.shape[2]


@each_network
def test_actor_and_learner_read_the_stacks_that_are_made_by_hand(name):
    actor, weights = make_actor(name, 3), weights_for(spec_of(name))
    unrolls = [act(actor, weights) for _ in range(2)]
    check(name, actor, weights, unrolls)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", slow_unless(["numbers"], COMPILED))
def test_compiled_loops_do_the_same_across_blocks(name):
    actor, weights = make_actor(name, BLOCK + 3, jit=True), weights_for(spec_of(name))
    unrolls = [act(actor, weights) for _ in range(2)]
    check(name, actor, weights, unrolls)


def check(name: str, actor: UnrollActor, weights: np.ndarray, unrolls: list[Unroll]) -> None:
    unroll, k = unrolls[-1], spec_of(name).frame_stack
    stacks, finals = by_hand(unrolls, k)
    assert len(finals) and unroll.frames.any()
    assert_recorded(name, unroll, stacks, finals)

    num_envs = unroll.reward.shape[1]
    batch = Batch(actor.buffer.schema, num_envs)
    batch.put(unroll, 0, np.arange(num_envs), 0)
    batch.seal()
    algorithm = PPO(TorchNetwork(spec_of(name), weights), PpoSettings(), 0)
    inputs = algorithm.inputs(batch)
    assert inputs.frames is not None
    found = inputs.frames.stacked(inputs.observation)
    np.testing.assert_array_equal(found, stacks[:-1].reshape(found.shape))
    seen = 0
    for minibatch in algorithm.minibatches(algorithm.rows(batch), 2, 0, 0):
        _, value = algorithm.network(*minibatch.inputs)
        np.testing.assert_allclose(value.detach(), minibatch.value, atol=1e-5)
        seen += len(value)
    assert seen == unroll.reward.size

    order = np.random.default_rng(1).permutation(num_envs)[: num_envs - 1]
    is_picked = np.isin(batch.final_env, order)
    columns = Columns.of(batch, torch.device("cpu")).pick(order)
    evaluated = evaluate(algorithm.network, columns)
    for mine, recorded in (
        (evaluated.value, unroll.value[:T, order]),
        (evaluated.bootstrap_value, unroll.value[T, order]),
        (evaluated.final_value, batch.final_value[is_picked]),
        (evaluated.log_ratio, np.zeros((T, len(order)))),
    ):
        np.testing.assert_allclose(mine.detach().numpy(), recorded, atol=1e-5)


@each_network
def test_bits_depend_neither_on_the_sharing_out_nor_on_a_restart(name):
    weights, num_envs = weights_for(spec_of(name)), 3
    whole = make_actor(name, num_envs)
    wanted = [act(whole, weights) for _ in range(3)]
    parts = [make_actor(name, 1), make_actor(name, 2, 1)]
    for unroll in wanted:
        for number, columns in enumerate((slice(0, 1), slice(1, 3))):
            found = act(parts[number], weights)
            for field in ("observation", "action", "behavior_log_prob", "value"):
                mine = np.ascontiguousarray(getattr(unroll, field)[:, columns])
                assert getattr(found, field).tobytes() == mine.tobytes()
            for field in ("frames", "env_state"):
                mine = np.ascontiguousarray(getattr(unroll, field)[columns])
                assert getattr(found, field).tobytes() == mine.tobytes()
            parts[number] = make_actor(name, len(mine), columns.start)
            parts[number].restore(mine.tobytes())


def test_single_frames_are_sent_and_those_before_once():
    env = SETTINGS["channels last"][0]
    networks = (make_network(ConvSettings(**CONV, frame_stack=k), env) for k in (1, 4))
    one, four = (make_schema(env, 64, True, network) for network in networks)
    frame = 6 * 5 * 3
    # before row 0, and at the end of the state: a stack in each row would be 3 * 65
    assert four.size_bytes(16, 0, 0) - one.size_bytes(16, 0, 0) == 16 * 2 * 3 * frame
    assert four.env_state_bytes == one.env_state_bytes == one.state_bytes


# Environments that Python steps, and steps that are none


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(ForeignEnv("vector", make_vector, is_vector=True), marks=pytest.mark.slow),
        pytest.param(ForeignEnv("race", Race), marks=pytest.mark.slow),
    ],
    ids=["vector", "race"],
)
def test_steps_that_are_none_are_no_frames(env):
    num_envs = 3
    network = make_network(MlpSettings(hidden_sizes=(7,), frame_stack=4), env)
    schema = make_schema(env, 30, True, network)
    actor = SteppingActor(make_envs(env, num_envs, 5), network, schema)
    weights = weights_for(network)
    unrolls = [act(actor, weights) for _ in range(2)]
    actor.envs.close()
    unroll = unrolls[-1]
    assert unroll.no_op.any()
    stacks, finals = by_hand(unrolls, 4)
    plain = replace(network, observation_shape=(network.num_inputs,), frame_stack=1)
    twin = TorchNetwork(plain, weights)
    with torch.no_grad():
        _, value = twin.forward(torch.from_numpy(stacks.reshape(31 * num_envs, -1)))
        np.testing.assert_allclose(unroll.value.reshape(-1), value, atol=1e-5)
        if len(finals):
            _, value = twin.forward(torch.from_numpy(finals.reshape(len(finals), -1)))
            np.testing.assert_allclose(unroll.final_value, value, atol=1e-5)
    batch = Batch(schema, num_envs)
    batch.put(unroll, 0, np.arange(num_envs), 0)
    batch.seal()
    found = UnrollFrames.of(
        *map(torch.from_numpy, (batch.observation, batch.frames, batch.is_first))
    )
    assert found is not None
    read = found.of_steps().stacked(torch.from_numpy(batch.observation[:-1]).flatten(0, 1)).numpy()
    is_step = ~unroll.no_op.reshape(-1)
    np.testing.assert_array_equal(read[is_step], stacks[:-1].reshape(read.shape)[is_step])


# Policies, experiments and runs


def test_policy_that_is_given_its_memory_acts_as_actors_do():
    experiment = as_experiment(
        {
            "env": {"id": "Counting-v0"},
            "fleet": {"unroll_length": T},
            "network": {"hidden_sizes": [7], "frame_stack": 4},
            "stop": {"env_steps": 1},
        }
    )
    policy = Policy(experiment, weights_for(spec_of("numbers")).copy())
    actor = make_actor("numbers", 2, jit=True)
    actor.act(policy.parameters, greedy=True)
    unroll, memory = actor.buffer.unroll(), None
    for t in range(T):
        action, memory = policy.act(unroll.observation[t], memory=memory)
        assert action.tolist() == unroll.action[t].tolist()
        memory[unroll.terminated[t] | unroll.truncated[t]] = 0
    assert memory is not None and memory.shape == (2, 3 * 3 * 4)
    _, alone = policy.act(unroll.observation[0, 0])
    assert alone.view(np.float32).reshape(3, 3)[-1].tolist() == unroll.observation[0, 0].tolist()


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("count", ["0", "33", "2.0"])
def test_number_of_frames_out_of_range_is_refused(kind, count):
    tables = {
        "env": {"id": "Breakout-MinAtar"},
        "network": {"kind": kind},
        "stop": {"env_steps": 1},
    }
    with pytest.raises(ConfigError, match=r"network.frame_stack=.*wanted an integer from 1 to 32"):
        Experiment.from_dict(tables, [f"network.frame_stack={count}"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parameters_depend_neither_on_the_number_of_actors_nor_on_a_resume(places, tmp_path):
    tables = {
        "env": {"id": "Breakout-MinAtar", "num_envs": 6},
        "fleet": {"unroll_length": 16},
        "network": {
            "kind": "conv",
            "channels": [4],
            "hidden_sizes": [8],
            "frame_stack": 3,
            "core": {"kind": "gru", "size": 4},
        },
        "algorithm": {"num_minibatches": 2},
        "stop": {"env_steps": 6 * 16 * 6},
    }
    digests = set()
    for num_actors in (1, 3):
        run = tmp_path / f"run{num_actors}"
        result = api.train(tables, [f"fleet.num_actors={num_actors}"], run_dir=run)
        digests.add(result.summary.params_digest)
    half = api.train(
        tables, ["stop.env_steps=288", "fleet.num_actors=2"], run_dir=tmp_path / "half"
    )
    resumed = api.train(None, [f"stop.env_steps={6 * 16 * 6}"], resume=half.run_dir)
    digests.add(resumed.summary.params_digest)
    places.assert_gone()
    assert len(digests) == 1


class Recall(CompiledEnv):
    """Say what was shown the step before: 0, 1 or 2."""

    state = np.dtype([("shown", "i4"), ("before", "i4")])
    observation_space = Discrete(3)
    action_space = Discrete(3)
    max_episode_steps = 20

    def reset(state, params, draw):
        state.shown, state.before = integers(draw, 0, 3), 0

    def step(state, params, action, draw):
        reward = 1.0 if action == state.before else 0.0
        state.before, state.shown = state.shown, integers(draw, 0, 3)
        return reward, False

    def observe(state, params, observation):
        observation[0] = state.shown


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("k", [1, 2])
def test_what_was_shown_before_is_learned_by_those_that_see_it(k):
    network = make_network(MlpSettings(hidden_sizes=(32,), frame_stack=k), Recall)
    actor = UnrollActor(Envs(Recall, 32, 1), network, make_schema(Recall, 32, True, network))
    learning = TorchNetwork(network, initial_parameters(network, 1))
    algorithm = PPO(learning, PpoSettings(learning_rate=3e-3, num_minibatches=4), 1)
    batch, returns = Batch(actor.buffer.schema, 32), []
    for update in range(60):
        actor.act(read_only(learning.export()))
        batch.clear()
        batch.put(actor.buffer.unroll(), 0, np.arange(32), update)
        batch.seal()
        returns.append(batch.episode_return.mean())
        algorithm.update(batch, update, 0.0)
    mean = np.mean(returns[-5:])
    assert mean > 15 if k == 2 else mean < 9
