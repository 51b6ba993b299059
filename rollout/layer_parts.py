"""What the compiled forms of all kinds of layers have in common."""

from typing import NamedTuple

from rollout.learners.layers import Activation


class LayerSource(NamedTuple):
    """functions: definitions of what `lines` calls. lines: of `forward`, this layer's.

    buffers: name and width of each that it writes; the first is the layer's own.
    """

    functions: tuple[str, ...]
    lines: tuple[str, ...]
    buffers: tuple[tuple[str, int], ...]


def padded(outputs: int) -> int:
    """Outputs of a layer as the compiled loops hold them: whole registers."""
    return 8 if outputs <= 8 else -(-outputs // 16) * 16


def activated(expression: str, activation: Activation) -> str:
    """The source of a layer's activation of an expression's value."""
    forms = {"tanh": "tanh({})", "relu": "max({}, np.float32(0.0))", "identity": "{}"}
    return forms[activation].format(expression)
