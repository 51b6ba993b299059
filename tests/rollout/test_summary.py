"""summary.json: a contract."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from rollout.summary import Summary, params_digest, versions

KEYS = [
    "env_steps",
    "updates",
    "wall_s",
    "env_steps_per_s",
    "episode_return_mean",
    "goal_reached",
    "goal_reached_s",
    "params_digest",
    "num_actors",
    "actor_restarts",
    "memory_restarts",
    "host_restarts",
    "envs_set_aside",
    "episodes_lost",
    "policy_lag",
    "ledger",
    "seed",
    "config_digest",
    "versions",
]


def test_keys_are_exactly_those_of_the_contract(make_summary):
    shown = make_summary().as_dict()
    assert list(shown) == KEYS
    account = ["produced", "trained", "in_flight", "dropped", "balance"]
    assert list(shown["ledger"]) == [*account, "steps", "actors"]
    assert list(shown["ledger"]["steps"]) == account
    assert [list(actor) for actor in shown["ledger"]["actors"]] == [account] * 2
    assert shown["policy_lag"] == {"mean": 0.99, "max": 1, "counts": {"0": 8, "1": 792}}


def test_summary_read_back_from_json_is_the_same(make_summary):
    summary = make_summary()
    assert Summary.from_dict(json.loads(json.dumps(summary.as_dict()))) == summary


@pytest.mark.parametrize("key", ["ledger", "policy_lag", "updates"])
def test_summary_with_a_key_missing_is_refused(make_summary, key):
    content = make_summary().as_dict()
    del content[key]
    with pytest.raises(ValueError, match="not a summary of this version of rollout"):
        Summary.from_dict(content)


def test_params_digest_is_sha256_of_little_endian_float32_in_name_order():
    weight = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    bias = np.array([0.5], np.float32)
    expected = hashlib.sha256(
        b"\x00\x00\x00\x3f" + b"\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40\x00\x00\x80\x40"
    ).hexdigest()
    assert params_digest({"b.weight": weight, "a.bias": bias}) == expected
    assert params_digest({"a.bias": bias.astype(">f4"), "b.weight": weight}) == expected


def test_params_digest_reads_an_array_in_its_logical_order():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert params_digest({"w": np.asfortranarray(matrix)}) == params_digest({"w": matrix})
    assert params_digest({"w": matrix.T}) != params_digest({"w": matrix})


def test_versions_name_what_a_run_depends_on():
    assert {"python", "rollout", "numpy", "numba", "torch"} <= versions().keys()


def test_returns_that_are_not_finite_do_not_spoil_the_summary(make_summary):
    summary = dataclasses.replace(make_summary(), episode_return_mean=float("inf"))
    assert json.loads(json.dumps(summary.as_dict(), allow_nan=False))["episode_return_mean"] is None
