"""Choosing actions for N environments that Python steps, compiled.

A template like acting_kernel.py, behind the same policy and head: what that one does in the middle
of its loop, for one step of all environments.
"""

from rollout.envs.kernels import bound
from rollout.envs.records import records

entry = bound("entry")
CLOCK_RECORD = bound("CLOCK_RECORD")
HAS_VALUE = bound("HAS_VALUE")
OBSERVATION_SIZE, ACTION_SIZE = bound("OBSERVATION_SIZE"), bound("ACTION_SIZE")
BLOCK, NUM_OUTPUTS = bound("BLOCK"), bound("NUM_OUTPUTS")
OUTPUTS_OFFSET, OUTPUTS_STRIDE = bound("OUTPUTS_OFFSET"), bound("OUTPUTS_STRIDE")
VALUE_OFFSET, VALUE_STRIDE = bound("VALUE_OFFSET"), bound("VALUE_STRIDE")
LOG_STD_OFFSET = bound("LOG_STD_OFFSET")
pack, forward = bound("pack"), bound("forward")
load_row, push_frame = bound("load_row"), bound("push_frame")
load_core, save_core = bound("load_core"), bound("save_core")
draw_noise, choose, for_env = bound("draw_noise"), bound("choose"), bound("for_env")


@entry
def pack_weights(weights, packed):
    """Lay out the weights of the unroll that begins, in `packed`."""
    pack(weights, packed)


@entry
def choose_all(
    clock_bytes,
    core_state,
    frames,
    packed,
    scratch,
    noise,
    greedy,
    observation,
    action,
    action_mask,
    behavior_log_prob,
    value,
    env_action,
):
    """Write the actions [N, …] for observations [N, …], their log-probabilities and values [N].

    env_action: [N, numbers of one action], becomes what the environments get for quantities.
    core_state: float32 [N, CORE_SIZE]. frames: [N, HISTORY_SIZE]. Both before and after.
    """
    envs = records(clock_bytes, CLOCK_RECORD)
    N = behavior_log_prob.shape[0]
    flat = observation.reshape(N, OBSERVATION_SIZE)
    flat_action = action.reshape(N, ACTION_SIZE)
    log_std = packed[LOG_STD_OFFSET:]
    for start in range(0, N, BLOCK):
        rows = min(BLOCK, N - start)
        for r in range(rows):
            load_row(frames[start + r], flat[start + r], scratch, r)
            load_core(core_state[start + r], scratch, r)
        forward(packed, scratch, rows)
        draw_noise(envs, start, rows, noise)
        for r in range(rows):
            i = start + r
            save_core(scratch, r, core_state[i])
            push_frame(flat[i], frames[i])
            place = OUTPUTS_OFFSET + r * OUTPUTS_STRIDE
            behavior_log_prob[i] = choose(
                scratch[place : place + NUM_OUTPUTS],
                log_std,
                noise[r * ACTION_SIZE : (r + 1) * ACTION_SIZE],
                action_mask[i],
                greedy,
                flat_action[i],
            )
            for_env(flat_action[i], env_action[i])
            if HAS_VALUE:
                value[i] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
