import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.learners.gae import gae
from tests.learners.batches import make_steps

GAMMA, LAMBDA = 0.9, 0.8


def gae_by_the_sum(steps: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> np.ndarray:
    """Equation 16, one sum per step, one environment after the other, in float64."""
    T, B = steps["reward"].shape
    places = zip(steps["final_t"], steps["final_env"], strict=True)
    final = dict(zip(places, steps["final_value"], strict=True))
    advantage = np.zeros((T, B))
    for env in range(B):
        for t in range(T):
            for later in range(t, T):
                terminated, truncated = (
                    steps[name][later, env] for name in ("terminated", "truncated")
                )
                if terminated:
                    bootstrap = 0.0
                elif truncated:
                    bootstrap = float(final[later, env])
                else:
                    bootstrap = float(steps["value"][later + 1, env])
                delta = (
                    float(steps["reward"][later, env])
                    + gamma * bootstrap
                    - float(steps["value"][later, env])
                )
                advantage[t, env] += (gamma * gae_lambda) ** (later - t) * delta
                if terminated or truncated:
                    break
    return advantage


@given(
    T=st.integers(1, 12),
    B=st.integers(1, 5),
    seed=st.integers(0, 1000),
    end_probability=st.sampled_from([0.0, 0.2, 0.6]),
    gamma=st.floats(0.0, 1.0),
    gae_lambda=st.floats(0.0, 1.0),
)
def test_recursion_equals_the_sum_of_the_paper(
    T: int, B: int, seed: int, end_probability: float, gamma: float, gae_lambda: float
) -> None:
    steps = make_steps(T, B, seed, end_probability)
    fast = gae(**steps, gamma=gamma, gae_lambda=gae_lambda)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, gae_by_the_sum(steps, gamma, gae_lambda), atol=2e-5)


def test_lambda_1_is_the_discounted_return_minus_the_value() -> None:
    steps = make_steps(20, 3, seed=1, end_probability=0.0)
    returns = np.zeros((21, 3))
    returns[-1] = steps["value"][-1]
    for t in reversed(range(20)):
        returns[t] = steps["reward"][t] + GAMMA * returns[t + 1]
    advantage = gae(**steps, gamma=GAMMA, gae_lambda=1.0)
    np.testing.assert_allclose(advantage, returns[:-1] - steps["value"][:-1], atol=1e-5)


def test_lambda_0_is_the_one_step_error() -> None:
    steps = make_steps(20, 3, seed=2, end_probability=0.0)
    value = steps["value"]
    expected = steps["reward"] + GAMMA * value[1:] - value[:-1]
    np.testing.assert_allclose(gae(**steps, gamma=GAMMA, gae_lambda=0.0), expected, atol=1e-6)


def test_zero_gamma_leaves_reward_minus_value() -> None:
    steps = make_steps(20, 3, seed=3)
    expected = steps["reward"] - steps["value"][:-1]
    np.testing.assert_allclose(gae(**steps, gamma=0.0, gae_lambda=LAMBDA), expected, atol=1e-6)


def one_step(*, terminated: bool, truncated: bool, final_value: list[float]) -> float:
    places = np.zeros(len(final_value), np.int32)
    return gae(
        reward=np.ones((1, 1), np.float32),
        value=np.array([[10.0], [1000.0]], np.float32),
        terminated=np.array([[terminated]]),
        truncated=np.array([[truncated]]),
        final_t=places,
        final_env=places,
        final_value=np.array(final_value, np.float32),
        gamma=0.5,
        gae_lambda=1.0,
    ).item()


def test_truncation_bootstraps_from_the_final_value_and_termination_from_nothing() -> None:
    assert one_step(terminated=False, truncated=False, final_value=[]) == 1 + 500 - 10
    assert one_step(terminated=False, truncated=True, final_value=[40.0]) == 1 + 20 - 10
    assert one_step(terminated=True, truncated=False, final_value=[]) == 1 - 10
    assert one_step(terminated=True, truncated=True, final_value=[40.0]) == 1 - 10


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_nothing_behind_an_end_reaches_what_lies_before_it(end: str) -> None:
    steps = make_steps(10, 1, seed=4, end_probability=0.0)
    steps[end][4] = True
    if end == "truncated":
        steps |= {
            name: np.array([place], np.int32) for name, place in (("final_t", 4), ("final_env", 0))
        }
        steps["final_value"] = np.array([2.0], np.float32)
    before = gae(**steps, gamma=GAMMA, gae_lambda=LAMBDA)
    steps["reward"][5:] += 100.0
    steps["value"][5:] += 100.0
    after = gae(**steps, gamma=GAMMA, gae_lambda=LAMBDA)
    assert np.array_equal(before[:5], after[:5])
    assert not np.array_equal(before[5:], after[5:])


def test_arguments_stay_as_they_were() -> None:
    steps = make_steps(8, 4, seed=5)
    copies = {name: array.copy() for name, array in steps.items()}
    gae(**steps, gamma=GAMMA, gae_lambda=LAMBDA)
    for name, array in steps.items():
        assert np.array_equal(array, copies[name]), f"{name} was changed"


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("value", np.zeros((8, 4), np.float32), r"value has shape \[8, 4\], expected \[9, 4\]"),
        ("terminated", np.zeros((4, 8), bool), r"terminated has shape \[4, 8\]"),
        ("terminated", np.zeros((8, 4), np.float32), "terminated is float32, expected bool"),
        ("reward", np.zeros((8, 4)), "reward is float64, expected float32"),
        ("final_value", np.zeros(1, np.float32), r"final_value has shape \[1\]"),
    ],
)
def test_wrong_shape_or_dtype_is_refused(name: str, wrong: np.ndarray, message: str) -> None:
    steps = make_steps(8, 4, seed=6)
    with pytest.raises(ValueError, match=message):
        gae(**{**steps, name: wrong}, gamma=GAMMA, gae_lambda=LAMBDA)


def test_truncated_step_without_a_final_value_is_refused() -> None:
    steps = make_steps(8, 4, seed=7, end_probability=0.0)
    steps["truncated"][3, 2] = True
    with pytest.raises(ValueError, match="0 final values for 1 truncated steps"):
        gae(**steps, gamma=GAMMA, gae_lambda=LAMBDA)
    misplaced = {name: np.array([3], np.int32) for name in ("final_t", "final_env")}
    steps |= misplaced | {"final_value": np.ones(1, np.float32)}
    with pytest.raises(ValueError, match="each needs one, at its place"):
        gae(**steps, gamma=GAMMA, gae_lambda=LAMBDA)
