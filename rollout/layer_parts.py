"""What the compiled forms of all kinds of layers have in common."""

from typing import NamedTuple

from llvmlite import binding

from rollout.learners.layers import Activation

# How many vectors of sums fit in the registers of this machine, with room for what they add up.
MOST_SUMS = 16 if binding.get_host_cpu_features().get("avx512f") else 4
LANES = 16  # as in learners/tile_kernel.py


class LayerSource(NamedTuple):
    """functions: definitions of what `lines` calls. lines: of `forward`, this layer's.

    buffers: name and width of each that it writes; the first is the layer's own.
    """

    functions: tuple[str, ...]
    lines: tuple[str, ...]
    buffers: tuple[tuple[str, int], ...]


def padded(outputs: int) -> int:
    """Outputs of a layer as the compiled loops hold them: whole registers."""
    return 8 if outputs <= 8 else -(-outputs // LANES) * LANES


def tile_shape(width: int) -> tuple[int, int]:
    """(rows, columns) of the tiles for a layer of padded width: as many sums as fit in registers.

    The rows are an even number.
    """
    vectors = max(width // LANES, 1)
    together = next(count for count in (2, 3, 1) if vectors % count == 0 and count <= MOST_SUMS / 4)
    return min(MOST_SUMS // together // 2 * 2, 8), min(together * LANES, width)


def activated(expression: str, activation: Activation) -> str:
    """The source of a layer's activation of an expression's value."""
    forms = {"tanh": "tanh({})", "relu": "max({}, np.float32(0.0))", "identity": "{}"}
    return forms[activation].format(expression)
