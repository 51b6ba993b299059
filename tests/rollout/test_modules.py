"""Networks of users' own: named in a file, or given as classes; and what is wrong with some."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import rollout
from rollout import api
from rollout.acting import read_only
from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.envs import Envs, Outcome
from rollout.envs.layouts import observation_layout
from rollout.errors import ConfigError, NetworkError, OperatorError
from rollout.experiment import Experiment, as_experiment, load_experiment
from rollout.failure_replay import replay_failure
from rollout.failures import Failure, load_failure, save_failure
from rollout.learners.network import LOG_STD, ModuleSpec
from rollout.learning import make_torch_network
from rollout.make_actor import Actor, make_actor
from rollout.module_trial import made_up_inputs, warnings_of
from rollout.plan import HostPlan
from rollout.replay import RunReplay
from rollout.run_directory import RunDirectory
from rollout.shapes import make_network, make_schema
from tests.rollout.rich_envs import Arm

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, observation_shape, num_outputs, width=8):
        super().__init__()
        self.shape = observation_shape
        self.hidden = nn.Linear(torch.Size(observation_shape).numel(), width)
        self.policy = nn.Linear(width, num_outputs)
        self.value = nn.Linear(width, 1)

    def forward(self, observation):
        assert observation.dtype == torch.float32 and observation.shape[1:] == self.shape
        hidden = torch.tanh(self.hidden(observation.flatten(1)))
        return self.policy(hidden), self.value(hidden).squeeze(-1)
"""
FILE = """
[env]
id = "CartPole-v1"
num_envs = 40
max_episode_steps = 9
[fleet]
num_actors = 3
unroll_length = 8
[network]
kind = "my_net:Net"
[network.params]
width = 6
[stop]
env_steps = 1280
"""
T, N, SEED = 24, 70, 5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with my_net.py and x.toml in it."""
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text(SOURCE)
    Path("x.toml").write_text(FILE)
    yield tmp_path
    sys.modules.pop("my_net", None)


def change(*parts: tuple[str, str]) -> None:
    """Write other text in my_net.py."""
    text = SOURCE
    for old, new in parts:
        assert old in text
        text = text.replace(old, new)
    Path("my_net.py").write_text(text)
    sys.modules.pop("my_net", None)


# In a fleet


def test_module_trains_in_any_number_of_actors_in_the_same_bits_and_is_replayed(
    folder, places, view
):
    result = api.train("x.toml", run_dir="run", view=view)
    places.assert_gone()
    assert result.summary.ledger.is_balanced
    (said,) = [text for text in view.notices if "executed by torch" in text]
    assert "network 'my_net:Net'" in said and '"mlp" and "conv" are compiled' in said
    # 40 environments in one actor, where three had 14, 13 and 13 of them.
    assert [c.is_equal for c in RunReplay(RunDirectory.open("run")).compare()] == [True]
    resumed = api.train(resume="run", overrides=["stop.env_steps=1900", "fleet.num_actors=2"])
    places.assert_gone()
    assert resumed.summary.updates > result.summary.updates
    assert RunReplay(RunDirectory.open("run")).compare()[-1].is_equal


@pytest.mark.slow
def test_killed_actor_changes_no_bit(folder, places, view):
    def kill_one() -> None:
        os.kill(places.wait_pids("rollout-actor")[0], signal.SIGKILL)

    longer = ["stop.env_steps=12800"]
    killed = api.train("x.toml", longer, run_dir="killed", view=view.at(5, kill_one))
    left = api.train("x.toml", [*longer, "fleet.num_actors=1"], run_dir="left")
    places.assert_gone()
    assert killed.summary.actor_restarts >= 1
    assert killed.summary.params_digest == left.summary.params_digest


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lockstep", "async"])
def test_module_learns(folder, places, mode):
    overrides = [
        f"fleet.mode={mode}", "env.max_episode_steps=500", "stop.env_steps=150_000",
        "algorithm.learning_rate=3e-3", "network.params.width=32", "fleet.unroll_length=32",
    ]  # fmt: skip
    summary = api.train("x.toml", overrides, run_dir="run").summary
    assert summary.episode_return_mean is not None
    assert summary.episode_return_mean > 80, "a random policy keeps the pole up for 22 steps"


@pytest.mark.slow
def test_class_itself_trains_and_is_wanted_again(folder, places):
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, namespace)  # as a script's, which no other process can import
    Net = namespace["Net"]
    tables = {"env": {"id": "CartPole-v1", "num_envs": 8}, "stop": {"env_steps": 512}}
    tables |= {"fleet": {"num_actors": 1, "unroll_length": 16}, "network": {"params": {"width": 5}}}
    result = api.train(tables, network=Net, run_dir="run")
    places.assert_gone()
    assert 'kind = "object:Net"' in Path("run/config.toml").read_text()
    observation = np.zeros(4, np.float32)
    again = rollout.load_policy("run", network=Net)
    np.testing.assert_array_equal(
        result.policy.outputs(observation)[0], again.outputs(observation)[0]
    )
    with pytest.raises(ConfigError, match=r"rollout.train\(resume=RUN\) take it as network=Net"):
        rollout.load_policy("run")
    with pytest.raises(ConfigError, match='kind="mlp" and network=Net are two networks; leave one'):
        as_experiment(tables | {"network": {"kind": "mlp"}}, network=Net)


# In one process


def acting(experiment: Experiment, num_envs: int, first_env: int = 0) -> tuple[Actor, np.ndarray]:
    env = experiment.env.find()
    network = make_network(experiment.network, env, experiment.seed)
    weights = read_only(make_torch_network(experiment, network).export())
    schema = make_schema(env, T, True)
    params = experiment.env.params
    actor = make_actor(env, num_envs, SEED, network, schema, first_env=first_env, params=params)
    return actor, weights


SQUASHED = ('network.gaussian.std="dependent"', 'network.gaussian.squash="tanh"')


@pytest.mark.parametrize(
    ("env_id", "gaussian"),
    [
        ("CartPole-v1", ()),
        ("gymnasium:CartPole-v1", ()),
        pytest.param("Pendulum-v1", (), marks=pytest.mark.slow),
        pytest.param("Pendulum-v1", SQUASHED, marks=pytest.mark.slow),
        pytest.param("gymnasium:Pendulum-v1", SQUASHED, marks=pytest.mark.slow),
        pytest.param("Breakout-MinAtar", (), marks=pytest.mark.slow),
    ],
)
def test_row_has_the_same_bits_however_environments_are_shared_out(folder, env_id, gaussian):
    experiment = load_experiment("x.toml", [f"env.id={env_id}", *gaussian])
    whole, weights = acting(experiment, N)
    parts = [acting(experiment, 1)[0], acting(experiment, 40, 1)[0], acting(experiment, 29, 41)[0]]
    for _ in range(2):
        payloads = [actor.act(weights) for actor in (whole, *parts)]
        assert len(payloads) == 4
        unroll, pieces = whole.buffer.unroll(), [part.buffer.unroll() for part in parts]
        for name in ("observation", "action", "reward", "behavior_log_prob", "value", "truncated"):
            together = np.concatenate([getattr(piece, name) for piece in pieces], axis=1)
            np.testing.assert_array_equal(getattr(unroll, name), together, name)
        assert len(unroll.final_t) == np.count_nonzero(unroll.truncated) > 0
        offsets = (0, 1, 41)
        finals = {
            (t, env + first): value
            for piece, first in zip(pieces, offsets, strict=True)
            for t, env, value in zip(piece.final_t, piece.final_env, piece.final_value, strict=True)
        }
        found = zip(unroll.final_t, unroll.final_env, unroll.final_value, strict=True)
        assert finals == {(t, env): value for t, env, value in found}


def test_unroll_is_what_the_module_says_and_the_environments_do(folder):
    experiment = load_experiment("x.toml")
    actor, weights = acting(experiment, N)
    env = experiment.env.find()
    network = make_torch_network(experiment, make_network(experiment.network, env))
    assert isinstance(env, type)
    envs, outcome = Envs(env, N, SEED), Outcome(env, N)
    for greedy in (False, True):
        actor.act(weights, greedy=greedy)
        unroll = actor.buffer.unroll()
        shown, finals = envs.observation(), []
        for t in range(T):
            np.testing.assert_array_equal(unroll.observation[t], shown)
            with torch.no_grad():
                policy, value = network(torch.from_numpy(shown))
                outputs, _ = network.forward(torch.from_numpy(shown))
                log_prob = policy.log_prob(torch.from_numpy(unroll.action[t].astype(np.int64)))
            np.testing.assert_allclose(unroll.value[t], value.numpy(), atol=1e-5)
            np.testing.assert_allclose(unroll.behavior_log_prob[t], log_prob.numpy(), atol=1e-5)
            assert len(set(unroll.action[t])) == 2 or greedy
            if greedy:
                np.testing.assert_array_equal(unroll.action[t], outputs.argmax(1).numpy())
            envs.step(unroll.action[t], outcome)
            shown = outcome.observation.copy()
            finals.append(outcome.final_observation[: outcome.num_finals].copy())
        np.testing.assert_array_equal(unroll.observation[T], shown)
        np.testing.assert_array_equal(unroll.final_observation, np.concatenate(finals))
        with torch.no_grad():
            _, final_value = network(torch.from_numpy(np.concatenate(finals)))
            _, last_value = network(torch.from_numpy(shown))
        np.testing.assert_allclose(unroll.final_value, final_value.numpy(), atol=1e-5)
        np.testing.assert_allclose(unroll.value[T], last_value.numpy(), atol=1e-5)
    restored, _ = acting(experiment, N)
    restored.restore(actor.buffer.fixed.env_state.tobytes())
    restored.act(weights)
    actor.act(weights)
    for name in ("observation", "action", "value", "final_value", "env_state"):
        then, now = (getattr(one.buffer.unroll(), name) for one in (actor, restored))
        np.testing.assert_array_equal(then, now, name)


def test_unroll_that_failed_is_replayed_from_its_file(folder):
    experiment = load_experiment("x.toml")
    actor, weights = acting(experiment, 1, first_env=33)
    env = experiment.env.find()
    failure = Failure(
        env_source=experiment.env.source, seed=SEED, env=33, unroll_index=0, t=3, ended="exit",
        weights_version=0, network=make_network(experiment.network, env), error="status 1",
        schema=make_schema(env, T, True), weights=weights,
        env_state=np.frombuffer(actor.envs.snapshot(), np.uint8),
    )  # fmt: skip
    loaded = load_failure(save_failure(folder / "failures", failure))
    assert loaded.network == failure.network
    assert replay_failure(loaded).outcome.ended is None
    change(("width, 1)", "width, 1, bias=False)"))
    with pytest.raises(NetworkError, match="is not what it was: parameters none in"):
        replay_failure(loaded)


def test_plan_with_a_module_goes_to_another_process_and_comes_back(folder, make_plan):
    experiment = load_experiment("x.toml")
    network = make_network(experiment.network, experiment.env.find(), 7)
    plan = make_plan(network=network)
    assert isinstance(network, ModuleSpec) and network.seed == 7
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=HostPlan) == plan


def test_initial_parameters_are_the_constructors_under_the_seed_of_the_experiment(folder):
    vectors = []
    for seed in (3, 3, 4):
        experiment = load_experiment("x.toml", [f"seed={seed}"])
        network = make_network(experiment.network, experiment.env.find(), seed)
        vectors.append(make_torch_network(experiment, network).export())
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (vectors[0] != vectors[2]).any()


def test_observation_of_categories_is_read_one_hot(folder):
    tables = {"env": {"id": "gymnasium:FrozenLake-v1"}, "network": {"kind": "my_net:Net"}}
    experiment = as_experiment(tables | {"stop": {"env_steps": 1}})
    network = make_network(experiment.network, experiment.env.find())
    assert isinstance(network, ModuleSpec)
    assert network.observation_shape == (1,) and network.input_shape == (16,)
    assert network.named_arrays[0] == ("hidden.weight", (8, 16), True)


def test_module_is_tried_on_observations_within_their_bounds(folder):
    change(("hidden = torch.tanh", "assert observation.shape[1:] == (8,); hidden = torch.tanh"))
    env = Arm  # shows one of three categories, three bytes, two numbers
    tables = {"network": {"kind": "my_net:Net"}, "stop": {"env_steps": 1}}
    spec = make_network(as_experiment(tables, env=env).network, env)
    assert isinstance(spec, ModuleSpec)
    shown = made_up_inputs(spec, env).numpy()
    names = [part.name for part in observation_layout(env.observation_space).parts]
    assert names == ["grip", "seen", "angle"]
    np.testing.assert_array_equal(shown[:, :3].sum(1), 1.0)
    seen = shown[:, 3:6]
    assert (seen == seen.astype(np.uint8)).all() and seen.max() > 50


def test_numbers_without_an_axis_and_buffers_come_back_from_a_checkpoint(folder):
    change(
        ("self.value =", "self.s = nn.Parameter(torch.tensor(2.0)); self.value ="),
        ("self.hidden =", "self.register_buffer('w', torch.randn(1)); self.hidden ="),
        ("hidden = torch.tanh(", "hidden = self.s * self.w * torch.tanh("),
    )
    result = api.train("x.toml", ["stop.env_steps=320", "fleet.num_actors=1"], run_dir="run")
    before = result.policy
    more = api.train(resume="run", overrides=["stop.env_steps=640", "seed=9"])
    observation = np.ones(4, np.float32)
    for name in ("w", "s"):
        assert before.network.parameter(name).shape == (() if name == "s" else (1,))
    place = before.network.parameter("w")
    np.testing.assert_array_equal(
        place.view(more.policy.parameters), place.view(before.parameters), "not drawn anew"
    )
    assert before.act(observation) in (0, 1)


# What is wrong with some


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("def __init__", "def init")], "TypeError: Net.__init__() got an unex"),
        ([("super().__init__()", "1 / 0")], "Net((4,), 2, width=6) failed at {folder}/my_net.py:8"),
        ([("super().__init__()", "exit(3)")], "{folder}/my_net.py:8: sys.exit(3) was called"),
        ([("hidden = torch", "exit(3); hidden = torch")], "my_net.py:16: sys.exit(3) was called"),
        ([("class Net(nn.Module)", "class Net")], "; wanted a subclass of torch.nn.Module"),
        ([("class Net", "class Other")], "my_net.py) has no 'Net'; it has Other"),
        ([("import torch\n", "import torchh\n")], "my_net failed at {folder}/my_net.py:2"),
        ([("width=8", "units=8")], "failed: TypeError: Net.__init__() got an unexpected keyword"),
        ([("nn.Linear(width, 1)", "nn.Linear(width, 1).double()")], "parameter value.weight is "),
        ([("nn.Linear(width, 1)", "nn.LazyLinear(1)")], "parameter value.weight has no shape yet"),
        (
            [("self.value = nn.Linear(width, 1)", "[p.requires_grad_(False) for p in []]"),
             ("self.hidden = ", "self.register_buffer('w', torch.ones(4, 2)); hidden = "),
             ("self.policy = ", "policy = "),
             ("        hidden = torch.tanh(self.hidden(observation.flatten(1)))\n", ""),
             ("self.policy(hidden), self.value(hidden).squeeze(-1)",
              "observation @ self.w, observation[:, 0]")],
            "has no parameter that could learn",
        ),
        ([("self.hidden(", "self.policy(")], "of an observation [8, 4], failed at {folder}"),
        ([(", self.value(hidden).squeeze(-1)", "")],
         "returned float32 [8, 2]; wanted a tuple of outputs [8, 2], value [8]"),
        ([(".squeeze(-1)", "")],
         "returned value float32 [8, 1], wanted float32 [8]; .squeeze(-1) takes the last"),
        ([("Linear(width, num_outputs)", "Linear(width, 3)")],
         "returned outputs float32 [8, 3], wanted float32 [8, 2]"),
        ([("return self.policy(hidden)", "return self.policy(hidden).double()")],
         "returned outputs float64 [8, 2], wanted float32"),
        ([("return self.policy(hidden)", "return self.policy(hidden) / 0.0")], "are not finite"),
        ([("return self.policy(hidden)", "return self.policy(hidden + torch.rand(1))")],
         "gave other results for the same observations the second time"),
        ([("self.shape = observation_shape", "self.register_buffer('n', torch.zeros(1))"),
          (" and observation.shape[1:] == self.shape", ""),
          ("hidden = torch", "self.n += 1; hidden = torch")],
         "forward changes the buffer n; buffers are constants"),
        ([("return self.policy(hidden)", "return self.policy(hidden - hidden.mean(0))")],
         "says of a row depends on the rows beside it"),
        ([("hidden = torch.tanh", "observation *= 0.5; hidden = torch.tanh")],
         "of an observation [8, 4], changed it"),
        ([("return self.policy(hidden), self.value(hidden).squeeze(-1)",
           "return self.policy(hidden).detach(), self.value(hidden).detach().squeeze(-1)")],
         "outputs and value carry no gradient"),
        ([("self.value =", "self.more = [nn.Linear(width, width)]; self.value ="),
          ("self.policy(hidden)", "self.policy(self.more[0](hidden))")],
         "no parameters of it: [6, 6], [6]; they would neither learn nor be saved: keep layers of"),
        ([("hidden = torch", "self.late = nn.Linear(4, 6); hidden = torch"),
          ("self.hidden(obs", "self.late(obs")],
         "forward makes late.weight, late.bias; make all parameters and buffers in the constr"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused_before_anything_starts(folder, parts, said):
    change(*parts)
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml")
    (problem,) = caught.value.problems
    assert problem.startswith("x.toml: network 'my_net:Net'")
    assert said.format(folder=folder) in problem


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [
        ("my_net:Net", "frame_stack=2", 'only network.kind="mlp" or "conv" has it; leave it out'),
        ("conv", "normalize_observations=true", 'only network.kind="mlp" has it; leave it out'),
    ],
)
def test_key_of_another_kind_is_told_whose_it_is(folder, kind, key, said):
    with pytest.raises(ConfigError, match=f"unknown key network.{key.partition('=')[0]}; {said}"):
        load_experiment("x.toml", [f"network.kind={kind}", f"network.{key}"])


def test_misspelt_kinds_and_keys_are_named(folder):
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", ["network.kind=my_nett:Net"])
    assert "no module 'my_nett'; start the command in the folder that holds it" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", ["network.hidden_sizes=[8]", "network.core.size=8"])
    assert "unknown key network.hidden_sizes" in str(caught.value)
    assert "unknown key network.core" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_experiment("x.toml", ["network.kind=mpl", "network.params={}"])
    assert '"mlp" or "conv" or "package.module:Class" (which network); did you mean "mlp"?' in str(
        caught.value
    )


def test_parameter_with_the_name_of_the_heads_own_is_refused(folder):
    change(("self.value =", f"self.{LOG_STD} = nn.Parameter(torch.zeros(1)); self.value ="))
    load_experiment("x.toml")
    with pytest.raises(ConfigError, match="its parameter log_std has the name of the one that ev"):
        load_experiment("x.toml", ["env.id=Pendulum-v1"])


def test_what_will_not_learn_or_does_nothing_is_warned_of(folder):
    def warnings() -> list[str]:
        experiment = load_experiment("x.toml")
        network = make_network(experiment.network, experiment.env.find())
        assert isinstance(network, ModuleSpec)
        return warnings_of(experiment, network)

    assert warnings() == []
    change(("self.value(hidden)", "self.value(hidden).detach()"))
    (said,) = warnings()
    assert "no gradient reaches value.weight, value.bias from outputs and value" in said
    change(
        ("self.value =", "self.d = nn.Dropout(); self.n = nn.BatchNorm1d(width); self.value ="),
        ("self.value(hidden)", "self.value(self.n(self.d(hidden)))"),
    )
    said = warnings()
    assert len(said) == 2
    assert "d is a Dropout, which does what it does in evaluation mode only" in said[0]
    assert "n is a BatchNorm1d" in said[1]


WIDE = "self.value = nn.Linear(width, 1)"
ZERO = f"{WIDE}; [nn.init.zeros_(one.weight) for one in (self.policy, self.value)]"


@pytest.mark.parametrize(
    "parts",
    [
        [
            ("super().__init__()", "super().__init__(); self.scale = random.random()"),
            ("self.policy(hidden)", "self.scale * self.policy(hidden)"),
        ],
        [(WIDE, f"{ZERO}; self.hidden.weight.data *= random.random()")],  # outputs are the same
    ],
)
def test_module_that_is_another_one_each_time_is_refused(folder, parts):
    change(("import torch\n", "import random\nimport torch\n"), *parts)
    with pytest.raises(NetworkError, match="a second time, it has other numbers, or gives other"):
        api.train("x.toml")


def test_run_whose_module_is_gone_or_has_changed_says_so(folder):
    experiment = load_experiment("x.toml")
    spec = make_network(experiment.network, experiment.env.find())
    arrays = named_parameters(spec, make_torch_network(experiment, spec).export())
    with RunDirectory.create(experiment, "run") as run:
        state = {"experiment": experiment.model_dump(mode="json"), "episode_return_mean": None}
        state |= {"env_steps": 5, "wall_s": 1.0}
        arrays["last_returns"] = np.zeros(0)
        save_checkpoint(run.checkpoints, update=5, arrays=arrays, state=state, keep=3)
    policy = rollout.load_policy(run.path)
    assert policy.act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    run.summary.write_text("{}")
    change(("width, num_outputs)", "width, num_outputs, bias=False)"))
    no_bias = r"network has no parameters/policy.bias; has it chang"
    with pytest.raises(OperatorError, match=no_bias):
        rollout.load_policy(run.path)
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with pytest.raises(OperatorError, match=no_bias):
        api.train(resume=run.path, overrides=["stop.env_steps=9999"])
    assert before == {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    change(("width, 1)", "width + 0, 1)"), ("width=8", "more, width=8"))
    with pytest.raises(ConfigError, match="missing 1 required positional argument: 'more'"):
        rollout.load_policy(run.path)
    Path("my_net.py").unlink()
    sys.modules.pop("my_net")
    with pytest.raises(ConfigError, match="network 'my_net:Net': no module 'my_net'"):
        rollout.load_policy(run.path)


def test_policy_says_of_a_batch_what_the_module_says(folder):
    experiment = load_experiment("x.toml")
    network = make_torch_network(
        experiment, make_network(experiment.network, experiment.env.find())
    )
    policy = rollout.policy.Policy(experiment, network.export())
    rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    outputs, _ = policy.outputs(rows)
    with torch.no_grad():
        wanted, _ = network.forward(torch.from_numpy(rows))
    np.testing.assert_allclose(outputs, wanted.numpy(), atol=1e-5)
    np.testing.assert_array_equal(policy.act(rows), outputs.argmax(1))


def test_config_prints_the_parameters_and_what_the_module_costs(folder, capsys):
    from rollout.commands.config import config

    config(Path("x.toml"))
    said = capsys.readouterr().out
    assert "[network.params]" in said and "width = 6" in said
    assert "is executed by torch in every actor" in said
    Path("y.toml").write_text(said)
    assert load_experiment("y.toml").config_digest == load_experiment("x.toml").config_digest
    other = load_experiment("x.toml", ["network.params.width=7"])
    assert other.config_digest != load_experiment("x.toml").config_digest
    wanted = {"kind": "my_net:Net", "params": {"width": 7}, "gaussian": None}
    assert json.loads(json.dumps(other.curve["network"])) == wanted
