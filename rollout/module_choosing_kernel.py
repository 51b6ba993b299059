"""Choosing actions from what a user's module says, for N environments that Python steps, compiled.

A template like choosing_kernel.py, behind the same head, without a policy.
"""

from rollout.envs.kernels import bound
from rollout.envs.records import records

entry = bound("entry")
CLOCK_RECORD, ACTION_SIZE = bound("CLOCK_RECORD"), bound("ACTION_SIZE")
draw_noise, choose, for_env = bound("draw_noise"), bound("choose"), bound("for_env")


@entry
def choose_all(
    clock_bytes,
    outputs,
    log_std,
    noise,
    greedy,
    action,
    action_mask,
    behavior_log_prob,
    env_action,
):
    """Write the actions [N, …] for outputs [N, A], and their log-probabilities [N].

    env_action: as of choosing_kernel.choose_all.
    """
    envs = records(clock_bytes, CLOCK_RECORD)
    N = behavior_log_prob.shape[0]
    flat_action = action.reshape(N, ACTION_SIZE)
    draw_noise(envs, 0, N, noise)
    for i in range(N):
        behavior_log_prob[i] = choose(
            outputs[i],
            log_std,
            noise[i * ACTION_SIZE : (i + 1) * ACTION_SIZE],
            action_mask[i],
            greedy,
            flat_action[i],
        )
        for_env(flat_action[i], env_action[i])
