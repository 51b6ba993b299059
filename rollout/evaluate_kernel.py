"""What the policy says of observations, compiled.

A template (see envs/kernels.py), run behind the generated policy (policy_kernel.py), which defines
`pack`, `load_row`, `load_core`, `forward`, `save_core`, `push_frame` and the constants from BLOCK
on.
"""

from rollout.envs.kernels import bound

entry = bound("entry")
OBSERVATION_SIZE = bound("OBSERVATION_SIZE")
BLOCK, NUM_OUTPUTS = bound("BLOCK"), bound("NUM_OUTPUTS")
OUTPUTS_OFFSET, OUTPUTS_STRIDE = bound("OUTPUTS_OFFSET"), bound("OUTPUTS_STRIDE")
VALUE_OFFSET, VALUE_STRIDE = bound("VALUE_OFFSET"), bound("VALUE_STRIDE")
pack, forward = bound("pack"), bound("forward")
load_row, push_frame = bound("load_row"), bound("push_frame")
load_core, save_core = bound("load_core"), bound("save_core")


@entry
def evaluate(weights, packed, scratch, observation, core_state, frames, outputs, value):
    """The head's outputs [N, A] and values [N] of observations [N, …], in blocks.

    core_state: float32 [N, CORE_SIZE]. frames: [N, HISTORY_SIZE]. Both before and after.
    """
    N = value.shape[0]
    flat = observation.reshape(N, OBSERVATION_SIZE)
    pack(weights, packed)
    for start in range(0, N, BLOCK):
        rows = min(BLOCK, N - start)
        for r in range(rows):
            load_row(frames[start + r], flat[start + r], scratch, r)
            load_core(core_state[start + r], scratch, r)
        forward(packed, scratch, rows)
        for r in range(rows):
            save_core(scratch, r, core_state[start + r])
            push_frame(flat[start + r], frames[start + r])
            for a in range(NUM_OUTPUTS):
                outputs[start + r, a] = scratch[OUTPUTS_OFFSET + r * OUTPUTS_STRIDE + a]
            value[start + r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
