from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.learners.gae import gae
from rollout.learners.vtrace import vtrace
from tests.learners.batches import make_steps

GAMMA, LAMBDA = 0.9, 0.8


def make_off_policy_steps(
    T: int, B: int, seed: int, end_probability: float = 0.2
) -> dict[str, Any]:
    """Steps with ratios on both sides of 1, from about 1/20 to 20."""
    steps = make_steps(T, B, seed, end_probability)
    return steps | {"ratio": np.exp(np.random.default_rng(seed).normal(0, 1, (T, B))).astype("f4")}


def vtrace_by_the_sum(
    steps: dict[str, Any], gamma: float, gae_lambda: float, rho_clip: float, c_clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1 as it stands, a sum of products per step, in float64; and section 4.2."""
    T, B = steps["reward"].shape
    places = zip(steps["final_t"], steps["final_env"], strict=True)
    final = dict(zip(places, steps["final_value"].astype(float), strict=True))
    value, ratio = steps["value"].astype(float), steps["ratio"].astype(float)
    reward, terminated, truncated = (
        steps[name].tolist() for name in ("reward", "terminated", "truncated")
    )
    target, advantage = np.zeros((T, B)), np.zeros((T, B))

    def next_value(t: int, env: int) -> float:
        if terminated[t][env]:
            return 0.0
        return final[t, env] if truncated[t][env] else value[t + 1, env]

    def is_end(t: int, env: int) -> bool:
        return terminated[t][env] or truncated[t][env]

    for env in range(B):
        for s in range(T):
            target[s, env] = value[s, env]
            for t in range(s, T):
                product = 1.0
                for i in range(s, t):
                    product *= gae_lambda * min(c_clip, ratio[i, env])
                error = reward[t][env] + gamma * next_value(t, env) - value[t, env]
                weighed = min(rho_clip, ratio[t, env]) * error
                target[s, env] += gamma ** (t - s) * product * weighed
                if is_end(t, env):
                    break
        for s in range(T):
            q = reward[s][env] + gamma * next_value(s, env)
            if s < T - 1 and not is_end(s, env):
                q += gamma * gae_lambda * (target[s + 1, env] - value[s + 1, env])
            advantage[s, env] = min(rho_clip, ratio[s, env]) * (q - value[s, env])
    return target, advantage


@given(
    T=st.integers(1, 10),
    B=st.integers(1, 4),
    seed=st.integers(0, 1000),
    end_probability=st.sampled_from([0.0, 0.2, 0.6]),
    gamma=st.floats(0.0, 1.0),
    gae_lambda=st.floats(0.0, 1.0),
    rho_clip=st.floats(0.1, 3.0),
    c_clip=st.floats(0.1, 1.5),
)
def test_recursion_equals_the_sum_of_the_paper(
    T: int,
    B: int,
    seed: int,
    end_probability: float,
    gamma: float,
    gae_lambda: float,
    rho_clip: float,
    c_clip: float,
) -> None:
    steps = make_off_policy_steps(T, B, seed, end_probability)
    settings: dict[str, Any] = {
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "rho_clip": rho_clip,
        "c_clip": c_clip,
    }
    fast, slow = vtrace(**steps, **settings), vtrace_by_the_sum(steps, **settings)
    for found, wanted in zip(fast, slow, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
def test_equal_policies_have_the_advantages_of_gae(gae_lambda: float) -> None:
    steps = make_steps(20, 5, seed=1)
    expected = gae(**steps, gamma=GAMMA, gae_lambda=gae_lambda)
    ratio = np.ones((20, 5), np.float32)
    found = vtrace(**steps, ratio=ratio, gamma=GAMMA, gae_lambda=gae_lambda)
    np.testing.assert_allclose(found.advantage, expected, atol=1e-5)
    np.testing.assert_allclose(found.value_target, expected + steps["value"][:-1], atol=1e-5)


def test_equal_policies_have_the_n_step_bellman_target() -> None:
    """Equation 2 of the paper."""
    steps = make_steps(20, 3, seed=2, end_probability=0.0)
    returns = np.zeros((21, 3))
    returns[-1] = steps["value"][-1]
    for t in reversed(range(20)):
        returns[t] = steps["reward"][t] + GAMMA * returns[t + 1]
    found = vtrace(**steps, ratio=np.ones((20, 3), np.float32), gamma=GAMMA)
    np.testing.assert_allclose(found.value_target, returns[:-1], atol=1e-5)


def test_action_that_the_policy_never_takes_teaches_nothing_and_cuts_the_trace() -> None:
    steps = make_off_policy_steps(10, 1, seed=3, end_probability=0.0)
    steps["ratio"][4] = 0.0
    before = vtrace(**steps, gamma=GAMMA)
    assert before.advantage[4] == 0.0
    assert before.value_target[4] == steps["value"][4]
    steps["reward"][5:] += 100.0
    after = vtrace(**steps, gamma=GAMMA)
    assert np.array_equal(before.value_target[:5], after.value_target[:5])
    assert not np.array_equal(before.value_target[5:], after.value_target[5:])


def test_ratios_beyond_both_bounds_are_as_good_as_infinite() -> None:
    steps = make_off_policy_steps(10, 3, seed=4)
    results = []
    for huge in (5.0, np.inf):
        steps["ratio"][2:6] = huge
        results.append(vtrace(**steps, gamma=GAMMA, gae_lambda=LAMBDA, rho_clip=2.0, c_clip=1.0))
    assert np.array_equal(results[0].value_target, results[1].value_target)
    assert np.array_equal(results[0].advantage, results[1].advantage)


def one_step(*, terminated: bool, truncated: bool, final_value: list[float]) -> tuple[float, float]:
    """The first of two steps, with ratio 1/2."""
    places = np.zeros(len(final_value), np.int32)
    found = vtrace(
        ratio=np.array([[0.5], [1.0]], np.float32),
        reward=np.ones((2, 1), np.float32),
        value=np.array([[10.0], [1000.0], [2000.0]], np.float32),
        terminated=np.array([[terminated], [False]]),
        truncated=np.array([[truncated], [False]]),
        final_t=places,
        final_env=places,
        final_value=np.array(final_value, np.float32),
        gamma=0.5,
    )
    return found.value_target[0, 0].item(), found.advantage[0, 0].item()


def test_truncation_bootstraps_from_the_final_value_and_termination_from_nothing() -> None:
    # the second step's target is 1 + 1000, one above its value
    goes_on = 1 + 0.5 * 1000 - 10
    assert one_step(terminated=False, truncated=False, final_value=[]) == (
        10 + 0.5 * goes_on + 0.5 * 0.5 * 1,
        0.5 * (goes_on + 0.5 * 1),
    )
    cut_off, ended = 1 + 0.5 * 40 - 10, 1 - 10
    assert one_step(terminated=False, truncated=True, final_value=[40.0]) == (
        10 + 0.5 * cut_off,
        0.5 * cut_off,
    )
    for truncated, final_value in ((False, []), (True, [40.0])):
        assert one_step(terminated=True, truncated=truncated, final_value=final_value) == (
            10 + 0.5 * ended,
            0.5 * ended,
        )


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_behind_an_end_reaches_what_lies_before_it(end: str) -> None:
    steps = make_off_policy_steps(10, 1, seed=5, end_probability=0.0)
    steps[end][4] = True
    if end == "truncated":
        steps |= {name: np.array([i], np.int32) for name, i in (("final_t", 4), ("final_env", 0))}
        steps["final_value"] = np.array([2.0], np.float32)
    before = vtrace(**steps, gamma=GAMMA)
    steps["reward"][5:] += 100.0
    steps["value"][5:] += 100.0
    steps["ratio"][5:] *= 0.5
    after = vtrace(**steps, gamma=GAMMA)
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one[:5], other[:5])
        assert not np.array_equal(one[5:], other[5:])


def test_arguments_stay_as_they_were() -> None:
    steps = make_off_policy_steps(8, 4, seed=6)
    copies = {name: array.copy() for name, array in steps.items()}
    vtrace(**steps, gamma=GAMMA, gae_lambda=LAMBDA)
    for name, array in steps.items():
        assert np.array_equal(array, copies[name]), f"{name} was changed"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("ratio", np.ones((9, 4), np.float32), r"ratio is float32 \[9, 4\], expected .*\[8, 4\]"),
        ("ratio", np.ones((8, 4)), r"ratio is float64 \[8, 4\], expected float32"),
        ("value", np.zeros((8, 4), np.float32), r"vtrace: value has shape \[8, 4\]"),
        ("final_value", np.zeros(1, np.float32), r"vtrace: final_value has shape \[1\]"),
    ],
)
def test_wrong_shape_or_dtype_is_refused(name: str, wrong: np.ndarray, message: str) -> None:
    steps = make_off_policy_steps(8, 4, seed=7)
    with pytest.raises(ValueError, match=message):
        vtrace(**{**steps, name: wrong}, gamma=GAMMA)
