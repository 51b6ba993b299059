"""The compiled form of layers that normalize: number by number, as torch rounds them."""

from rollout.layer_parts import LayerSource
from rollout.learners.layers import Normalize


def normalize_source(layer: Normalize) -> LayerSource:
    function = f"normalize_{layer.inputs}"
    mean, scale = f"{layer.name}_mean", f"{layer.name}_scale"
    return LayerSource(
        (_normalize_function(function, layer),),
        (f"{function}(in_{layer.source}, {mean}, {scale}, in_{layer.name}, rows)",),
        ((layer.name, layer.outputs),),
    )


def _normalize_function(function: str, layer: Normalize) -> str:
    """normalize_…(x, mean, scale, out, rows) writes out[:rows]; NaN stays NaN."""
    limit = f"np.float32({layer.LIMIT!r})"
    return "\n".join(
        [
            "@jit_fma",
            f"def {function}(x, mean, scale, out, rows):",
            "    for r in range(rows):",
            f"        for j in range({layer.inputs}):",
            "            y = (x[r, j] - mean[j]) * scale[j]",
            f"            out[r, j] = max(min(y, {limit}), -{limit})",
        ]
    )
