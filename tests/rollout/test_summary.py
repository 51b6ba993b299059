"""summary.json: a contract."""

import dataclasses
import hashlib
import json

import numpy as np

from rollout.summary import Ledger, params_digest, versions

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
    "policy_lag",
    "ledger",
    "seed",
    "config_digest",
    "versions",
]


def test_keys_are_exactly_those_of_the_contract(make_summary):
    shown = make_summary().as_dict()
    assert list(shown) == KEYS
    assert list(shown["ledger"]) == ["produced", "trained", "in_flight", "dropped", "balance"]
    assert shown["policy_lag"] == {"mean": 0.99, "max": 1}


def test_ledger_balances_when_every_unroll_is_accounted_for():
    assert Ledger(10, 6, 1, {"end_of_run": 2, "corrupt": 1}).balance == 0
    assert Ledger(10, 6, 1, {"end_of_run": 2}).balance == 1


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
