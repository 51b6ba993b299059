"""V-trace (Espeholt et al., ICML 2018, arXiv 1802.01561): to learn from another policy's steps."""

from typing import NamedTuple

import numpy as np

from rollout.learners.gae import accumulate, carried_over, check_steps, td_error


class VTrace(NamedTuple):
    """value_target: v_t.   advantage: the policy gradient's weight.   Both float32 [T, B]."""

    value_target: np.ndarray
    advantage: np.ndarray


@np.errstate(all="ignore")  # what is not finite shows in the loss, and is counted there
def vtrace(
    *,
    ratio: np.ndarray,
    reward: np.ndarray,
    value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    final_t: np.ndarray,
    final_env: np.ndarray,
    final_value: np.ndarray,
    gamma: float,
    gae_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> VTrace:
    """Targets for the value, and advantages for the policy.

    Equation 1 of the paper, as the recursion of its remark 1, with the λ of its remark 2, and the
    policy gradient's weight of section 4.2:

        ρ_t = min(ρ̄, π(a_t|x_t) / μ(a_t|x_t))
        c_t = λ min(c̄, π(a_t|x_t) / μ(a_t|x_t))
        v_t = V(x_t) + ρ_t (r_t + γ_t V(x_{t+1}) - V(x_t)) + γ_t c_t (v_{t+1} - V(x_{t+1}))
        advantage_t = ρ_t (q_t - V(x_t))
        q_t = r_t + γ_t ((1 - λ) V(x_{t+1}) + λ v_{t+1})

    The paper's q_t is the one for λ = 1. With this one, equal policies have v_t - V(x_t) =
    advantage_t = the advantage of GAE, for every λ.

    Where a step terminated, γ_t is 0: the task ended. Where it was truncated only, V(x_{t+1}) is
    the value of the true last observation, and v_{t+1} is, too: what follows is of another episode.
    Nor is anything known behind the last row, whose v_{t+1} is V(x_{t+1}).

    ratio: [T, B] float32, π / μ of the actions that μ, the behavior policy, took.
    value: [T+1, B] float32, final_value: [F] float32, by the network that learns. The others: see
    gae; arrays of NumPy for the reason given there (in torch, the loop takes twice as long on a
    CPU, and a GPU needs longer to start its 2 T kernels than to send two columns to the host).
    """
    check_steps("vtrace", reward, value, terminated, truncated, final_t, final_env, final_value)
    if ratio.shape != reward.shape or ratio.dtype != np.float32:
        raise ValueError(
            f"vtrace: ratio is {ratio.dtype} {list(ratio.shape)}, "
            f"expected float32 {list(reward.shape)}"
        )
    rho = np.minimum(ratio, np.float32(rho_clip))
    delta = td_error(reward, value, terminated, final_t, final_env, final_value, gamma)
    carry = carried_over(terminated, truncated, gamma * gae_lambda)
    beyond = accumulate(rho * delta, carry * np.minimum(ratio, np.float32(c_clip)))  # v_t - V(x_t)
    delta[:-1] += carry[:-1] * beyond[1:]  # q_t - V(x_t)
    return VTrace(value_target=beyond + value[:-1], advantage=rho * delta)
