"""Acting, compiled: observe → policy → sample → step → write, T steps of N environments a call.

A template (see envs/kernels.py), run behind the generated policy (policy_kernel.py), which defines
`pack`, `load_row`, `load_core`, `forward`, `save_core`, `push_frame` and the constants from BLOCK
on, and behind that of the head (categorical_kernel.py, gaussian_kernel.py), which has `draw_noise`,
`choose` and `for_env`. What comes before these is the environment's (batch.env_bindings). Nothing
here uses Python objects.
"""

import numpy as np

from rollout.envs.kernels import bound
from rollout.envs.records import records

jit, jit_fma, entry = bound("jit"), bound("jit_fma"), bound("entry")
step_one, observe_one = bound("step_one"), bound("observe_one")
end_episode, mask_one = bound("end_episode"), bound("mask_one")
ENV_RECORD, PARAMS_RECORD = bound("ENV_RECORD"), bound("PARAMS_RECORD")
HAS_VALUE, HAS_MASK = bound("HAS_VALUE"), bound("HAS_MASK")
OBSERVATION_SIZE, ACTION_SIZE = bound("OBSERVATION_SIZE"), bound("ACTION_SIZE")
BLOCK, NUM_OUTPUTS = bound("BLOCK"), bound("NUM_OUTPUTS")
OUTPUTS_OFFSET, OUTPUTS_STRIDE = bound("OUTPUTS_OFFSET"), bound("OUTPUTS_STRIDE")
VALUE_OFFSET, VALUE_STRIDE = bound("VALUE_OFFSET"), bound("VALUE_STRIDE")
LOG_STD_OFFSET = bound("LOG_STD_OFFSET")
CORE_SIZE, HISTORY_SIZE = bound("CORE_SIZE"), bound("HISTORY_SIZE")
pack, forward = bound("pack"), bound("forward")
load_row, push_frame = bound("load_row"), bound("push_frame")
load_core, save_core = bound("load_core"), bound("save_core")
draw_noise, choose, for_env = bound("draw_noise"), bound("choose"), bound("for_env")


@entry
def act_unroll(
    env_bytes,
    params_bytes,
    core_state,
    frames,
    weights,
    packed,
    scratch,
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
    """Fill an unroll (learners.unroll.Unroll says what is what); returns the lengths of its tails.

    core_state: float32 [N, CORE_SIZE]. frames: [N, HISTORY_SIZE], the observations before. Both
    before and after.

    Blocks of environments go through all T steps one after the other, so that their states stay in
    the cache; environments do not affect each other, so the order changes nothing. The tails are in
    the order (block, t, environment). Before each call of the author's
    position[0] becomes i * T + t: where to look if it fails, or never comes to an end.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    T, N = reward.shape
    flat = observation.reshape(T + 1, N, OBSERVATION_SIZE)
    flat_action = action.reshape(T, N, ACTION_SIZE)
    final_flat = final_observation.reshape(final_t.shape[0], OBSERVATION_SIZE)
    pack(weights, packed)
    log_std = packed[LOG_STD_OFFSET:]
    finals = 0
    episodes = 0
    for start in range(0, N, BLOCK):
        rows = min(BLOCK, N - start)
        for r in range(rows):
            position[0] = (start + r) * T
            observe_one(envs, params, start + r, observation[0, start + r])
        for t in range(T):
            for r in range(rows):
                load_row(frames[start + r], flat[t, start + r], scratch, r)
                load_core(core_state[start + r], scratch, r)
            forward(packed, scratch, rows)
            draw_noise(envs, start, rows, noise)
            first_final = finals
            for r in range(rows):
                i = start + r
                save_core(scratch, r, core_state[i])
                push_frame(flat[t, i], frames[i])
                position[0] = i * T + t
                place = OUTPUTS_OFFSET + r * OUTPUTS_STRIDE
                if HAS_MASK:
                    mask_one(envs, params, i, action_mask[t, i])
                behavior_log_prob[t, i] = choose(
                    scratch[place : place + NUM_OUTPUTS],
                    log_std,
                    noise[r * ACTION_SIZE : (r + 1) * ACTION_SIZE],
                    action_mask[t, i],
                    greedy,
                    flat_action[t, i],
                )
                if HAS_VALUE:
                    value[t, i] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
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
            if HAS_VALUE and finals > first_final:
                for r in range(finals - first_final):
                    i = final_env[first_final + r]
                    load_row(frames[i], final_flat[first_final + r], scratch, r)
                    load_core(core_state[i], scratch, r)
                forward(packed, scratch, finals - first_final)
                for r in range(finals - first_final):
                    final_value[first_final + r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
            if CORE_SIZE > 0 or HISTORY_SIZE > 0:
                for i in range(start, start + rows):
                    if terminated[t, i] or truncated[t, i]:
                        core_state[i] = np.float32(0.0)
                        frames[i] = 0
        if HAS_VALUE:
            for r in range(rows):
                load_row(frames[start + r], flat[T, start + r], scratch, r)
                load_core(core_state[start + r], scratch, r)
            forward(packed, scratch, rows)
            for r in range(rows):
                value[T, start + r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
    return finals, episodes
