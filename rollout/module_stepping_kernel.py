"""Choosing actions from what a user's module says, and stepping N environments, compiled.

A template like acting_kernel.py, behind the same head, without a policy: what that one does in the
middle of its loop, for one step of all environments.
"""

from rollout.envs.kernels import bound
from rollout.envs.records import records

entry = bound("entry")
step_one, observe_one = bound("step_one"), bound("observe_one")
end_episode, mask_one = bound("end_episode"), bound("mask_one")
ENV_RECORD, PARAMS_RECORD = bound("ENV_RECORD"), bound("PARAMS_RECORD")
HAS_MASK, ACTION_SIZE = bound("HAS_MASK"), bound("ACTION_SIZE")
draw_noise, choose, for_env = bound("draw_noise"), bound("choose"), bound("for_env")


@entry
def observe_all(env_bytes, params_bytes, T, position, observation):
    """Write observation [N, …] of all environments, before the first step."""
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    for i in range(envs.shape[0]):
        position[0] = i * T
        observe_one(envs, params, i, observation[i])


@entry
def step_all(
    env_bytes,
    params_bytes,
    t,
    finals,
    episodes,
    outputs,
    log_std,
    noise,
    env_action,
    greedy,
    position,
    observation,
    action,
    action_mask,
    reward,
    terminated,
    truncated,
    behavior_log_prob,
    value,
    final_t,
    final_env,
    final_observation,
    final_value,
    episode_t,
    episode_env,
    episode_return,
    episode_length,
):
    """Step t of an unroll (acting_kernel.py), from outputs [N, A]; returns its tails' lengths.

    finals, episodes: these lengths before. Values are the caller's.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    T, N = reward.shape
    flat_action = action.reshape(T, N, ACTION_SIZE)
    draw_noise(envs, 0, N, noise)
    for i in range(N):
        position[0] = i * T + t
        if HAS_MASK:
            mask_one(envs, params, i, action_mask[t, i])
        behavior_log_prob[t, i] = choose(
            outputs[i],
            log_std,
            noise[i * ACTION_SIZE : (i + 1) * ACTION_SIZE],
            action_mask[t, i],
            greedy,
            flat_action[t, i],
        )
        reward[t, i], terminated[t, i], truncated[t, i] = step_one(
            envs, params, i, for_env(flat_action[t, i], env_action)
        )
        if terminated[t, i] or truncated[t, i]:
            if truncated[t, i]:
                final_t[finals] = t
            episode_t[episodes] = t
            finals, episodes = end_episode(
                envs,
                env_bytes,
                params,
                i,
                truncated[t, i],
                finals,
                episodes,
                final_env,
                final_observation,
                episode_env,
                episode_return,
                episode_length,
            )
        observe_one(envs, params, i, observation[t + 1, i])
    return finals, episodes
