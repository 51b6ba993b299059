"""The compiled form of each kind of layer, as Python source for policy_kernel.py to put together.

In `forward` every buffer is a float32 array `in_NAME` [BLOCK, width], and every parameter an array
`LAYER_NAME` of its own shape, but for the last axis: that one is padded. How loops must be written
so that a row's result does not depend on its company, policy_kernel.py says.
"""

from rollout.conv_source import conv_source
from rollout.core_source import core_source
from rollout.dense_source import dense_source
from rollout.layer_parts import LayerSource
from rollout.learners.layers import Conv, Dense, Gru, Layer, Lstm, Normalize
from rollout.normalize_source import normalize_source


def layer_source(layer: Layer) -> LayerSource:
    """A layer's compiled form."""
    match layer:
        case Dense():
            return dense_source(layer)
        case Normalize():
            return normalize_source(layer)
        case Conv():
            return conv_source(layer)
        case Lstm() | Gru():
            return core_source(layer)
