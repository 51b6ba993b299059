"""Generalized advantage estimation (Schulman et al., ICLR 2016, arXiv 1506.02438)."""

import numpy as np

from rollout.learners.unroll import Batch


def batch_gae(batch: Batch, gamma: float, gae_lambda: float) -> np.ndarray:
    """Advantages of a batch's steps by the values that actors recorded, float32 [T, B]; see gae."""
    return gae(
        reward=batch.reward,
        value=batch.value,
        terminated=batch.terminated,
        truncated=batch.truncated,
        final_t=batch.final_t,
        final_env=batch.final_env,
        final_value=batch.final_value,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )


@np.errstate(all="ignore")  # what is not finite shows in the loss, and is counted there
def gae(
    *,
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    final_t: np.ndarray,
    final_env: np.ndarray,
    final_value: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Advantages Â_t^GAE(γ, λ), float32 [T, B].

    Equations 11 and 16 of the paper, as the recursion backward in time that equals the sum:

        δ_t = r_t + γ V(next observation) - V(s_t)
        Â_t = δ_t + γ λ Â_{t+1}

    Where a step terminated, V(next observation) is 0: the task ended. Where it was truncated only,
    it is the value of the true last observation, because `value[t + 1]` belongs to the next episode
    already. Both cut the trace: Â_{t+1} is of another episode.

    reward: [T, B] float32.   value: [T+1, B] float32.   terminated, truncated: [T, B] bool.
    final_t, final_env, final_value: [F], one for each truncated step: where, and the value there.
    Arrays of NumPy, because a batch lies in host memory: in place, a step costs two short loops.
    """
    check_steps("gae", reward, value, terminated, truncated, final_t, final_env, final_value)
    advantage = td_error(reward, value, terminated, final_t, final_env, final_value, gamma)
    carry = carried_over(terminated, truncated, gamma * gae_lambda)
    return accumulate(advantage, carry)


def td_error(reward, value, terminated, final_t, final_env, final_value, gamma) -> np.ndarray:
    """δ_t = r_t + γ V(next observation) - V(s_t), a new array [T, B]."""
    next_value = value[1:].copy()
    next_value[final_t, final_env] = final_value
    next_value[terminated] = 0.0
    next_value *= np.float32(gamma)
    next_value += reward
    next_value -= value[:-1]
    return next_value


def carried_over(terminated: np.ndarray, truncated: np.ndarray, factor: float) -> np.ndarray:
    """The factor where a step goes on into the next one, 0 where it ends an episode; [T, B]."""
    return np.where(terminated | truncated, np.float32(0.0), np.float32(factor))


def accumulate(delta: np.ndarray, carry: np.ndarray) -> np.ndarray:
    """x_t = delta_t + carry_t x_{t+1} for all t, from the last one back; delta's memory is x's."""
    scratch = np.empty_like(delta[0])
    for t in reversed(range(len(delta) - 1)):
        np.multiply(carry[t], delta[t + 1], out=scratch)
        delta[t] += scratch
    return delta


def check_steps(
    who: str, reward, value, terminated, truncated, final_t, final_env, final_value
) -> None:
    """Raises ValueError for arrays that are not those of `gae`; the message begins with `who`."""
    T, B = reward.shape
    for name, array, shape in (
        ("value", value, (T + 1, B)),
        ("terminated", terminated, (T, B)),
        ("truncated", truncated, (T, B)),
        ("final_env", final_env, final_t.shape),
        ("final_value", final_value, final_t.shape),
    ):
        if array.shape != shape:
            raise ValueError(f"{who}: {name} has shape {list(array.shape)}, expected {list(shape)}")
    for name, array in (("reward", reward), ("value", value), ("final_value", final_value)):
        if array.dtype != np.float32:
            raise ValueError(f"{who}: {name} is {array.dtype}, expected float32")
    for name, array in (("terminated", terminated), ("truncated", truncated)):
        if array.dtype != np.bool_:
            raise ValueError(f"{who}: {name} is {array.dtype}, expected bool")
    if len(final_t) != np.count_nonzero(truncated) or not truncated[final_t, final_env].all():
        raise ValueError(
            f"{who}: {len(final_t)} final values for {np.count_nonzero(truncated)} truncated "
            "steps; each needs one, at its place"
        )
