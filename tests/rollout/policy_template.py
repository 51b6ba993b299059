"""A template for the tests: the generated policy alone, without an environment."""

from rollout.envs.kernels import bound

entry = bound("entry")
pack, forward, tanh, BLOCK = bound("pack"), bound("forward"), bound("tanh"), bound("BLOCK")
OBSERVATION_SIZE, NUM_ACTIONS = bound("OBSERVATION_SIZE"), bound("NUM_ACTIONS")
LOGITS_OFFSET, LOGITS_STRIDE = bound("LOGITS_OFFSET"), bound("LOGITS_STRIDE")
VALUE_OFFSET, VALUE_STRIDE = bound("VALUE_OFFSET"), bound("VALUE_STRIDE")


@entry
def evaluate(weights, packed, scratch, observation, logits, value):
    """One block of rows: at most BLOCK."""
    rows = observation.shape[0]
    pack(weights, packed)
    for r in range(rows):
        for j in range(OBSERVATION_SIZE):
            scratch[r * OBSERVATION_SIZE + j] = observation[r, j]
    forward(packed, scratch, rows)
    for r in range(rows):
        for a in range(NUM_ACTIONS):
            logits[r, a] = scratch[LOGITS_OFFSET + r * LOGITS_STRIDE + a]
        value[r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]


@entry
def tanh_all(x, y):
    for i in range(x.shape[0]):
        y[i] = tanh(x[i])
