"""A template for the tests: the generated policy alone, without an environment."""

from rollout.envs.kernels import bound

entry = bound("entry")
pack, forward, tanh, BLOCK = bound("pack"), bound("forward"), bound("tanh"), bound("BLOCK")
NUM_INPUTS, NUM_OUTPUTS = bound("NUM_INPUTS"), bound("NUM_OUTPUTS")
OUTPUTS_OFFSET, OUTPUTS_STRIDE = bound("OUTPUTS_OFFSET"), bound("OUTPUTS_STRIDE")
VALUE_OFFSET, VALUE_STRIDE = bound("VALUE_OFFSET"), bound("VALUE_STRIDE")


@entry
def evaluate(weights, packed, scratch, observation, logits, value):
    """One block of rows: at most BLOCK."""
    rows = observation.shape[0]
    pack(weights, packed)
    for r in range(rows):
        for j in range(NUM_INPUTS):
            scratch[r * NUM_INPUTS + j] = observation[r, j]
    forward(packed, scratch, rows)
    for r in range(rows):
        for a in range(NUM_OUTPUTS):
            logits[r, a] = scratch[OUTPUTS_OFFSET + r * OUTPUTS_STRIDE + a]
        value[r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]


@entry
def tanh_all(x, y):
    for i in range(x.shape[0]):
        y[i] = tanh(x[i])
