"""Trained policies, used without a fleet."""

import subprocess
import sys

import numpy as np
import pytest

import rollout
from rollout import policy as policy_module
from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.errors import OperatorError
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Dense
from rollout.learners.network import OBSERVATION, NetworkSpec
from rollout.policy import Policy, evaluation_seed, load_policy

OBSERVATIONS = np.random.default_rng(0).normal(0, 0.5, (70, 4)).astype(np.float32)


@pytest.fixture
def policy(make_run):
    """A small CartPole's policy with parameters that tell observations well apart."""
    initial = load_policy(make_run())
    parameters = np.random.default_rng(1).normal(0, 0.3, len(initial.parameters))
    return Policy(initial.experiment, parameters.astype(np.float32))


def twin_logits(policy: Policy, observation: np.ndarray) -> np.ndarray:
    """The policy's multilayer perceptron, written down with NumPy in float64."""
    network, parameters = policy.network, policy.parameters.astype(np.float64)
    assert isinstance(network, NetworkSpec)
    buffers = {OBSERVATION: observation.astype(np.float64)}
    for layer in network.layers:
        assert isinstance(layer, Dense)
        weight = network.parameter(f"{layer.name}.weight").view(parameters)
        bias = network.parameter(f"{layer.name}.bias").view(parameters)
        output = buffers[layer.source] @ weight + bias
        buffers[layer.name] = np.tanh(output) if layer.activation == "tanh" else output
    return buffers[network.outputs.buffer][..., network.outputs.start : network.outputs.stop]


def test_logits_are_those_of_the_network(policy):
    np.testing.assert_allclose(
        policy.outputs(OBSERVATIONS)[0], twin_logits(policy, OBSERVATIONS), atol=1e-5
    )


def test_deterministic_action_is_the_likeliest(policy):
    actions = policy.act(OBSERVATIONS)
    np.testing.assert_array_equal(actions, twin_logits(policy, OBSERVATIONS).argmax(axis=1))
    assert set(actions) == {0, 1}


def test_one_observation_and_a_batch_of_them_agree(policy):
    batch, _ = policy.outputs(OBSERVATIONS)
    for row, observation in enumerate(OBSERVATIONS):
        np.testing.assert_array_equal(policy.outputs(observation)[0], batch[row])
        action = policy.act(observation)
        assert type(action) is int
        assert action == batch[row].argmax()


def test_numbers_of_a_neighbouring_type_are_welcome(policy):
    one = OBSERVATIONS[0]
    assert policy.act(one.tolist()) == policy.act(one.astype(np.float64)) == policy.act(one)
    np.testing.assert_array_equal(
        policy.outputs(OBSERVATIONS[::2])[0], policy.outputs(OBSERVATIONS[::2].copy())[0]
    )


@pytest.mark.parametrize(
    ("observation", "found"),
    [
        (np.zeros(3, np.float32), r"float32 \[3\]"),
        (np.zeros((2, 3), np.float32), r"float32 \[2, 3\]"),
        (np.zeros((2, 2, 4), np.float32), r"float32 \[2, 2, 4\]"),
        (np.float32(1), r"float32 \[\]"),
        (["left"] * 4, r"<U4 \[4\]"),
        (np.zeros(4, np.complex64), r"complex64 \[4\]"),
    ],
)
def test_observation_of_another_kind_is_refused_with_what_was_wanted(policy, observation, found):
    wanted = r"wanted float32 \[4\], or \[N, 4\] for a batch"
    with pytest.raises(ValueError, match=f"observation is {found}, {wanted}"):
        policy.act(observation)


def test_observation_that_is_not_finite_is_refused(policy):
    with pytest.raises(ValueError, match="not finite"):
        policy.act([0.0, np.nan, 0.0, 0.0])


def test_sampled_actions_follow_the_distribution(policy):
    observation = np.array([1.5, -2.0, 0.2, 1.0], np.float32)
    weights = np.exp(twin_logits(policy, observation))
    chosen = policy.act(np.tile(observation, (20_000, 1)), deterministic=False)
    expected = weights[1] / weights.sum()
    assert abs(chosen.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)


def test_sampling_from_three_actions_takes_each_as_often_as_its_probability(make_run):
    policy = load_policy(make_run("Counting-v0"))
    logits = np.log(np.array([[0.2, 0.5, 0.3]]))
    chosen = policy._choices(np.tile(logits, (20_000, 1)), deterministic=False)
    np.testing.assert_allclose(np.bincount(chosen) / 20_000, [0.2, 0.5, 0.3], atol=0.015)


def test_sampled_actions_are_reproducible_and_differ_from_call_to_call(policy):
    again = Policy(policy.experiment, policy.parameters)
    first, second = (policy.act(OBSERVATIONS, deterministic=False) for _ in range(2))
    np.testing.assert_array_equal(again.act(OBSERVATIONS, deterministic=False), first)
    np.testing.assert_array_equal(again.act(OBSERVATIONS, deterministic=False), second)
    assert (first != second).any()


def test_policy_loads_from_a_path_a_run_or_an_older_checkpoint(make_run):
    run = make_run()
    newest = rollout.load_policy(str(run.path))
    flat = initial_parameters(newest.network, seed=99)
    save_checkpoint(
        run.checkpoints,
        9,
        named_parameters(newest.network, flat),
        {"experiment": run.experiment.model_dump(mode="json")},
        keep=3,
    )
    np.testing.assert_array_equal(load_policy(run).parameters, flat)
    np.testing.assert_array_equal(load_policy(run.path, "5").parameters, newest.parameters)


def test_policy_is_of_the_checkpoints_experiment_whatever_became_of_the_runs(make_run):
    run = make_run()
    before = load_policy(run.path)
    text = run.config.read_text()
    run.config.write_text(text.replace("hidden_sizes = [64, 64]", "hidden_sizes = [32]"))
    assert run.config.read_text() != text
    after = load_policy(run.path)
    assert after.experiment == before.experiment == run.experiment
    np.testing.assert_array_equal(after.parameters, before.parameters)


def test_checkpoint_whose_environment_is_gone_says_so(make_run):
    run = make_run()
    tables = run.experiment.model_dump(mode="json")
    tables["env"]["id"] = "Gone-v1"
    save_checkpoint(run.checkpoints, 9, {}, {"experiment": tables}, keep=3)
    with pytest.raises(
        OperatorError, match=r"state\.json: its experiment does not work here: .*Gone-v1"
    ):
        load_policy(run)


def test_newest_policy_is_that_of_the_newest_checkpoint_that_is_not_damaged(make_run, caplog):
    run = make_run()
    good = load_policy(run)
    save_checkpoint(
        run.checkpoints, 9, {}, {"experiment": run.experiment.model_dump(mode="json")}, keep=3
    )
    (run.checkpoints / "update-00000009/arrays.safetensors").unlink()
    np.testing.assert_array_equal(load_policy(run).parameters, good.parameters)
    assert "is missing; using update-00000005 instead" in caplog.text
    with pytest.raises(OperatorError, match="is missing; use --checkpoint update-00000005"):
        load_policy(run, "9")


def test_parameters_of_a_wrong_length_are_refused(policy):
    with pytest.raises(ValueError, match=r"float32 \[3\], expected float32 \[\d+\]"):
        Policy(policy.experiment, np.zeros(3, np.float32))


def test_policy_is_not_changed_by_who_gave_its_parameters(policy):
    given = policy.parameters.copy()
    other = Policy(policy.experiment, given)
    given[:] = 0
    assert other.parameters.any()
    with pytest.raises(ValueError, match="read-only"):
        other.parameters[:] = 0


def test_acting_needs_no_torch(make_run):
    script = (
        "import sys, rollout; policy = rollout.load_policy(sys.argv[1])\n"
        "assert policy.act([0.0] * 4) in (0, 1)\n"
        "assert 'torch' not in sys.modules and 'zmq' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(make_run().path)], check=True)


def test_evaluation_seed_is_never_the_experiments_own():
    seeds = {evaluation_seed(seed, number) for seed in range(50) for number in range(20)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_evaluation_seed_skips_the_experiments_own(monkeypatch):
    monkeypatch.setattr(policy_module, "philox", lambda *place: (7, 7, 8, 9))
    assert evaluation_seed(7, 0) == 8
